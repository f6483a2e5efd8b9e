//! Bytes of a segment as anybody could have stored them, under the digest that they have; or the records of its only
//! chunk. What is refused is refused in the same way by whoever reads; what is accepted is on the disk, nothing is beside it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use statehash::segment::{Record, Records};
use statehash_fuzz::place::Place;
use statehash_fuzz::segments::{of_records, play};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);

fuzz_target!(|data: &[u8]| {
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
