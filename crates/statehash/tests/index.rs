//! The index's file under truncation, damage and forgery.

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use common::{commit, folder, look, rows, stage};
use proptest::prelude::*;
use statehash::error::Error;
use statehash::index::Index;

const NAME: &str = "index";

fn open(home: &Path) -> Result<Index, Error> {
    Index::open(folder(home).as_fd(), NAME)
}

/// A tree with one of everything, committed once; the index saved in `home`.
fn first(root: &Path, home: &Path) -> Index {
    fs::create_dir_all(root.join("d/e")).expect("mkdir");
    fs::write(root.join("d/f"), b"hello").expect("write");
    fs::write(root.join("large"), vec![7; 200_000]).expect("write");
    std::os::unix::fs::symlink("d/f", root.join("link")).expect("symlink");
    let mut index = Index::default();
    index.save(folder(home).as_fd(), NAME, false).expect("save");
    commit(root, &mut index, b"one");
    index
}

fn edit(root: &Path) {
    fs::write(root.join("d/g"), b"new").expect("write");
    fs::remove_file(root.join("link")).expect("remove");
    let mut large = vec![7; 200_000];
    large[100_000] = 1;
    fs::write(root.join("large"), large).expect("write");
}

#[test]
fn a_log_torn_at_any_byte_is_the_former_or_the_new_one() {
    let tmp = tempfile::tempdir().expect("tmp");
    let (root, home) = (tmp.path().join("root"), tmp.path().join("home"));
    fs::create_dir_all(&home).expect("mkdir");
    let mut index = first(&root, &home);
    index.save(folder(&home).as_fd(), NAME, true).expect("save");
    let old = rows(index.tree());
    let base = fs::read(home.join(NAME)).expect("read").len();
    edit(&root);
    stage(&root, &mut index, b"two?");
    let staged = fs::read(home.join(NAME)).expect("read").len();
    index.confirm(b"two").expect("confirm");
    let whole = fs::read(home.join(NAME)).expect("read");
    let new = rows(index.tree());
    assert_ne!(old, new);
    for cut in 0..=whole.len() {
        fs::write(home.join(NAME), &whole[..cut]).expect("write");
        let mut found = match open(&home) {
            Err(e) => {
                assert!(cut < base, "{cut}: {e}");
                continue;
            }
            Ok(index) => index,
        };
        assert!(cut >= base);
        let pending = found.staged().map(|s| s.meta.clone());
        let (meta, expected, waiting) = match cut {
            _ if cut == whole.len() => (&b"two"[..], &new, None),
            _ if cut >= staged => (&b"one"[..], &old, Some(b"two?".to_vec())),
            _ => (&b"one"[..], &old, None),
        };
        assert_eq!((found.meta(), &rows(found.tree()), &pending), (meta, expected, &waiting));
        // What follows is appended where the whole records end.
        if pending.is_some() {
            found.confirm(b"decided").expect("confirm");
            assert_eq!(rows(found.tree()), new);
        } else {
            found.set_meta(b"decided").expect("set_meta");
        }
        let again = open(&home).expect("open");
        assert_eq!((again.meta(), rows(again.tree())), (&b"decided"[..], rows(found.tree())));
    }
}

#[test]
fn saving_keeps_what_is_staged_and_abandoning_keeps_what_was() {
    let tmp = tempfile::tempdir().expect("tmp");
    let (root, home) = (tmp.path().join("root"), tmp.path().join("home"));
    fs::create_dir_all(&home).expect("mkdir");
    let mut index = first(&root, &home);
    let old = rows(index.tree());
    edit(&root);
    stage(&root, &mut index, b"two");
    index.save(folder(&home).as_fd(), NAME, true).expect("save");
    let mut again = open(&home).expect("open");
    assert_eq!(again.staged(), index.staged());
    again.abandon().expect("abandon");
    assert!(again.abandon().is_err() && again.confirm(b"").is_err());
    let again = open(&home).expect("open");
    assert_eq!((rows(again.tree()), again.staged()), (old, None));
}

#[test]
fn the_log_folds_into_a_new_base() {
    let tmp = tempfile::tempdir().expect("tmp");
    let (root, home) = (tmp.path().join("root"), tmp.path().join("home"));
    fs::create_dir_all(&home).expect("mkdir");
    let mut index = first(&root, &home);
    let big = vec![b'm'; 100_000];
    let mut sizes = Vec::new();
    for n in 0..5 {
        fs::write(root.join("d/f"), format!("{n}")).expect("write");
        commit(&root, &mut index, &big);
        sizes.push(fs::metadata(home.join(NAME)).expect("stat").len());
    }
    assert!(sizes.windows(2).any(|w| w[1] < w[0]), "{sizes:?}");
    let again = open(&home).expect("open");
    assert_eq!((again.meta(), rows(again.tree())), (&big[..], rows(index.tree())));
    assert_eq!(again.catalog().segments, index.catalog().segments);
    assert_eq!(again.catalog().live(), index.catalog().live());
}

#[test]
fn what_is_no_index_is_said() {
    let tmp = tempfile::tempdir().expect("tmp");
    let home = tmp.path();
    let refused = |what: &str| match open(home) {
        Err(Error::Format(reason)) => assert!(reason.contains(what), "{reason}"),
        other => panic!("{:?}", other.map(|_| ())),
    };
    assert!(matches!(open(home), Err(Error::Os { errno: rustix::io::Errno::NOENT, .. })));
    fs::create_dir(home.join(NAME)).expect("mkdir");
    refused("no regular file");
    fs::remove_dir(home.join(NAME)).expect("rmdir");
    rustix::fs::mkfifoat(folder(home), NAME, rustix::fs::Mode::from_raw_mode(0o600)).expect("mkfifo");
    refused("no regular file");
    fs::remove_file(home.join(NAME)).expect("remove");
    fs::write(home.join("other"), b"").expect("write");
    std::os::unix::fs::symlink("other", home.join(NAME)).expect("symlink");
    refused("no regular file");
    fs::remove_file(home.join(NAME)).expect("remove");
    for (bytes, why) in
        [(&b""[..], "not ours"), (b"PK\x03\x04 something else", "not ours"), (b"the0idx\0\x01\0\0\0", "cut short")]
    {
        fs::write(home.join(NAME), bytes).expect("write");
        refused(why);
    }
    fs::write(home.join(NAME), b"the0idx\0\x63\0\0\0").expect("write");
    refused("newer format 99");
    fs::File::create(home.join(NAME)).and_then(|f| f.set_len(2 << 30)).expect("sparse");
    refused("larger");
}

/// The bytes of an index after two commits, and their two states.
fn sample() -> (Vec<u8>, [common::Rows; 2]) {
    let tmp = tempfile::tempdir().expect("tmp");
    let (root, home) = (tmp.path().join("root"), tmp.path().join("home"));
    fs::create_dir_all(&home).expect("mkdir");
    let mut index = first(&root, &home);
    index.save(folder(&home).as_fd(), NAME, false).expect("save");
    let old = rows(index.tree());
    edit(&root);
    commit(&root, &mut index, b"two");
    (fs::read(home.join(NAME)).expect("read"), [old, rows(index.tree())])
}

#[test]
fn damage_never_passes() {
    let (bytes, states) = sample();
    let tmp = tempfile::tempdir().expect("tmp");
    let mut refused = 0;
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(tmp.path().join(NAME), damaged).expect("write");
        match open(tmp.path()) {
            Ok(index) => assert!(states.contains(&rows(index.tree())), "byte {at}"),
            Err(Error::Format(_)) => refused += 1,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(refused > 100);
}

proptest! {
    #![proptest_config(common::cases(300))]

    /// A base with bytes changed and the checksum made right again, as somebody who knows the format could do.
    #[test]
    fn forgery_is_refused_or_harmless(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        static SAMPLE: std::sync::OnceLock<(Vec<u8>, [common::Rows; 2])> = std::sync::OnceLock::new();
        let mut bytes = SAMPLE.get_or_init(sample).0.clone();
        let base_len = u64::from_le_bytes(bytes[12..20].try_into().expect("8 bytes")) as usize;
        for (at, byte) in edits {
            bytes[36 + at.index(base_len)] = byte;
        }
        let check = statehash::block::digest(&bytes[..36 + base_len]);
        bytes[36 + base_len..52 + base_len].copy_from_slice(&check);
        let tmp = tempfile::tempdir().expect("tmp");
        fs::write(tmp.path().join(NAME), &bytes).expect("write");
        if let Ok(mut index) = open(tmp.path()) {
            rows(index.tree());
            index.catalog().live();
            let root = tmp.path().join("root");
            fs::create_dir(&root).expect("mkdir");
            fs::write(root.join("large"), b"now small").expect("write");
            look(&root, &index);
            if index.staged().is_none() {
                commit(&root, &mut index, b"");
            }
            index.save(folder(tmp.path()).as_fd(), NAME, false).expect("save");
            prop_assert_eq!(rows(open(tmp.path()).expect("open").tree()), rows(index.tree()));
        }
    }
}
