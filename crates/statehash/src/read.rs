//! Reading one file whole and unchanged: opened beneath the root, looked at before and after.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::fs::{readlinkat, seek, Mode, OFlags, SeekFrom};
use rustix::io::{pread, Errno};

use crate::beneath;
use crate::error::{Error, Result};
use crate::tree::Meta;
use crate::walk::{now, stat_fd, Kind, Stat};

/// Files up to this are read whole by one thread; larger ones in ranges of as much.
pub const WHOLE: u64 = 1 << 20;
/// How often a file that changes while it is read is read.
pub const TRIES: u32 = 3;

/// What came of looking into a path that a scan saw as a file or link.
pub enum Look {
    /// Nothing is there any more.
    Gone,
    /// The system does not let us read it.
    Denied,
    /// Something of another kind is there now; the next scan sees it.
    Other,
    /// A regular file over `WHOLE`.
    Large,
    /// The content is in the buffer; `moved` if it changed while it was read. If it never stood still, it is as last read.
    Content { meta: Meta, moved: bool },
}

/// Opens for reading and says what is there, without waiting on FIFOs or following links.
pub fn open(root: BorrowedFd<'_>, path: &[u8]) -> Result<std::result::Result<OwnedFd, Look>> {
    match beneath::open(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty()) {
        Ok(fd) => Ok(Ok(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Err(Look::Gone)),
        // The last one: somebody holds a lease on it (F_SETLEASE), and it is not waited for.
        Err(Errno::ACCESS | Errno::PERM | Errno::AGAIN) => Ok(Err(Look::Denied)),
        Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => Ok(Err(Look::Other)),
        Err(e) => Err(Error::os(path, e)),
    }
}

/// Fills `buffer` from `offset` on; fewer bytes only at the end of the file.
pub fn fill(fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> std::result::Result<usize, Errno> {
    let mut have = 0;
    while have < buffer.len() {
        match pread(fd, &mut buffer[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

/// As `fill`, but what the file system knows to be a hole is not read: reading one would fill the page cache with zeros.
/// A file cut short meanwhile may give zeros; the look at it afterwards tells.
pub fn fill_sparse(fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> std::result::Result<usize, Errno> {
    let end = offset + buffer.len() as u64;
    let mut at = offset;
    while at < end {
        let data = data_from(fd, at).min(end);
        buffer[(at - offset) as usize..(data - offset) as usize].fill(0);
        if data == end {
            break;
        }
        // Not every file system can tell; a file cut short meanwhile has no hole at its end either.
        let hole = seek(fd, SeekFrom::Hole(data)).unwrap_or(end).clamp(data + 1, end);
        let part = &mut buffer[(data - offset) as usize..(hole - offset) as usize];
        let have = fill(fd, part, data)?;
        at = data + have as u64;
        if at < hole {
            return Ok((at - offset) as usize);
        }
    }
    Ok(buffer.len())
}

/// Where the next data may be, from `offset` on; `u64::MAX` if all that follows is a hole.
pub fn data_from(fd: &OwnedFd, offset: u64) -> u64 {
    // Moves the descriptor's own offset, which nobody uses.
    match seek(fd, SeekFrom::Data(offset)) {
        Ok(data) => data.max(offset),
        Err(Errno::NXIO) => u64::MAX,
        // Not every file system can tell.
        Err(_) => offset,
    }
}

/// Where a file is known to have data and no hole. Each question costs more than reading a page, so an answer serves for as much
/// of the file as it speaks of. One that is out of date is harmless: a hole that is read gives the zeros that it stands for.
#[derive(Default)]
pub struct Dense(Mutex<Range<u64>>);

/// What a range of a file consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stretch {
    Data,
    Hole,
    Both,
}

impl Dense {
    pub fn ask(&self, fd: &OwnedFd, range: Range<u64>) -> Stretch {
        let mut known = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if known.start <= range.start && range.end <= known.end {
            return Stretch::Data;
        }
        let data = data_from(fd, range.start);
        if data >= range.end {
            return Stretch::Hole;
        }
        if data > range.start {
            return Stretch::Both;
        }
        // Not every file system can tell.
        *known = data..seek(fd, SeekFrom::Hole(data)).unwrap_or(range.end);
        if range.end <= known.end {
            Stretch::Data
        } else {
            Stretch::Both
        }
    }
}

/// Whether two looks at one open file show no change of content or metadata in between.
pub fn same(a: &Stat, b: &Stat) -> bool {
    (a.size, a.mtime, a.ctime, a.mode) == (b.size, b.mtime, b.ctime, b.mode)
}

/// Reads a file of at most `WHOLE` bytes into `buffer`. The metadata is that before the reading after which it was still the same.
pub fn file(root: BorrowedFd<'_>, path: &[u8], buffer: &mut Vec<u8>) -> Result<Look> {
    let fd = match open(root, path)? {
        Ok(fd) => fd,
        Err(look) => return Ok(look),
    };
    let at = |e| Error::os(path, e);
    let mut tries = 0;
    loop {
        tries += 1;
        let look = now();
        let before = stat_fd(fd.as_fd()).map_err(at)?;
        if before.kind != Kind::File {
            return Ok(Look::Other);
        }
        if before.size > WHOLE {
            return Ok(Look::Large);
        }
        let size = before.size as usize;
        if buffer.len() <= size {
            buffer.resize(size + 1, 0);
        }
        // One byte more than there should be, so that growth shows.
        let have = fill(&fd, &mut buffer[..=size], 0).map_err(at)?;
        let after = stat_fd(fd.as_fd()).map_err(at)?;
        let mut meta = before.meta(look);
        if have == size && same(&before, &after) {
            return Ok(Look::Content { meta, moved: tries > 1 });
        }
        if tries == TRIES {
            meta.size = have.min(size) as u64;
            meta.racy = true;
            return Ok(Look::Content { meta, moved: true });
        }
    }
}

/// Reads a link's target into `buffer`.
pub fn link(root: BorrowedFd<'_>, path: &[u8], buffer: &mut Vec<u8>) -> Result<Look> {
    let look = now();
    let fd = match beneath::open(root, path, OFlags::PATH, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Look::Gone),
        Err(Errno::ACCESS) => return Ok(Look::Denied),
        Err(Errno::LOOP) => return Ok(Look::Other),
        Err(e) => return Err(Error::os(path, e)),
    };
    let stat = stat_fd(fd.as_fd()).map_err(|e| Error::os(path, e))?;
    if stat.kind != Kind::Link {
        return Ok(Look::Other);
    }
    let target = readlinkat(&fd, c"", Vec::new()).map_err(|e| Error::os(path, e))?;
    buffer.clear();
    buffer.extend_from_slice(target.as_bytes());
    let meta = Meta { size: buffer.len() as u64, ..stat.meta(look) };
    Ok(Look::Content { meta, moved: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_what_the_file_system_says() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::tempfile().expect("tempfile");
        file.set_len(8 * MIB).expect("set_len");
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; 2 * MIB as usize], 3 * MIB).expect("write");
        let fd = OwnedFd::from(file);
        if data_from(&fd, 0) == 0 {
            return; // this file system cannot tell
        }
        let dense = Dense::default();
        let ask = |from: u64, to: u64| dense.ask(&fd, from * MIB..to * MIB);
        assert_eq!([ask(0, 1), ask(0, 3), ask(7, 8)], [Stretch::Hole; 3]);
        assert_eq!([ask(2, 4), ask(4, 6), ask(0, 8)], [Stretch::Both; 3]);
        assert_eq!([ask(3, 4), ask(4, 5), ask(3, 5)], [Stretch::Data; 3]);
        assert_eq!([ask(5, 6), ask(2, 3)], [Stretch::Hole; 2], "what is known of data says nothing of what is around it");
    }
}
