//! Builds a tree on the disk from stored segments.
//!
//! Everything is opened beneath the destination without following links. While it is being built, folders are
//! 0700 and large files 0600, so that it works for any user; their modes and times come last.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    chmodat, fallocate, fchmod, ftruncate, futimens, mkdirat, openat, symlinkat, unlinkat, utimensat, AtFlags, FallocateFlags,
    Mode, OFlags, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::{pwrite, write, Errno};

use crate::beneath;
use crate::block::BLOCK;
use crate::catalog::{Catalog, Disk};
use crate::error::{shown, Error, Pulse, Result};
use crate::index::Index;
use crate::paths;
use crate::replay::{Limits, Replay, Target};
use crate::scan::{scan, Options};
use crate::tree::{Body, Cursor, Meta};
use crate::walk::Kind;

const SPECIAL_BITS: u16 = 0o6000;

pub struct Folder {
    root: OwnedFd,
    /// The folder that was used last.
    near: Option<(Vec<u8>, OwnedFd)>,
    /// The large file whose blocks are coming.
    open: Option<(Vec<u8>, OwnedFd)>,
}

fn times(mtime: i64) -> Timestamps {
    let last_modification = Timespec { tv_sec: mtime.div_euclid(1_000_000_000), tv_nsec: mtime.rem_euclid(1_000_000_000) };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification }
}

/// Set-id bits are dropped where the system refuses them.
fn set_mode(fd: BorrowedFd<'_>, mode: u16) -> std::result::Result<(), Errno> {
    match fchmod(fd, Mode::from_raw_mode(mode.into())) {
        Err(Errno::PERM) if mode & SPECIAL_BITS != 0 => fchmod(fd, Mode::from_raw_mode((mode & !SPECIAL_BITS).into())),
        other => other,
    }
}

fn write_all(fd: &OwnedFd, mut data: &[u8], mut offset: Option<u64>) -> std::result::Result<(), Errno> {
    while !data.is_empty() {
        let n = match offset {
            None => write(fd, data),
            Some(at) => pwrite(fd, data, at),
        };
        match n {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => {
                data = &data[n..];
                offset = offset.map(|at| at + n as u64);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Folder {
    pub fn new(root: OwnedFd) -> Self {
        Self { root, near: None, open: None }
    }

    /// Runs `f` with the folder that holds `path` and the name in it.
    fn at<R>(&mut self, path: &[u8], f: impl FnOnce(BorrowedFd<'_>, &[u8]) -> std::result::Result<R, Errno>) -> Result<R> {
        let (dir, name) = paths::split(path);
        let error = |e| Error::os(path, e);
        if dir.is_empty() {
            return f(self.root.as_fd(), name).map_err(error);
        }
        if let Some((_, fd)) = self.near.as_ref().filter(|(near, _)| near == dir) {
            return f(fd.as_fd(), name).map_err(error);
        }
        let fd = beneath::open(self.root.as_fd(), dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).map_err(error)?;
        let result = f(fd.as_fd(), name).map_err(error);
        self.near = Some((dir.to_vec(), fd));
        result
    }

    fn create(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.at(path, |dir, name| openat(dir, name, flags, Mode::from_raw_mode(0o600)))
    }

    fn existing(&mut self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        self.at(path, |dir, name| openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()))
    }

    fn settle(&mut self, path: &[u8], flags: OFlags, mode: u16, mtime: i64) -> Result<()> {
        let fd = self.existing(path, flags)?;
        let at = |e| Error::os(path, e);
        set_mode(fd.as_fd(), mode).map_err(at)?;
        futimens(&fd, &times(mtime)).map_err(at)
    }
}

impl Disk for Folder {
    fn make_dir(&mut self, path: &[u8]) -> Result<()> {
        self.at(path, |dir, name| mkdirat(dir, name, Mode::from_raw_mode(0o700)))
    }

    fn remove(&mut self, path: &[u8], dir: bool) -> Result<()> {
        self.open = None;
        if dir && self.near.as_ref().is_some_and(|(near, _)| near == path) {
            self.near = None;
        }
        let flags = if dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        self.at(path, |parent, name| unlinkat(parent, name, flags))
    }
}

impl Target for Folder {
    fn small(&mut self, path: &[u8], mode: u16, mtime: i64, content: &[u8]) -> Result<()> {
        let fd = self.create(path)?;
        let at = |e| Error::os(path, e);
        write_all(&fd, content, None).map_err(at)?;
        if mode != 0o600 {
            set_mode(fd.as_fd(), mode).map_err(at)?;
        }
        futimens(&fd, &times(mtime)).map_err(at)
    }

    fn link(&mut self, path: &[u8], mtime: i64, target: &[u8]) -> Result<()> {
        self.at(path, |dir, name| {
            symlinkat(target, dir, name)?;
            utimensat(dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    fn attr(&mut self, path: &[u8], mode: u16, mtime: i64) -> Result<()> {
        match self.settle(path, OFlags::RDONLY, mode, mtime) {
            // Its former mode lets nobody open it. The name is one that we made in a folder that is ours alone.
            Err(Error::Os { errno: Errno::ACCESS, .. }) => self.at(path, |dir, name| {
                chmodat(dir, name, Mode::from_raw_mode(mode.into()), AtFlags::empty())?;
                utimensat(dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
            }),
            other => other,
        }
    }

    fn large(&mut self, path: &[u8], size: u64, new: bool) -> Result<()> {
        let at = |e| Error::os(path, e);
        let fd = match self.open.take() {
            Some((open, fd)) if open == path && !new => fd,
            _ if new => self.create(path)?,
            _ => self.existing(path, OFlags::WRONLY)?,
        };
        ftruncate(&fd, size).map_err(at)?;
        self.open = Some((path.to_vec(), fd));
        Ok(())
    }

    fn block(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        match &self.open {
            Some((path, fd)) => write_all(fd, data, Some(offset)).map_err(|e| Error::os(path, e)),
            None => Err(Error::format("a block without its file")),
        }
    }

    fn zeros(&mut self, offset: u64, len: u64) -> Result<()> {
        let Some((path, fd)) = &self.open else { return Err(Error::format("a block without its file")) };
        match fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let zeros = [0; BLOCK];
                (0..len)
                    .step_by(BLOCK)
                    .try_for_each(|at| write_all(fd, &zeros[..(len - at).min(BLOCK as u64) as usize], Some(offset + at)))
                    .map_err(|e| Error::os(path, e))
            }
            Err(e) => Err(Error::os(path, e)),
        }
    }

    fn end(&mut self) -> Result<()> {
        self.open = None;
        Ok(())
    }
}

pub struct Restore {
    replay: Replay<Folder>,
}

impl Restore {
    pub fn new(dest: OwnedFd, limits: Limits) -> Self {
        Self { replay: Replay::new(Folder::new(dest), limits) }
    }

    pub fn apply(&mut self, bytes: &[u8], key: &str, digest: &str, threads: usize, pulse: Pulse<'_>) -> Result<()> {
        self.replay.apply(bytes, key, digest, threads, pulse)
    }

    /// Content bytes of all files, as of the last segment.
    pub fn bytes(&self) -> u64 {
        self.replay.catalog().tree.bytes
    }

    /// Modes and times of large files and folders. With `movable`, top-level folders stay writable for their owner
    /// until `index`: nobody but root can rename a folder that he may not write.
    pub fn finish(&mut self, movable: bool, pulse: Pulse<'_>) -> Result<()> {
        self.replay.finish()?;
        let mut dirs = Vec::new();
        let tree = &self.replay.catalog().tree;
        let mut larges = Vec::new();
        let mut cursor = Cursor::new(tree);
        while let Some((path, node)) = cursor.next(tree) {
            match node.body {
                Body::Large(_) => larges.push((path, node.meta)),
                Body::Dir(_) => dirs.push((path, node.meta)),
                _ => {}
            }
        }
        let target = &mut self.replay.target;
        for (path, Meta { mode, mtime, .. }) in larges {
            target.settle(&path, OFlags::WRONLY, mode, mtime)?;
        }
        // In byte order a folder comes before what lies in it.
        for (path, Meta { mode, mtime, .. }) in dirs.into_iter().rev() {
            pulse()?;
            let mode = if movable && !path.contains(&b'/') { mode | 0o200 } else { mode };
            target.settle(&path, OFlags::RDONLY | OFlags::DIRECTORY, mode, mtime)?;
        }
        target.near = None;
        Ok(())
    }

    /// The index of the restored tree, which is at `root` now.
    pub fn index(&self, root: BorrowedFd<'_>, threads: usize, pulse: Pulse<'_>) -> Result<Index> {
        if !self.replay.finished() {
            return Err(Error::Misuse("the restore is not finished".into()));
        }
        let catalog = self.replay.catalog().clone();
        close_top(root, &catalog)?;
        let mut index = Index::with(catalog);
        let found = scan(root, &index, &Options { skip: paths::RESERVED, threads, all: false }, pulse)?;
        let other = |path: &[u8]| Error::format(format!("{} is not what was restored", shown(path)));
        if let Some(path) = found.removed.first().or(found.specials.first()) {
            return Err(other(path));
        }
        let mut metas = Vec::with_capacity(found.changed.len());
        for seen in &found.changed {
            let node = index.tree().get(&seen.path).ok_or_else(|| other(&seen.path))?;
            let kind = match node.body {
                Body::Dir(_) => Kind::Dir,
                Body::Link => Kind::Link,
                Body::Small | Body::Large(_) => Kind::File,
            };
            if kind != seen.stat.kind || node.meta.size != seen.stat.size {
                return Err(other(&seen.path));
            }
            if kind != Kind::Dir {
                // Mode and time stay the stored ones: where the disk could not take them, the next scan says so.
                let Meta { mode, mtime, .. } = node.meta;
                metas.push((&seen.path[..], Meta { mode, mtime, ..seen.stat.meta(found.look) }));
            }
        }
        index.refresh(metas);
        Ok(index)
    }
}

fn close_top(root: BorrowedFd<'_>, catalog: &Catalog) -> Result<()> {
    for node in catalog.tree.children(crate::tree::ROOT) {
        if node.dir().is_some() && node.meta.mode & 0o200 == 0 {
            let name = catalog.tree.name(node);
            let at = |e| Error::os(name, e);
            match openat(root, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                Ok(fd) => set_mode(fd.as_fd(), node.meta.mode).map_err(at)?,
                // Not readable for its owner either; it was a folder of that mode when we made it.
                Err(Errno::ACCESS) => {
                    chmodat(root, name, Mode::from_raw_mode(node.meta.mode.into()), AtFlags::empty()).map_err(at)?
                }
                Err(e) => return Err(at(e)),
            }
        }
    }
    Ok(())
}
