//! Trees, commits and segments for the tests.
#![allow(dead_code)]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use statehash::error::Result;
use statehash::index::Index;
use statehash::pack::{self, Pack};
use statehash::replay::Limits;
use statehash::scan::{scan, Options, Scan};
use statehash::segment::{compress, Builder, Record, Segment};
use statehash::tree::{Body, Cursor, Tree};
use statehash::unpack::Restore;

/// Failures are to be fixed, not kept beside the tests.
pub fn cases(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config { cases, failure_persistence: None, ..Default::default() }
}

pub const NO_LIMITS: Limits = Limits { max_bytes: None, max_entries: u64::MAX };

pub fn folder(path: &Path) -> OwnedFd {
    File::open(path).expect("open folder").into()
}

pub fn look(root: &Path, index: &Index) -> Scan {
    let options = Options { skip: b".the0", threads: 1, all: false };
    scan(folder(root).as_fd(), index, &options, &|| Ok(())).expect("scan")
}

pub fn pack(root: &Path, index: &Index, threads: usize) -> (Pack, Vec<Segment>) {
    let options = pack::Options { segment_bytes: 1 << 20, max_file_bytes: None, threads };
    let mut pack = Pack::new(folder(root), Arc::new(look(root, index)), options);
    let mut segments = Vec::new();
    while let Some(segment) = pack.next(index, &|| Ok(())).expect("next") {
        segments.push(segment);
    }
    (pack, segments)
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

/// (path, kind, mode, size, mtime, digest) of all entries.
pub type Rows = Vec<(Vec<u8>, char, u16, u64, i64, [u8; 16])>;

pub fn rows(tree: &Tree) -> Rows {
    let mut rows = Vec::new();
    let mut cursor = Cursor::new(tree);
    while let Some((path, node)) = cursor.next(tree) {
        let kind = match node.body {
            Body::Small => 'f',
            Body::Large(_) => 'F',
            Body::Link => 'l',
            Body::Dir(_) => 'd',
        };
        rows.push((path, kind, node.meta.mode, node.meta.size, node.meta.mtime, node.digest));
    }
    rows
}

/// A segment of one chunk.
pub fn segment(records: &[Record<'_>]) -> Segment {
    let mut raw = Vec::new();
    records.iter().for_each(|r| r.put(&mut raw));
    raw_segment(&raw, records.len() as u64)
}

pub fn raw_segment(raw: &[u8], records: u64) -> Segment {
    let mut builder = Builder::new(Vec::new(), raw.len());
    let mut zstd = zstd::bulk::Compressor::new(1).expect("zstd");
    let mut frame = Vec::new();
    compress(&mut zstd, raw, &mut frame).expect("compress");
    builder.push(&frame, raw.len(), records);
    builder.finish()
}
