//! Scans packed into segments and committed to an index, as the runtime does it.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use statehash::index::Index;
use statehash::pack::{self, Pack};
use statehash::scan::{scan, Options};
use statehash::segment::Segment;

use crate::folder;

/// The pack of what changed and of what still counts in the segments of these keys, at its end.
pub fn packed(root: &Path, index: &Index, carried: &[String], threads: usize) -> (Pack, Vec<Segment>) {
    let options = Options { skip: b".the0", threads, all: false };
    let mut found = scan(folder(root).as_fd(), index, &options, &|| Ok(())).expect("scan");
    if !carried.is_empty() {
        found = found.carry(index, carried).expect("carry");
    }
    let options = pack::Options { segment_bytes: 1 << 20, max_file_bytes: None, threads };
    let mut pack = Pack::new(folder(root), Arc::new(found), options);
    let mut segments = Vec::new();
    while let Some(segment) = pack.next(index, &|| Ok(())).expect("next") {
        segments.push(segment);
    }
    (pack, segments)
}
