//! Trees that change while they are read: what is stored is whole, and nothing from outside gets in.

mod common;

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{commit, folder, look, restore, rows};
use statehash::compare::differences;
use statehash::index::Index;
use statehash::segment::Segment;

/// Runs `disturb` over and over on a thread of its own while `work` runs.
fn disturbed<R>(mut disturb: impl FnMut(u64) + Send, work: impl FnOnce() -> R) -> R {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..).take_while(|_| !done.load(Ordering::Relaxed)).for_each(&mut disturb));
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}

/// What the segments hold is what the index says, wherever they are restored.
fn holds(tmp: &Path, n: usize, segments: &[Segment], index: &Index) {
    let dest = tmp.join(format!("restored-{n}"));
    fs::create_dir(&dest).expect("mkdir");
    let mut restored = restore(&dest, segments).expect("restore");
    assert_eq!(rows(restored.tree()), rows(index.tree()));
    let found = differences(folder(&dest).as_fd(), &mut restored, b"", 9, 1, &|| Ok(())).expect("differences");
    assert_eq!(found, Vec::<Vec<u8>>::new());
    fs::remove_dir_all(dest).expect("remove");
}

#[test]
fn a_file_that_never_rests() {
    let tmp = tempfile::tempdir().expect("tmp");
    let root = tmp.path().join("root");
    fs::create_dir(&root).expect("mkdir");
    fs::write(root.join("large"), vec![1; 3 << 20]).expect("write");
    fs::write(root.join("medium"), vec![1; 300_000]).expect("write");
    fs::write(root.join("small"), vec![1; 3000]).expect("write");
    let names = ["large", "medium", "small"].map(|name| root.join(name));
    let disturb = |n: u64| {
        for (i, path) in names.iter().enumerate() {
            let mut file = fs::OpenOptions::new().write(true).open(path).expect("open");
            let size = [3 << 20, 300_000, 3000][i];
            match n % 7 {
                0 => file.set_len(size * (n % 3) / 2).expect("truncate"),
                1 => file.set_len(size).expect("extend"),
                _ => {
                    file.seek(SeekFrom::Start(n * 77_777 % size)).expect("seek");
                    file.write_all(&[n as u8; 5000]).expect("write");
                }
            }
        }
    };
    let (mut index, mut segments) = (Index::default(), Vec::new());
    disturbed(disturb, || {
        for n in 0..25 {
            segments.extend(commit(&root, &mut index, b""));
            holds(tmp.path(), n, &segments, &index);
        }
    });
    segments.extend(commit(&root, &mut index, b""));
    holds(tmp.path(), 99, &segments, &index);
    let found = differences(folder(&root).as_fd(), &mut index, b"", 9, 2, &|| Ok(())).expect("differences");
    assert_eq!(found, Vec::<Vec<u8>>::new());
}

#[test]
fn names_that_become_links_to_elsewhere() {
    const SECRET: &[u8] = b"this lies outside and is nobody's business";
    let tmp = tempfile::tempdir().expect("tmp");
    let (root, outside) = (tmp.path().join("root"), tmp.path().join("outside"));
    fs::create_dir_all(root.join("d")).expect("mkdir");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("f"), SECRET).expect("write");
    let disturb = |n: u64| {
        // Without a pause this thread alone would hold the folder's lock.
        std::thread::sleep(Duration::from_micros(50));
        // Each step may fail where the one before did; only their being tried matters.
        let (d, f) = (root.join("d"), root.join("f"));
        let _ = match n % 8 {
            0 => fs::remove_dir_all(&d),
            1 => symlink("../outside", &d),
            2 => fs::remove_file(&d),
            3 => fs::create_dir(&d).and_then(|()| fs::write(d.join("f"), b"inside")),
            4 => fs::write(&f, vec![b'i'; 100_000]),
            5 => fs::remove_file(&f),
            6 => symlink("../outside/f", &f),
            _ => fs::remove_file(&f)
                .and_then(|()| rustix::fs::mkfifoat(folder(&root), "f", 0o600.into()).map_err(Into::into))
                .and_then(|()| fs::remove_file(&f)),
        };
    };
    let (mut index, mut segments) = (Index::default(), Vec::new());
    disturbed(disturb, || {
        let begun = Instant::now();
        while segments.len() < 150 && begun.elapsed() < Duration::from_secs(3) {
            let before = segments.len();
            segments.extend(commit(&root, &mut index, b""));
            if segments.len() / 30 > before / 30 {
                holds(tmp.path(), segments.len(), &segments, &index);
            }
        }
    });
    let dest = tmp.path().join("last");
    fs::create_dir(&dest).expect("mkdir");
    for n in (0..segments.len()).step_by(10) {
        fs::remove_dir_all(&dest).expect("remove");
        fs::create_dir(&dest).expect("mkdir");
        // Some prefixes are no whole state; what they hold is looked at all the same.
        let _ = restore(&dest, &segments[..=n]);
        for file in [dest.join("f"), dest.join("d/f")] {
            if fs::symlink_metadata(&file).is_ok_and(|m| m.is_file())
                && fs::symlink_metadata(dest.join("d")).is_ok_and(|m| m.is_dir())
            {
                assert_ne!(fs::read(&file).expect("read"), SECRET);
            }
        }
    }
    assert!(segments.len() > 10, "{}", segments.len());
}

#[test]
fn two_contents_within_one_tick_of_the_clock() {
    let tmp = tempfile::tempdir().expect("tmp");
    let root = tmp.path().join("root");
    fs::create_dir(&root).expect("mkdir");
    let path = root.join("f");
    let mut index = Index::default();
    for n in 0..300u32 {
        // In place, of one length: only times that the clock may not have moved could tell.
        let mut file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).expect("open");
        file.write_all(format!("{n:08}").as_bytes()).expect("write");
        drop(file);
        commit(&root, &mut index, b"");
        assert_eq!(index.tree().get(b"f").map(|f| f.digest), Some(statehash::block::digest(format!("{n:08}").as_bytes())));
    }
    std::thread::sleep(std::time::Duration::from_millis(40));
    commit(&root, &mut index, b"");
    assert!(look(&root, &index).changed.is_empty());
}
