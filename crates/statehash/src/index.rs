//! The index on disk: a base and an append log of transactions.
//!
//! ```text
//! "the0idx\0"  version u32  base_len u64  base_id [16]  base [base_len]  checksum [16] of all before
//! log*         len u32  kind u8  number u64  payload [len]  checksum [16] of base_id and all of the record before it
//! ```
//! The base holds meta, the segments, the folders one after the other (the root first, each folder's children in
//! order of their names, its folders' lists following in the order in which they were named) and the tombstones.
//! Log records: 1 STAGE (meta, segments, changes), 2 CONFIRM (meta), 3 ABANDON, 4 META. Their numbers rise by one
//! and their checksums include the base's random id, so no remains of an earlier log are taken for a later one. The first record that is short or does not match
//! its checksum ends the log; it is cut off by the next append. So a crash at any byte leaves the former or the
//! new transaction.
//!
//! The file may be written by others under the same uid: it is read into memory (a truncated mapping would be a
//! SIGBUS) and every offset, length, order and number is checked before use.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{fstat, fsync, ftruncate, openat, renameat, unlinkat, AtFlags, FileType, Mode, OFlags};
use rustix::io::{dup, pwrite, read, Errno};

use crate::block::{self, Digest};
use crate::catalog::{Catalog, Change, Op, Tombstone};
use crate::error::{shown, Error, Result};
use crate::paths;
use crate::tree::{Block, Body, Meta, Node, Tree, ROOT};
use crate::wire::{put_sized, Reader};

const MAGIC: &[u8; 8] = b"the0idx\0";
pub const VERSION: u32 = 1;
const HEADER: usize = 36;
const RECORD: usize = 13;
const CHECK: usize = 16;
/// The largest index that is read; about ten million entries.
const FILE_BYTES: u64 = 1 << 30;
/// Below this the log is never folded into a new base.
const LOG_BYTES: u64 = 1 << 20;
const RACY: u8 = 1;

/// A transaction that waits for its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    pub meta: Vec<u8>,
    /// (key, digest, stored, raw)
    pub segments: Vec<(String, [u8; 32], u64, u64)>,
    /// With the segments' ids.
    pub changes: Vec<Change>,
}

struct File {
    dir: OwnedFd,
    name: String,
    fd: OwnedFd,
    base_id: [u8; 16],
    base_len: u64,
    /// Where the next record goes; what lies beyond is torn.
    end: u64,
    torn: bool,
    number: u64,
}

pub struct Index {
    catalog: Catalog,
    meta: Vec<u8>,
    staged: Option<Staged>,
    file: Option<File>,
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

impl Index {
    pub fn with(catalog: Catalog) -> Self {
        Self { catalog, meta: Vec::new(), staged: None, file: None, stamp: next_stamp() }
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

    pub fn open(dir: BorrowedFd<'_>, name: &str) -> Result<Self> {
        let at = |e| Error::os(name.as_bytes(), e);
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match openat(dir, name, flags | OFlags::RDWR, Mode::empty()) {
            // Reading alone is fine until something is to be appended.
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM) => openat(dir, name, flags | OFlags::RDONLY, Mode::empty()),
            other => other,
        };
        let fd = match fd {
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Err(Error::format("the index is no regular file")),
            other => other.map_err(at)?,
        };
        let stat = fstat(&fd).map_err(at)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::format("the index is no regular file"));
        }
        let size = stat.st_size as u64;
        if size > FILE_BYTES {
            return Err(Error::format("the index is larger than any that we write"));
        }
        let mut bytes = vec![0; size as usize];
        let mut have = 0;
        while have < bytes.len() {
            match read(&fd, &mut bytes[have..]).map_err(at)? {
                0 => break,
                n => have += n,
            }
        }
        bytes.truncate(have);
        let (mut index, mut file) = Self::parse(&bytes, dup(dir).map_err(at)?, fd)?;
        name.clone_into(&mut file.name);
        index.file = Some(file);
        Ok(index)
    }

    fn parse(bytes: &[u8], dir: OwnedFd, fd: OwnedFd) -> Result<(Self, File)> {
        let mut r = Reader::new(bytes);
        if r.take(8) != Ok(MAGIC) {
            return Err(Error::format("the index is not ours"));
        }
        let version = r.u32().map_err(|_| Error::format("the index is cut short"))?;
        if version != VERSION {
            let newer = if version > VERSION { "newer" } else { "unknown" };
            return Err(Error::format(format!("the index has the {newer} format {version}; this runtime reads {VERSION}")));
        }
        let cut = |_| Error::format("the index is cut short");
        let base_len = r.u64().map_err(cut)?;
        let base_id = r.array::<16>().map_err(cut)?;
        let base = r.take(usize::try_from(base_len).unwrap_or(usize::MAX)).map_err(cut)?;
        let check = r.array::<16>().map_err(cut)?;
        if block::digest(&bytes[..HEADER + base.len()]) != check {
            return Err(Error::format("the index is damaged"));
        }
        let (catalog, meta) = get_base(base)?;
        let mut index = Self { meta, ..Self::with(catalog) };
        let mut file = File {
            dir,
            name: String::new(),
            fd,
            base_id,
            base_len,
            end: (HEADER + base.len() + CHECK) as u64,
            torn: false,
            number: 0,
        };
        while let Some((kind, payload, len)) = next_record(&r, &file) {
            index.replay(kind, payload)?;
            file.end += len as u64;
            file.number += 1;
            r.take(len).map_err(cut)?;
        }
        file.torn = !r.is_empty();
        Ok((index, file))
    }

    fn replay(&mut self, kind: u8, payload: &[u8]) -> Result<()> {
        match kind {
            STAGE if self.staged.is_none() => self.staged = Some(get_staged(payload)?),
            CONFIRM if self.staged.is_some() => self.settle(payload.to_vec())?,
            ABANDON if self.staged.is_some() => self.staged = None,
            META => self.meta = payload.to_vec(),
            _ => return Err(Error::format("the index's log is out of order")),
        }
        Ok(())
    }

    /// Applies the staged transaction in memory.
    fn settle(&mut self, meta: Vec<u8>) -> Result<()> {
        let Some(staged) = self.staged.take() else { return Err(Error::Misuse("nothing is staged".into())) };
        self.stamp = next_stamp();
        for (key, digest, stored, raw) in staged.segments {
            self.catalog.add_segment(key, digest, stored, raw)?;
        }
        for change in &staged.changes {
            if change.segment > self.catalog.last_id || paths::refusal(&change.path).is_some() {
                return Err(Error::format("the index's log names an impossible path or segment"));
            }
            self.catalog.apply(change)?;
        }
        self.meta = meta;
        Ok(())
    }

    /// The id that the first segment of the next transaction will have.
    pub fn next_id(&self) -> u32 {
        self.catalog.last_id.saturating_add(1)
    }

    pub fn stage(&mut self, staged: Staged) -> Result<()> {
        if self.staged.is_some() {
            return Err(Error::Misuse("a transaction is staged already: confirm or abandon it first".into()));
        }
        if self.file.is_some() {
            self.append(STAGE, &put_staged(&staged))?;
        }
        self.staged = Some(staged);
        Ok(())
    }

    pub fn confirm(&mut self, meta: &[u8]) -> Result<()> {
        if self.staged.is_none() {
            return Err(Error::Misuse("nothing is staged that could be confirmed".into()));
        }
        self.append(CONFIRM, meta)?;
        self.settle(meta.to_vec())?;
        self.fold();
        Ok(())
    }

    pub fn abandon(&mut self) -> Result<()> {
        if self.staged.is_none() {
            return Err(Error::Misuse("nothing is staged that could be abandoned".into()));
        }
        self.append(ABANDON, &[])?;
        self.staged = None;
        Ok(())
    }

    pub fn set_meta(&mut self, meta: &[u8]) -> Result<()> {
        self.append(META, meta)?;
        self.meta = meta.to_vec();
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

    fn append(&mut self, kind: u8, payload: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let at = |e| Error::os(file.name.as_bytes(), e);
        let record = put_record(&file.base_id, file.number, kind, payload)?;
        if file.torn {
            ftruncate(&file.fd, file.end).map_err(at)?;
        }
        // Whatever fails below leaves a tail that no reader accepts and the next append cuts off.
        file.torn = true;
        let mut done = 0;
        while done < record.len() {
            match pwrite(&file.fd, &record[done..], file.end + done as u64) {
                Ok(0) => return Err(at(Errno::NOSPC)),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(at(e)),
            }
        }
        file.torn = false;
        file.end += record.len() as u64;
        file.number += 1;
        Ok(())
    }

    /// Writes a new base when the log has outgrown the old one.
    fn fold(&mut self) {
        let Some(file) = &self.file else { return };
        if file.end - file.base_len <= LOG_BYTES.max(file.base_len) {
            return;
        }
        if let Ok(dir) = dup(&file.dir) {
            let name = file.name.clone();
            // A failure loses nothing: the log is whole and folding is tried again at the next confirm.
            let _ = self.save(dir.as_fd(), &name, false);
        }
    }

    pub fn save(&mut self, dir: BorrowedFd<'_>, name: &str, sync: bool) -> Result<()> {
        self.catalog.prune();
        let mut base_id = [0; 16];
        rustix::rand::getrandom(&mut base_id, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::os(name.as_bytes(), e))?;
        let mut bytes = Vec::with_capacity(HEADER + 128 * self.tree().entries as usize);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&base_id);
        put_base(&mut bytes, &self.catalog, &self.meta);
        let base_len = (bytes.len() - HEADER) as u64;
        bytes[12..20].copy_from_slice(&base_len.to_le_bytes());
        let check = block::digest(&bytes);
        bytes.extend_from_slice(&check);
        let mut number = 0;
        if let Some(staged) = &self.staged {
            bytes.extend_from_slice(&put_record(&base_id, number, STAGE, &put_staged(staged))?);
            number += 1;
        }
        if bytes.len() as u64 > FILE_BYTES {
            return Err(Error::Limit("the index would exceed 1 GiB".into()));
        }
        let fresh = format!("{name}.new");
        let fd = write_new(dir, &fresh, &bytes, sync)
            .and_then(|fd| renameat(dir, &fresh, dir, name).map(|()| fd))
            .and_then(|fd| if sync { fsync(dir).map(|()| fd) } else { Ok(fd) })
            .map_err(|e| Error::os(name.as_bytes(), e))?;
        let dir = dup(dir).map_err(|e| Error::os(name.as_bytes(), e))?;
        let end = bytes.len() as u64;
        self.file = Some(File { dir, name: name.to_owned(), fd, base_id, base_len, end, torn: false, number });
        Ok(())
    }
}

fn write_new(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], sync: bool) -> std::result::Result<OwnedFd, Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
    let mut done = 0;
    while done < bytes.len() {
        match pwrite(&fd, &bytes[done..], done as u64) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    if sync {
        fsync(&fd)?;
    }
    Ok(fd)
}

const STAGE: u8 = 1;
const CONFIRM: u8 = 2;
const ABANDON: u8 = 3;
const META: u8 = 4;

fn put_record(base_id: &[u8; 16], number: u64, kind: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let len = u32::try_from(payload.len()).map_err(|_| Error::Limit("a transaction of the index exceeds 4 GiB".into()))?;
    let mut out = Vec::with_capacity(RECORD + payload.len() + CHECK);
    out.extend_from_slice(&len.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(payload);
    let check = record_check(base_id, &out);
    out.extend_from_slice(&check);
    Ok(out)
}

fn record_check(base_id: &[u8; 16], record: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(base_id).update(record);
    let mut check = [0; 16];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    check
}

/// The next whole record: its kind, payload and full length. None at the end or at the first torn byte.
fn next_record<'a>(rest: &Reader<'a>, file: &File) -> Option<(u8, &'a [u8], usize)> {
    let mut r = rest.clone();
    let (len, kind, number) = (r.u32().ok()? as usize, r.u8().ok()?, r.u64().ok()?);
    let payload = r.take(len).ok()?;
    let check = r.array::<16>().ok()?;
    let mut whole = rest.clone();
    let record = whole.take(RECORD + len).ok()?;
    (number == file.number && record_check(&file.base_id, record) == check).then_some((kind, payload, RECORD + len + CHECK))
}

fn put_meta(out: &mut Vec<u8>, m: &Meta) {
    out.extend_from_slice(&m.mode.to_le_bytes());
    out.push(if m.racy { RACY } else { 0 });
    out.extend_from_slice(&m.size.to_le_bytes());
    out.extend_from_slice(&m.mtime.to_le_bytes());
    out.extend_from_slice(&m.ctime.to_le_bytes());
    out.extend_from_slice(&m.ino.to_le_bytes());
}

fn get_meta(r: &mut Reader<'_>) -> Result<Meta> {
    let (mode, flags) = (r.u16()?, r.u8()?);
    if mode > 0o7777 || flags > RACY {
        return Err(Error::format("the index holds an impossible mode"));
    }
    let meta = Meta { mode, racy: flags == RACY, size: r.u64()?, mtime: r.i64()?, ctime: r.i64()?, ino: r.u64()? };
    if meta.size > block::FILE_BYTES {
        return Err(Error::format("the index holds an impossible size"));
    }
    Ok(meta)
}

fn put_segment(out: &mut Vec<u8>, key: &str, digest: &[u8; 32], stored: u64, raw: u64) {
    put_sized(out, key.as_bytes());
    out.extend_from_slice(digest);
    out.extend_from_slice(&stored.to_le_bytes());
    out.extend_from_slice(&raw.to_le_bytes());
}

fn get_segment(r: &mut Reader<'_>) -> Result<(String, [u8; 32], u64, u64)> {
    let key = std::str::from_utf8(r.sized()?).map_err(|_| Error::format("the index holds an impossible key"))?.to_owned();
    Ok((key, r.array()?, r.u64()?, r.u64()?))
}

const SMALL: u8 = 0;
const LARGE: u8 = 1;
const LINK: u8 = 2;
const DIR: u8 = 3;

fn put_base(out: &mut Vec<u8>, catalog: &Catalog, meta: &[u8]) {
    put_sized(out, meta);
    out.extend_from_slice(&catalog.last_id.to_le_bytes());
    out.extend_from_slice(&(catalog.segments.len() as u32).to_le_bytes());
    for s in &catalog.segments {
        out.extend_from_slice(&s.id.to_le_bytes());
        put_segment(out, &s.key, &s.digest, s.stored, s.raw);
    }
    let tree = &catalog.tree;
    let mut lists = std::collections::VecDeque::from([ROOT]);
    while let Some(dir) = lists.pop_front() {
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        let mut count = 0u32;
        for node in tree.children(dir) {
            count += 1;
            let name = tree.name(node);
            let kind = match node.body {
                Body::Small => SMALL,
                Body::Large(_) => LARGE,
                Body::Link => LINK,
                Body::Dir(id) => {
                    lists.push_back(id);
                    DIR
                }
            };
            out.extend_from_slice(&[kind, name.len() as u8]);
            put_meta(out, &node.meta);
            for id in [node.segment, node.meta_segment, node.born] {
                out.extend_from_slice(&id.to_le_bytes());
            }
            out.extend_from_slice(&node.digest);
            out.extend_from_slice(name);
            if let Body::Large(blocks) = &node.body {
                for b in blocks.iter() {
                    out.extend_from_slice(&b.digest);
                    out.extend_from_slice(&b.segment.to_le_bytes());
                }
            }
        }
        out[at..at + 4].copy_from_slice(&count.to_le_bytes());
    }
    out.extend_from_slice(&(catalog.tombstones.len() as u32).to_le_bytes());
    for (path, t) in &catalog.tombstones {
        put_sized(out, path);
        out.extend_from_slice(&t.segment.to_le_bytes());
        out.extend_from_slice(&t.born.to_le_bytes());
    }
}

fn get_base(base: &[u8]) -> Result<(Catalog, Vec<u8>)> {
    let r = &mut Reader::new(base);
    let meta = r.sized()?.to_vec();
    let mut catalog = Catalog { last_id: r.u32()?, ..Catalog::default() };
    for _ in 0..r.u32()? {
        let id = r.u32()?;
        let (key, digest, stored, raw) = get_segment(r)?;
        if id == 0 || id > catalog.last_id || catalog.segments.last().is_some_and(|s| s.id >= id) {
            return Err(Error::format("the index's segments are out of order"));
        }
        catalog.segments.push(crate::catalog::Segment { id, key, digest, stored, raw });
    }
    let tree = &mut catalog.tree;
    let mut lists = std::collections::VecDeque::from([(ROOT, 0)]);
    while let Some((dir, depth)) = lists.pop_front() {
        for _ in 0..r.u32()? {
            let (kind, len) = (r.u8()?, r.u8()?);
            let meta = get_meta(r)?;
            let ids = [r.u32()?, r.u32()?, r.u32()?];
            let digest = r.array()?;
            let name = r.take(len.into())?;
            if let Some(why) = paths::name_refusal(name) {
                return Err(Error::format(format!("the index holds the name {}: {why}", shown(name))));
            }
            let depth = depth + 1 + name.len();
            if name.contains(&b'/') || depth > paths::PATH_BYTES + 1 || (dir == ROOT && name == paths::RESERVED) {
                return Err(Error::format("the index holds an impossible path"));
            }
            if ids.iter().any(|id| *id > catalog.last_id) {
                return Err(Error::format("the index names an unknown segment"));
            }
            let body = match kind {
                SMALL => Body::Small,
                LARGE => {
                    let count = block::count(meta.size) as usize;
                    let mut rows = Reader::new(r.take(count.saturating_mul(20))?);
                    let mut blocks = Vec::with_capacity(count);
                    while !rows.is_empty() {
                        blocks.push(Block { digest: rows.array()?, segment: rows.u32()? });
                    }
                    Body::Large(Box::new(blocks))
                }
                LINK => Body::Link,
                DIR => {
                    let id = tree.new_dir();
                    lists.push_back((id, depth));
                    Body::Dir(id)
                }
                _ => return Err(Error::format("the index holds an entry of unknown kind")),
            };
            let mut node = Node::new(body, meta, digest, ids[0]);
            (node.meta_segment, node.born) = (ids[1], ids[2]);
            if !tree.push(dir, name, node)? {
                return Err(Error::format("the index's entries are out of order"));
            }
        }
    }
    for _ in 0..r.u32()? {
        let path = r.sized()?.to_vec();
        let (segment, born) = (r.u32()?, r.u32()?);
        catalog.tombstones.insert(path, Tombstone { segment, born });
    }
    if !r.is_empty() {
        return Err(Error::format("the index holds more than it should"));
    }
    Ok((catalog, meta))
}

fn put_staged(staged: &Staged) -> Vec<u8> {
    let mut out = Vec::new();
    put_sized(&mut out, &staged.meta);
    out.extend_from_slice(&(staged.segments.len() as u32).to_le_bytes());
    for (key, digest, stored, raw) in &staged.segments {
        put_segment(&mut out, key, digest, *stored, *raw);
    }
    out.extend_from_slice(&(staged.changes.len() as u32).to_le_bytes());
    for Change { path, segment, op } in &staged.changes {
        put_sized(&mut out, path);
        out.extend_from_slice(&segment.to_le_bytes());
        let mut head = |kind: u8, meta: &Meta| {
            out.push(kind);
            put_meta(&mut out, meta);
        };
        match op {
            Op::Dir(meta) => head(0, meta),
            Op::Attr(meta) => head(1, meta),
            Op::Refresh(meta) => head(2, meta),
            Op::Drop => out.push(3),
            Op::Small(meta, digest) | Op::Link(meta, digest) => {
                head(if matches!(op, Op::Small(..)) { 4 } else { 5 }, meta);
                out.extend_from_slice(digest);
            }
            Op::Large { meta, fresh, blocks } => {
                head(if *fresh { 6 } else { 7 }, meta);
                out.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
                for (index, b) in blocks {
                    out.extend_from_slice(&index.to_le_bytes());
                    out.extend_from_slice(&b.digest);
                    out.extend_from_slice(&b.segment.to_le_bytes());
                }
            }
        }
    }
    out
}

fn get_staged(payload: &[u8]) -> Result<Staged> {
    let r = &mut Reader::new(payload);
    let mut staged = Staged { meta: r.sized()?.to_vec(), segments: Vec::new(), changes: Vec::new() };
    for _ in 0..r.u32()? {
        staged.segments.push(get_segment(r)?);
    }
    for _ in 0..r.u32()? {
        let path = r.sized()?.to_vec();
        let segment = r.u32()?;
        let op = match r.u8()? {
            0 => Op::Dir(get_meta(r)?),
            1 => Op::Attr(get_meta(r)?),
            2 => Op::Refresh(get_meta(r)?),
            3 => Op::Drop,
            4 => Op::Small(get_meta(r)?, r.array()?),
            5 => Op::Link(get_meta(r)?, r.array()?),
            kind @ 6..=7 => {
                let meta = get_meta(r)?;
                let mut blocks = Vec::new();
                for _ in 0..r.u32()? {
                    blocks.push((r.u32()?, Block { digest: r.array()?, segment: r.u32()? }));
                }
                Op::Large { meta, fresh: kind == 6, blocks }
            }
            _ => return Err(Error::format("the index's log holds a change of unknown kind")),
        };
        staged.changes.push(Change { path, segment, op });
    }
    if !r.is_empty() {
        return Err(Error::format("the index's log holds more than it should"));
    }
    Ok(staged)
}
