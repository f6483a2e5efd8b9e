//! A tree that is edited (sparse files too), committed, cleaned by carrying, its index read again or its commit
//! abandoned, in any order: each commit's segments restore to exactly what is there.
#![no_main]

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{symlink, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use rustix::fs::{fallocate, FallocateFlags};
use statehash::block::BLOCK;
use statehash::index::Index;
use statehash::segment::Segment;
use statehash::unpack::Restore;
use statehash_fuzz::commits::packed;
use statehash_fuzz::input::Input;
use statehash_fuzz::place::{clear, read, Place};
use statehash_fuzz::segments::LIMITS;
use statehash_fuzz::{folder, rows};

const PATHS: [&str; 10] = ["a", "b", "d", "d/x", "d/e", "d/e/y", "l", "s", "a-", "b/c"];
const SIZES: [usize; 8] = [0, 1, 5000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 4 * BLOCK + 77];
const INDEX: &str = "index";

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let place = Place::new();
    ["root", "home", "back"].iter().for_each(|name| fs::create_dir(place.path().join(name)).expect("mkdir"));
    place
});

struct World {
    index: Index,
    /// (key, segment) of those that are listed.
    store: Vec<(String, Segment)>,
    made: usize,
}

/// Offset and length within the file, or a little beyond its end.
fn range(input: &mut Input<'_>, len: u64) -> (u64, u64) {
    let (at, n) = (u64::from(input.u32()) % (len + 100), input.pick(&[1, 100, 4096, BLOCK as u64, 2 * BLOCK as u64]));
    (at, n)
}

fn filled(input: &mut Input<'_>) -> Vec<u8> {
    let mut content = vec![0; input.pick(&SIZES)];
    content.chunks_mut(BLOCK).for_each(|block| block.fill(input.u8() % 4));
    content
}

fn open(path: &Path) -> Option<File> {
    let regular = fs::symlink_metadata(path).is_ok_and(|stat| stat.is_file());
    regular.then(|| OpenOptions::new().write(true).open(path).expect("open"))
}

/// A path below the root; None where a link leads to it, which could lead out.
fn path(input: &mut Input<'_>, root: &Path) -> Option<PathBuf> {
    let path = root.join(input.pick(&PATHS));
    let inner = path.ancestors().skip(1).take_while(|above| *above != root);
    let plain = |above: &Path| fs::symlink_metadata(above).is_ok_and(|stat| stat.is_dir());
    inner.into_iter().all(plain).then_some(path)
}

/// One change of the tree. What the place does not allow is no change.
fn edit(input: &mut Input<'_>, root: &Path) {
    let Some(path) = path(input, root) else { return };
    let link = fs::symlink_metadata(&path).is_ok_and(|stat| stat.is_symlink());
    let regular = open(&path);
    let len = regular.as_ref().map_or(0, |file| file.metadata().expect("stat").len());
    match (input.u8() % 10, regular) {
        (0 | 1, _) if link => {}
        (0, _) => drop(fs::write(&path, input.sized())),
        (1, _) => drop(fs::write(&path, filled(input))),
        (2, Some(file)) => {
            let (at, n) = range(input, len);
            file.write_all_at(&vec![input.u8() % 4; n as usize], at).expect("write");
        }
        (3, Some(file)) => file.set_len(input.pick(&SIZES) as u64).expect("truncate"),
        (4, Some(file)) => {
            let (at, n) = range(input, len);
            fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, n).expect("punch");
        }
        (5, _) => match fs::symlink_metadata(&path) {
            Ok(stat) if stat.is_dir() => fs::remove_dir_all(&path).expect("remove"),
            Ok(_) => fs::remove_file(&path).expect("remove"),
            Err(_) => {}
        },
        (6, _) => drop(fs::create_dir(&path)),
        (7, _) => drop(symlink(input.pick(&["a", "../elsewhere", "/", "nowhere"]), &path)),
        (8, _) => drop(self::path(input, root).map(|to| fs::rename(&path, to))),
        (9, Some(file)) => {
            let mode = fs::Permissions::from_mode(input.pick(&[0o600, 0o644, 0o755]));
            file.set_permissions(mode).expect("chmod");
            file.set_modified(UNIX_EPOCH + Duration::from_nanos(input.u16().into())).expect("touch");
        }
        _ => {}
    }
}

impl World {
    /// Commits the tree, what still counts in some segments with it; or only says what it would have been.
    fn commit(&mut self, root: &Path, carry: u8, keep: bool, threads: usize) {
        let keys = self.store.iter().enumerate().filter(|(n, _)| carry >> (n % 8) & 1 == 1).map(|(_, (key, _))| key.clone());
        let (pack, segments) = packed(root, &self.index, &keys.collect::<Vec<_>>(), threads);
        assert!(pack.incomplete.is_empty() && pack.doubtful.is_empty() && !pack.moved);
        let names: Vec<_> = segments.iter().enumerate().map(|(n, _)| format!("{}", self.made + n)).collect();
        self.made += names.len();
        let dropped: Vec<String> = pack.dropped(&self.index).expect("dropped").into_iter().map(str::to_owned).collect();
        self.index.stage(pack.staged(&self.index, &names, b"").expect("staged")).expect("stage");
        if !keep {
            return self.index.abandon().expect("abandon");
        }
        self.index.confirm(b"m").expect("confirm");
        self.store.retain(|(key, _)| !dropped.contains(key));
        self.store.extend(names.into_iter().zip(segments));
        let listed: Vec<_> = self.index.catalog().segments.iter().map(|s| &s.key).collect();
        assert_eq!(listed, self.store.iter().map(|(key, _)| key).collect::<Vec<_>>());
        let live = self.index.catalog().live();
        assert!(live.iter().zip(&self.store).all(|(live, (_, s))| *live <= s.bytes.len() as u64));
    }

    /// The tree was just committed.
    fn holds(&self, root: &Path, back: &Path) {
        clear(back);
        let mut restore = Restore::new(folder(back), LIMITS);
        for (key, segment) in &self.store {
            let digest = blake3::Hash::from_bytes(segment.digest).to_hex();
            restore.apply(&segment.bytes, key, &digest, 1, &|| Ok(())).expect("apply");
        }
        restore.finish(false, &|| Ok(())).expect("finish");
        let restored = restore.index(folder(back).as_fd(), 1, &|| Ok(())).expect("index");
        assert_eq!(rows(restored.tree()), rows(self.index.tree()));
        assert_eq!(read(back), read(root));
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let [root, home, back] = ["root", "home", "back"].map(|name| PLACE.path().join(name));
    clear(&root);
    let mut world = World { index: Index::default(), store: Vec::new(), made: 0 };
    world.index.save(folder(&home).as_fd(), INDEX, false).expect("save");
    for _ in 0..40 {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            0..=4 => edit(&mut input, &root),
            5 => {
                world.commit(&root, input.u8(), true, 1 + usize::from(input.u8() % 2));
                world.holds(&root, &back);
            }
            6 => world.commit(&root, input.u8(), false, 1),
            _ => {
                if input.u8() % 2 == 0 {
                    world.index.save(folder(&home).as_fd(), INDEX, false).expect("save");
                }
                let again = Index::open(folder(&home).as_fd(), INDEX).expect("open");
                assert_eq!(rows(again.tree()), rows(world.index.tree()));
                world.index = again;
            }
        }
    }
    world.commit(&root, 0, true, 1);
    world.holds(&root, &back);
});
