//! The index's file: a base, then a log of records that grows.
//!
//! ```text
//! "the0idx\0"  version u32  base_len u64  base_id [16]  base [base_len]  checksum [16] of all before
//! log*         len u32  kind u8  number u64  payload [len]  checksum [16] of base_id and all of the record before it
//! ```
//! The records' numbers rise by one and their checksums include the base's random id, so that no remains of an earlier
//! log are taken for a later one. The first record that is short or does not match its checksum ends the log; the
//! next append cuts it off. So a crash at any byte leaves the former or the new record.
//!
//! The file is read, bounded and piece by piece: others under the same uid may write or truncate it, and a truncated mapping
//! would be a SIGBUS.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{fstat, fsync, ftruncate, openat, renameat, unlinkat, AtFlags, FileType, Mode, OFlags};
use rustix::io::{fcntl_dupfd_cloexec, pwrite, Errno};
use rustix::rand::{getrandom, GetRandomFlags};

use crate::block::{self, Digest};
use crate::error::{Error, Result};
use crate::read;
use crate::wire::{Reader, Short, Source, Stream, PIECE};

const MAGIC: &[u8; 8] = b"the0idx\0";
pub const VERSION: u32 = 1;
const HEADER: usize = 36;
const RECORD: usize = 13;
const CHECK: usize = 16;
/// The largest file that is read; about ten million entries.
const FILE_BYTES: u64 = 1 << 30;
/// A log below this is not worth a new base.
const LOG_BYTES: u64 = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Stage = 1,
    Confirm = 2,
    Abandon = 3,
    Meta = 4,
}

pub struct Journal {
    dir: OwnedFd,
    name: String,
    fd: OwnedFd,
    base_id: [u8; 16],
    base_len: u64,
    /// Where the next record goes; what lies beyond, if anything, is torn.
    end: u64,
    torn: bool,
    number: u64,
}

/// The whole records of a file's log.
pub struct Log {
    bytes: Vec<u8>,
    /// Kind and payload of each.
    records: Vec<(Kind, std::ops::Range<usize>)>,
}

impl Log {
    pub fn records(&self) -> impl Iterator<Item = (Kind, &[u8])> {
        self.records.iter().map(|(kind, range)| (*kind, &self.bytes[range.clone()]))
    }
}

/// Reads on in a file, and computes the checksum of all that was read.
pub struct Summed {
    fd: OwnedFd,
    name: String,
    at: u64,
    hasher: blake3::Hasher,
}

impl Source for Summed {
    fn more(&mut self, room: &mut [u8]) -> Result<usize> {
        // Ending at a multiple keeps the hasher at its fastest.
        let most = (PIECE - (self.at % PIECE as u64) as usize).min(room.len());
        let got = read::fill(&self.fd, &mut room[..most], self.at).map_err(|e| Error::os(self.name.as_bytes(), e))?;
        self.hasher.update(&room[..got]);
        self.at += got as u64;
        Ok(got)
    }
}

impl Journal {
    /// `base` makes what it likes of the base before it is known to be undamaged.
    pub fn open<T>(
        dir: BorrowedFd<'_>,
        name: &str,
        base: impl FnOnce(&mut Stream<Summed>) -> Result<T>,
    ) -> Result<(Self, T, Log)> {
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
        let mut header = [0; HEADER];
        let have = read::fill(&fd, &mut header, 0).map_err(at)?;
        let (base_len, base_id) = Self::header(&header[..have])?;
        let end = (HEADER as u64).saturating_add(base_len);
        if end.saturating_add(CHECK as u64) > size {
            return Err(cut(Short));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header);
        let mut stream = Stream::new(Summed { fd, name: name.to_owned(), at: HEADER as u64, hasher }, base_len);
        let made = base(&mut stream);
        let Summed { fd, name, hasher, .. } = stream.finish()?;
        let sum = hasher.finalize();
        let at = |e| Error::os(name.as_bytes(), e);
        let mut bytes = vec![0; (size - end) as usize];
        let have = read::fill(&fd, &mut bytes, end).map_err(at)?;
        bytes.truncate(have);
        if bytes.get(..CHECK).ok_or(Short).map_err(cut)? != &sum.as_bytes()[..CHECK] {
            return Err(Error::format("the index is damaged"));
        }
        let made = made?;
        let dir = fcntl_dupfd_cloexec(dir, 0).map_err(at)?;
        let mut journal = Self { dir, name, fd, base_id, base_len, end: end + CHECK as u64, torn: false, number: 0 };
        bytes.drain(..CHECK);
        let mut records = Vec::new();
        let mut from = 0;
        while let Some((kind, payload)) = journal.next_record(&bytes, from) {
            from = payload.end + CHECK;
            journal.number += 1;
            records.push((kind, payload));
        }
        journal.end += from as u64;
        journal.torn = from < bytes.len();
        Ok((journal, made, Log { bytes, records }))
    }

    /// Length and id of the base.
    fn header(bytes: &[u8]) -> Result<(u64, [u8; 16])> {
        let mut r = Reader::new(bytes);
        if r.take(8) != Ok(MAGIC) {
            return Err(Error::format("the index is not ours"));
        }
        let version = r.u32().map_err(cut)?;
        if version != VERSION {
            let age = if version > VERSION { "newer" } else { "unknown" };
            return Err(Error::format(format!("the index has the {age} format {version}; this runtime reads {VERSION}")));
        }
        Ok((r.u64().map_err(cut)?, r.array().map_err(cut)?))
    }

    /// The record at that place in the log; None at its end or at a torn one.
    fn next_record(&self, bytes: &[u8], at: usize) -> Option<(Kind, std::ops::Range<usize>)> {
        let mut r = Reader::new(bytes.get(at..)?);
        let (len, kind, number) = (r.u32().ok()? as usize, r.u8().ok()?, r.u64().ok()?);
        r.take(len).ok()?;
        let end = at + RECORD + len;
        let whole = number == self.number && r.array().ok()? == record_check(&self.base_id, &[&bytes[at..end]]);
        let kind = [Kind::Stage, Kind::Confirm, Kind::Abandon, Kind::Meta].into_iter().find(|k| *k as u8 == kind)?;
        whole.then_some((kind, at + RECORD..end))
    }

    /// Writes a base beside the file of that name and renames it there. `staged` becomes its first record.
    pub fn create(
        dir: BorrowedFd<'_>,
        name: &str,
        sync: bool,
        staged: Option<&[u8]>,
        put: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Self> {
        let at = |e| Error::os(name.as_bytes(), e);
        let mut base_id = [0; 16];
        getrandom(&mut base_id, GetRandomFlags::empty()).map_err(at)?;
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&base_id);
        put(&mut bytes);
        let base_len = (bytes.len() - HEADER) as u64;
        bytes[12..20].copy_from_slice(&base_len.to_le_bytes());
        bytes.extend_from_slice(&block::digest(&bytes));
        if let Some(payload) = staged {
            let (head, check) = frame(&base_id, 0, Kind::Stage, payload)?;
            for piece in [&head[..], payload, &check] {
                bytes.extend_from_slice(piece);
            }
        }
        if bytes.len() as u64 > FILE_BYTES {
            return Err(Error::Limit("the index would exceed 1 GiB".into()));
        }
        let fresh = format!("{name}.new");
        let fd = write_new(dir, &fresh, &bytes, sync).map_err(at)?;
        renameat(dir, &fresh, dir, name).map_err(at)?;
        if sync {
            fsync(dir).map_err(at)?;
        }
        let dir = fcntl_dupfd_cloexec(dir, 0).map_err(at)?;
        let (end, number) = (bytes.len() as u64, staged.is_some().into());
        Ok(Self { dir, name: name.to_owned(), fd, base_id, base_len, end, torn: false, number })
    }

    /// Appends a record; it survives a crash of the process, not of the host.
    pub fn append(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        let (head, check) = frame(&self.base_id, self.number, kind, payload)?;
        let at = |e| Error::os(self.name.as_bytes(), e);
        if self.torn {
            ftruncate(&self.fd, self.end).map_err(at)?;
        }
        // Whatever fails now leaves a tail that no reader accepts and that the next append cuts off.
        self.torn = true;
        // Piece by piece: of a million files the payload is large, and a copy of it as large again.
        let mut end = self.end;
        for piece in [&head[..], payload, &check] {
            write_at(&self.fd, piece, end).map_err(at)?;
            end += piece.len() as u64;
        }
        self.torn = false;
        self.end = end;
        self.number += 1;
        Ok(())
    }

    /// Whether a new base would pay.
    pub fn overgrown(&self) -> bool {
        self.end - self.base_len > LOG_BYTES.max(self.base_len)
    }

    /// Folder and name, for `create` in this one's place.
    pub fn place(&self) -> Result<(OwnedFd, String)> {
        let dir = fcntl_dupfd_cloexec(self.dir.as_fd(), 0).map_err(|e| Error::os(self.name.as_bytes(), e))?;
        Ok((dir, self.name.clone()))
    }
}

fn cut(_: Short) -> Error {
    Error::format("the index is cut short")
}

/// What stands before and after the payload.
fn frame(base_id: &[u8; 16], number: u64, kind: Kind, payload: &[u8]) -> Result<([u8; RECORD], Digest)> {
    let len = u32::try_from(payload.len()).map_err(|_| Error::Limit("a transaction of the index exceeds 4 GiB".into()))?;
    let mut head = [0; RECORD];
    head[..4].copy_from_slice(&len.to_le_bytes());
    head[4] = kind as u8;
    head[5..].copy_from_slice(&number.to_le_bytes());
    Ok((head, record_check(base_id, &[&head, payload])))
}

fn record_check(base_id: &[u8; 16], record: &[&[u8]]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(base_id);
    for piece in record {
        hasher.update(piece);
    }
    let mut check = [0; CHECK];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK]);
    check
}

fn write_at(fd: &OwnedFd, bytes: &[u8], at: u64) -> std::result::Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match pwrite(fd, &bytes[done..], at + done as u64) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn write_new(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], sync: bool) -> std::result::Result<OwnedFd, Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
    write_at(&fd, bytes, 0)?;
    if sync {
        fsync(&fd)?;
    }
    Ok(fd)
}
