//! What the fuzz targets share: input taken apart, a folder among things that must stay as they are, and trees read by
//! plain means.

pub mod commits;
pub mod input;
pub mod place;
pub mod seeds;
pub mod segments;

use std::os::fd::OwnedFd;
use std::path::Path;

use statehash::tree::{Body, Cursor, Tree};

pub fn folder(path: &Path) -> OwnedFd {
    std::fs::File::open(path).expect("open folder").into()
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
