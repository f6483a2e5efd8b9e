//! Trees, commits and segments for the tests.
#![allow(dead_code, unused_imports)]

mod shared;

pub use shared::{folder, packed, raw_segment, rows, Rows};

use std::os::fd::AsFd;
use std::path::Path;

use statehash::error::Result;
use statehash::index::Index;
use statehash::pack::Pack;
use statehash::replay::Limits;
use statehash::scan::{scan, Options, Scan};
use statehash::segment::{Record, Segment};
use statehash::unpack::Restore;

/// Failures are to be fixed, not kept beside the tests.
pub fn cases(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}

pub const NO_LIMITS: Limits = Limits { max_bytes: None, max_entries: u64::MAX };

pub fn look(root: &Path, index: &Index) -> Scan {
    let options = Options { skip: b".the0", threads: 1, all: false };
    scan(folder(root).as_fd(), index, &options, &|| Ok(())).expect("scan")
}

pub fn pack(root: &Path, index: &Index, threads: usize) -> (Pack, Vec<Segment>) {
    packed(root, look(root, index), index, threads)
}

pub fn stage(root: &Path, index: &mut Index, meta: &[u8]) -> Vec<Segment> {
    let (pack, segments) = pack(root, index, 2);
    let keys: Vec<_> = segments.iter().map(name).collect();
    let staged = pack.staged(index, &keys, meta).expect("staged");
    index.stage(staged).expect("stage");
    segments
}

pub fn commit(root: &Path, index: &mut Index, meta: &[u8]) -> Vec<Segment> {
    let segments = stage(root, index, meta);
    index.confirm(meta).expect("confirm");
    segments
}

pub fn name(segment: &Segment) -> String {
    blake3::Hash::from_bytes(segment.digest).to_hex().to_string()
}

pub fn restore(dest: &Path, segments: &[Segment]) -> Result<Index> {
    let mut restore = Restore::new(folder(dest), NO_LIMITS);
    for segment in segments {
        restore.apply(&segment.bytes, "key", &name(segment), 2, &|| Ok(()))?;
    }
    restore.finish(true, &|| Ok(()))?;
    restore.index(folder(dest).as_fd(), 1, &|| Ok(()))
}

/// A segment of one chunk.
pub fn segment(records: &[Record<'_>]) -> Segment {
    let mut raw = Vec::new();
    records.iter().for_each(|r| r.put(&mut raw));
    raw_segment(&raw, records.len() as u64)
}
