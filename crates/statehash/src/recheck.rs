//! Reads the whole tree a share at a time and finds files whose content is not the index's although their metadata are:
//! written through mmap, or with the times put back. They count as changed from then on.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::block::{self, BLOCK};
use crate::error::{Error, Pulse, Result};
use crate::index::Index;
use crate::paths;
use crate::read::{self, Look};
use crate::tree::{Body, Meta, Node, Tree, ROOT};
use crate::walk::stat_fd;

/// What a small file costs at least: opening it takes about as long as reading this much.
const LEAST: u64 = 4096;

/// Where a reading is; what changes in the tree meanwhile may be passed over until the next round.
#[derive(Debug, Default)]
pub struct Recheck {
    /// The last file of the round that was begun.
    place: Vec<u8>,
    /// Files to be read before the round goes on.
    first: VecDeque<Vec<u8>>,
    /// The file that is being read, and from where on.
    path: Vec<u8>,
    offset: u64,
    pub rounds: u64,
    pub bytes: u64,
    buffer: Vec<u8>,
}

impl Recheck {
    /// Puts files first that changed after one moment and not after another (nanoseconds since 1970).
    pub fn prefer(&mut self, index: &Index, after: i64, upto: i64) {
        let tree = index.tree();
        let mut todo = vec![(ROOT, Vec::new())];
        while let Some((dir, path)) = todo.pop() {
            for node in tree.children(dir) {
                if let Some(id) = node.dir() {
                    todo.push((id, paths::join(&path, tree.name(node))));
                } else if node.meta.ctime > after && node.meta.ctime <= upto {
                    self.first.push_back(paths::join(&path, tree.name(node)));
                }
            }
        }
    }

    /// How many files are put first.
    pub fn preferred(&self) -> usize {
        self.first.len()
    }

    /// Reads on for about `budget` bytes or `time`, at most to the end of the round, or of what is put first where `round` is
    /// false. Returns the paths that differ.
    pub fn step(
        &mut self,
        root: BorrowedFd<'_>,
        index: &mut Index,
        budget: u64,
        time: Duration,
        round: bool,
        pulse: Pulse<'_>,
    ) -> Result<Vec<Vec<u8>>> {
        let begun = Instant::now();
        let (mut spent, mut found) = (0, Vec::new());
        while spent < budget && begun.elapsed() < time {
            pulse()?;
            let tree = index.tree();
            if self.offset == 0 {
                self.path = match self.first.pop_front() {
                    Some(path) => path,
                    None if !round => break,
                    None => {
                        let Some(path) = next(tree, &self.place) else {
                            self.place.clear();
                            self.rounds += 1;
                            break;
                        };
                        self.place.clone_from(&path);
                        path
                    }
                };
            }
            let Some(node) = tree.get(&self.path).filter(|n| n.dir().is_none()) else {
                self.offset = 0;
                continue;
            };
            let looked = match node.body {
                Body::Large(_) if node.meta.size > read::WHOLE => self.range(root, node),
                _ => self.whole(root, node),
            };
            let (read, differs) = match looked {
                Err(e) if e.unreadable() => (0, false), // what is stored of it is all there is
                other => other?,
            };
            spent += read.max(LEAST);
            self.bytes += read;
            if differs {
                self.offset = 0;
                let meta = Meta { racy: true, ..node.meta };
                index.refresh([(&self.path[..], meta)]);
                found.push(self.path.clone());
            }
        }
        Ok(found)
    }

    fn whole(&mut self, root: BorrowedFd<'_>, node: &Node) -> Result<(u64, bool)> {
        self.offset = 0;
        let look = match node.body {
            Body::Link => read::link(root, &self.path, &mut self.buffer)?,
            _ => read::file(root, &self.path, &mut self.buffer)?,
        };
        let Look::Content { meta, moved: false } = look else { return Ok((0, false)) };
        if !alike(&meta, &node.meta) {
            return Ok((meta.size, false)); // the next scan sees that
        }
        let content = &self.buffer[..meta.size as usize];
        let digest = match node.body {
            Body::Large(_) => block::whole(meta.size, content.chunks(BLOCK).map(block::digest)),
            _ => block::digest(content),
        };
        Ok((meta.size, digest != node.digest))
    }

    /// The next stretch of a large file.
    fn range(&mut self, root: BorrowedFd<'_>, node: &Node) -> Result<(u64, bool)> {
        let from = std::mem::take(&mut self.offset);
        let (Body::Large(blocks), Ok(fd)) = (&node.body, read::open(root, &self.path)?) else { return Ok((0, false)) };
        let at = |e| Error::os(&self.path, e);
        let unmoved = || -> Result<bool> { Ok(alike(&stat_fd(fd.as_fd()).map_err(at)?.meta(i64::MAX), &node.meta)) };
        if from >= node.meta.size || !unmoved()? {
            return Ok((0, false));
        }
        let want = (node.meta.size - from).min(read::WHOLE) as usize;
        if self.buffer.len() < want {
            self.buffer.resize(want, 0);
        }
        let content = &mut self.buffer[..want];
        let have = read::fill_sparse(&fd, content, from).map_err(at)?;
        let first = (from / BLOCK as u64) as usize;
        let known = blocks.iter().skip(first).take(want.div_ceil(BLOCK)).map(|b| b.digest);
        let same = have == want && content.chunks(BLOCK).map(block::digest).eq(known);
        if !same && unmoved()? {
            return Ok((want as u64, true));
        }
        if from + (want as u64) < node.meta.size {
            self.offset = from + want as u64;
        }
        Ok((want as u64, false))
    }
}

fn alike(a: &Meta, b: &Meta) -> bool {
    (a.mode, a.size, a.mtime, a.ctime, a.ino) == (b.mode, b.size, b.mtime, b.ctime, b.ino)
}

/// The first file or link after `path`, each folder's own before what lies behind it by name.
fn next(tree: &Tree, path: &[u8]) -> Option<Vec<u8>> {
    // Folders on the way, each with the length of its path and the name after which to go on.
    let mut way: Vec<(u32, usize, &[u8])> = Vec::new();
    let (mut dir, mut at) = (ROOT, 0);
    let mut prefix = path.to_vec();
    for part in path.split(|b| *b == b'/').filter(|p| !p.is_empty()) {
        way.push((dir, at, part));
        at = part.as_ptr() as usize - path.as_ptr() as usize + part.len();
        match tree.child(dir, part).and_then(Node::dir) {
            Some(id) => dir = id,
            None => break,
        }
    }
    if path.is_empty() {
        way.push((ROOT, 0, b""));
    }
    while let Some((dir, length, after)) = way.pop() {
        prefix.truncate(length);
        let Some(node) = tree.next_child(dir, after) else { continue };
        let name = tree.name(node);
        way.push((dir, length, name));
        prefix = paths::join(&prefix, name);
        match node.dir() {
            Some(id) => way.push((id, prefix.len(), b"")),
            None => return Some(prefix),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn tree(paths: &BTreeSet<String>) -> Tree {
        let mut catalog = crate::catalog::Catalog::default();
        for path in paths {
            catalog.set(path.as_bytes(), Node::new(Body::Small, Meta::default(), [0; 16], 1), &mut ()).expect("set");
        }
        catalog.tree
    }

    proptest! {
        #[test]
        fn passes_over_no_file(paths in proptest::collection::btree_set("[a-c.-]{1,2}(/[a-c.-]{1,2}){0,2}", 0..40)) {
            // A name is a folder or a file, not both.
            let paths: BTreeSet<_> = paths
                .iter()
                .filter(|p| !paths.iter().any(|q| q != *p && paths::at_or_below(q.as_bytes(), p.as_bytes())))
                .cloned()
                .collect();
            let tree = tree(&paths);
            let (mut seen, mut at) = (BTreeSet::new(), Vec::new());
            while let Some(path) = next(&tree, &at) {
                prop_assert!(seen.insert(String::from_utf8(path.clone()).expect("text")));
                at = path;
            }
            prop_assert_eq!(seen, paths);
        }
    }
}
