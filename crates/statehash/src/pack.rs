//! Turns a scan into segments: reads, hashes and compresses in one pass, on several threads.
//!
//! The caller's thread plans jobs and puts their results together in the order of planning; workers do the rest.
//! Small files go in batches of about 1 MiB; files over that in ranges, held against the blocks that the index
//! knows. A large file that changed while it was read is read again and what differs from the first reading is
//! stored after it: later records win. No thread outlives `next`.
//!
//! What changed while a pack was made can be folded in: another scan, held against what the index and this pack add up
//! to, packed by further calls of `next` into segments of the same commit.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{mpsc, Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::beneath;
use crate::block;
use crate::catalog::{Change, Op};
use crate::database;
use crate::error::{Error, Pulse, Result};
use crate::index::{Index, Staged};
use crate::large::{Large, Next};
use crate::paths;
use crate::pool::Pool;
use crate::read::{self, Look};
use crate::scan::{self, Scan, Seen};
use crate::segment::{Builder, Segment};
use crate::tree::Tree;
use crate::walk::{now, stat_fd, Kind, Stat};
use crate::watch::Watch;
use crate::worker::{Done, Job, Worker, CHUNK};

const BATCH_ENTRIES: usize = 1024;
/// Work below this is done on the caller's thread alone.
const ALONE_BYTES: u64 = 256 << 10;
const ALONE_ENTRIES: usize = 64;
/// Jobs for each worker, so that none runs dry while the caller's thread waits for a core.
const AHEAD: usize = 6;

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub segment_bytes: usize,
    pub max_file_bytes: Option<u64>,
    pub threads: usize,
}

pub struct Pack {
    root: Arc<OwnedFd>,
    /// What is read from: the root, or a folder of copies.
    source: Arc<OwnedFd>,
    scan: Arc<Scan>,
    /// The scan before any fold; what it carries may be dropped at the end.
    first: Arc<Scan>,
    /// The index's state that all of this was held against.
    stamp: u64,
    /// The index with what was packed before the last fold.
    held: Option<Arc<Index>>,
    /// How many segments and changes `held` has taken over.
    folded: (usize, usize),
    options: Options,
    drops: usize,
    next: usize,
    grown: Vec<usize>,
    large: Option<Large>,
    planned: u64,
    taken: u64,
    ready: BTreeMap<u64, Done>,
    /// Used again and again: fresh memory costs more than what is written into it.
    frames: Arc<Pool>,
    buffers: Arc<Pool>,
    changes: Arc<Vec<Change>>,
    /// The id of the first segment; the index does not change meanwhile.
    base: u32,
    segments: Vec<([u8; 32], u64, u64)>,
    pub incomplete: Vec<Vec<u8>>,
    /// What could not be carried, since it cannot be read or is not what the index says.
    pub doubtful: Vec<Vec<u8>>,
    /// What was read and begins like a SQLite database.
    read_databases: BTreeSet<Vec<u8>>,
    pub moved: bool,
    finished: bool,
    failed: bool,
}

impl Pack {
    pub fn new(root: OwnedFd, scan: Arc<Scan>, options: Options) -> Self {
        let incomplete = scan.unreadable.clone();
        let root = Arc::new(root);
        Self {
            source: Arc::clone(&root),
            root,
            stamp: scan.stamp,
            first: Arc::clone(&scan),
            scan,
            held: None,
            folded: (0, 0),
            options,
            drops: 0,
            next: 0,
            grown: Vec::new(),
            large: None,
            planned: 0,
            taken: 0,
            ready: BTreeMap::new(),
            frames: Arc::default(),
            buffers: Arc::default(),
            changes: Arc::default(),
            base: 0,
            segments: Vec::new(),
            incomplete,
            doubtful: Vec::new(),
            read_databases: BTreeSet::new(),
            moved: false,
            finished: false,
            failed: false,
        }
    }

    pub fn finished(&self) -> bool {
        self.finished
    }

    /// Where a segment's bytes go back to once they are done with.
    pub fn buffers(&self) -> &Arc<Pool> {
        &self.buffers
    }

    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    pub fn touches(&self, prefix: &[u8]) -> bool {
        self.changes.iter().any(|c| !matches!(c.op, Op::Refresh(_)) && paths::at_or_below(&c.path, prefix))
    }

    /// The transaction for `Index::stage`.
    pub fn staged(&self, index: &Index, keys: &[String], meta: &[u8]) -> Result<Staged> {
        if !self.finished || self.failed {
            return Err(Error::Misuse("the pack is not at its end".into()));
        }
        if index.stamp() != self.stamp {
            return Err(Error::Misuse("the pack belongs to another index, or to a former state of it".into()));
        }
        if keys.len() != self.segments.len() {
            return Err(Error::Misuse(format!("{} keys for {} segments", keys.len(), self.segments.len())));
        }
        let segments = keys.iter().zip(&self.segments).map(|(key, (digest, stored, raw))| (key.clone(), *digest, *stored, *raw));
        let dropped = self.first.carry.dropped(index.tree(), &self.changes);
        Ok(Staged { meta: meta.to_vec(), segments: segments.collect(), changes: Arc::clone(&self.changes), dropped })
    }

    /// After the end: the keys of the carried segments that nothing needs any more once this is committed.
    pub fn dropped<'i>(&self, index: &'i Index) -> Result<Vec<&'i str>> {
        if !self.finished || self.failed || index.stamp() != self.stamp {
            return Err(Error::Misuse("the pack is not at its end, or the index changed".into()));
        }
        let ids = self.first.carry.dropped(index.tree(), &self.changes);
        let listed = index.catalog().segments.iter();
        Ok(listed.filter(|s| ids.binary_search(&s.id).is_ok()).map(|s| &s.key[..]).collect())
    }

    /// The next segment; None at the end. An error leaves the pack unusable.
    pub fn next(&mut self, index: &Index, pulse: Pulse<'_>) -> Result<Option<Segment>> {
        if self.failed {
            return Err(Error::Misuse("the pack failed before".into()));
        }
        if self.finished {
            return Ok(None);
        }
        if index.stamp() != self.stamp {
            return Err(Error::Misuse("the index changed since the scan".into()));
        }
        self.failed = true;
        self.base = index.next_id();
        let held = self.held.clone();
        let segment = self.build(held.as_deref().unwrap_or(index).tree(), pulse)?;
        self.failed = false;
        Ok(segment)
    }

    /// Looks again, at the end: the scan is held against what is packed so far, and what it found is packed next. With a
    /// watch that is not blind, only folders with news since the last scan are read.
    pub fn fold(
        &mut self,
        index: &Index,
        options: &scan::Options<'_>,
        watch: Option<&Watch>,
        pulse: Pulse<'_>,
    ) -> Result<Arc<Scan>> {
        let held = self.take_held(index)?;
        let found = match watch {
            Some(watch) => scan::watched(self.root.as_fd(), &held, options, watch, Some(self.scan.news), pulse)?,
            None => scan::scan(self.root.as_fd(), &held, options, pulse)?,
        };
        let found = if self.first.kept.is_empty() { found } else { found.keep(&self.first.kept) };
        // What is looked into again says anew whether it can be stored.
        let again = |path: &Vec<u8>| {
            found.changed.binary_search_by(|s| s.path.cmp(path)).is_ok() || found.removed.binary_search(path).is_ok()
        };
        self.incomplete.retain(|path| !again(path));
        self.incomplete.extend(found.unreadable.iter().cloned());
        self.incomplete.sort_unstable();
        self.incomplete.dedup();
        self.moved = false;
        let root = Arc::clone(&self.root);
        Ok(self.go_on(root, held, found))
    }

    /// The same with these files only, as they are below another folder; one that is not there is removed. Those are passed over
    /// whose folder is not stored.
    pub fn replace(&mut self, index: &Index, root: OwnedFd, paths: &[Vec<u8>]) -> Result<Arc<Scan>> {
        let held = self.take_held(index)?;
        let former = &self.scan;
        let mut found = Scan { look: now(), stamp: former.stamp, news: former.news, ..Scan::default() };
        for path in paths.iter().cloned().collect::<BTreeSet<_>>() {
            let (node, dir) = (held.tree().get(&path), paths::split(&path).0);
            if node.is_some_and(|n| n.dir().is_some()) || (!dir.is_empty() && held.tree().dir(dir).is_none()) {
                continue;
            }
            match stat(&root, &path)? {
                Some(stat) if stat.kind == Kind::File => found.changed.push(Seen { path, stat }),
                _ if node.is_some() => found.removed.push(path),
                _ => {}
            }
        }
        Ok(self.go_on(Arc::new(root), held, found))
    }

    /// Those of these paths that are not, as far as metadata and the clock's granularity can tell, what the index and this
    /// pack add up to.
    pub fn differing(&mut self, index: &Index, paths: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let held = self.take_held(index)?;
        let mut differing = Vec::new();
        for path in paths {
            let node = held.tree().get(path);
            let same = match (stat(&self.root, path)?, node) {
                (Some(stat), Some(node)) => node.is_file() && stat.kind == Kind::File && stat.settled(&node.meta),
                (None, None) => true,
                _ => false,
            };
            if !same {
                differing.push(path.clone());
            }
        }
        self.held = Some(Arc::new(held));
        self.failed = false;
        Ok(differing)
    }

    /// SQLite databases of which something was read or changed: the paths of the main files, of which some need not be there.
    pub fn databases(&self) -> Vec<Vec<u8>> {
        let mut found = self.read_databases.clone();
        found.extend(self.changes.iter().filter_map(|c| database::of_companion(&c.path)).map(<[u8]>::to_vec));
        found.into_iter().collect()
    }

    /// What the index and this pack, which is at its end, add up to. The pack fails unless it is put back.
    fn take_held(&mut self, index: &Index) -> Result<Index> {
        if !self.finished || self.failed {
            return Err(Error::Misuse("the pack is not at its end".into()));
        }
        if index.stamp() != self.stamp {
            return Err(Error::Misuse("the index changed since the scan".into()));
        }
        self.failed = true;
        let held = match self.held.take().map(Arc::try_unwrap) {
            Some(Ok(held)) => held,
            _ => {
                self.folded = (0, 0);
                Index::with(index.catalog().clone())
            }
        };
        let (segments, changes) = self.folded;
        let held = held.with_changes(&self.segments[segments..], &self.changes[changes..])?;
        self.folded = (self.segments.len(), self.changes.len());
        Ok(held)
    }

    fn go_on(&mut self, source: Arc<OwnedFd>, held: Index, found: Scan) -> Arc<Scan> {
        self.source = source;
        self.held = Some(Arc::new(held));
        self.scan = Arc::new(found);
        (self.drops, self.next) = (0, 0);
        self.finished = self.scan.changed.is_empty() && self.scan.removed.is_empty();
        self.failed = false;
        Arc::clone(&self.scan)
    }

    fn build(&mut self, tree: &Tree, pulse: Pulse<'_>) -> Result<Option<Segment>> {
        let (root, scan) = (Arc::clone(&self.source), Arc::clone(&self.scan));
        let left: u64 = scan.changed[self.next..].iter().map(|s| s.stat.size).sum();
        let entries = scan.changed.len() - self.next + scan.removed.len() - self.drops;
        let busy = self.large.is_some() || left > ALONE_BYTES || entries > ALONE_ENTRIES;
        let threads = if busy { self.options.threads } else { 1 };
        let limit = self.options.segment_bytes;
        let capacity = if self.large.is_some() { limit } else { (left as usize + entries * 64).min(limit) };
        let mut builder = Builder::new(self.buffers.take(), capacity);
        let frames = Arc::clone(&self.frames);
        let worker = || Worker::new(root.as_fd(), &scan, tree, self.options.max_file_bytes, &frames);
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
                        // A panic must not leave the caller waiting for this job's result.
                        let done = catch_unwind(AssertUnwindSafe(|| helper.run(job)));
                        let done = done.unwrap_or_else(|_| Err(Error::Misuse("a worker thread panicked".into())));
                        if outbox.send((number, done)).is_err() {
                            return;
                        }
                    });
                }
                drop(outbox);
                let gone = || Error::Misuse("a worker thread ended early".into());
                let mut flying = 0;
                loop {
                    let more = self.put(&mut builder, &mut tail)?;
                    while more && flying < AHEAD * threads {
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
            self.frames.close();
            self.buffers.close();
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
                let Some((source, first, count)) = large.range() else { return Ok(None) };
                break Job::Blocks { source, first, count };
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
        let opened = match read::open(self.source.as_fd(), path) {
            Err(e) if e.unreadable() => Err(Look::Denied),
            other => other?,
        };
        let fd = match opened {
            Ok(fd) => fd,
            Err(Look::Denied) => {
                let untouched = self.scan.carry.untouched(path);
                let list = if untouched { &mut self.doubtful } else { &mut self.incomplete };
                list.push(path.clone());
                return Ok(None);
            }
            Err(_) => return Ok(Some(Job::Batch(at..at + 1))),
        };
        let look = now();
        let before = stat_fd(fd.as_fd()).map_err(|e| Error::os(path, e))?;
        if before.kind != Kind::File || before.size <= read::WHOLE {
            return Ok(Some(Job::Batch(at..at + 1)));
        }
        let old = tree.get(path);
        let untouched = self.scan.carry.untouched(path) && old.is_some_and(|n| before.settled(&n.meta));
        // What is stored already may be carried, whatever the limit is now.
        if !untouched && !self.options.fits(before.size) {
            self.incomplete.push(path.clone());
            return Ok(None);
        }
        self.large = Some(Large::new(path, fd, before, look, old, &self.scan.carry, untouched));
        Ok(None)
    }

    /// Puts what is ready, in order, into the segment; false once the segment is full.
    fn put(&mut self, builder: &mut Builder, tail: &mut Worker<'_>) -> Result<bool> {
        while let Some(mut done) = self.ready.remove(&self.taken) {
            let number = self.number();
            while let Some(piece) = done.pieces.front() {
                if !builder.fits(piece.frame.len(), piece.raw, self.options.segment_bytes) {
                    self.ready.insert(self.taken, done);
                    return Ok(false);
                }
                let Some(piece) = done.pieces.pop_front() else { break };
                builder.push(&piece.frame, piece.raw, piece.records);
                self.frames.give(piece.frame);
                for mut change in piece.changes {
                    if let Op::Large { blocks, .. } = &mut change.op {
                        blocks.iter_mut().for_each(|(_, b)| b.segment = number);
                    }
                    self.note(change.path, change.op);
                }
                if let (Some(found), Some(large)) = (piece.range, &mut self.large) {
                    large.take(found, number);
                    let options = self.options;
                    let next = large.next(tail.tree.get(large.path()), |size| options.fits(size))?;
                    self.after_range(next, builder, tail)?;
                }
            }
            self.taken += 1;
            self.incomplete.append(&mut done.incomplete);
            self.doubtful.append(&mut done.doubtful);
            self.read_databases.extend(done.databases);
            self.grown.append(&mut done.grown);
            self.moved |= done.moved;
        }
        Ok(true)
    }

    fn after_range(&mut self, next: Next, builder: &mut Builder, tail: &mut Worker<'_>) -> Result<()> {
        let Next::Done { op, meta_record, moved, doubt } = next else { return Ok(()) };
        self.moved |= moved;
        let Some(large) = self.large.take() else { return Ok(()) };
        let path = large.path().to_vec();
        if doubt {
            self.doubtful.push(path.clone());
        }
        if let (true, Op::Large { meta, .. }) = (meta_record, &op) {
            tail.meta(&path, meta, false);
            if let Some(piece) = tail.close()? {
                // Beyond the limit by these few bytes at most.
                builder.push(&piece.frame, piece.raw, piece.records);
            }
        }
        self.note(path, op);
        Ok(())
    }

    /// The id of the segment that is being built.
    fn number(&self) -> u32 {
        self.base.saturating_add(self.segments.len() as u32)
    }

    fn note(&mut self, path: Vec<u8>, op: Op) {
        let segment = if matches!(op, Op::Refresh(_)) { 0 } else { self.number() };
        Arc::make_mut(&mut self.changes).push(Change { path, segment, op });
    }
}

/// What is at that path, links not followed; None where nothing is.
fn stat(root: &OwnedFd, path: &[u8]) -> Result<Option<Stat>> {
    match beneath::open(root.as_fd(), path, OFlags::PATH, Mode::empty()).and_then(|fd| stat_fd(fd.as_fd())) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(Error::os(path, e)),
    }
}

impl Options {
    fn fits(&self, size: u64) -> bool {
        size <= self.max_file_bytes.unwrap_or(u64::MAX).min(block::FILE_BYTES)
    }
}
