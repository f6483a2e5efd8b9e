//! Extracts a zip of unknown origin below a folder.
//!
//! The `zip` crate decodes; all limits are enforced here. The end of the archive is looked at first, because the
//! crate believes the stated number of entries when it allocates, searches the whole file for another end when
//! the last one does not suit it, and lets a later entry silently replace one of the same name.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::Mutex;

use rustix::fs::{fchmod, fstat, mkdirat, openat, FileType, Mode, OFlags};
use rustix::io::{pread, write, Errno};
use zip::result::ZipError;
use zip::ZipArchive;

use crate::beneath;
use crate::error::{shown, Error, Pulse, Result};
use crate::paths;

const END: &[u8; 4] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const COMMENT: usize = 65_535;
/// The smallest entry of the central directory.
const ENTRY: u64 = 46;
/// The largest central directory; it is read into memory.
const DIRECTORY: u64 = 256 << 20;
/// Below this much output the ratio does not count.
const RATIO_FROM: u64 = 64 << 20;

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_entries: u64,
    pub max_bytes: u64,
    pub max_ratio: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unzipped {
    pub entries: u64,
    pub bytes: u64,
}

/// The archive as `zip` sees it: reads by position (so that threads share one descriptor), only zeros before `floor`.
#[derive(Clone)]
struct View<'a> {
    fd: BorrowedFd<'a>,
    size: u64,
    at: u64,
    floor: u64,
}

impl Read for View<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at < self.floor {
            // The crate looks for the end in windows of its own, which may reach further back than the directory does.
            let n = buffer.len().min(usize::try_from(self.floor - self.at).unwrap_or(usize::MAX));
            buffer[..n].fill(0);
            self.at += n as u64;
            return Ok(n);
        }
        loop {
            match pread(self.fd, &mut *buffer, self.at) {
                Ok(n) => {
                    self.at += n as u64;
                    return Ok(n);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Seek for View<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

fn refused(reason: impl std::fmt::Display) -> Error {
    Error::format(format!("the archive is refused: {reason}"))
}

fn refused_entry(name: &[u8], reason: impl std::fmt::Display) -> Error {
    Error::format(format!("the archive is refused: its entry {}: {reason}", shown(name)))
}

/// Where the central directory starts at the earliest, and how many entries it has.
fn directory(view: &View<'_>) -> Result<(u64, u64)> {
    let tail_len = view.size.min((COMMENT + END_BYTES) as u64) as usize;
    let mut tail = vec![0; tail_len];
    let at = |offset: u64, buffer: &mut [u8]| -> Result<()> {
        View { at: offset, ..view.clone() }.read_exact(buffer).map_err(|e| refused(format_args!("it cannot be read: {e}")))
    };
    let tail_at = view.size - tail_len as u64;
    at(tail_at, &mut tail)?;
    let u16_at = |b: &[u8], i: usize| u64::from(u16::from_le_bytes([b[i], b[i + 1]]));
    let u32_at = |b: &[u8], i: usize| u64::from(u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]));
    let u64_at = |b: &[u8], i: usize| u32_at(b, i) | u32_at(b, i + 4) << 32;
    let end = tail
        .windows(END_BYTES)
        .rposition(|w| w.starts_with(END))
        .filter(|i| i + END_BYTES + u16_at(&tail, i + 20) as usize == tail_len)
        .ok_or_else(|| refused("it is no zip, or it is truncated"))?;
    let (mut count, mut bytes) = (u16_at(&tail, end + 10), u32_at(&tail, end + 12));
    let end_at = tail_at + end as u64;
    let mut upto = end_at;
    if let Some(locator_at) = end_at.checked_sub(20) {
        let mut locator = [0; 20];
        at(locator_at, &mut locator)?;
        if locator.starts_with(b"PK\x06\x07") {
            // The zip64 end lies where the locator says, or right before it when something was put before the archive.
            for place in [u64_at(&locator, 8), locator_at.saturating_sub(56)] {
                let mut big = [0; 56];
                if place.saturating_add(56) <= locator_at && at(place, &mut big).is_ok() && big.starts_with(b"PK\x06\x06") {
                    (count, bytes, upto) = (u64_at(&big, 32), u64_at(&big, 40), place);
                    break;
                }
            }
        }
    }
    let start = upto.checked_sub(bytes).ok_or_else(|| refused("its directory is larger than itself"))?;
    if bytes > DIRECTORY || count.saturating_mul(ENTRY) > bytes {
        return Err(refused("its directory does not fit the number of its entries"));
    }
    let mut rest = vec![0; (view.size - start) as usize];
    at(start, &mut rest)?;
    if rest.windows(4).filter(|w| w == END).count() != 1 {
        return Err(refused("it has more than one end"));
    }
    if entries(&rest) != count {
        return Err(refused("its directory does not fit the number of its entries"));
    }
    Ok((start, count))
}

/// How many headers follow each other in a central directory.
fn entries(mut rest: &[u8]) -> u64 {
    let mut count = 0;
    while let Some(header) = rest.get(..ENTRY as usize).filter(|h| h.starts_with(b"PK\x01\x02")) {
        let len = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let Some(next) = rest.get(ENTRY as usize + len(28) + len(30) + len(32)..) else { break };
        rest = next;
        count += 1;
    }
    count
}

/// The entry's path below the destination; None for the destination itself.
fn path_of(name: &[u8]) -> Result<Option<Vec<u8>>> {
    let no = |why: &str| Err(refused_entry(name, why));
    if name.is_empty() || name.contains(&0) {
        return no("an impossible name");
    }
    if name[0] == b'/' || name[0] == b'\\' || (name.len() > 2 && name[1] == b':' && name[2] == b'\\') {
        return no("an absolute name");
    }
    if name.split(|b| matches!(b, b'/' | b'\\')).any(|part| part == b"..") {
        return no("its name leads out of the archive");
    }
    let parts: Vec<&[u8]> = name.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b".")).collect();
    let path = parts.join(&b'/');
    if path.len() > paths::PATH_BYTES || parts.iter().any(|p| p.len() > paths::NAME_BYTES) {
        return no("its name is too long");
    }
    Ok((!path.is_empty()).then_some(path))
}

struct Plan {
    /// (path, mode), parents first.
    dirs: Vec<(Vec<u8>, u32)>,
    /// (place in the archive, path, mode)
    files: Vec<(usize, Vec<u8>, u32)>,
}

fn plan(archive: &mut ZipArchive<View<'_>>) -> Result<Plan> {
    // true: a folder.
    let mut kinds: HashMap<Vec<u8>, bool> = HashMap::new();
    let mut dirs: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut files = Vec::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(refused)?;
        let name = entry.name_raw();
        let Some(path) = path_of(name)? else { continue };
        let dir = name.ends_with(b"/");
        match kinds.insert(path.clone(), dir) {
            Some(before) if before == dir => return Err(refused_entry(name, "it occurs twice")),
            Some(_) => return Err(refused_entry(name, "it is a file and a folder")),
            None => {}
        }
        if entry.encrypted() {
            return Err(refused_entry(name, "it is encrypted"));
        }
        let mode = entry.unix_mode().map(|m| m & 0o777);
        if dir {
            if entry.size() > 0 {
                return Err(refused_entry(name, "a folder with content"));
            }
            dirs.insert(path, mode.unwrap_or(0o755) | 0o700);
        } else {
            files.push((i, path, mode.unwrap_or(0o644) | 0o600));
        }
    }
    for path in kinds.keys() {
        let (mut parent, _) = paths::split(path);
        while !parent.is_empty() {
            match kinds.get(parent) {
                Some(false) => return Err(refused_entry(parent, "it is a file and a folder")),
                _ if dirs.contains_key(parent) => {}
                _ => drop(dirs.insert(parent.to_vec(), 0o755)),
            }
            parent = paths::split(parent).0;
        }
    }
    let mut dirs: Vec<_> = dirs.into_iter().collect();
    dirs.sort_unstable();
    Ok(Plan { dirs, files })
}

pub fn unzip(
    archive: BorrowedFd<'_>,
    dest: BorrowedFd<'_>,
    limits: Limits,
    threads: usize,
    pulse: Pulse<'_>,
) -> Result<Unzipped> {
    let stat = fstat(archive).map_err(|e| Error::os(b"", e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused("it is no regular file"));
    }
    let size = stat.st_size as u64;
    let mut view = View { fd: archive, size, at: 0, floor: 0 };
    let (floor, count) = directory(&view)?;
    if count > limits.max_entries {
        return Err(Error::Limit(format!("the archive has {count} entries, more than the {} allowed", limits.max_entries)));
    }
    view.floor = floor;
    let zip = ZipArchive::new(view.clone()).map_err(refused)?;
    if zip.len() as u64 != count {
        return Err(refused("an entry occurs twice"));
    }
    let metadata = zip.metadata();
    drop(zip);
    view.floor = 0;
    // SAFETY: the metadata is of this very archive; and wrong metadata could only lead to reads at wrong places, which
    // `View` bounds. (The function is marked unsafe for such a mismatch, not for memory.)
    let open = || unsafe { ZipArchive::unsafe_new_with_metadata(view.clone(), metadata.clone()) };
    let plan = plan(&mut open())?;
    for (path, _) in &plan.dirs {
        pulse()?;
        make_dir(dest, path).map_err(|e| Error::os(path, e))?;
    }
    let work = Work {
        limits,
        size,
        dest,
        next: AtomicUsize::new(0),
        written: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        failed: Mutex::new(None),
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| work.run(open(), &plan.files, pulse));
        }
        work.run(open(), &plan.files, pulse);
    });
    if let Some(e) = work.failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(e);
    }
    for (path, mode) in plan.dirs.iter().rev() {
        beneath::open(dest, path, beneath::FOLDER, Mode::empty())
            .and_then(|fd| fchmod(fd, Mode::from_raw_mode(*mode)))
            .map_err(|e| Error::os(path, e))?;
    }
    Ok(Unzipped { entries: count, bytes: work.written.into_inner() })
}

fn make_dir(dest: BorrowedFd<'_>, path: &[u8]) -> std::result::Result<(), Errno> {
    let (dir, name) = paths::split(path);
    let mode = Mode::from_raw_mode(0o700);
    if dir.is_empty() {
        return mkdirat(dest, name, mode);
    }
    mkdirat(beneath::open(dest, dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, name, mode)
}

struct Work<'a> {
    limits: Limits,
    size: u64,
    dest: BorrowedFd<'a>,
    next: AtomicUsize,
    written: AtomicU64,
    stop: AtomicBool,
    failed: Mutex<Option<Error>>,
}

impl Work<'_> {
    fn run(&self, mut zip: ZipArchive<View<'_>>, files: &[(usize, Vec<u8>, u32)], pulse: Pulse<'_>) {
        let mut buffer = vec![0; 64 * 1024];
        let mut near = None;
        while !self.stop.load(Ordering::Relaxed) {
            let Some((i, path, mode)) = files.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            if let Err(e) = pulse().and_then(|()| self.extract(&mut zip, *i, path, *mode, &mut buffer, &mut near)) {
                self.failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                self.stop.store(true, Ordering::Relaxed);
            }
        }
    }

    fn extract(
        &self,
        zip: &mut ZipArchive<View<'_>>,
        i: usize,
        path: &[u8],
        mode: u32,
        buffer: &mut [u8],
        near: &mut Option<(Vec<u8>, OwnedFd)>,
    ) -> Result<()> {
        let at = |e| Error::os(path, e);
        let mut entry = zip.by_index(i).map_err(|e| decoding(path, e))?;
        let out = self.create(path, near).map_err(at)?;
        loop {
            let n = match entry.read(buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(decoding(path, ZipError::Io(e))),
            };
            let total = self.written.fetch_add(n as u64, Ordering::Relaxed) + n as u64;
            if total > self.limits.max_bytes {
                return Err(Error::Limit(format!("the archive holds more than the {} bytes allowed", self.limits.max_bytes)));
            }
            if total > RATIO_FROM && total / self.limits.max_ratio.max(1) > self.size {
                return Err(Error::Limit(format!("the archive unpacks to more than {} times its size", self.limits.max_ratio)));
            }
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut data = &buffer[..n];
            while !data.is_empty() {
                match write(&out, data) {
                    Ok(0) => return Err(at(Errno::NOSPC)),
                    Ok(n) => data = &data[n..],
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(at(e)),
                }
            }
        }
        fchmod(&out, Mode::from_raw_mode(mode)).map_err(at)
    }

    fn create(&self, path: &[u8], near: &mut Option<(Vec<u8>, OwnedFd)>) -> std::result::Result<OwnedFd, Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let (dir, name) = paths::split(path);
        if dir.is_empty() {
            return openat(self.dest, name, flags, mode);
        }
        if near.as_ref().is_none_or(|(at, _)| at != dir) {
            *near = Some((dir.to_vec(), beneath::open(self.dest, dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?));
        }
        match near {
            Some((_, fd)) => openat(fd.as_fd(), name, flags, mode),
            None => Err(Errno::NOENT),
        }
    }
}

fn decoding(path: &[u8], e: ZipError) -> Error {
    match e {
        ZipError::Io(e) => match Errno::from_io_error(&e) {
            Some(errno) => Error::os(path, errno),
            None => refused_entry(path, e),
        },
        other => refused_entry(path, other),
    }
}
