//! What one thread of a pack does: reads files, hashes, writes records, compresses chunks.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::block::{self, Digest, BLOCK};
use crate::catalog::{Change, Op};
use crate::database;
use crate::error::{Error, Result};
use crate::large::{Found, Source};
use crate::pool::Pool;
use crate::read::{self, Look, Stretch};
use crate::scan::Scan;
use crate::segment::{compress, Record};
use crate::tree::{Block, Body, Meta, Node, Tree};
use crate::walk::Kind;

/// A chunk is closed when it reaches this; with one more file of `read::WHOLE` it stays within the format's bound.
pub const CHUNK: usize = 1 << 20;
const LEVEL: i32 = 1;

pub enum Job {
    Drops(Range<usize>),
    Batch(Range<usize>),
    Blocks { source: Arc<Source>, first: u32, count: u32 },
}

/// One chunk on its way into a segment, and what it means to the index; a chunk of nothing if `frame` is empty.
#[derive(Default)]
pub struct Piece {
    pub frame: Vec<u8>,
    pub raw: usize,
    pub records: u64,
    pub changes: Vec<Change>,
    pub range: Option<Found>,
}

#[derive(Default)]
pub struct Done {
    pub pieces: VecDeque<Piece>,
    pub incomplete: Vec<Vec<u8>>,
    pub doubtful: Vec<Vec<u8>>,
    pub databases: Vec<Vec<u8>>,
    /// Places in the scan of files that turned out to be large.
    pub grown: Vec<usize>,
    pub moved: bool,
}

pub struct Worker<'a> {
    root: BorrowedFd<'a>,
    scan: &'a Scan,
    pub tree: &'a Tree,
    max_file_bytes: Option<u64>,
    frames: &'a Pool,
    zstd: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
    records: u64,
    changes: Vec<Change>,
    buffer: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub fn new(
        root: BorrowedFd<'a>,
        scan: &'a Scan,
        tree: &'a Tree,
        max_file_bytes: Option<u64>,
        frames: &'a Pool,
    ) -> Result<Self> {
        let zstd = zstd::bulk::Compressor::new(LEVEL).map_err(|e| Error::format(format!("zstd: {e}")))?;
        let (raw, buffer) = (Vec::new(), Vec::new());
        Ok(Self { root, scan, tree, max_file_bytes, frames, zstd, raw, records: 0, changes: Vec::new(), buffer })
    }

    pub fn run(&mut self, job: Job) -> Result<Done> {
        let mut done = Done::default();
        match job {
            Job::Drops(range) => {
                let scan = self.scan;
                for path in &scan.removed[range] {
                    self.drop(path);
                    self.close_full(&mut done)?;
                }
                done.pieces.extend(self.close()?);
            }
            Job::Batch(range) => {
                for at in range {
                    self.entry(at, &mut done)?;
                    self.close_full(&mut done)?;
                }
                done.pieces.extend(self.close()?);
            }
            Job::Blocks { source, first, count } => {
                let found = self.blocks(&source, first, count)?;
                if first == 0 && found.database {
                    done.databases.push(source.path.clone());
                }
                let piece = self.close()?.unwrap_or_default();
                done.pieces.push_back(Piece { range: Some(found), ..piece });
            }
        }
        Ok(done)
    }

    fn close_full(&mut self, done: &mut Done) -> Result<()> {
        if self.raw.len() >= CHUNK {
            done.pieces.extend(self.close()?);
        }
        Ok(())
    }

    /// Compresses the records gathered so far; None if there are neither records nor changes.
    pub fn close(&mut self) -> Result<Option<Piece>> {
        if self.raw.is_empty() && self.changes.is_empty() {
            return Ok(None);
        }
        let mut frame = Vec::new();
        if !self.raw.is_empty() {
            frame = self.frames.take();
            compress(&mut self.zstd, &self.raw, &mut frame)?;
        }
        let piece = Piece {
            frame,
            raw: self.raw.len(),
            records: std::mem::take(&mut self.records),
            changes: std::mem::take(&mut self.changes),
            range: None,
        };
        self.raw.clear();
        Ok(Some(piece))
    }

    fn record(&mut self, record: Record<'_>) {
        record.put(&mut self.raw);
        self.records += 1;
    }

    pub fn meta(&mut self, path: &[u8], meta: &Meta, fresh: bool) {
        self.record(Record::Meta { path, mode: meta.mode, mtime: meta.mtime, size: meta.size, fresh });
    }

    fn change(&mut self, path: &[u8], op: Op) {
        self.changes.push(Change { path: path.to_vec(), segment: 0, op });
    }

    fn drop(&mut self, path: &[u8]) {
        self.record(Record::Drop { path });
        self.change(path, Op::Drop);
    }

    fn entry(&mut self, at: usize, done: &mut Done) -> Result<()> {
        let scan = self.scan;
        let seen = &scan.changed[at];
        let path = &seen.path;
        let root = self.root;
        let mut buffer = std::mem::take(&mut self.buffer);
        let look = match seen.stat.kind {
            Kind::Dir => {
                let meta = seen.stat.meta(scan.look);
                self.record(Record::Dir { path, mode: meta.mode, mtime: meta.mtime });
                self.change(path, Op::Dir(meta));
                self.buffer = buffer;
                return Ok(());
            }
            Kind::Link => read::link(root, path, &mut buffer),
            _ => read::file(root, path, &mut buffer),
        };
        let look = match look {
            Err(e) if e.unreadable() => Look::Denied,
            other => other?,
        };
        match look {
            Look::Gone => {
                done.moved = true;
                if self.tree.get(path).is_some() {
                    self.drop(path);
                }
            }
            Look::Denied if scan.carry.untouched(path) => done.doubtful.push(path.clone()),
            Look::Denied => done.incomplete.push(path.clone()),
            Look::Other => done.moved = true,
            Look::Large => done.grown.push(at),
            Look::Content { meta, .. } if self.doubtful(path, &meta, &buffer[..meta.size as usize]) => {
                done.doubtful.push(path.clone());
            }
            Look::Content { meta, .. } if self.too_large(path, &meta) => done.incomplete.push(path.clone()),
            Look::Content { meta, moved } => {
                done.moved |= moved;
                let content = &buffer[..meta.size as usize];
                if database::is_database(content) {
                    done.databases.push(path.clone());
                }
                match seen.stat.kind {
                    Kind::Link => self.link(path, meta, content),
                    _ if content.len() <= BLOCK => self.small(path, meta, content),
                    _ => self.medium(path, meta, content),
                }
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    /// The index's entry, if it is only to be carried and its metadata show no change.
    fn carried(&self, path: &[u8], meta: &Meta) -> Option<&'a Node> {
        let same = |n: &&Node| {
            let Meta { mode, size, mtime, ctime, ino, .. } = n.meta;
            (mode, size, mtime, ctime, ino) == (meta.mode, meta.size, meta.mtime, meta.ctime, meta.ino)
        };
        self.scan.carry.untouched(path).then(|| self.tree.get(path)).flatten().filter(same)
    }

    fn doubtful(&self, path: &[u8], meta: &Meta, content: &[u8]) -> bool {
        self.carried(path, meta).is_some_and(|node| match node.body {
            Body::Large(_) => node.digest != block::whole(meta.size, content.chunks(BLOCK).map(block::digest)),
            _ => node.digest != block::digest(content),
        })
    }

    fn too_large(&self, path: &[u8], meta: &Meta) -> bool {
        // What is stored already may be carried, whatever the limit is now.
        self.max_file_bytes.is_some_and(|max| meta.size > max) && self.carried(path, meta).is_none()
    }

    fn link(&mut self, path: &[u8], meta: Meta, target: &[u8]) {
        let tree = self.tree;
        let digest = block::digest(target);
        let old = tree.get(path).filter(|n| n.body == Body::Link && n.digest == digest);
        if old.is_some_and(|n| n.meta.mtime == meta.mtime && !self.scan.carry.holds(n.segment)) {
            return self.change(path, Op::Refresh(meta));
        }
        self.record(Record::Link { path, mtime: meta.mtime, target });
        self.change(path, Op::Link(meta, digest));
    }

    fn small(&mut self, path: &[u8], meta: Meta, content: &[u8]) {
        let (tree, carry) = (self.tree, &self.scan.carry);
        let digest = block::digest(content);
        let Meta { mode, mtime, size, .. } = meta;
        match tree.get(path) {
            Some(n) if n.body == Body::Small && n.digest == digest && n.meta.size == size && !carry.holds(n.segment) => {
                if (n.meta.mode, n.meta.mtime) == (mode, mtime) && !carry.holds(n.meta_segment) {
                    return self.change(path, Op::Refresh(meta));
                }
                self.record(Record::Attr { path, mode, mtime });
                self.change(path, Op::Attr(meta));
            }
            _ => {
                self.record(Record::File { path, mode, mtime, content });
                self.change(path, Op::Small(meta, digest));
            }
        }
    }

    /// A file of more than one block that is read whole.
    fn medium(&mut self, path: &[u8], meta: Meta, content: &[u8]) {
        let (tree, carry) = (self.tree, &self.scan.carry);
        let old = tree.get(path);
        let known: &[Block] = match old.map(|n| &n.body) {
            Some(Body::Large(blocks)) => blocks,
            _ => &[],
        };
        let fresh = !old.is_some_and(|n| matches!(n.body, Body::Large(_)));
        let start = self.raw.len();
        let Meta { mode, mtime, size, .. } = meta;
        self.meta(path, &meta, fresh);
        let listed = |b: &&Block| !carry.holds(b.segment);
        let stored = self.differing(content, 0, |i| known.get(i as usize).filter(listed).map(|b| b.digest));
        let same_meta =
            old.is_some_and(|n| (n.meta.size, n.meta.mode, n.meta.mtime) == (size, mode, mtime) && !carry.holds(n.meta_segment));
        if stored.is_empty() && same_meta && !fresh {
            self.raw.truncate(start);
            self.records -= 1;
            return self.change(path, Op::Refresh(meta));
        }
        // The segments are filled in by the place of the piece; see `put`.
        let blocks = stored.into_iter().map(|(i, digest)| (i, Block { digest, segment: 0 })).collect();
        self.change(path, Op::Large { meta, fresh, blocks });
    }

    /// Records of those blocks of `content`, whose first is block `first`, that are not as known.
    fn differing(&mut self, content: &[u8], first: u32, known: impl Fn(u32) -> Option<Digest>) -> Vec<(u32, Digest)> {
        let mut stored = Vec::new();
        let mut zeros: Option<(u32, u32)> = None;
        for (index, data) in (first..).zip(content.chunks(BLOCK)) {
            let zero = block::is_zero(data);
            let digest = if zero { block::zero_digest(data.len()) } else { block::digest(data) };
            if known(index) == Some(digest) {
                continue;
            }
            stored.push((index, digest));
            match &mut zeros {
                Some((from, count)) if zero && *from + *count == index => *count += 1,
                _ => {
                    if let Some((index, count)) = zeros.take() {
                        self.record(Record::Zero { index, count });
                    }
                    if zero {
                        zeros = Some((index, 1));
                    } else {
                        self.record(Record::Block { index, data });
                    }
                }
            }
        }
        if let Some((index, count)) = zeros {
            self.record(Record::Zero { index, count });
        }
        stored
    }

    /// A range without any data.
    fn hole(&mut self, source: &Source, first: u32, count: u32) -> Found {
        let digest = |i: u32| block::zero_digest(block::length(source.before.size, i.into()));
        let differing = |i: &u32| source.known(*i) != Some(digest(*i));
        let mut blocks: Vec<_> = (first..first + count).filter(differing).map(|i| (i, digest(i))).collect();
        let doubt = blocks.iter().any(|(i, digest)| !source.expects(*i, digest));
        if doubt {
            blocks.clear();
        }
        if !blocks.is_empty() {
            self.record(source.record(first));
        }
        for run in blocks.chunk_by(|a, b| a.0 + 1 == b.0) {
            self.record(Record::Zero { index: run[0].0, count: run.len() as u32 });
        }
        Found { blocks, short: None, doubt, database: false }
    }

    fn blocks(&mut self, source: &Source, first: u32, count: u32) -> Result<Found> {
        let size = source.before.size;
        let from = u64::from(first) * BLOCK as u64;
        let want = (size - from).min(u64::from(count) * BLOCK as u64) as usize;
        let stretch = source.dense.ask(&source.fd, from..from + want as u64);
        if stretch == Stretch::Hole {
            return Ok(self.hole(source, first, count));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < want {
            buffer.resize(want, 0);
        }
        let fill = if stretch == Stretch::Data { read::fill } else { read::fill_sparse };
        let have = match fill(&source.fd, &mut buffer[..want], from).map_err(|e| Error::os(&source.path, e)) {
            // Only carried: it stays where it is stored.
            Err(e) if e.unreadable() && source.only_carried() => {
                return Ok(Found { blocks: Vec::new(), short: None, doubt: true, database: false });
            }
            other => other?,
        };
        let (have, short) = if have < want { (have / BLOCK * BLOCK, true) } else { (have, false) };
        let (start, records) = (self.raw.len(), self.records);
        self.record(source.record(first));
        let mut blocks = self.differing(&buffer[..have], first, |i| source.known(i));
        let doubt = blocks.iter().any(|(i, digest)| !source.expects(*i, digest));
        if doubt {
            blocks.clear();
        }
        if blocks.is_empty() {
            self.raw.truncate(start);
            self.records = records;
        }
        let database = database::is_database(&buffer[..have]);
        self.buffer = buffer;
        Ok(Found { blocks, short: short.then_some(from + have as u64), doubt, database })
    }
}
