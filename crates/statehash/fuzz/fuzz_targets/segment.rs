//! Bytes of a segment as anybody could have stored them, under the digest that they have; or the records of its only
//! chunk. What is refused is refused in the same way by whoever reads; what is accepted is on the disk, nothing is beside it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use statehash::segment::{Record, Records};
use statehash_fuzz::place::Place;
use statehash_fuzz::seeds::sow;
use statehash_fuzz::segments::{of_records, play};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);

/// One of each record, as they are and as a segment.
fn seeds() -> [Vec<u8>; 2] {
    let records = [
        Record::Dir { path: b"d", mode: 0o755, mtime: 1 },
        Record::File { path: b"d/f", mode: 0o644, mtime: 1, content: b"hello hello hello" },
        Record::Attr { path: b"d/f", mode: 0o600, mtime: 2 },
        Record::Link { path: b"l", mtime: 3, target: b"../elsewhere" },
        Record::Drop { path: b"gone" },
        Record::Meta { path: b"big", mode: 0o644, mtime: 4, size: 131_082, fresh: true },
        Record::Zero { index: 0, count: 2 },
        Record::Block { index: 2, data: b"the end..." },
    ];
    let mut raw = vec![b'r'];
    records.iter().for_each(|record| record.put(&mut raw));
    let segment = of_records(&raw[1..]).bytes;
    [raw, segment]
}

fuzz_target!(init: sow(seeds()), |data: &[u8]| {
    match data.split_first() {
        Some((b'r', raw)) => {
            let records: Vec<Record<'_>> = Records::new(raw).map_while(Result::ok).collect();
            let mut again = Vec::new();
            records.iter().for_each(|record| record.put(&mut again));
            assert!(raw.starts_with(&again));
            let _ = play(&PLACE, &[&of_records(raw).bytes], 1);
        }
        _ => {
            let _ = play(&PLACE, &[data], 1 + data.len() % 2);
        }
    }
});
