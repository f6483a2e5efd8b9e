//! What the tree held at the last commit, in memory and in a file (`journal`), and the transaction that waits for its
//! outcome.
//!
//! A commit is staged (intent), then confirmed or abandoned; each step is one record of the log. After a crash the
//! index is as of the last whole record, and a staged transaction is still there to be decided.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::catalog::{Catalog, Change};
pub use crate::codec::Staged;
use crate::codec::{get_staged, put_base, put_staged, read_base};
use crate::error::{Error, Result};
pub use crate::journal::VERSION;
use crate::journal::{Journal, Kind};
use crate::paths;
use crate::tree::{Meta, Tree};

pub struct Index {
    catalog: Catalog,
    meta: Vec<u8>,
    staged: Option<Staged>,
    journal: Option<Journal>,
    stamp: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self::with(Catalog::default())
    }
}

fn next_stamp() -> u64 {
    static STAMP: AtomicU64 = AtomicU64::new(1);
    STAMP.fetch_add(1, Ordering::Relaxed)
}

fn misuse(reason: &str) -> Error {
    Error::Misuse(reason.into())
}

impl Index {
    /// In memory only, until `save`.
    pub fn with(catalog: Catalog) -> Self {
        Self { catalog, meta: Vec::new(), staged: None, journal: None, stamp: next_stamp() }
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub fn tree(&self) -> &Tree {
        &self.catalog.tree
    }

    /// Unique to this index and its present content; a scan or pack of another stamp does not fit it.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    pub fn meta(&self) -> &[u8] {
        &self.meta
    }

    pub fn staged(&self) -> Option<&Staged> {
        self.staged.as_ref()
    }

    /// The id that the first segment of the next transaction will have.
    pub fn next_id(&self) -> u32 {
        self.catalog.last_id.saturating_add(1)
    }

    pub fn open(dir: BorrowedFd<'_>, name: &str) -> Result<Self> {
        let (journal, (catalog, meta), log) = Journal::open(dir, name, read_base)?;
        let mut index = Self { meta, ..Self::with(catalog) };
        for (kind, payload) in log.records() {
            match kind {
                Kind::Stage if index.staged.is_none() => index.staged = Some(get_staged(payload)?),
                Kind::Confirm if index.staged.is_some() => index.settle(payload)?,
                Kind::Abandon if index.staged.is_some() => index.staged = None,
                Kind::Meta => index.meta = payload.to_vec(),
                _ => return Err(Error::format("the index's log is out of order")),
            }
        }
        index.journal = Some(journal);
        Ok(index)
    }

    pub fn save(&mut self, dir: BorrowedFd<'_>, name: &str, sync: bool) -> Result<()> {
        self.catalog.prune();
        let staged = self.staged.as_ref().map(put_staged);
        let put = |out: &mut Vec<u8>| put_base(out, &self.catalog, &self.meta);
        self.journal = Some(Journal::create(dir, name, sync, staged.as_deref(), put)?);
        Ok(())
    }

    pub fn set_meta(&mut self, meta: &[u8]) -> Result<()> {
        self.append(Kind::Meta, meta)?;
        self.meta = meta.to_vec();
        Ok(())
    }

    pub fn stage(&mut self, staged: Staged) -> Result<()> {
        if self.staged.is_some() {
            return Err(misuse("a transaction is staged already: confirm or abandon it first"));
        }
        if self.journal.is_some() {
            self.append(Kind::Stage, &put_staged(&staged))?;
        }
        self.staged = Some(staged);
        Ok(())
    }

    pub fn confirm(&mut self, meta: &[u8]) -> Result<()> {
        if self.staged.is_none() {
            return Err(misuse("nothing is staged that could be confirmed"));
        }
        self.append(Kind::Confirm, meta)?;
        self.settle(meta)?;
        if self.journal.as_ref().is_some_and(Journal::overgrown) {
            // A failure loses nothing: the log is whole, and the next confirm tries again.
            let _ = self.fold();
        }
        Ok(())
    }

    pub fn abandon(&mut self) -> Result<()> {
        if self.staged.is_none() {
            return Err(misuse("nothing is staged that could be abandoned"));
        }
        self.append(Kind::Abandon, &[])?;
        self.staged = None;
        Ok(())
    }

    /// Takes over times and inodes, in memory; the content was found to be the same.
    pub fn refresh<'c>(&mut self, found: impl IntoIterator<Item = (&'c [u8], Meta)>) {
        self.stamp = next_stamp();
        for (path, meta) in found {
            if let Some(spot) = self.catalog.tree.find(path) {
                let node = self.catalog.tree.node_mut(spot);
                node.meta = Meta { size: node.meta.size, ..meta };
            }
        }
    }

    /// What it would be with a commit of these segments (digest, stored, raw) and changes; in memory only.
    pub fn with_changes(mut self, segments: &[([u8; 32], u64, u64)], changes: &[Change]) -> Result<Self> {
        self.stamp = next_stamp();
        for (digest, stored, raw) in segments {
            self.catalog.add_segment(String::new(), *digest, *stored, *raw)?;
        }
        changes.iter().try_for_each(|change| self.catalog.apply(change))?;
        Ok(self)
    }

    fn append(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        self.journal.as_mut().map_or(Ok(()), |journal| journal.append(kind, payload))
    }

    fn fold(&mut self) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let (dir, name) = journal.place()?;
        self.save(dir.as_fd(), &name, false)
    }

    /// Applies the staged transaction in memory.
    fn settle(&mut self, meta: &[u8]) -> Result<()> {
        let Some(staged) = self.staged.take() else { return Err(misuse("nothing is staged")) };
        self.stamp = next_stamp();
        for (key, digest, stored, raw) in staged.segments {
            self.catalog.add_segment(key, digest, stored, raw)?;
        }
        for change in staged.changes.iter() {
            if change.segment > self.catalog.last_id || paths::refusal(&change.path).is_some() {
                return Err(Error::format("the index's log names an impossible path or segment"));
            }
            self.catalog.apply(change)?;
        }
        self.catalog.drop_segments(&staged.dropped);
        self.meta = meta.to_vec();
        Ok(())
    }
}
