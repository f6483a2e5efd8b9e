//! Segments that nobody of ours wrote: nothing outside the destination, no panic, and what is accepted is what is there.

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{symlink, MetadataExt};
use std::path::Path;

use common::{folder, name, raw_segment, restore, rows, segment, NO_LIMITS};
use proptest::prelude::*;
use statehash::block::BLOCK;
use statehash::compare::differences;
use statehash::error::Error;
use statehash::replay::{Limits, Replay};
use statehash::segment::{Record, Records, Segment};
use statehash::unpack::Restore;

/// A destination among things that must stay as they are.
fn place(tmp: &Path) -> std::path::PathBuf {
    let dest = tmp.join("dest");
    fs::create_dir(&dest).expect("mkdir");
    fs::write(tmp.join("outside"), b"untouched").expect("write");
    fs::create_dir(tmp.join("elsewhere")).expect("mkdir");
    dest
}

fn untouched(tmp: &Path) {
    let mut names: Vec<_> = fs::read_dir(tmp).expect("read_dir").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["dest", "elsewhere", "outside"]);
    assert_eq!(fs::read(tmp.join("outside")).expect("read"), b"untouched");
    assert_eq!(fs::metadata(tmp.join("outside")).expect("stat").mode() & 0o7777, 0o644);
    assert_eq!(fs::read_dir(tmp.join("elsewhere")).expect("read_dir").count(), 0);
}

#[test]
fn crafted_paths_are_refused() {
    for path in [
        &b"../x"[..],
        b"/etc/x",
        b"a/../../x",
        b"a//b",
        b"a/",
        b"",
        b".",
        b"a\0b",
        b".the0/index",
        b"..",
        &[b'n'; 256],
        &b"a/".repeat(9000),
    ] {
        let tmp = tempfile::tempdir().expect("tmp");
        let dest = place(tmp.path());
        for record in [
            Record::File { path, mode: 0o600, mtime: 0, content: b"x" },
            Record::Meta { path, mode: 0o600, mtime: 0, size: 1, fresh: true },
            Record::Attr { path, mode: 0o600, mtime: 0 },
            Record::Dir { path, mode: 0o700, mtime: 0 },
            Record::Link { path, mtime: 0, target: b"x" },
            Record::Drop { path },
        ] {
            let result = restore(&dest, &[segment(&[record])]);
            assert!(matches!(result, Err(Error::Format(_))), "{}", path.escape_ascii());
        }
        untouched(tmp.path());
        assert_eq!(fs::read_dir(&dest).expect("read_dir").count(), 0);
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let dir = Record::Dir { path: b"d", mode: 0o755, mtime: 0 };
    let link = Record::Link { path: b"d", mtime: 0, target: b"../elsewhere" };
    let to_file = Record::Link { path: b"f", mtime: 0, target: b"../outside" };
    let file = Record::File { path: b"d/x", mode: 0o600, mtime: 0, content: b"x" };
    let onto = Record::File { path: b"f", mode: 0o600, mtime: 0, content: b"x" };
    let attr = Record::Attr { path: b"f", mode: 0o777, mtime: 0 };
    let large = Record::Meta { path: b"f", mode: 0o777, mtime: 0, size: 70_000, fresh: false };
    let zero = Record::Zero { index: 0, count: 2 };
    for records in [
        &[link, file, dir][..],
        &[to_file, onto],
        &[to_file, attr],
        &[to_file, large, zero],
        &[link, Record::Drop { path: b"d/x" }],
        &[link, dir],
    ] {
        for split in [false, true] {
            let tmp = tempfile::tempdir().expect("tmp");
            let dest = place(tmp.path());
            let segments = if split { records.iter().map(|r| segment(&[*r])).collect() } else { vec![segment(records)] };
            match restore(&dest, &segments) {
                Ok(index) => {
                    assert!(differences(folder(&dest).as_fd(), &mut { index }, b"", 9, 1, &|| Ok(())).expect("same").is_empty())
                }
                // Blocks of a file named in another chunk.
                Err(e) => assert!(split && matches!(e, Error::Format(_)), "{e}"),
            }
            untouched(tmp.path());
        }
    }
}

#[test]
fn links_planted_on_the_disk_are_not_followed_either() {
    let tmp = tempfile::tempdir().expect("tmp");
    let dest = place(tmp.path());
    let mut running = Restore::new(folder(&dest), NO_LIMITS);
    let mut apply = |records: &[Record<'_>]| {
        let s = segment(records);
        running.apply(&s.bytes, "k", &name(&s), 1, &|| Ok(()))
    };
    apply(&[
        Record::Dir { path: b"d", mode: 0o755, mtime: 0 },
        Record::File { path: b"f", mode: 0o600, mtime: 0, content: b"x" },
    ])
    .expect("apply");
    fs::remove_dir(dest.join("d")).expect("rmdir");
    symlink("../elsewhere", dest.join("d")).expect("symlink");
    fs::remove_file(dest.join("f")).expect("remove");
    symlink("../outside", dest.join("f")).expect("symlink");
    let result = apply(&[Record::Attr { path: b"f", mode: 0o777, mtime: 0 }]);
    assert!(matches!(result, Err(Error::Os { .. })));
    assert!(matches!(apply(&[Record::Drop { path: b"x" }]), Err(Error::Misuse(_))));
    let mut running = Restore::new(folder(&dest), NO_LIMITS);
    let s = segment(&[Record::File { path: b"d/x", mode: 0o600, mtime: 0, content: b"x" }]);
    assert!(running.apply(&s.bytes, "k", &name(&s), 1, &|| Ok(())).is_err());
    untouched(tmp.path());
}

#[test]
fn limits_hold_before_anything_is_written() {
    let tmp = tempfile::tempdir().expect("tmp");
    let dest = place(tmp.path());
    let content = [7; 1000];
    let names: Vec<_> = (0..20).map(|n| format!("f{n}").into_bytes()).collect();
    let files: Vec<_> = names.iter().map(|path| Record::File { path, mode: 0o600, mtime: 0, content: &content }).collect();
    let huge = |size| {
        [Record::Meta { path: b"huge", mode: 0o600, mtime: 0, size, fresh: true }, Record::Zero { index: 0, count: u32::MAX }]
    };
    let cases: [(Segment, Limits); 5] = [
        (segment(&files), Limits { max_bytes: Some(19_999), max_entries: 100 }),
        (segment(&files), Limits { max_bytes: None, max_entries: 19 }),
        (segment(&huge(1 << 40)), Limits { max_bytes: Some(1 << 33), max_entries: 100 }),
        (segment(&huge(u64::MAX)), NO_LIMITS),
        (segment(&huge((1 << 40) + 1)), NO_LIMITS),
    ];
    for (s, limits) in cases {
        let result = Restore::new(folder(&dest), limits).apply(&s.bytes, "k", &name(&s), 1, &|| Ok(()));
        assert!(matches!(result, Err(Error::Limit(_))), "{result:?}");
        let written: u64 =
            fs::read_dir(&dest).expect("read_dir").map(|e| e.expect("entry").metadata().expect("stat").len()).sum();
        assert!(written < 20_000);
        fs::remove_dir_all(&dest).expect("remove");
        fs::create_dir(&dest).expect("mkdir");
    }
    // A terabyte of zeros within the limits is a hole.
    let zeros = [
        Record::Meta { path: b"z", mode: 0o600, mtime: 0, size: 1 << 34, fresh: true },
        Record::Zero { index: 0, count: 1 << 18 },
    ];
    restore(&dest, &[segment(&zeros)]).expect("restore");
    let stat = fs::metadata(dest.join("z")).expect("stat");
    assert_eq!((stat.len(), stat.blocks()), (1 << 34, 0));
}

#[test]
fn what_is_incomplete_is_refused_at_the_end() {
    let meta = Record::Meta { path: b"f", mode: 0o600, mtime: 0, size: 3 * BLOCK as u64, fresh: true };
    let data = [1; BLOCK];
    let (first, last) = (Record::Block { index: 0, data: &data }, Record::Block { index: 2, data: &data });
    let lone = Record::File { path: b"d/f", mode: 0o600, mtime: 0, content: b"" };
    let finish = |records: &[Record<'_>]| {
        let s = segment(records);
        let mut replay = Replay::new((), NO_LIMITS);
        replay.apply(&s.bytes, "k", &name(&s), 1, &|| Ok(())).and_then(|()| replay.finish())
    };
    let reason = |records: &[Record<'_>]| finish(records).map_err(|e| e.to_string());
    assert_eq!(reason(&[meta, first, last]), Err("\"f\" lacks block 1".into()));
    assert_eq!(reason(&[meta, first]), Err("\"f\" lacks block 1".into()));
    assert_eq!(reason(&[lone]), Err("the folder \"d\" is described by no segment".into()));
    assert_eq!(reason(&[meta, first, Record::Zero { index: 1, count: 1 }, last]), Ok(()));
    for wrong in [
        &[first][..],
        &[meta, Record::Block { index: 3, data: &data }],
        &[meta, Record::Block { index: 2, data: &data[1..] }],
        &[meta, Record::Zero { index: 2, count: 2 }],
        &[meta, Record::Zero { index: 1, count: 0 }],
        &[meta, lone, first],
        &[meta, Record::Drop { path: b"f" }, first],
    ] {
        assert!(matches!(finish(wrong), Err(Error::Format(_))), "{wrong:?}");
    }
}

/// One record, or a large file's with some of its blocks; mostly such as could stand in a segment of ours.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let path = prop::sample::select(vec![&b"a"[..], b"a/b", b"a/b/c", b"b", b"c", b"c/d", b"l/x", b"l"]);
    let mode = prop::sample::select(vec![0u16, 0o644, 0o4755, 0o400]);
    let data = prop::sample::select(vec![0usize, 1, 70, BLOCK - 1, BLOCK]);
    let size = prop::sample::select(vec![0u64, 1, 70, 65_536, 65_537, 131_142, 200_000]);
    let put = |record: Record<'_>| {
        let mut out = Vec::new();
        record.put(&mut out);
        out
    };
    let file = (path.clone(), mode.clone(), data)
        .prop_map(move |(path, mode, n)| put(Record::File { path, mode, mtime: 5, content: &vec![1; n] }));
    let large = (path.clone(), mode.clone(), size, any::<bool>(), 0u8..16).prop_map(move |(path, mode, size, fresh, lacking)| {
        let mut out = put(Record::Meta { path, mode, mtime: 5, size, fresh });
        for index in 0..size.div_ceil(BLOCK as u64) as u32 {
            let data = vec![index as u8; statehash::block::length(size, index.into())];
            if lacking != index as u8 {
                out.extend(if index == 1 {
                    put(Record::Zero { index, count: 1 })
                } else {
                    put(Record::Block { index, data: &data })
                });
            }
        }
        out
    });
    let hostile = prop_oneof![
        Just(put(Record::File { path: b"../x", mode: 0, mtime: 0, content: b"" })),
        (0u32..4, 1..BLOCK).prop_map(move |(index, n)| put(Record::Block { index, data: &vec![3; n] })),
        (any::<u32>(), any::<u32>()).prop_map(move |(index, count)| put(Record::Zero { index, count })),
        prop::collection::vec(any::<u8>(), 1..30),
    ];
    prop_oneof![
        40 => file,
        30 => large,
        20 => (path.clone(), mode.clone()).prop_map(move |(path, mode)| put(Record::Attr { path, mode, mtime: 6 })),
        40 => (path.clone(), mode).prop_map(move |(path, mode)| put(Record::Dir { path, mode, mtime: 7 })),
        20 => path.clone().prop_map(move |path| put(Record::Link { path, mtime: 8, target: b"../elsewhere" })),
        20 => path.prop_map(move |path| put(Record::Drop { path })),
        1 => hostile,
    ]
}

/// A segment that describes the folders which the catalog knows only by what lies in them.
fn described(listing: &Replay<()>) -> Option<Segment> {
    let tree = &listing.catalog().tree;
    let mut cursor = statehash::tree::Cursor::new(tree);
    let mut paths = Vec::new();
    while let Some((path, node)) = cursor.next(tree) {
        if node.dir().is_some() && node.meta.racy {
            paths.push(path);
        }
    }
    let records: Vec<_> = paths.iter().map(|path| Record::Dir { path, mode: 0o750, mtime: 9 }).collect();
    (!records.is_empty()).then(|| segment(&records))
}

proptest! {
    #![proptest_config(common::cases(400))]

    #[test]
    fn any_records_at_all(raws in prop::collection::vec(prop::collection::vec(record(), 1..12), 1..4)) {
        let tmp = tempfile::tempdir().expect("tmp");
        let dest = place(tmp.path());
        let mut restoring = Restore::new(folder(&dest), NO_LIMITS);
        let mut listing = Replay::new((), NO_LIMITS);
        let mut ok = true;
        let count = raws.len();
        for n in 0..=count {
            let s = match raws.get(n) {
                Some(records) => {
                    let raw = records.concat();
                    raw_segment(&raw, Records::new(&raw).count() as u64)
                }
                None => match described(&listing) {
                    Some(s) => s,
                    None => break,
                },
            };
            let result = restoring.apply(&s.bytes, "k", &name(&s), 1, &|| Ok(()));
            prop_assert_eq!(&result, &listing.apply(&s.bytes, "k", &name(&s), 1, &|| Ok(())));
            ok &= result.is_ok();
        }
        let finished = restoring.finish(true, &|| Ok(()));
        prop_assert_eq!(&finished, &listing.finish());
        if ok && finished.is_ok() {
            let mut index = restoring.index(folder(&dest).as_fd(), 1, &|| Ok(())).expect("index");
            prop_assert_eq!(rows(index.tree()), rows(&listing.catalog().tree));
            let found = differences(folder(&dest).as_fd(), &mut index, b"", 9, 1, &|| Ok(())).expect("differences");
            prop_assert!(found.is_empty(), "{:?}", found);
        }
        untouched(tmp.path());
    }

    #[test]
    fn damaged_bytes_under_their_own_digest(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in any::<prop::sample::Index>(), whole in any::<bool>()) {
        let data = [9; BLOCK];
        let mut bytes = segment(&[
            Record::Dir { path: b"d", mode: 0o755, mtime: 1 },
            Record::File { path: b"d/f", mode: 0o644, mtime: 1, content: b"hello hello hello" },
            Record::Meta { path: b"big", mode: 0o644, mtime: 1, size: 2 * BLOCK as u64, fresh: true },
            Record::Block { index: 0, data: &data },
            Record::Zero { index: 1, count: 1 },
        ]).bytes;
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        let tmp = tempfile::tempdir().expect("tmp");
        let dest = place(tmp.path());
        let digest = blake3::hash(&bytes).to_hex();
        let mut restoring = Restore::new(folder(&dest), NO_LIMITS);
        match restoring.apply(&bytes, "k", digest.as_str(), 2, &|| Ok(())) {
            Ok(()) => drop(restoring.finish(true, &|| Ok(()))),
            Err(e) => prop_assert!(matches!(e, Error::Format(_) | Error::Limit(_)), "{}", e),
        }
        untouched(tmp.path());
    }
}
