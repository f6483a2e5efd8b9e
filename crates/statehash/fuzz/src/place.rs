//! A destination among things that must stay as they are, and what lies in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::folder;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Dir { mode: u32, mtime: (i64, i64) },
    File { mode: u32, mtime: (i64, i64), content: Vec<u8> },
    Link { mtime: (i64, i64), target: Vec<u8> },
}

pub struct Place {
    base: PathBuf,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// In the system's folder for temporary files, one for each process.
    pub fn new() -> Self {
        let base = std::env::temp_dir().join(format!("fuzz-{}", std::process::id()));
        drop(fs::remove_dir_all(&base));
        fs::create_dir(&base).expect("mkdir");
        fs::write(base.join("outside"), b"untouched").expect("write");
        fs::create_dir(base.join("elsewhere")).expect("mkdir");
        fs::create_dir(base.join("dest")).expect("mkdir");
        Self { base }
    }

    pub fn path(&self) -> PathBuf {
        self.base.join("dest")
    }

    pub fn fd(&self) -> OwnedFd {
        folder(&self.path())
    }

    /// Asserts that nothing but the destination was written, and empties it.
    pub fn check_and_clear(&self) {
        let mut names: Vec<_> = fs::read_dir(&self.base).expect("read_dir").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["dest", "elsewhere", "outside"]);
        let outside = self.base.join("outside");
        assert_eq!(fs::read(&outside).expect("read"), b"untouched");
        assert_eq!(fs::metadata(&outside).expect("stat").mode() & 0o7022, 0);
        assert_eq!(fs::read_dir(self.base.join("elsewhere")).expect("read_dir").count(), 0);
        self.clear();
    }

    pub fn clear(&self) {
        clear(&self.path());
    }
}

/// Empties a folder, whatever modes lie in it.
pub fn clear(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).expect("chmod");
    for entry in fs::read_dir(dir).expect("read_dir") {
        let entry = entry.expect("entry");
        if entry.file_type().expect("type").is_dir() {
            clear(&entry.path());
            fs::remove_dir(entry.path()).expect("rmdir");
        } else {
            fs::remove_file(entry.path()).expect("remove");
        }
    }
}

/// All that lies below a folder, by its path.
pub fn read(root: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("read_dir") {
            let path = entry.expect("entry").path();
            let stat = fs::symlink_metadata(&path).expect("stat");
            let (mode, mtime) = (stat.mode() & 0o7777, (stat.mtime(), stat.mtime_nsec()));
            let seen = if stat.is_dir() {
                todo.push(path.clone());
                Entry::Dir { mode, mtime }
            } else if stat.is_symlink() {
                Entry::Link { mtime, target: fs::read_link(&path).expect("readlink").as_os_str().as_bytes().to_vec() }
            } else {
                assert!(stat.is_file(), "{path:?} is a special file");
                Entry::File { mode, mtime, content: fs::read(&path).expect("read") }
            };
            let relative = path.strip_prefix(root).expect("below the root");
            found.insert(relative.as_os_str().as_bytes().to_vec(), seen);
        }
    }
    found
}
