//! Segments built and played back.

use std::os::fd::AsFd;

use statehash::compare::differences;
use statehash::error::{Error, Result};
use statehash::replay::{Limits, Replay};
use statehash::segment::{Records, Segment};
use statehash::unpack::Restore;

use crate::place::Place;
use crate::rows;
use crate::shared::raw_segment;

pub const LIMITS: Limits = Limits { max_bytes: Some(16 << 20), max_entries: 1000 };

/// A segment of one chunk, whatever its records are; those that count end at the first that is refused.
pub fn of_records(raw: &[u8]) -> Segment {
    raw_segment(raw, Records::new(raw).count() as u64)
}

pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Plays segments into a catalog and onto a disk, asserts that both agree at every step, and that what is accepted is
/// what lies on the disk then.
pub fn play(place: &Place, segments: &[&[u8]], threads: usize) -> Result<()> {
    let mut listing = Replay::new((), LIMITS);
    let mut restoring = Restore::new(place.fd(), LIMITS);
    let end = segments.iter().try_for_each(|bytes| {
        let name = digest(bytes);
        let listed = listing.apply(bytes, "key", &name, 1, &|| Ok(()));
        assert_eq!(listed, restoring.apply(bytes, "key", &name, threads, &|| Ok(())));
        let live = listing.catalog().live();
        assert!(live.iter().zip(&listing.catalog().segments).all(|(live, s)| *live <= s.stored));
        listed
    });
    let end = end.and_then(|()| {
        let finished = listing.finish();
        assert_eq!(finished, restoring.finish(true, &|| Ok(())));
        finished
    });
    match &end {
        Ok(()) => {
            let mut index = restoring.index(place.fd().as_fd(), 1, &|| Ok(())).expect("index");
            assert_eq!(rows(index.tree()), rows(&listing.catalog().tree));
            let found = differences(place.fd().as_fd(), &mut index, b"", 9, 1, &|| Ok(())).expect("differences");
            assert!(found.is_empty(), "{found:?}");
        }
        Err(e) => assert!(matches!(e, Error::Format(_) | Error::Limit(_) | Error::Misuse(_)), "{e}"),
    }
    place.check_and_clear();
    end
}
