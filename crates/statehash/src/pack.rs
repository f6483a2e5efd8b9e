//! Turns a scan into segments: reads, hashes and compresses in one pass, on several threads.
//!
//! The caller's thread plans jobs and puts their results together in the order of planning; workers do the rest.
//! Small files go in batches of about 1 MiB; files over that in ranges, held against the blocks that the index
//! knows. A large file that changed while it was read is read again and what differs from the first reading is
//! stored after it: later records win. No thread outlives `next`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{mpsc, Arc, Mutex};

use crate::block::{self, Digest, BLOCK};
use crate::catalog::{Change, Op};
use crate::error::{Error, Pulse, Result};
use crate::index::{Index, Staged};
use crate::paths;
use crate::read::{self, Look};
use crate::scan::Scan;
use crate::segment::{compress, Builder, Record, Segment};
use crate::tree::{Block, Body, Meta, Tree};
use crate::walk::{now, stat_fd, Kind, Stat};

/// A chunk is closed when it reaches this; with one more file of `read::WHOLE` it stays within the format's bound.
const CHUNK: usize = 1 << 20;
const BATCH_ENTRIES: usize = 1024;
const RANGE_BLOCKS: u32 = (read::WHOLE / BLOCK as u64) as u32;
/// Work below this is done on the caller's thread alone.
const ALONE_BYTES: u64 = 256 << 10;
const ALONE_ENTRIES: usize = 64;
const LEVEL: i32 = 1;

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub segment_bytes: usize,
    pub max_file_bytes: Option<u64>,
    pub threads: usize,
}

enum Job {
    Drops(Range<usize>),
    Batch(Range<usize>),
    Blocks { source: Arc<Source>, first: u32, count: u32 },
}

/// One chunk on its way into a segment, and what it means to the index; a chunk of nothing if `frame` is empty.
#[derive(Default)]
struct Piece {
    frame: Vec<u8>,
    raw: usize,
    records: u64,
    changes: Vec<Change>,
    blocks: Option<Stored>,
}

/// What a range of a large file came to.
struct Stored {
    blocks: Vec<(u32, Digest)>,
    /// Where the file ended too early, rounded down to a block.
    short: Option<u64>,
}

#[derive(Default)]
struct Done {
    pieces: VecDeque<Piece>,
    incomplete: Vec<Vec<u8>>,
    /// Places in the scan of files that turned out to be large.
    grown: Vec<usize>,
    moved: bool,
}

/// A large file for the time of one reading.
struct Source {
    path: Vec<u8>,
    fd: OwnedFd,
    before: Stat,
    fresh: bool,
    first_pass: bool,
    /// The digests that are stored already.
    known: Vec<Option<Digest>>,
}

struct Large {
    source: Arc<Source>,
    look: i64,
    tries: u32,
    next_block: u32,
    /// Ranges planned and not yet put into a segment.
    outstanding: u32,
    short: Option<u64>,
    current: Vec<Option<Digest>>,
    stored: BTreeMap<u32, Block>,
    /// The size, mode and mtime that the last stored META says.
    said: Option<(u64, u16, i64)>,
}

pub struct Pack {
    root: Arc<OwnedFd>,
    scan: Arc<Scan>,
    options: Options,
    drops: usize,
    next: usize,
    grown: Vec<usize>,
    large: Option<Large>,
    planned: u64,
    taken: u64,
    ready: BTreeMap<u64, Done>,
    changes: Vec<Change>,
    segments: Vec<([u8; 32], u64, u64)>,
    pub incomplete: Vec<Vec<u8>>,
    pub moved: bool,
    finished: bool,
    failed: bool,
}

impl Pack {
    pub fn new(root: OwnedFd, scan: Arc<Scan>, options: Options) -> Self {
        let incomplete = scan.unreadable.clone();
        Self {
            root: Arc::new(root),
            scan,
            options,
            drops: 0,
            next: 0,
            grown: Vec::new(),
            large: None,
            planned: 0,
            taken: 0,
            ready: BTreeMap::new(),
            changes: Vec::new(),
            segments: Vec::new(),
            incomplete,
            moved: false,
            finished: false,
            failed: false,
        }
    }

    pub fn finished(&self) -> bool {
        self.finished
    }

    pub fn stamp(&self) -> u64 {
        self.scan.stamp
    }

    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    pub fn touches(&self, prefix: &[u8]) -> bool {
        self.changes.iter().any(|c| !matches!(c.op, Op::Refresh(_)) && paths::at_or_below(&c.path, prefix))
    }

    /// The transaction for `Index::stage`; the pack is empty afterwards if `take`.
    pub fn staged(&self, index: &Index, keys: &[String], meta: &[u8]) -> Result<Staged> {
        if !self.finished || self.failed {
            return Err(Error::Misuse("the pack is not at its end".into()));
        }
        if index.stamp() != self.scan.stamp {
            return Err(Error::Misuse("the pack belongs to another index, or to a former state of it".into()));
        }
        if keys.len() != self.segments.len() {
            return Err(Error::Misuse(format!("{} keys for {} segments", keys.len(), self.segments.len())));
        }
        let base = index.next_id();
        let segments = keys.iter().zip(&self.segments).map(|(key, (digest, stored, raw))| (key.clone(), *digest, *stored, *raw));
        let mut changes = self.changes.clone();
        for change in &mut changes {
            match &mut change.op {
                Op::Refresh(_) => continue,
                Op::Large { blocks, .. } => blocks.iter_mut().for_each(|(_, b)| b.segment += base),
                _ => {}
            }
            change.segment += base;
        }
        Ok(Staged { meta: meta.to_vec(), segments: segments.collect(), changes })
    }

    /// The next segment; None at the end. An error leaves the pack unusable.
    pub fn next(&mut self, index: &Index, pulse: Pulse<'_>) -> Result<Option<Segment>> {
        if self.failed {
            return Err(Error::Misuse("the pack failed before".into()));
        }
        if self.finished {
            return Ok(None);
        }
        if index.stamp() != self.scan.stamp {
            return Err(Error::Misuse("the index changed since the scan".into()));
        }
        self.failed = true;
        let segment = self.build(index.tree(), pulse)?;
        self.failed = false;
        Ok(segment)
    }

    fn build(&mut self, tree: &Tree, pulse: Pulse<'_>) -> Result<Option<Segment>> {
        let (root, scan) = (Arc::clone(&self.root), Arc::clone(&self.scan));
        let left: u64 = scan.changed[self.next..].iter().map(|s| s.stat.size).sum();
        let entries = scan.changed.len() - self.next + scan.removed.len() - self.drops;
        let busy = self.large.is_some() || left > ALONE_BYTES || entries > ALONE_ENTRIES;
        let threads = if busy { self.options.threads } else { 1 };
        let limit = self.options.segment_bytes;
        let capacity = if self.large.is_some() { limit } else { (left as usize + entries * 64).min(limit) };
        let mut builder = Builder::new(capacity);
        let worker = || -> Result<Worker<'_>> {
            Ok(Worker {
                root: &root,
                scan: &scan,
                tree,
                max_file_bytes: self.options.max_file_bytes,
                zstd: zstd::bulk::Compressor::new(LEVEL).map_err(|e| Error::format(format!("zstd: {e}")))?,
                raw: Vec::new(),
                records: 0,
                changes: Vec::new(),
                buffer: Vec::new(),
            })
        };
        let mut tail = worker()?;
        if threads <= 1 {
            let mut alone = worker()?;
            while self.put(&mut builder, &mut tail)? {
                match self.plan(tree)? {
                    Some((number, job)) => drop(self.ready.insert(number, alone.run(job)?)),
                    None if self.ready.contains_key(&self.taken) => {}
                    None => break,
                }
                pulse()?;
            }
        } else {
            let helpers = (0..threads).map(|_| worker()).collect::<Result<Vec<_>>>()?;
            let (jobs, inbox) = mpsc::channel::<(u64, Job)>();
            let inbox = Mutex::new(inbox);
            let (outbox, results) = mpsc::channel();
            std::thread::scope(|scope| -> Result<()> {
                // Owned here, so that an early return hangs up and the workers end before the scope waits for them.
                let jobs = jobs;
                for mut helper in helpers {
                    let (inbox, outbox) = (&inbox, outbox.clone());
                    scope.spawn(move || loop {
                        let job = inbox.lock().unwrap_or_else(|e| e.into_inner()).recv();
                        let Ok((number, job)) = job else { return };
                        if outbox.send((number, helper.run(job))).is_err() {
                            return;
                        }
                    });
                }
                drop(outbox);
                let gone = || Error::Misuse("a worker thread ended early".into());
                let mut flying = 0;
                loop {
                    let more = self.put(&mut builder, &mut tail)?;
                    while more && flying < 2 * threads {
                        let Some(job) = self.plan(tree)? else { break };
                        jobs.send(job).map_err(|_| gone())?;
                        flying += 1;
                    }
                    if flying == 0 {
                        if more && self.ready.contains_key(&self.taken) {
                            continue;
                        }
                        return Ok(());
                    }
                    let (number, done) = results.recv().map_err(|_| gone())?;
                    flying -= 1;
                    self.ready.insert(number, done?);
                    pulse()?;
                }
            })?;
        }
        if self.ready.is_empty() && self.large.is_none() && self.planned == self.taken && !self.more() {
            self.finished = true;
        }
        if builder.is_empty() {
            return Ok(None);
        }
        let segment = builder.finish();
        self.segments.push((segment.digest, segment.bytes.len() as u64, segment.raw));
        Ok(Some(segment))
    }

    fn more(&self) -> bool {
        self.drops < self.scan.removed.len() || self.next < self.scan.changed.len() || !self.grown.is_empty()
    }

    /// The next job with its number, or None if there is none, or none before the large file's reading is complete.
    fn plan(&mut self, tree: &Tree) -> Result<Option<(u64, Job)>> {
        let job = loop {
            if let Some(large) = &mut self.large {
                let left = (block::count(large.source.before.size) as u32).saturating_sub(large.next_block);
                if left == 0 {
                    return Ok(None);
                }
                let (first, count) = (large.next_block, left.min(RANGE_BLOCKS));
                large.next_block += count;
                large.outstanding += 1;
                break Job::Blocks { source: Arc::clone(&large.source), first, count };
            }
            if self.drops < self.scan.removed.len() {
                let from = self.drops;
                self.drops = self.scan.removed.len().min(from + 16 * BATCH_ENTRIES);
                break Job::Drops(from..self.drops);
            }
            let from = self.next;
            let mut bytes = 0;
            while let Some(seen) = self.scan.changed.get(self.next) {
                let large = seen.stat.kind == Kind::File && seen.stat.size > read::WHOLE;
                if large || bytes >= CHUNK as u64 || self.next - from >= BATCH_ENTRIES {
                    break;
                }
                bytes += seen.stat.size;
                self.next += 1;
            }
            if self.next > from {
                break Job::Batch(from..self.next);
            }
            if self.next < self.scan.changed.len() {
                self.next += 1;
                if let Some(job) = self.begin(tree, from)? {
                    break job;
                }
            } else if let Some(at) = self.grown.pop() {
                if let Some(job) = self.begin(tree, at)? {
                    break job;
                }
            } else {
                return Ok(None);
            }
        };
        self.planned += 1;
        Ok(Some((self.planned - 1, job)))
    }

    /// Opens a large file for reading in ranges; a job if it is none any more.
    fn begin(&mut self, tree: &Tree, at: usize) -> Result<Option<Job>> {
        let path = &self.scan.changed[at].path;
        let fd = match read::open(self.root.as_fd(), path)? {
            Ok(fd) => fd,
            Err(Look::Denied) => {
                self.incomplete.push(path.clone());
                return Ok(None);
            }
            Err(Look::Gone) => {
                // Told to the index and the segment by a batch of one.
                self.ready.insert(self.planned, gone(tree, path)?);
                self.planned += 1;
                return Ok(None);
            }
            Err(_) => {
                self.moved = true;
                return Ok(None);
            }
        };
        let look = now();
        let before = stat_fd(fd.as_fd()).map_err(|e| Error::os(path, e))?;
        if before.kind != Kind::File {
            self.moved = true;
            return Ok(None);
        }
        if before.size <= read::WHOLE {
            return Ok(Some(Job::Batch(at..at + 1)));
        }
        if self.options.max_file_bytes.is_some_and(|max| before.size > max) || before.size > block::FILE_BYTES {
            self.incomplete.push(path.clone());
            return Ok(None);
        }
        let old = match tree.get(path).map(|n| &n.body) {
            Some(Body::Large(blocks)) => Some(blocks.iter().map(|b| Some(b.digest)).collect::<Vec<_>>()),
            _ => None,
        };
        let fresh = old.is_none();
        let mut known = old.unwrap_or_default();
        known.resize(block::count(before.size) as usize, None);
        let source = Source { path: path.clone(), fd, before, fresh, first_pass: true, known: known.clone() };
        self.large = Some(Large {
            source: Arc::new(source),
            look,
            tries: 1,
            next_block: 0,
            outstanding: 0,
            short: None,
            current: known,
            stored: BTreeMap::new(),
            said: None,
        });
        Ok(None)
    }

    /// Puts what is ready, in order, into the segment; false once the segment is full.
    fn put(&mut self, builder: &mut Builder, tail: &mut Worker<'_>) -> Result<bool> {
        while let Some(mut done) = self.ready.remove(&self.taken) {
            let number = self.segments.len() as u32;
            while let Some(piece) = done.pieces.front() {
                if !piece.frame.is_empty() && !builder.fits(&piece.frame, piece.raw, self.options.segment_bytes) {
                    self.ready.insert(self.taken, done);
                    return Ok(false);
                }
                let Some(piece) = done.pieces.pop_front() else { break };
                if !piece.frame.is_empty() {
                    builder.push(&piece.frame, piece.raw, piece.records);
                }
                for mut change in piece.changes {
                    change.segment = number;
                    if let Op::Large { blocks, .. } = &mut change.op {
                        blocks.iter_mut().for_each(|(_, b)| b.segment = number);
                    }
                    self.changes.push(change);
                }
                if let (Some(stored), Some(large)) = (piece.blocks, &mut self.large) {
                    large.take(stored, number);
                    self.end_of_pass(builder, tail)?;
                }
            }
            self.taken += 1;
            self.incomplete.append(&mut done.incomplete);
            self.grown.append(&mut done.grown);
            self.moved |= done.moved;
        }
        Ok(true)
    }

    /// When all of a large file has been read: read it again if it moved, else write down what it came to.
    fn end_of_pass(&mut self, builder: &mut Builder, tail: &mut Worker<'_>) -> Result<()> {
        let Some(large) = &mut self.large else { return Ok(()) };
        let source = &large.source;
        if large.outstanding > 0 || u64::from(large.next_block) < block::count(source.before.size) {
            return Ok(());
        }
        let look = now();
        let after = stat_fd(source.fd.as_fd()).map_err(|e| Error::os(&source.path, e))?;
        let steady = large.short.is_none() && read::same(&source.before, &after);
        if !steady {
            self.moved = true;
            let small_enough = after.size <= block::FILE_BYTES && self.options.max_file_bytes.is_none_or(|max| after.size <= max);
            if large.tries < read::TRIES && small_enough {
                large.again(after, look)?;
                if after.size > 0 {
                    return Ok(());
                }
            }
        }
        let Some(large) = self.large.take() else { return Ok(()) };
        let source = &large.source;
        let mut meta = source.before.meta(large.look);
        if let Some(short) = large.short {
            meta.size = short;
        }
        meta.racy |= !steady;
        let path = source.path.clone();
        let old = tail.tree.get(&path);
        let same_meta = old.is_some_and(|n| (n.meta.size, n.meta.mode, n.meta.mtime) == (meta.size, meta.mode, meta.mtime));
        let number = self.segments.len() as u32;
        if large.stored.is_empty() && same_meta && !source.fresh {
            self.changes.push(Change { path, segment: number, op: Op::Refresh(meta) });
            return Ok(());
        }
        if large.said != Some((meta.size, meta.mode, meta.mtime)) {
            // Beyond the limit by these few bytes at most.
            Record::Meta { path: &path, mode: meta.mode, mtime: meta.mtime, size: meta.size, fresh: false }.put(&mut tail.raw);
            tail.records += 1;
            if let Some(piece) = tail.close()? {
                builder.push(&piece.frame, piece.raw, piece.records);
            }
        }
        let keep = block::count(meta.size) as u32;
        let blocks = large.stored.into_iter().filter(|(i, _)| *i < keep).collect();
        self.changes.push(Change { path, segment: number, op: Op::Large { meta, fresh: source.fresh, blocks } });
        Ok(())
    }
}

impl Large {
    fn take(&mut self, stored: Stored, number: u32) {
        self.outstanding -= 1;
        let before = &self.source.before;
        if !stored.blocks.is_empty() {
            self.said = Some((before.size, before.mode, before.mtime));
        }
        for (index, digest) in stored.blocks {
            self.current[index as usize] = Some(digest);
            self.stored.insert(index, Block { digest, segment: number });
        }
        if let Some(short) = stored.short {
            self.short = Some(self.short.map_or(short, |s| s.min(short)));
        }
    }

    /// Prepares another reading. What the new size cuts off counts as not stored.
    fn again(&mut self, before: Stat, look: i64) -> Result<()> {
        let count = block::count(before.size) as usize;
        self.current.resize(count, None);
        let fd = rustix::io::dup(&self.source.fd).map_err(|e| Error::os(&self.source.path, e))?;
        let (path, fresh) = (self.source.path.clone(), self.source.fresh);
        self.source = Arc::new(Source { path, fd, before, fresh, first_pass: false, known: self.current.clone() });
        (self.look, self.next_block, self.short) = (look, 0, None);
        self.tries += 1;
        Ok(())
    }
}

/// A path that vanished between scan and reading: a removal if the index has it.
fn gone(tree: &Tree, path: &[u8]) -> Result<Done> {
    let mut zstd = zstd::bulk::Compressor::new(LEVEL).map_err(|e| Error::format(format!("zstd: {e}")))?;
    let mut done = Done { moved: true, ..Done::default() };
    if tree.get(path).is_some() {
        let mut raw = Vec::new();
        Record::Drop { path }.put(&mut raw);
        let frame = compress(&mut zstd, &raw)?;
        let changes = vec![Change { path: path.to_vec(), segment: 0, op: Op::Drop }];
        done.pieces.push_back(Piece { frame, raw: raw.len(), records: 1, changes, blocks: None });
    }
    Ok(done)
}

struct Worker<'a> {
    root: &'a OwnedFd,
    scan: &'a Scan,
    tree: &'a Tree,
    max_file_bytes: Option<u64>,
    zstd: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
    records: u64,
    changes: Vec<Change>,
    buffer: Vec<u8>,
}

impl Worker<'_> {
    fn run(&mut self, job: Job) -> Result<Done> {
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
                let stored = self.blocks(&source, first, count)?;
                let piece = self.close()?.unwrap_or_default();
                done.pieces.push_back(Piece { blocks: Some(stored), ..piece });
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
    fn close(&mut self) -> Result<Option<Piece>> {
        if self.raw.is_empty() && self.changes.is_empty() {
            return Ok(None);
        }
        let frame = if self.raw.is_empty() { Vec::new() } else { compress(&mut self.zstd, &self.raw)? };
        let piece = Piece {
            frame,
            raw: self.raw.len(),
            records: std::mem::take(&mut self.records),
            changes: std::mem::take(&mut self.changes),
            blocks: None,
        };
        self.raw.clear();
        Ok(Some(piece))
    }

    fn record(&mut self, record: Record<'_>) {
        record.put(&mut self.raw);
        self.records += 1;
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
        let root = self.root.as_fd();
        let mut buffer = std::mem::take(&mut self.buffer);
        let look = match seen.stat.kind {
            Kind::Dir => {
                let meta = seen.stat.meta(scan.look);
                self.record(Record::Dir { path, mode: meta.mode, mtime: meta.mtime });
                self.change(path, Op::Dir(meta));
                self.buffer = buffer;
                return Ok(());
            }
            Kind::Link => read::link(root, path, &mut buffer)?,
            _ => read::file(root, path, &mut buffer)?,
        };
        match look {
            Look::Gone => {
                done.moved = true;
                if self.tree.get(path).is_some() {
                    self.drop(path);
                }
            }
            Look::Denied => done.incomplete.push(path.clone()),
            Look::Other => done.moved = true,
            Look::Large => done.grown.push(at),
            Look::Content { meta, .. } if self.max_file_bytes.is_some_and(|max| meta.size > max) => {
                done.incomplete.push(path.clone());
            }
            Look::Content { meta, moved } => {
                done.moved |= moved;
                let content = &buffer[..meta.size as usize];
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

    fn link(&mut self, path: &[u8], meta: Meta, target: &[u8]) {
        let tree = self.tree;
        let digest = block::digest(target);
        let old = tree.get(path).filter(|n| n.body == Body::Link && n.digest == digest);
        if old.is_some_and(|n| n.meta.mtime == meta.mtime) {
            return self.change(path, Op::Refresh(meta));
        }
        self.record(Record::Link { path, mtime: meta.mtime, target });
        self.change(path, Op::Link(meta, digest));
    }

    fn small(&mut self, path: &[u8], meta: Meta, content: &[u8]) {
        let tree = self.tree;
        let digest = block::digest(content);
        let Meta { mode, mtime, size, .. } = meta;
        match tree.get(path) {
            Some(n) if n.body == Body::Small && n.digest == digest && n.meta.size == size => {
                if (n.meta.mode, n.meta.mtime) == (mode, mtime) {
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
        let tree = self.tree;
        let old = tree.get(path);
        let known: &[Block] = match old.map(|n| &n.body) {
            Some(Body::Large(blocks)) => blocks,
            _ => &[],
        };
        let fresh = !old.is_some_and(|n| matches!(n.body, Body::Large(_)));
        let start = self.raw.len();
        let Meta { mode, mtime, size, .. } = meta;
        self.record(Record::Meta { path, mode, mtime, size, fresh });
        let stored = self.differing(content, 0, |i| known.get(i as usize).map(|b| b.digest));
        let same_meta = old.is_some_and(|n| (n.meta.size, n.meta.mode, n.meta.mtime) == (size, mode, mtime));
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

    fn blocks(&mut self, source: &Source, first: u32, count: u32) -> Result<Stored> {
        let size = source.before.size;
        let from = u64::from(first) * BLOCK as u64;
        let want = (size - from).min(u64::from(count) * BLOCK as u64) as usize;
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < want {
            buffer.resize(want, 0);
        }
        let have = read::fill(&source.fd, &mut buffer[..want], from).map_err(|e| Error::os(&source.path, e))?;
        let (have, short) = if have < want { (have / BLOCK * BLOCK, true) } else { (have, false) };
        let start = self.raw.len();
        let (mode, mtime) = (source.before.mode, source.before.mtime);
        let fresh = source.fresh && source.first_pass && first == 0;
        self.record(Record::Meta { path: &source.path, mode, mtime, size, fresh });
        let blocks = self.differing(&buffer[..have], first, |i| source.known.get(i as usize).copied().flatten());
        if blocks.is_empty() {
            self.raw.truncate(start);
            self.records -= 1;
        }
        self.buffer = buffer;
        Ok(Stored { blocks, short: short.then_some(from + have as u64) })
    }
}
