//! Scans packed into segments and committed to an index, as the runtime does it.

use std::os::fd::AsFd;
use std::path::Path;

use statehash::index::Index;
use statehash::pack::Pack;
use statehash::scan::{scan, Options};
use statehash::segment::Segment;

use crate::{folder, shared};

/// The pack of what changed and of what still counts in the segments of these keys, at its end.
pub fn packed(root: &Path, index: &Index, carried: &[String], threads: usize) -> (Pack, Vec<Segment>) {
    let options = Options { skip: b".the0", threads, all: false };
    let mut found = scan(folder(root).as_fd(), index, &options, &|| Ok(())).expect("scan");
    if !carried.is_empty() {
        found = found.carry(index, carried).expect("carry");
    }
    shared::packed(root, found, index, threads)
}
