//! A file over `read::WHOLE` on its way into segments: read in ranges, read again if it moved meanwhile.
//!
//! What the ranges of the first reading found is in segments already when a change shows, and stays there: the second
//! reading stores what differs from the first, and later records win.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::block::{self, Digest, BLOCK};
use crate::carry::Carry;
use crate::catalog::Op;
use crate::error::{Error, Result};
use crate::read::{self, Dense};
use crate::segment::Record;
use crate::tree::{Block, Body, Meta, Node};
use crate::walk::{now, stat_fd, Stat};

const RANGE_BLOCKS: u32 = (read::WHOLE / BLOCK as u64) as u32;

/// The file for the time of one reading; shared with the workers.
pub struct Source {
    pub path: Vec<u8>,
    pub fd: OwnedFd,
    pub before: Stat,
    pub dense: Dense,
    fresh: bool,
    first_pass: bool,
    /// The digests that are stored already, and may stay where they are.
    known: Vec<Option<Digest>>,
    /// Of a file that is only carried: what its blocks must be.
    expected: Option<Vec<Digest>>,
}

/// What a range came to.
pub struct Found {
    pub blocks: Vec<(u32, Digest)>,
    /// Where the file ended too early, rounded down to a block.
    pub short: Option<u64>,
    /// A block is not what the index says, although nothing shows a change; none of the range was stored.
    pub doubt: bool,
    /// It begins like a SQLite database.
    pub database: bool,
}

pub struct Large {
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
    /// The index's metadata lie in a segment that is to go.
    carry_meta: bool,
    doubt: bool,
}

/// What is to be done when a reading is complete.
pub enum Next {
    /// Ranges are still to come, perhaps those of another reading.
    Wait,
    /// It is over: what it means to the index, and whether its META is still to be stored.
    Done { op: Op, meta_record: bool, moved: bool, doubt: bool },
}

impl Source {
    /// The META that goes before the blocks of a range.
    pub fn record(&self, first: u32) -> Record<'_> {
        let Stat { mode, mtime, size, .. } = self.before;
        Record::Meta { path: &self.path, mode, mtime, size, fresh: self.fresh && self.first_pass && first == 0 }
    }

    pub fn known(&self, index: u32) -> Option<Digest> {
        self.known.get(index as usize).copied().flatten()
    }

    pub fn only_carried(&self) -> bool {
        self.expected.is_some()
    }

    pub fn expects(&self, index: u32, digest: &Digest) -> bool {
        self.expected.as_ref().is_none_or(|e| e.get(index as usize) == Some(digest))
    }

    /// Whether a range has to be read: all of a file that may have changed, else what is carried.
    fn wanted(&self, first: u32, count: u32) -> bool {
        let (from, to) = (first as usize, (first + count) as usize);
        self.expected.is_none() || self.known[from..to].iter().any(Option::is_none)
    }
}

impl Large {
    /// `before` is the look at the open file that came after the clock said `look`; `old` is the index's entry. `untouched`:
    /// its metadata show no change, it is only carried.
    pub fn new(path: &[u8], fd: OwnedFd, before: Stat, look: i64, old: Option<&Node>, carry: &Carry, untouched: bool) -> Self {
        let blocks = match old.map(|n| &n.body) {
            Some(Body::Large(blocks)) => Some(blocks),
            _ => None,
        };
        let fresh = blocks.is_none();
        let listed = |b: &Block| (!carry.holds(b.segment)).then_some(b.digest);
        let mut known: Vec<_> = blocks.map(|b| b.iter().map(listed).collect()).unwrap_or_default();
        known.resize(block::count(before.size) as usize, None);
        let expected = blocks.filter(|_| untouched).map(|b| b.iter().map(|b| b.digest).collect());
        let carry_meta = old.is_some_and(|n| carry.holds(n.segment) || carry.holds(n.meta_segment));
        let dense = Dense::default();
        let source = Source { path: path.to_vec(), fd, before, dense, fresh, first_pass: true, known: known.clone(), expected };
        Self {
            source: Arc::new(source),
            look,
            tries: 1,
            next_block: 0,
            outstanding: 0,
            short: None,
            current: known,
            stored: BTreeMap::new(),
            said: None,
            carry_meta,
            doubt: false,
        }
    }

    pub fn path(&self) -> &[u8] {
        &self.source.path
    }

    /// The next range: (file, first block, blocks). None while the last of this reading are on their way.
    pub fn range(&mut self) -> Option<(Arc<Source>, u32, u32)> {
        while self.next_block < self.count() {
            let first = self.next_block;
            let count = (self.count() - first).min(RANGE_BLOCKS);
            self.next_block += count;
            // Each reading has one range at least, its last one, with which it ends.
            if self.next_block == self.count() || self.source.wanted(first, count) {
                self.outstanding += 1;
                return Some((Arc::clone(&self.source), first, count));
            }
        }
        None
    }

    fn count(&self) -> u32 {
        block::count(self.source.before.size) as u32
    }

    /// A range's records went into segment `number`.
    pub fn take(&mut self, found: Found, number: u32) {
        self.outstanding -= 1;
        let Stat { size, mode, mtime, .. } = self.source.before;
        if !found.blocks.is_empty() {
            self.said = Some((size, mode, mtime));
        }
        for (index, digest) in found.blocks {
            self.current[index as usize] = Some(digest);
            self.stored.insert(index, Block { digest, segment: number });
        }
        self.doubt |= found.doubt;
        if let Some(short) = found.short {
            self.short = Some(self.short.map_or(short, |s| s.min(short)));
        }
    }

    /// After `take`. `fits` says whether a file of that size may be stored at all.
    pub fn next(&mut self, old: Option<&Node>, fits: impl Fn(u64) -> bool) -> Result<Next> {
        if self.outstanding > 0 || self.next_block < self.count() {
            return Ok(Next::Wait);
        }
        let look = now();
        let after = stat_fd(self.source.fd.as_fd()).map_err(|e| Error::os(&self.source.path, e))?;
        let steady = self.short.is_none() && read::same(&self.source.before, &after);
        if !steady && self.tries < read::TRIES && fits(after.size) {
            self.again(after, look)?;
            if after.size > 0 {
                return Ok(Next::Wait);
            }
        }
        Ok(self.outcome(old, steady))
    }

    /// Prepares another reading. What the new size cuts off counts as not stored.
    fn again(&mut self, before: Stat, look: i64) -> Result<()> {
        self.current.resize(block::count(before.size) as usize, None);
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.source.fd, 0).map_err(|e| Error::os(&self.source.path, e))?;
        let (path, fresh) = (self.source.path.clone(), self.source.fresh);
        let (known, expected) = (self.current.clone(), None);
        self.source = Arc::new(Source { path, fd, before, dense: Dense::default(), fresh, first_pass: false, known, expected });
        self.doubt = false;
        (self.look, self.next_block, self.short) = (look, 0, None);
        self.tries += 1;
        Ok(())
    }

    fn outcome(&mut self, old: Option<&Node>, steady: bool) -> Next {
        let mut meta = self.source.before.meta(self.look);
        meta.size = self.short.unwrap_or(meta.size);
        meta.racy |= !steady;
        let moved = !steady || self.tries > 1;
        let fresh = self.source.fresh;
        let said = |m: &Meta| (m.size, m.mode, m.mtime);
        let doubt = self.doubt;
        if self.stored.is_empty() && !fresh && !self.carry_meta && old.is_some_and(|n| said(&n.meta) == said(&meta)) {
            return Next::Done { op: Op::Refresh(meta), meta_record: false, moved, doubt };
        }
        let keep = block::count(meta.size) as u32;
        let blocks = std::mem::take(&mut self.stored).into_iter().filter(|(i, _)| *i < keep).collect();
        Next::Done { op: Op::Large { meta, fresh, blocks }, meta_record: self.said != Some(said(&meta)), moved, doubt }
    }
}
