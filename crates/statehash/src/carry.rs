//! Carrying: what still counts in some segments joins a scan, so that its pack stores it anew and they can be dropped.
//!
//! What is carried is read from the tree and held against the index. Where an entry proves changed, it is simply a changed
//! entry. Where its metadata are the index's and its content is not (a write through mmap, a failing disk), or where it
//! cannot be read, nothing is stored for it, and the segment stays. `Carry::dropped` says which segments nothing
//! needs any more once the pack is committed; only those may go.

use std::collections::HashMap;

use crate::block;
use crate::catalog::{Catalog, Change, Op};
use crate::error::{Error, Result};
use crate::index::Index;
use crate::paths;
use crate::scan::{Scan, Seen};
use crate::tree::{Block, Body, Meta, Node, Tree, ROOT};
use crate::walk::{Kind, Stat};

#[derive(Debug, Clone, Default)]
pub struct Carry {
    /// The segments' ids, sorted.
    segments: Vec<u32>,
    /// All that lives in them, sorted.
    paths: Vec<Vec<u8>>,
    /// Those of them in which the scan saw no change, sorted.
    untouched: Vec<Vec<u8>>,
}

impl Carry {
    /// Whether what lies in that segment is to be stored anew.
    #[inline]
    pub fn holds(&self, segment: u32) -> bool {
        !self.segments.is_empty() && self.segments.binary_search(&segment).is_ok()
    }

    /// Whether the path is packed only because it is carried.
    pub fn untouched(&self, path: &[u8]) -> bool {
        self.untouched.binary_search_by(|p| p[..].cmp(path)).is_ok()
    }

    /// Whether anything of the entry lies in these segments.
    fn needs(&self, node: &Node) -> bool {
        let blocks = |b: &[Block]| b.iter().any(|b| self.holds(b.segment));
        self.holds(node.segment) || self.holds(node.meta_segment) || matches!(&node.body, Body::Large(b) if blocks(b))
    }

    /// The segments that may be dropped once `changes` are committed. Their removals have all been carried.
    pub fn dropped(&self, tree: &Tree, changes: &[Change]) -> Vec<u32> {
        if self.segments.is_empty() {
            return Vec::new();
        }
        let mut ops: HashMap<&[u8], Vec<&Op>> = HashMap::new();
        for change in changes {
            ops.entry(&change.path).or_default().push(&change.op);
        }
        let mut needed = vec![false; self.segments.len()];
        for path in &self.paths {
            if let Some(node) = tree.get(path) {
                let ops = ops.get(&path[..]).map_or(&[][..], Vec::as_slice);
                for id in left(node, ops) {
                    if let Ok(at) = self.segments.binary_search(&id) {
                        needed[at] = true;
                    }
                }
            }
        }
        self.segments.iter().zip(needed).filter(|(_, needed)| !needed).map(|(id, _)| *id).collect()
    }
}

/// The segments that an entry of the index still needs after `ops`.
fn left(node: &Node, ops: &[&Op]) -> Vec<u32> {
    let blocks: &[Block] = match &node.body {
        Body::Large(blocks) => blocks,
        _ => &[],
    };
    let mut content = Some(node.segment);
    let mut meta = Some(node.meta_segment);
    let mut rows: Vec<Option<u32>> = blocks.iter().map(|b| Some(b.segment)).collect();
    for op in ops {
        match op {
            Op::Refresh(_) => {}
            Op::Attr(_) => meta = None,
            Op::Large { meta: now, fresh: false, blocks } if !rows.is_empty() || matches!(node.body, Body::Large(_)) => {
                (content, meta) = (None, None);
                rows.truncate(block::count(now.size) as usize);
                for (index, _) in blocks {
                    if let Some(row) = rows.get_mut(*index as usize) {
                        *row = None;
                    }
                }
            }
            Op::Dir(_) | Op::Small(..) | Op::Link(..) | Op::Large { .. } | Op::Drop => return Vec::new(),
        }
    }
    content.into_iter().chain(meta).chain(rows.into_iter().flatten()).collect()
}

impl Scan {
    /// This scan, and all that the index has in the segments of these keys. `index` is the one that was scanned.
    pub fn carry(&self, index: &Index, keys: &[String]) -> Result<Scan> {
        if index.stamp() != self.stamp || !self.carry.segments.is_empty() {
            return Err(Error::Misuse(
                "the scan belongs to another index, or to a former state of it, or carries already".into(),
            ));
        }
        let catalog = index.catalog();
        let mut carry = Carry { segments: ids(catalog, keys)?, ..Carry::default() };
        let mut found = self.clone();
        for (path, node) in living(&catalog.tree, &carry) {
            let known = self.changed.binary_search_by(|s| s.path.cmp(&path)).is_ok() || self.removed.binary_search(&path).is_ok();
            if !known {
                found.changed.push(Seen { path: path.clone(), stat: stat(node) });
                carry.untouched.push(path.clone());
            }
            carry.paths.push(path);
        }
        // A removal is carried as long as any older segment is listed: those that are to go may have to stay.
        for (path, tombstone) in &catalog.tombstones {
            if carry.holds(tombstone.segment) && catalog.guards(tombstone) {
                found.removed.push(path.clone());
            }
        }
        carry.paths.sort_unstable();
        carry.untouched.sort_unstable();
        found.changed.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        found.removed.sort_unstable();
        found.carry = carry;
        Ok(found)
    }
}

fn ids(catalog: &Catalog, keys: &[String]) -> Result<Vec<u32>> {
    let known: HashMap<&str, u32> = catalog.segments.iter().map(|s| (&s.key[..], s.id)).collect();
    let id = |key: &String| {
        known.get(&key[..]).copied().ok_or_else(|| Error::Misuse(format!("the index knows no segment {}", key.escape_debug())))
    };
    let mut ids = keys.iter().map(id).collect::<Result<Vec<_>>>()?;
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// All entries of which something lies in the carried segments.
fn living<'t>(tree: &'t Tree, carry: &Carry) -> Vec<(Vec<u8>, &'t Node)> {
    let mut found = Vec::new();
    if carry.segments.is_empty() {
        return found;
    }
    let mut todo = vec![(ROOT, Vec::new())];
    while let Some((dir, path)) = todo.pop() {
        for node in tree.children(dir) {
            if let Body::Dir(id) = node.body {
                todo.push((id, paths::join(&path, tree.name(node))));
            }
            if carry.needs(node) {
                found.push((paths::join(&path, tree.name(node)), node));
            }
        }
    }
    found
}

/// What the scan would have seen of an entry that has not changed.
fn stat(node: &Node) -> Stat {
    let kind = match node.body {
        Body::Dir(_) => Kind::Dir,
        Body::Link => Kind::Link,
        Body::Small | Body::Large(_) => Kind::File,
    };
    let Meta { mode, size, mtime, ctime, ino, .. } = node.meta;
    Stat { kind, mode, size, mtime, ctime, ino, links: 1 }
}
