//! Which folders changed: an inotify watch on each folder below a root, set by the walk before it reads the folder.
//!
//! A watch is set on a folder that is open already, by its name in `/proc/self/fd`, so no path is followed. The map of
//! paths may lag behind renames; what it gets wrong is put right by events that are queued by then: the folder around
//! a rename is dirty, and a walk of a dirty folder goes down into every folder that is not watched under its name.
//!
//! What gives no event: writes through mmap, and through a hard link in another folder. A full walk sees most of
//! the former and the latter (`scan`), reading everything (`recheck`) sees all.

use std::collections::{BTreeMap, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::Mode;
use rustix::io::Errno;

use crate::beneath;
use crate::error::{Error, Result};
use crate::paths;

/// Files that are read or closed are no news; those that were unlinked while open are nobody's any more.
const NEWS: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// Why a watch cannot tell any more; it stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blind {
    /// More happened than the kernel's queue holds, or a file system went away.
    Overflow,
    /// More folders than the caller or the system (`max_user_watches`) allows.
    Limit,
    System(Errno),
}

pub struct Watch {
    queue: OwnedFd,
    skip: Vec<u8>,
    max_folders: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    watches: BTreeMap<Arc<[u8]>, i32>,
    paths: HashMap<i32, Arc<[u8]>>,
    /// Folders with news, and the number of the last.
    dirty: BTreeMap<Arc<[u8]>, u64>,
    count: u64,
    blind: Option<Blind>,
}

impl Watch {
    /// Watches the root alone; the first walk adds the rest. An error where the system has no inotify to give.
    pub fn new(root: BorrowedFd<'_>, skip: &[u8], max_folders: usize) -> Result<Self> {
        let at = |e| Error::os(b"", e);
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(at)?;
        let watch = Self { queue, skip: skip.to_vec(), max_folders, state: Mutex::default() };
        watch.add(b"", beneath::open(root, b"", beneath::FOLDER, Mode::empty()).map_err(at)?.as_fd());
        match watch.blind() {
            Some(Blind::System(errno)) => Err(at(errno)),
            Some(_) => Err(at(Errno::NOSPC)),
            None => Ok(watch),
        }
    }

    /// Readable when there is news.
    pub fn queue(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn blind(&self) -> Option<Blind> {
        self.lock().blind
    }

    pub fn folders(&self) -> usize {
        self.lock().watches.len()
    }

    pub fn watches(&self, path: &[u8]) -> bool {
        self.lock().watches.contains_key(path)
    }

    /// Watches an open folder, which is at `path`. Where that fails the watch is blind.
    pub fn add(&self, path: &[u8], folder: BorrowedFd<'_>) {
        let mut state = self.lock();
        if state.blind.is_some() || state.watches.contains_key(path) {
            return;
        }
        if state.watches.len() >= self.max_folders {
            state.blind = Some(Blind::Limit);
            return;
        }
        match inotify::add_watch(&self.queue, format!("/proc/self/fd/{}", folder.as_raw_fd()), NEWS) {
            Ok(id) => {
                let path: Arc<[u8]> = path.into();
                // The same folder under its former name.
                if let Some(former) = state.paths.insert(id, Arc::clone(&path)) {
                    state.watches.remove(&former);
                }
                state.watches.insert(path, id);
            }
            Err(Errno::NOSPC) => state.blind = Some(Blind::Limit),
            Err(e) => state.blind = Some(Blind::System(e)),
        }
    }

    /// Takes in what the queue holds; the number of all news so far.
    pub fn gather(&self) -> u64 {
        let mut state = self.lock();
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut events = Reader::new(&self.queue, &mut buffer);
        loop {
            match events.next() {
                Ok(event) => self.take(&mut state, event.wd(), event.events(), event.file_name().map(|n| n.to_bytes())),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return state.count,
                Err(e) => {
                    state.blind.get_or_insert(Blind::System(e));
                    return state.count;
                }
            }
        }
    }

    fn take(&self, state: &mut State, id: i32, what: ReadFlags, name: Option<&[u8]>) {
        if what.intersects(ReadFlags::QUEUE_OVERFLOW | ReadFlags::UNMOUNT) {
            state.blind.get_or_insert(Blind::Overflow);
            return;
        }
        if what.contains(ReadFlags::IGNORED) {
            if let Some(path) = state.paths.remove(&id) {
                if state.watches.get(&path) == Some(&id) {
                    state.watches.remove(&path);
                }
            }
            return;
        }
        // Folders that were moved away are no longer ours; the folder around them had news of its own.
        let Some(path) = state.paths.get(&id).cloned() else { return };
        if let Some(name) = name {
            if path.is_empty() && (name == self.skip || name == paths::RESERVED) {
                return;
            }
            if what.contains(ReadFlags::ISDIR) && what.contains(ReadFlags::MOVED_FROM) {
                self.forget(state, &paths::join(&path, name));
            }
        }
        state.count += 1;
        let count = state.count;
        state.dirty.insert(path, count);
    }

    /// A folder moved: what lies below has other names now.
    fn forget(&self, state: &mut State, path: &[u8]) {
        let below: Vec<_> = state
            .watches
            .range::<[u8], _>((std::ops::Bound::Included(path), std::ops::Bound::Unbounded))
            .take_while(|(p, _)| p.starts_with(path))
            .filter(|(p, _)| paths::at_or_below(p, path))
            .map(|(p, id)| (Arc::clone(p), *id))
            .collect();
        for (path, id) in below {
            // Fails only where the folder is gone, and its watch with it.
            let _ = inotify::remove_watch(&self.queue, id);
            state.watches.remove(&path);
            state.paths.remove(&id);
        }
    }

    /// Folders with news after number `since`.
    pub fn dirty(&self, since: u64) -> Vec<Vec<u8>> {
        self.lock().dirty.iter().filter(|(_, n)| **n > since).map(|(path, _)| path.to_vec()).collect()
    }

    /// The news up to that number are dealt with.
    pub fn settle(&self, upto: u64) {
        self.lock().dirty.retain(|_, n| *n > upto);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::path::Path;

    fn watch(root: &Path, max_folders: usize) -> Watch {
        let fd = File::open(root).expect("open");
        let watch = Watch::new(fd.as_fd(), b".the0", max_folders).expect("watch");
        for entry in fs::read_dir(root).expect("read") {
            let entry = entry.expect("entry");
            if entry.path().is_dir() {
                watch.add(entry.file_name().as_encoded_bytes(), File::open(entry.path()).expect("open").as_fd());
            }
        }
        watch
    }

    #[test]
    fn tells_folders_and_forgets_those_that_moved() {
        let tmp = tempfile::tempdir().expect("tmp");
        let at = |p: &str| tmp.path().join(p);
        for d in ["a", "b", "a-b"] {
            fs::create_dir(at(d)).expect("mkdir");
        }
        let watch = watch(tmp.path(), 10);
        assert_eq!((watch.gather(), watch.folders()), (0, 4));
        fs::write(at("a/f"), b"x").expect("write");
        let seen = watch.gather();
        assert_eq!(watch.dirty(0), [b"a"]);
        assert!(watch.dirty(seen).is_empty());
        fs::rename(at("a"), at("c")).expect("rename");
        watch.gather();
        assert_eq!(watch.dirty(seen), [b""]);
        assert!(!watch.watches(b"a") && watch.watches(b"a-b") && watch.watches(b"b"));
        watch.settle(seen);
        assert_eq!(watch.dirty(0), [b""]);
        fs::remove_dir(at("b")).expect("rmdir");
        watch.gather();
        assert!(!watch.watches(b"b"));
        fs::create_dir(at(".the0")).expect("mkdir");
        let before = watch.gather();
        fs::remove_dir(at(".the0")).expect("rmdir");
        assert_eq!((watch.gather(), watch.blind()), (before, None));
    }

    #[test]
    fn too_many_folders_make_it_blind() {
        let tmp = tempfile::tempdir().expect("tmp");
        for n in 0..5 {
            fs::create_dir(tmp.path().join(n.to_string())).expect("mkdir");
        }
        assert_eq!(watch(tmp.path(), 3).blind(), Some(Blind::Limit));
    }
}
