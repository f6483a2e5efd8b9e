//! An index that somebody forged, checksums and all: a base, and the records of its log. It is refused, or it can be
//! worked with, saved and read again; and whatever it claims, only segments that can be read are made with it.
#![no_main]

use std::os::fd::AsFd;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use statehash::codec::{get_base, get_staged, put_base, put_staged};
use statehash::error::Error;
use statehash::index::Index;
use statehash::journal::{Journal, Kind};
use statehash::segment::{decompress, Chunks, Part, Records};
use statehash_fuzz::commits::packed;
use statehash_fuzz::input::Input;
use statehash_fuzz::place::Place;
use statehash_fuzz::rows;
use statehash_fuzz::seeds::sow;

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let place = Place::new();
    let root = place.path().join("root");
    std::fs::create_dir_all(root.join("d/e")).expect("mkdir");
    std::fs::create_dir(place.path().join("home")).expect("mkdir");
    std::fs::write(root.join("d/f"), b"hello").expect("write");
    std::fs::write(root.join("large"), vec![7; 70_000]).expect("write");
    std::os::unix::fs::symlink("d/f", root.join("link")).expect("symlink");
    place
});
const NAME: &str = "index";

fn refusal(e: &Error) {
    assert!(matches!(e, Error::Format(_) | Error::Limit(_)), "{e}");
}

/// What decodes is what encoding gives.
fn held_against_the_encoder(base: &[u8], records: &[(Kind, &[u8])]) {
    match get_base(base) {
        Ok((catalog, meta)) => {
            let mut again = Vec::new();
            put_base(&mut again, &catalog, &meta);
            assert_eq!(again, base);
        }
        Err(e) => refusal(&e),
    }
    for (_, payload) in records.iter().filter(|(kind, _)| *kind == Kind::Stage) {
        match get_staged(payload) {
            Ok(staged) => assert_eq!(get_staged(&put_staged(&staged)), Ok(staged)),
            Err(e) => refusal(&e),
        }
    }
}

fn readable(segment: &[u8]) {
    let mut zstd = zstd::bulk::Decompressor::new().expect("zstd");
    let mut chunks = Chunks::new(segment).expect("chunks");
    while let Part::Chunk { raw_len, frame } = chunks.part().expect("part") {
        let mut raw = Vec::new();
        decompress(&mut zstd, raw_len, frame, &mut raw).expect("decompress");
        assert!(Records::new(&raw).all(|record| record.is_ok()));
    }
}

/// An index of ours with one of everything, removals too, and the log of one commit more.
fn seeds() -> [Vec<u8>; 1] {
    let root = PLACE.path().join("root");
    let mut index = Index::default();
    let mut staged = Vec::new();
    let mut base = Vec::new();
    for n in 0..3 {
        let (link, gone) = (root.join("gone"), root.join("d/gone"));
        if n == 0 {
            std::fs::write(&link, b"").and_then(|()| std::fs::write(&gone, b"soon")).expect("write");
        } else {
            std::fs::remove_file([&gone, &link][n - 1]).expect("remove");
        }
        let (pack, segments) = packed(&root, &index, &[], 1);
        let keys: Vec<_> = segments.iter().map(|_| format!("k{n}")).collect();
        let next = pack.staged(&index, &keys, b"meta").expect("staged");
        (base, staged) = (Vec::new(), put_staged(&next));
        put_base(&mut base, index.catalog(), b"meta");
        index.stage(next).and_then(|()| index.confirm(b"meta")).expect("commit");
    }
    let mut seed = Vec::new();
    for (kind, bytes) in [(None, &base[..]), (Some(0), &staged), (Some(1), b"confirmed"), (Some(3), b"more")] {
        seed.extend(kind);
        seed.extend((bytes.len() as u16).to_le_bytes());
        seed.extend(bytes);
    }
    [seed]
}

fuzz_target!(init: sow(seeds()), |data: &[u8]| {
    let mut input = Input::new(data);
    let len = input.u16();
    let base = input.bytes(len.into());
    let mut records = Vec::new();
    while !input.is_empty() {
        let kind = input.pick(&[Kind::Stage, Kind::Confirm, Kind::Abandon, Kind::Meta]);
        let len = input.u16();
        records.push((kind, input.bytes(len.into())));
    }
    held_against_the_encoder(base, &records);

    let (home, root) = (PLACE.path().join("home"), PLACE.path().join("root"));
    let home = statehash_fuzz::folder(&home);
    let mut journal = Journal::create(home.as_fd(), NAME, false, None, |out| out.extend_from_slice(base)).expect("create");
    records.iter().for_each(|(kind, payload)| journal.append(*kind, payload).expect("append"));
    let mut index = match Index::open(home.as_fd(), NAME) {
        Ok(index) => index,
        Err(e) => return refusal(&e),
    };
    index.catalog().live();
    if index.staged().is_some() {
        if let Err(e) = index.confirm(b"") {
            return refusal(&e);
        }
    }
    // Segments whose keys are the same are told apart by nobody.
    let mut keys: Vec<_> = index.catalog().segments.iter().map(|s| s.key.clone()).collect();
    keys.sort();
    keys.dedup();
    let (pack, segments) = packed(&root, &index, &keys, 1);
    segments.iter().for_each(|segment| readable(&segment.bytes));
    let names: Vec<_> = (0..segments.len()).map(|n| format!("new-{n}")).collect();
    let staged = pack.staged(&index, &names, b"m");
    match staged.and_then(|staged| index.stage(staged)).and_then(|()| index.confirm(b"m")) {
        Ok(()) => {}
        Err(e) => return refusal(&e),
    }
    index.save(home.as_fd(), NAME, false).expect("save");
    let again = Index::open(home.as_fd(), NAME).expect("open");
    assert_eq!(rows(again.tree()), rows(index.tree()));
    assert_eq!(again.catalog().segments, index.catalog().segments);
    assert_eq!(again.catalog().tombstones, index.catalog().tombstones);
});
