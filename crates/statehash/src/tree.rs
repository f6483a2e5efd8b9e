//! A tree of paths in memory: folders in a slab, children sorted by name in bounded runs, names in one arena.
//!
//! No recursion and no path per entry, so a million entries cost about 100 bytes each and any depth is walked flat.

use crate::block::Digest;
use crate::error::{Error, Result};
use crate::paths;

/// Longest run of siblings; insertion into a folder of any size moves at most this many.
const RUN: usize = 256;
pub const ROOT: u32 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub digest: Digest,
    /// The segment that holds it; 0 while it is missing.
    pub segment: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Small,
    Large(Box<Vec<Block>>),
    Link,
    Dir(u32),
}

/// What a look at the tree says about one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    pub mode: u16,
    /// Bytes of a file, of a link's target; 0 for a folder.
    pub size: u64,
    pub mtime: i64,
    /// 0 for folders, which are told by mode and mtime alone.
    pub ctime: i64,
    pub ino: u64,
    /// Changed so close to the look that a later change could bear the same times: to be read again.
    pub racy: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    name_at: u32,
    name_len: u8,
    pub meta: Meta,
    /// Where the content is: of a small file, a link or a folder; of a large file its latest metadata.
    pub segment: u32,
    /// Where the latest metadata is.
    pub meta_segment: u32,
    /// The oldest segment that may hold anything for this path.
    pub born: u32,
    pub digest: Digest,
    pub body: Body,
}

impl Node {
    pub fn new(body: Body, meta: Meta, digest: Digest, segment: u32) -> Self {
        Self { name_at: 0, name_len: 0, meta, segment, meta_segment: segment, born: segment, digest, body }
    }

    pub fn is_file(&self) -> bool {
        matches!(self.body, Body::Small | Body::Large(_))
    }

    pub fn dir(&self) -> Option<u32> {
        match self.body {
            Body::Dir(id) => Some(id),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Dir {
    /// Sorted, none empty.
    runs: Vec<Vec<Node>>,
}

/// Where a child is, or would be inserted.
#[derive(Debug, Clone, Copy)]
pub struct Spot {
    dir: u32,
    run: usize,
    at: usize,
}

#[derive(Debug, Clone)]
pub struct Tree {
    dirs: Vec<Dir>,
    free: Vec<u32>,
    names: Vec<u8>,
    pub files: u64,
    pub bytes: u64,
    pub entries: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Self { dirs: vec![Dir::default()], free: Vec::new(), names: Vec::new(), files: 0, bytes: 0, entries: 0 }
    }
}

impl Tree {
    #[inline]
    pub fn name(&self, node: &Node) -> &[u8] {
        let at = node.name_at as usize;
        &self.names[at..at + usize::from(node.name_len)]
    }

    /// The children of a folder, sorted by name.
    pub fn children(&self, dir: u32) -> impl Iterator<Item = &Node> {
        self.dirs[dir as usize].runs.iter().flatten()
    }

    /// Where `name` is in `dir`, or where it belongs.
    pub fn spot(&self, dir: u32, name: &[u8]) -> std::result::Result<Spot, Spot> {
        let runs = &self.dirs[dir as usize].runs;
        let run = runs.partition_point(|r| self.name(&r[0]) <= name).saturating_sub(1);
        let Some(nodes) = runs.get(run) else { return Err(Spot { dir, run: 0, at: 0 }) };
        match nodes.binary_search_by(|n| self.name(n).cmp(name)) {
            Ok(at) => Ok(Spot { dir, run, at }),
            Err(at) => Err(Spot { dir, run, at }),
        }
    }

    pub fn node(&self, spot: Spot) -> &Node {
        &self.dirs[spot.dir as usize].runs[spot.run][spot.at]
    }

    /// For changing metadata, digest and segments; size and body change through `replace` and `resize`.
    pub fn node_mut(&mut self, spot: Spot) -> &mut Node {
        &mut self.dirs[spot.dir as usize].runs[spot.run][spot.at]
    }

    pub fn child(&self, dir: u32, name: &[u8]) -> Option<&Node> {
        self.spot(dir, name).ok().map(|s| self.node(s))
    }

    /// The first child whose name is greater.
    pub fn next_child(&self, dir: u32, after: &[u8]) -> Option<&Node> {
        let runs = &self.dirs[dir as usize].runs;
        let run = runs.partition_point(|r| self.name(&r[0]) <= after).saturating_sub(1);
        let nodes = runs.get(run)?;
        let at = nodes.partition_point(|n| self.name(n) <= after);
        nodes.get(at).or_else(|| runs.get(run + 1).map(|r| &r[0]))
    }

    /// The folder with that path, "" being the root.
    pub fn dir(&self, path: &[u8]) -> Option<u32> {
        let mut dir = ROOT;
        if !path.is_empty() {
            for part in path.split(|b| *b == b'/') {
                dir = self.child(dir, part)?.dir()?;
            }
        }
        Some(dir)
    }

    pub fn find(&self, path: &[u8]) -> Option<Spot> {
        let (dir, name) = paths::split(path);
        self.spot(self.dir(dir)?, name).ok()
    }

    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.find(path).map(|s| self.node(s))
    }

    /// A folder without a name yet, for `Body::Dir`.
    pub fn new_dir(&mut self) -> u32 {
        if let Some(id) = self.free.pop() {
            return id;
        }
        self.dirs.push(Dir::default());
        (self.dirs.len() - 1) as u32
    }

    /// Adds a child. `vacant` comes from a `spot` that found nothing, with no change in between.
    pub fn insert(&mut self, vacant: Spot, name: &[u8], mut node: Node) -> Result<()> {
        let at = u32::try_from(self.names.len()).map_err(|_| Error::Limit("the names of the tree exceed 4 GiB".into()))?;
        node.name_at = at;
        node.name_len = u8::try_from(name.len()).map_err(|_| Error::format("a name is over 255 bytes"))?;
        self.names.extend_from_slice(name);
        self.count(&node, true);
        let runs = &mut self.dirs[vacant.dir as usize].runs;
        let (mut run, mut at) = (vacant.run, vacant.at);
        if runs.get(run).is_some_and(|full| full.len() >= RUN) {
            // Appending in order is the usual case: full runs stay full then.
            let tail = if at == RUN { Vec::new() } else { runs[run].split_off(RUN / 2) };
            runs.insert(run + 1, tail);
            if at > RUN / 2 {
                at -= runs[run].len();
                run += 1;
            }
        }
        if runs.len() == run {
            runs.push(Vec::new());
        }
        runs[run].insert(at, node);
        Ok(())
    }

    /// Adds a child that sorts after all others of `dir`; false if it doesn't. `more` says how many are to come with it.
    pub fn push(&mut self, dir: u32, name: &[u8], node: Node, more: usize) -> Result<bool> {
        let runs = &self.dirs[dir as usize].runs;
        let last = runs.last().and_then(|r| r.last());
        if last.is_some_and(|n| self.name(n) >= name) {
            return Ok(false);
        }
        let full = runs.last().is_none_or(|r| r.len() >= RUN);
        let (run, at) = if full { (runs.len(), 0) } else { (runs.len() - 1, runs[runs.len() - 1].len()) };
        if full {
            self.dirs[dir as usize].runs.push(Vec::with_capacity(more.min(RUN)));
        }
        self.insert(Spot { dir, run, at }, name, node)?;
        Ok(true)
    }

    /// Puts `node` in the place of another, under its name. The other must not be a folder that still has children.
    pub fn replace(&mut self, spot: Spot, mut node: Node) -> Node {
        let old = self.node(spot);
        (node.name_at, node.name_len) = (old.name_at, old.name_len);
        self.count(&node, true);
        let old = std::mem::replace(self.node_mut(spot), node);
        self.count(&old, false);
        self.release(&old);
        old
    }

    pub fn resize(&mut self, spot: Spot, size: u64) {
        let node = self.node_mut(spot);
        let (file, old) = (node.is_file(), std::mem::replace(&mut node.meta.size, size));
        if file {
            self.bytes = self.bytes.wrapping_sub(old).wrapping_add(size);
        }
    }

    /// Takes a child out. It must not be a folder that still has children.
    pub fn remove(&mut self, spot: Spot) -> Node {
        let runs = &mut self.dirs[spot.dir as usize].runs;
        let node = runs[spot.run].remove(spot.at);
        if runs[spot.run].is_empty() {
            runs.remove(spot.run);
        }
        self.count(&node, false);
        self.release(&node);
        node
    }

    /// Paths of all that lies below the folder `dir` at `path`, children before their folder; without itself.
    pub fn below(&self, dir: u32, path: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut todo = vec![(dir, path.to_vec())];
        while let Some((dir, path)) = todo.pop() {
            for node in self.children(dir) {
                let child = paths::join(&path, self.name(node));
                if let Body::Dir(id) = node.body {
                    todo.push((id, child.clone()));
                }
                found.push(child);
            }
        }
        found.reverse();
        found
    }

    fn release(&mut self, node: &Node) {
        if let Body::Dir(id) = node.body {
            debug_assert!(self.dirs[id as usize].runs.is_empty());
            self.dirs[id as usize] = Dir::default();
            self.free.push(id);
        }
    }

    fn count(&mut self, node: &Node, add: bool) {
        let file = u64::from(node.is_file());
        // Forged sizes may overflow the sum; it is shown, never relied on.
        let bytes = if file == 1 { node.meta.size } else { 0 };
        if add {
            self.entries += 1;
            self.files += file;
            self.bytes = self.bytes.wrapping_add(bytes);
        } else {
            self.entries -= 1;
            self.files -= file;
            self.bytes = self.bytes.wrapping_sub(bytes);
        }
    }

    /// All entries, folders in no particular order.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.dirs.iter().flat_map(|d| d.runs.iter().flatten())
    }
}

/// Walks all entries in byte order of their paths; borrows the tree only for one step at a time.
pub struct Cursor {
    stack: Vec<Frame>,
}

struct Frame {
    path: Vec<u8>,
    /// (name's place among the children, whether to go down instead of showing it), in order of the full paths.
    steps: std::vec::IntoIter<(Spot, bool)>,
}

impl Cursor {
    pub fn new(tree: &Tree) -> Self {
        Self { stack: vec![Frame::new(tree, ROOT, Vec::new())] }
    }

    /// The next path. The tree must be the one given before, unchanged.
    pub fn next<'t>(&mut self, tree: &'t Tree) -> Option<(Vec<u8>, &'t Node)> {
        loop {
            let frame = self.stack.last_mut()?;
            let Some((spot, down)) = frame.steps.next() else {
                self.stack.pop();
                continue;
            };
            let node = tree.node(spot);
            let path = paths::join(&frame.path, tree.name(node));
            match node.body {
                Body::Dir(id) if down => {
                    let frame = Frame::new(tree, id, path);
                    self.stack.push(frame);
                }
                _ => return Some((path, node)),
            }
        }
    }
}

impl Frame {
    fn new(tree: &Tree, dir: u32, path: Vec<u8>) -> Self {
        let mut steps = Vec::new();
        for (run, nodes) in tree.dirs[dir as usize].runs.iter().enumerate() {
            for (at, node) in nodes.iter().enumerate() {
                steps.push((Spot { dir, run, at }, false));
                if node.dir().is_some() {
                    steps.push((Spot { dir, run, at }, true));
                }
            }
        }
        // What lies below "a" sorts as "a/", so after "a-b" and before "a0".
        let key = |(spot, down): &(Spot, bool)| (tree.name(tree.node(*spot)), *down);
        let slash: &[u8] = b"/";
        steps.sort_by(|a, b| {
            let ((x, x_down), (y, y_down)) = (key(a), key(b));
            let x = x.iter().chain(if x_down { slash } else { &[] });
            x.cmp(y.iter().chain(if y_down { slash } else { &[] }))
        });
        Self { path, steps: steps.into_iter() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn file(size: u64) -> Node {
        Node::new(Body::Small, Meta { size, ..Meta::default() }, [0; 16], 1)
    }

    fn put(tree: &mut Tree, path: &[u8], node: Node) {
        let (mut dir, mut at) = (ROOT, 0);
        while let Some(cut) = path[at..].iter().position(|b| *b == b'/') {
            let name = &path[at..at + cut];
            dir = match tree.spot(dir, name) {
                Ok(spot) => tree.node(spot).dir().expect("a folder"),
                Err(spot) => {
                    let id = tree.new_dir();
                    tree.insert(spot, name, Node::new(Body::Dir(id), Meta::default(), [0; 16], 1)).expect("insert");
                    id
                }
            };
            at += cut + 1;
        }
        match tree.spot(dir, &path[at..]) {
            Ok(spot) => drop(tree.replace(spot, node)),
            Err(spot) => tree.insert(spot, &path[at..], node).expect("insert"),
        }
    }

    #[test]
    fn cursor_goes_in_byte_order_of_paths() {
        let mut tree = Tree::default();
        for path in [&b"a/x"[..], b"a-b", b"a.txt", b"a0", b"a/x.y", b"b/c/d", b"b/c-"] {
            put(&mut tree, path, file(3));
        }
        let mut cursor = Cursor::new(&tree);
        let mut seen = Vec::new();
        while let Some((path, _)) = cursor.next(&tree) {
            seen.push(path);
        }
        let mut sorted = seen.clone();
        sorted.sort();
        assert_eq!(seen, sorted);
        assert_eq!((seen.len(), tree.entries, tree.files, tree.bytes), (10, 10, 7, 21));
        assert_eq!(tree.below(tree.dir(b"b").expect("b"), b"b"), [&b"b/c/d"[..], b"b/c-", b"b/c"]);
    }

    proptest! {
        #[test]
        fn one_folder_behaves_as_a_map(ops in proptest::collection::vec((0u16..900, any::<bool>()), 0..3000)) {
            let (mut tree, mut map) = (Tree::default(), BTreeMap::new());
            for (key, add) in ops {
                let name = format!("n{key}").into_bytes();
                match (tree.spot(ROOT, &name), add) {
                    (Ok(spot), true) => drop(tree.replace(spot, file(u64::from(key)))),
                    (Err(spot), true) => tree.insert(spot, &name, file(u64::from(key))).expect("insert"),
                    (Ok(spot), false) => drop(tree.remove(spot)),
                    (Err(_), false) => {}
                }
                if add { map.insert(name, u64::from(key)); } else { map.remove(&name); }
            }
            let seen: Vec<_> = tree.children(ROOT).map(|n| (tree.name(n).to_vec(), n.meta.size)).collect();
            prop_assert_eq!(tree.bytes, map.values().sum::<u64>());
            prop_assert_eq!(seen, map.into_iter().collect::<Vec<_>>());
        }
    }
}
