//! What the tests and the fuzz targets have in common: trees read and packed, and segments made by hand.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use statehash::index::Index;
use statehash::pack::{self, Pack};
use statehash::scan::Scan;
use statehash::segment::{compress, Builder, Segment};
use statehash::tree::{Body, Cursor, Tree};

pub fn folder(path: &Path) -> OwnedFd {
    File::open(path).expect("open folder").into()
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

/// The pack of what a scan found, at its end.
pub fn packed(root: &Path, found: Scan, index: &Index, threads: usize) -> (Pack, Vec<Segment>) {
    let options = pack::Options { segment_bytes: 1 << 20, max_file_bytes: None, threads };
    let mut pack = Pack::new(folder(root), Arc::new(found), options);
    let mut segments = Vec::new();
    while let Some(segment) = pack.next(index, &|| Ok(())).expect("next") {
        segments.push(segment);
    }
    (pack, segments)
}

/// A segment of one chunk, which says that it has so many records.
pub fn raw_segment(raw: &[u8], records: u64) -> Segment {
    let mut builder = Builder::new(Vec::new(), raw.len());
    let mut zstd = zstd::bulk::Compressor::new(1).expect("zstd");
    let mut frame = Vec::new();
    compress(&mut zstd, raw, &mut frame).expect("compress");
    builder.push(&frame, raw.len(), records);
    builder.finish()
}
