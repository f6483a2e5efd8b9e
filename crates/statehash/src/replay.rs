//! Plays stored segments back, in order: into a catalog, and onto whatever `Target` builds from it.
//!
//! The input is hostile: nothing is believed before it was checked here or in `segment`. A second thread
//! decodes and hashes ahead of the one that writes.

use std::sync::mpsc;

use crate::block::{self, Digest, BLOCK};
use crate::catalog::{lacks, Catalog, Disk};
use crate::error::{shown, Error, Pulse, Result};
use crate::segment::{decompress, Chunks, Part, Record, Records};
use crate::tree::{Block, Body, Cursor, Meta, Node, Spot};

/// Content bytes of all files together when the caller states no limit; bounds the memory for block tables.
const TREE_BYTES: u64 = 1 << 40;
/// Decoded chunks that wait for the writer.
const AHEAD: usize = 3;

/// Builds what the records say; the catalog has accepted them before. `()` builds nothing.
pub trait Target: Disk {
    fn small(&mut self, path: &[u8], mode: u16, mtime: i64, content: &[u8]) -> Result<()>;
    fn link(&mut self, path: &[u8], mtime: i64, target: &[u8]) -> Result<()>;
    fn attr(&mut self, path: &[u8], mode: u16, mtime: i64) -> Result<()>;
    /// The following blocks are of this file; it is new or keeps its content, cut or lengthened to `size`.
    fn large(&mut self, path: &[u8], size: u64, new: bool) -> Result<()>;
    fn block(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    fn zeros(&mut self, offset: u64, len: u64) -> Result<()>;
    fn end(&mut self) -> Result<()>;
}

impl Target for () {
    fn small(&mut self, _: &[u8], _: u16, _: i64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn link(&mut self, _: &[u8], _: i64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn attr(&mut self, _: &[u8], _: u16, _: i64) -> Result<()> {
        Ok(())
    }
    fn large(&mut self, _: &[u8], _: u64, _: bool) -> Result<()> {
        Ok(())
    }
    fn block(&mut self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn zeros(&mut self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_bytes: Option<u64>,
    pub max_entries: u64,
}

pub struct Replay<T> {
    catalog: Catalog,
    pub target: T,
    limits: Limits,
    failed: bool,
    finished: bool,
}

struct Decoded {
    raw: Vec<u8>,
    /// Of FILE, BLOCK and LINK records, in order.
    digests: Vec<Digest>,
}

impl<T: Target> Replay<T> {
    pub fn new(target: T, limits: Limits) -> Self {
        Self { catalog: Catalog::default(), target, limits, failed: false, finished: false }
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Plays one segment. After an error only dropping is left.
    pub fn apply(&mut self, bytes: &[u8], key: &str, digest: &str, threads: usize, pulse: Pulse<'_>) -> Result<()> {
        if self.failed || self.finished {
            return Err(Error::Misuse("no more segments can be applied after an error or the end".into()));
        }
        self.failed = true;
        let found = blake3::hash(bytes);
        if found.to_hex().as_str() != digest {
            return Err(Error::Digest(format!("segment {} has another digest than the one named", key.escape_debug())));
        }
        let mut chunks = Chunks::new(bytes)?;
        let id = self.catalog.add_segment(key.to_owned(), *found.as_bytes(), bytes.len() as u64, 0)?;
        let mut seen = 0;
        let mut end = None;
        if threads <= 1 || bytes.len() < BLOCK {
            let mut decoder = Decoder::new()?;
            while end.is_none() {
                match chunks.part()? {
                    Part::Chunk { raw_len, frame } => seen += self.chunk(&decoder.decode(raw_len, frame, Vec::new())?, id)?,
                    Part::End { records, raw } => end = Some((records, raw)),
                }
                pulse()?;
            }
        } else {
            let (ahead, decoded) = mpsc::sync_channel::<Decoded>(AHEAD);
            let (back, spare) = mpsc::channel::<Vec<u8>>();
            end = std::thread::scope(|scope| {
                let decoded = decoded;
                let producer = scope.spawn(move || -> Result<(u64, u64)> {
                    let mut decoder = Decoder::new()?;
                    loop {
                        match chunks.part()? {
                            Part::End { records, raw } => return Ok((records, raw)),
                            Part::Chunk { raw_len, frame } => {
                                let chunk = decoder.decode(raw_len, frame, spare.try_recv().unwrap_or_default())?;
                                if ahead.send(chunk).is_err() {
                                    return Err(Error::Interrupted);
                                }
                            }
                        }
                    }
                });
                let mut wrote = Ok(());
                // `decoded` is dropped on the way out, which ends the producer.
                while let Ok(chunk) = decoded.recv() {
                    wrote = pulse().and_then(|()| self.chunk(&chunk, id)).map(|n| seen += n);
                    if wrote.is_err() {
                        break;
                    }
                    // The producer may have ended already.
                    let _ = back.send(chunk.raw);
                }
                drop(decoded);
                let read = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                wrote.and(read.map(Some))
            })?;
        }
        let (records, raw) = end.unwrap_or_default();
        if records != seen {
            return Err(Error::format("the segment holds another number of records than it says"));
        }
        self.target.end()?;
        if let Some(segment) = self.catalog.segments.last_mut() {
            segment.raw = raw;
        }
        self.failed = false;
        Ok(())
    }

    fn chunk(&mut self, chunk: &Decoded, id: u32) -> Result<u64> {
        let mut digests = chunk.digests.iter();
        let mut next = || digests.next().copied().unwrap_or_default();
        let mut large: Option<(&[u8], Spot)> = None;
        let mut seen = 0;
        for record in Records::new(&chunk.raw) {
            seen += 1;
            match record? {
                Record::File { path, mode, mtime, content } => {
                    let meta = Meta { mode, mtime, size: content.len() as u64, ..Meta::default() };
                    self.catalog.set(path, Node::new(Body::Small, meta, next(), id), &mut self.target)?;
                    self.bounded()?;
                    self.target.small(path, mode, mtime, content)?;
                    large = None;
                }
                Record::Meta { path, mode, mtime, size, fresh } => {
                    if size > self.limits.max_bytes.unwrap_or(TREE_BYTES) {
                        return Err(Error::Limit(format!("{} alone exceeds the limit for the whole state", shown(path))));
                    }
                    let meta = Meta { mode, mtime, size, ..Meta::default() };
                    let kept = !fresh && self.catalog.tree.get(path).is_some_and(|n| matches!(n.body, Body::Large(_)));
                    let spot = self.catalog.set_large(path, meta, fresh, id, &mut self.target)?;
                    self.bounded()?;
                    self.target.large(path, size, !kept)?;
                    large = Some((path, spot));
                }
                Record::Block { index, data } => {
                    let (path, spot) = large.ok_or_else(|| Error::format("a block in the segment belongs to no file"))?;
                    let size = self.catalog.tree.node(spot).meta.size;
                    if data.len() != block::length(size, index.into()) {
                        return Err(Error::format(format!("a block of {} has the wrong length", shown(path))));
                    }
                    self.catalog.set_block(spot, index, Block { digest: next(), segment: id })?;
                    self.target.block(u64::from(index) * BLOCK as u64, data)?;
                }
                Record::Zero { index, count } => {
                    let (path, spot) = large.ok_or_else(|| Error::format("a block in the segment belongs to no file"))?;
                    let size = self.catalog.tree.node(spot).meta.size;
                    let end = u64::from(index) + u64::from(count);
                    if count == 0 || end > block::count(size) {
                        return Err(Error::format(format!("zeros lie beyond the end of {}", shown(path))));
                    }
                    for i in (index..).take(count as usize) {
                        let digest = block::zero_digest(block::length(size, i.into()));
                        self.catalog.set_block(spot, i, Block { digest, segment: id })?;
                    }
                    let from = u64::from(index) * BLOCK as u64;
                    self.target.zeros(from, size.min(end * BLOCK as u64) - from)?;
                }
                Record::Attr { path, mode, mtime } => {
                    // The file may only follow in a later segment, when the one that held it was dropped since.
                    if let Some(spot) = self.catalog.tree.find(path) {
                        let node = self.catalog.tree.node_mut(spot);
                        if node.body == Body::Small {
                            (node.meta.mode, node.meta.mtime, node.meta_segment) = (mode, mtime, id);
                            self.target.attr(path, mode, mtime)?;
                        }
                    }
                    large = None;
                }
                Record::Dir { path, mode, mtime } => {
                    let meta = Meta { mode, mtime, ..Meta::default() };
                    self.catalog.set_dir(path, meta, id, &mut self.target)?;
                    self.bounded()?;
                    large = None;
                }
                Record::Link { path, mtime, target } => {
                    let meta = Meta { mode: 0o777, mtime, size: target.len() as u64, ..Meta::default() };
                    self.catalog.set(path, Node::new(Body::Link, meta, next(), id), &mut self.target)?;
                    self.bounded()?;
                    self.target.link(path, mtime, target)?;
                    large = None;
                }
                Record::Drop { path } => {
                    self.catalog.drop_path(path, id, &mut self.target)?;
                    large = None;
                }
            }
        }
        Ok(seen)
    }

    fn bounded(&self) -> Result<()> {
        let tree = &self.catalog.tree;
        if tree.entries > self.limits.max_entries {
            return Err(Error::Limit(format!("the state holds more than {} entries", self.limits.max_entries)));
        }
        let max = self.limits.max_bytes.unwrap_or(TREE_BYTES);
        if tree.bytes > max {
            return Err(Error::Limit(format!("the state holds more than {max} bytes")));
        }
        Ok(())
    }

    /// Checks that all is there, and computes the digests of large files.
    pub fn finish(&mut self) -> Result<()> {
        if self.failed || self.finished {
            return Err(Error::Misuse("nothing can be finished after an error or the end".into()));
        }
        self.failed = true;
        let mut cursor = Cursor::new(&self.catalog.tree);
        let mut larges = Vec::new();
        while let Some((path, node)) = cursor.next(&self.catalog.tree) {
            match node.body {
                Body::Large(_) => larges.push(path),
                Body::Dir(_) if node.meta.racy => {
                    return Err(Error::format(format!("the folder {} is described by no segment", shown(&path))));
                }
                _ => {}
            }
        }
        for path in larges {
            if let Some(spot) = self.catalog.tree.find(&path) {
                self.catalog.seal(spot).map_err(|missing| lacks(&path, missing))?;
            }
        }
        self.failed = false;
        self.finished = true;
        Ok(())
    }

    pub fn finished(&self) -> bool {
        self.finished
    }
}

struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    fn new() -> Result<Self> {
        Ok(Self { zstd: zstd::bulk::Decompressor::new().map_err(|e| Error::format(format!("zstd: {e}")))? })
    }

    fn decode(&mut self, raw_len: usize, frame: &[u8], mut raw: Vec<u8>) -> Result<Decoded> {
        decompress(&mut self.zstd, raw_len, frame, &mut raw)?;
        let mut digests = Vec::new();
        for record in Records::new(&raw) {
            if let Record::File { content: data, .. } | Record::Block { data, .. } | Record::Link { target: data, .. } = record? {
                digests.push(block::digest(data));
            }
        }
        Ok(Decoded { raw, digests })
    }
}
