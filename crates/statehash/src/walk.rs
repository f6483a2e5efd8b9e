//! Reading folders: getdents and statx by folder descriptors, no file opened, nothing held per level.
//!
//! Each folder is opened by its path below the root (see `beneath`), read, compared and closed, so depth costs
//! neither descriptors nor stack.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Condvar, Mutex, MutexGuard};

use rustix::fs::{statx, AtFlags, FileType, RawDir, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::time::{clock_gettime, ClockId};

use crate::error::{Error, Result};
use crate::tree::Meta;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Link,
    /// Sockets, FIFOs, devices: counted, never opened.
    Special,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    pub mode: u16,
    pub size: u64,
    pub mtime: i64,
    pub ctime: i64,
    pub ino: u64,
    /// How many names it has.
    pub links: u32,
}

/// A change within this of a look may be followed by another that leaves the same times: the kernel stamps files
/// with a clock that moves once a tick, at most 10 ms apart (100 Hz), and a busy machine may be late by one.
const GRANULARITY: i64 = 20_000_000;
/// A ctime of whole seconds (nobody can set one) means a file system that keeps no finer ones; FAT keeps 2 s.
const COARSE: i64 = 2_000_000_000;

impl Stat {
    /// As it goes into the index. `look` is the clock before the look that `self` comes from.
    /// Every write moves the ctime, which nobody can set; an mtime is looked at as well where it is near the look, for
    /// file systems that keep ctimes badly. One set far into the future says nothing and is not waited for.
    pub fn meta(&self, look: i64) -> Meta {
        if self.kind == Kind::Dir {
            return Meta { mode: self.mode, mtime: self.mtime, ..Meta::default() };
        }
        let grain = if self.ctime % 1_000_000_000 == 0 { COARSE } else { GRANULARITY };
        let racy = self.ctime > look - grain || (look - grain..look + grain).contains(&self.mtime);
        Meta { mode: self.mode, size: self.size, mtime: self.mtime, ctime: self.ctime, ino: self.ino, racy }
    }

    /// Whether the index's entry of the same kind can stand without another look at the content.
    #[inline]
    pub fn settled(&self, meta: &Meta) -> bool {
        if self.kind == Kind::Dir {
            return self.mode == meta.mode && self.mtime == meta.mtime;
        }
        self.mode == meta.mode
            && self.size == meta.size
            && self.mtime == meta.mtime
            && self.ctime == meta.ctime
            && self.ino == meta.ino
            && !meta.racy
    }
}

/// Nanoseconds since 1970 by the clock that files are stamped with.
pub fn now() -> i64 {
    let t = clock_gettime(ClockId::Realtime);
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}

const WANTED: StatxFlags = StatxFlags::TYPE
    .union(StatxFlags::MODE)
    .union(StatxFlags::SIZE)
    .union(StatxFlags::MTIME)
    .union(StatxFlags::CTIME)
    .union(StatxFlags::NLINK)
    .union(StatxFlags::INO);

fn told(s: &Statx) -> Stat {
    // Times beyond the years 1677 to 2262 don't fit; they are compared and restored as the nearest that does.
    let ns = |sec: i64, nsec: u32| sec.saturating_mul(1_000_000_000).saturating_add(nsec.into());
    let kind = match FileType::from_raw_mode(s.stx_mode.into()) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Link,
        _ => Kind::Special,
    };
    Stat {
        kind,
        mode: s.stx_mode & 0o7777,
        size: if kind == Kind::Dir { 0 } else { s.stx_size },
        mtime: ns(s.stx_mtime.tv_sec, s.stx_mtime.tv_nsec),
        ctime: ns(s.stx_ctime.tv_sec, s.stx_ctime.tv_nsec),
        ino: s.stx_ino,
        links: s.stx_nlink,
    }
}

/// statx of an entry, links not followed.
pub fn stat_at(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> std::result::Result<Stat, Errno> {
    statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, WANTED).map(|s| told(&s))
}

/// statx of an open file.
pub fn stat_fd(fd: BorrowedFd<'_>) -> std::result::Result<Stat, Errno> {
    statx(fd, c"", AtFlags::EMPTY_PATH, WANTED).map(|s| told(&s))
}

/// One folder's entries, sorted by name; reused from folder to folder.
#[derive(Default)]
pub struct Listing {
    names: Vec<u8>,
    found: Vec<(u32, u8, Stat)>,
    buffer: Vec<u8>,
}

impl Listing {
    /// Reads all entries of `dir`. Names that vanish meanwhile are left out. `going` is asked now and then; once it is false,
    /// that ends with EINTR.
    pub fn read(&mut self, dir: &OwnedFd, going: impl Fn() -> bool) -> std::result::Result<(), Errno> {
        self.names.clear();
        self.found.clear();
        self.buffer.reserve(64 * 1024);
        let buffer: &mut [MaybeUninit<u8>] = self.buffer.spare_capacity_mut();
        let mut entries = RawDir::new(dir, buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            let bytes = name.to_bytes();
            if bytes == b"." || bytes == b".." {
                continue;
            }
            let stat = match stat_at(dir.as_fd(), name) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e),
            };
            let at = u32::try_from(self.names.len()).map_err(|_| Errno::OVERFLOW)?;
            let len = u8::try_from(bytes.len()).map_err(|_| Errno::NAMETOOLONG)?;
            self.names.extend_from_slice(bytes);
            self.found.push((at, len, stat));
            if self.found.len() % 4096 == 0 && !going() {
                return Err(Errno::INTR);
            }
        }
        let names = &self.names;
        let name = |e: &(u32, u8, Stat)| &names[e.0 as usize..e.0 as usize + usize::from(e.1)];
        self.found.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        // A file system may show an entry twice while its folder changes.
        self.found.dedup_by(|a, b| name(a) == name(b));
        Ok(())
    }

    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &Stat)> {
        self.found.iter().map(|(at, len, stat)| (&self.names[*at as usize..*at as usize + usize::from(*len)], stat))
    }
}

/// Runs `visit` for each item, of `first` to begin with, on up to `threads` threads until none is left; it may add more. Each thread has its own
/// `S`, all of which are returned. The first error ends the work.
pub fn spread<T: Send, S: Send>(
    threads: usize,
    first: Vec<T>,
    state: impl Fn() -> S + Sync,
    visit: impl Fn(T, &mut S, &mut Vec<T>) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    if threads <= 1 {
        let mut mine = state();
        let mut todo = first;
        let mut more = Vec::new();
        while let Some(item) = todo.pop() {
            visit(item, &mut mine, &mut more)?;
            todo.append(&mut more);
        }
        return Ok(vec![mine]);
    }
    struct Shared<T> {
        todo: Vec<T>,
        busy: usize,
        failed: Option<Error>,
    }
    let shared = Mutex::new(Shared { todo: first, busy: 0, failed: None });
    let wake = Condvar::new();
    // A poisoned lock only says that another thread panicked; the scope passes that panic on.
    let lock = || -> MutexGuard<'_, Shared<T>> { shared.lock().unwrap_or_else(|e| e.into_inner()) };
    let work = || {
        let mut mine = state();
        let mut more = Vec::new();
        loop {
            let mut s = lock();
            let item = loop {
                if s.failed.is_some() {
                    return mine;
                }
                if let Some(item) = s.todo.pop() {
                    break item;
                }
                if s.busy == 0 {
                    return mine;
                }
                s = wake.wait(s).unwrap_or_else(|e| e.into_inner());
            };
            s.busy += 1;
            drop(s);
            // A panic must not leave the others waiting for this one.
            let result = catch_unwind(AssertUnwindSafe(|| visit(item, &mut mine, &mut more)));
            let result = result.unwrap_or_else(|_| Err(Error::Misuse("a worker thread panicked".into())));
            let mut s = lock();
            s.busy -= 1;
            s.todo.append(&mut more);
            if let Err(e) = result {
                s.failed.get_or_insert(e);
            }
            if s.busy == 0 || s.failed.is_some() || s.todo.len() > 1 {
                wake.notify_all();
            }
        }
    };
    let states = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut states = vec![work()];
        for other in others {
            match other.join() {
                Ok(state) => states.push(state),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        states
    });
    let failed = lock().failed.take();
    failed.map_or(Ok(states), Err)
}
