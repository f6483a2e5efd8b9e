//! What a list of segments adds up to: the tree, where each path and block of it is stored, and what was removed.
//!
//! Segments apply in order and later ones win. `Index` keeps the catalog of the local tree, `replay` builds one
//! from stored segments; both go through the same few operations, so that they agree.
//!
//! **Tombstones.** A segment may be dropped from the list once all that is still live in it has been carried into a
//! newer one. That must not bring removed paths back: while an older segment may still hold a removed path, its
//! removal has to be carried as well. So each path, live or removed, knows `born`, the oldest segment that may hold
//! anything for it; the tombstone of a removed path also names the segment of the removal, and is needed as long
//! as some listed segment lies between the two. A path that comes back takes `born` over from its tombstone.
//!
//! **Live bytes** of a segment are the raw lengths of its records that still count (tombstones included, or a
//! segment of nothing but removals would look empty for ever), scaled by how well that segment compressed.

use std::collections::BTreeMap;

use crate::block::{self, Digest, BLOCK};
use crate::error::{shown, Error, Result};
use crate::paths;
use crate::segment::cost;
use crate::tree::{Block, Body, Meta, Node, Spot, Tree, ROOT};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub id: u32,
    pub key: String,
    pub digest: [u8; 32],
    pub stored: u64,
    pub raw: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// The segment that says the path is gone.
    pub segment: u32,
    pub born: u32,
}

/// One path's part of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub path: Vec<u8>,
    /// The id of the segment that holds it; 0 for `Refresh`.
    pub segment: u32,
    pub op: Op,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Dir(Meta),
    Small(Meta, Digest),
    Link(Meta, Digest),
    /// A large file's metadata and those blocks that changed: (index, block).
    Large {
        meta: Meta,
        fresh: bool,
        blocks: Vec<(u32, Block)>,
    },
    /// A small file's metadata only.
    Attr(Meta),
    /// Nothing was stored: the content proved unchanged, only times or the inode moved.
    Refresh(Meta),
    Drop,
}

/// What a change of the catalog means on a disk; `()` is none.
pub trait Disk {
    fn make_dir(&mut self, path: &[u8]) -> Result<()>;
    fn remove(&mut self, path: &[u8], dir: bool) -> Result<()>;
}

impl Disk for () {
    fn make_dir(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn remove(&mut self, _: &[u8], _: bool) -> Result<()> {
        Ok(())
    }
}

/// A folder that exists because something lies in it, its own record still to come. No described folder is racy.
pub const UNDESCRIBED: Meta = Meta { mode: 0o700, size: 0, mtime: 0, ctime: 0, ino: 0, racy: true };

#[derive(Debug, Clone, Default)]
pub struct Catalog {
    pub tree: Tree,
    pub tombstones: BTreeMap<Vec<u8>, Tombstone>,
    /// In order of generations, ids rising, never 0 and never used twice.
    pub segments: Vec<Segment>,
    /// The highest id ever used.
    pub last_id: u32,
}

impl Catalog {
    pub fn add_segment(&mut self, key: String, digest: [u8; 32], stored: u64, raw: u64) -> Result<u32> {
        self.last_id = self.last_id.checked_add(1).ok_or_else(|| Error::Limit("too many segments".into()))?;
        self.segments.push(Segment { id: self.last_id, key, digest, stored, raw });
        Ok(self.last_id)
    }

    pub fn apply(&mut self, change: &Change) -> Result<()> {
        let Change { path, segment, op } = change;
        match op {
            Op::Dir(meta) => self.set_dir(path, *meta, *segment, &mut ()).map(drop),
            Op::Small(meta, digest) => self.set(path, Node::new(Body::Small, *meta, *digest, *segment), &mut ()).map(drop),
            Op::Link(meta, digest) => self.set(path, Node::new(Body::Link, *meta, *digest, *segment), &mut ()).map(drop),
            Op::Large { meta, fresh, blocks } => {
                let spot = self.set_large(path, *meta, *fresh, *segment, &mut ())?;
                for (index, block) in blocks {
                    self.set_block(spot, *index, *block)?;
                }
                self.seal(spot).map_err(|missing| lacks(path, missing))
            }
            Op::Attr(meta) => {
                let node = self.tree.find(path).map(|s| self.tree.node_mut(s)).filter(|n| n.body == Body::Small);
                let node = node.ok_or_else(|| Error::format(format!("metadata of {} without its file", shown(path))))?;
                node.meta = Meta { size: node.meta.size, ..*meta };
                node.meta_segment = *segment;
                Ok(())
            }
            Op::Refresh(meta) => {
                if let Some(spot) = self.tree.find(path) {
                    let node = self.tree.node_mut(spot);
                    node.meta = Meta { size: node.meta.size, ..*meta };
                }
                Ok(())
            }
            Op::Drop => self.drop_path(path, *segment, &mut ()),
        }
    }

    /// Where `path` is or belongs; parents that are missing or no folders become folders.
    fn place<'p>(&mut self, path: &'p [u8], segment: u32, disk: &mut dyn Disk) -> Result<(u32, &'p [u8])> {
        let (parents, name) = paths::split(path);
        let mut dir = ROOT;
        let mut end = 0;
        for part in parents.split(|b| *b == b'/').filter(|p| !p.is_empty()) {
            end += part.len() + usize::from(end > 0);
            dir = match self.tree.child(dir, part).and_then(Node::dir) {
                Some(id) => id,
                None => self.make_folder(dir, part, &parents[..end], UNDESCRIBED, segment, disk)?,
            };
        }
        Ok((dir, name))
    }

    fn make_folder(&mut self, dir: u32, name: &[u8], path: &[u8], meta: Meta, segment: u32, disk: &mut dyn Disk) -> Result<u32> {
        let id = self.tree.new_dir();
        let mut node = Node::new(Body::Dir(id), meta, [0; 16], segment);
        match self.tree.spot(dir, name) {
            Ok(spot) => {
                node.born = self.tree.node(spot).born;
                disk.remove(path, false)?;
                self.tree.replace(spot, node);
            }
            Err(spot) => {
                node.born = self.tombstones.remove(path).map_or(segment, |t| t.born);
                self.tree.insert(spot, name, node)?;
            }
        }
        disk.make_dir(path)?;
        Ok(id)
    }

    pub fn set_dir(&mut self, path: &[u8], meta: Meta, segment: u32, disk: &mut dyn Disk) -> Result<u32> {
        let (dir, name) = self.place(path, segment, disk)?;
        if let Ok(spot) = self.tree.spot(dir, name) {
            let node = self.tree.node_mut(spot);
            if let Body::Dir(id) = node.body {
                (node.meta, node.segment, node.meta_segment) = (meta, segment, segment);
                return Ok(id);
            }
        }
        self.make_folder(dir, name, path, meta, segment, disk)
    }

    /// Puts a file or link there, whatever was there before.
    pub fn set(&mut self, path: &[u8], mut node: Node, disk: &mut dyn Disk) -> Result<Spot> {
        let (dir, name) = self.place(path, node.segment, disk)?;
        match self.tree.spot(dir, name) {
            Ok(spot) => {
                let old = self.tree.node(spot);
                node.born = old.born;
                let folder = old.dir();
                if let Some(id) = folder {
                    self.drop_below(id, path, node.segment, disk)?;
                }
                disk.remove(path, folder.is_some())?;
                self.tree.replace(spot, node);
                Ok(spot)
            }
            Err(spot) => {
                if !self.tombstones.is_empty() {
                    node.born = self.tombstones.remove(path).map_or(node.born, |t| t.born);
                }
                self.tree.insert(spot, name, node)?;
                // Insertion may have split the run.
                self.tree.spot(dir, name).map_err(|_| Error::format("unreachable: inserted and not found"))
            }
        }
    }

    /// A large file's metadata; its former blocks stay unless `fresh`. Blocks beyond the size go, and the one that
    /// the old or the new end cuts counts as missing until it is set again.
    pub fn set_large(&mut self, path: &[u8], meta: Meta, fresh: bool, segment: u32, disk: &mut dyn Disk) -> Result<Spot> {
        if meta.size > block::FILE_BYTES {
            return Err(Error::Limit(format!("{} is over 1 TiB", shown(path))));
        }
        if let (false, Some(spot)) = (fresh, self.tree.find(path)) {
            let old = self.tree.node(spot).meta.size;
            if matches!(self.tree.node(spot).body, Body::Large(_)) {
                self.tree.resize(spot, meta.size);
                let node = self.tree.node_mut(spot);
                (node.meta, node.segment, node.meta_segment) = (meta, segment, segment);
                if let (true, Body::Large(blocks)) = (old != meta.size, &mut node.body) {
                    let cut = old.min(meta.size);
                    blocks.truncate(block::count(meta.size) as usize);
                    if cut % BLOCK as u64 != 0 {
                        if let Some(last) = blocks.get_mut((cut / BLOCK as u64) as usize) {
                            last.segment = 0;
                        }
                    }
                }
                return Ok(spot);
            }
        }
        self.set(path, Node::new(Body::Large(Box::default()), meta, [0; 16], segment), disk)
    }

    pub fn set_block(&mut self, spot: Spot, index: u32, block: Block) -> Result<()> {
        let node = self.tree.node_mut(spot);
        let (index, size) = (index as usize, node.meta.size);
        let Body::Large(blocks) = &mut node.body else { return Err(Error::format("a block without its file")) };
        if index as u64 >= block::count(size) {
            return Err(Error::format("a block lies beyond the end of its file"));
        }
        if index >= blocks.len() {
            blocks.resize(index + 1, Block { digest: [0; 16], segment: 0 });
        }
        blocks[index] = block;
        Ok(())
    }

    /// Computes a large file's digest; Err is the first block that is missing.
    pub fn seal(&mut self, spot: Spot) -> std::result::Result<(), u64> {
        let node = self.tree.node_mut(spot);
        if let Body::Large(blocks) = &node.body {
            if let Some(missing) = blocks.iter().position(|b| b.segment == 0) {
                return Err(missing as u64);
            }
            if (blocks.len() as u64) < block::count(node.meta.size) {
                return Err(blocks.len() as u64);
            }
            node.digest = block::whole(node.meta.size, blocks.iter().map(|b| b.digest));
        }
        Ok(())
    }

    /// Removes a path and all below it, leaving tombstones.
    pub fn drop_path(&mut self, path: &[u8], segment: u32, disk: &mut dyn Disk) -> Result<()> {
        if let Some(spot) = self.tree.find(path) {
            let folder = self.tree.node(spot).dir();
            if let Some(id) = folder {
                self.drop_below(id, path, segment, disk)?;
            }
            self.bury(path, spot, segment, disk)
        } else {
            // Already gone; this later record is the one that counts from now on.
            if let Some(tombstone) = self.tombstones.get_mut(path) {
                tombstone.segment = segment;
            }
            Ok(())
        }
    }

    fn drop_below(&mut self, dir: u32, path: &[u8], segment: u32, disk: &mut dyn Disk) -> Result<()> {
        for path in self.tree.below(dir, path) {
            if let Some(spot) = self.tree.find(&path) {
                self.bury(&path, spot, segment, disk)?;
            }
        }
        Ok(())
    }

    fn bury(&mut self, path: &[u8], spot: Spot, segment: u32, disk: &mut dyn Disk) -> Result<()> {
        let node = self.tree.node(spot);
        disk.remove(path, node.dir().is_some())?;
        let born = self.tree.remove(spot).born;
        if born < segment {
            self.tombstones.insert(path.to_vec(), Tombstone { segment, born });
        }
        Ok(())
    }

    /// Whether a listed segment may still hold what the tombstone says is gone.
    pub fn guards(&self, tombstone: &Tombstone) -> bool {
        guards(&self.segments, tombstone)
    }

    /// Forgets the tombstones that no listed segment needs any more.
    pub fn prune(&mut self) {
        let segments = &self.segments;
        self.tombstones.retain(|_, t| guards(segments, t));
    }

    /// Takes segments out of the list. Nothing that counts lies in them any more.
    pub fn drop_segments(&mut self, ids: &[u32]) {
        if !ids.is_empty() {
            self.segments.retain(|s| !ids.contains(&s.id));
            self.prune();
        }
    }

    /// Bytes of each segment's records that still count, as stored, in the order of `segments`.
    pub fn live(&self) -> Vec<u64> {
        let mut raw = vec![0u64; self.segments.len()];
        let mut add = |id: u32, bytes: usize| {
            if let Ok(at) = self.segments.binary_search_by_key(&id, |s| s.id) {
                raw[at] += bytes as u64;
            }
        };
        let mut todo = vec![(ROOT, 0)];
        while let Some((dir, depth)) = todo.pop() {
            for node in self.tree.children(dir) {
                let path = depth + self.tree.name(node).len();
                match &node.body {
                    Body::Dir(id) => {
                        add(node.segment, cost::attr(path));
                        todo.push((*id, path + 1));
                    }
                    Body::Link => add(node.segment, cost::link(path, node.meta.size as usize)),
                    Body::Small => add(node.segment, cost::file(path, node.meta.size as usize)),
                    Body::Large(blocks) => {
                        add(node.segment, cost::meta(path));
                        for (index, b) in blocks.iter().enumerate() {
                            let len = block::length(node.meta.size, index as u64);
                            let zero = len == BLOCK && b.digest == block::zero_digest(BLOCK);
                            add(b.segment, if zero { cost::ZERO } else { cost::block(len) });
                        }
                    }
                }
                if node.meta_segment != node.segment {
                    add(node.meta_segment, cost::attr(path));
                }
            }
        }
        for (path, tombstone) in self.tombstones.iter().filter(|(_, t)| self.guards(t)) {
            add(tombstone.segment, cost::drop(path.len()));
        }
        let scale = |(s, raw): (&Segment, u64)| {
            let live = u128::from(raw) * u128::from(s.stored) / u128::from(s.raw.max(1));
            live.min(u128::from(s.stored)) as u64
        };
        self.segments.iter().zip(raw).map(scale).collect()
    }
}

fn guards(segments: &[Segment], tombstone: &Tombstone) -> bool {
    let next = segments.partition_point(|s| s.id < tombstone.born);
    segments.get(next).is_some_and(|s| s.id < tombstone.segment)
}

pub fn lacks(path: &[u8], block: u64) -> Error {
    Error::format(format!("{} lacks block {block}", shown(path)))
}
