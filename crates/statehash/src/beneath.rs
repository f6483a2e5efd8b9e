//! Opening below a root without ever following a link.
//!
//! `openat2` where the kernel and the container's seccomp profile allow it, else part by part. Paths longer than
//! the kernel takes at once are opened in stretches.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{openat, openat2, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::paths;

/// What one `openat2` is given at most; `PATH_MAX` is 4096 with the NUL.
const STRETCH: usize = 4000;
const STEP: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// For reading a folder's entries.
pub const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens `path` (parts without `.` and `..`; "" is the root itself) below `root`. `NOFOLLOW` and `CLOEXEC` are added.
/// A link anywhere in it gives `LOOP` or `NOTDIR`.
pub fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if path.is_empty() {
        return openat(root, c".", flags, mode);
    }
    let mut held: Option<OwnedFd> = None;
    let mut rest = path;
    while rest.len() > STRETCH {
        let at = rest[..STRETCH].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let base = held.as_ref().map_or(root, |fd| fd.as_fd());
        held = Some(stretch(base, &rest[..at], STEP, Mode::empty())?);
        rest = &rest[at + 1..];
    }
    stretch(held.as_ref().map_or(root, |fd| fd.as_fd()), rest, flags, mode)
}

fn stretch(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    if !path.contains(&b'/') {
        return openat(root, path, flags, mode);
    }
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(root, path, flags, mode, resolve) {
            // An old kernel, or a profile that denies what it doesn't know. A real EPERM fails below as well.
            Err(Errno::NOSYS | Errno::PERM) => NO_OPENAT2.store(true, Ordering::Relaxed),
            // The kernel could not vouch for the path while something was renamed; part by part needs no vouching.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    by_parts(root, path, flags, mode)
}

fn by_parts(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let (dir, name) = paths::split(path);
    let mut held: Option<OwnedFd> = None;
    for part in dir.split(|b| *b == b'/').filter(|p| !p.is_empty()) {
        held = Some(openat(held.as_ref().map_or(root, |fd| fd.as_fd()), part, STEP, Mode::empty())?);
    }
    openat(held.as_ref().map_or(root, |fd| fd.as_fd()), name, flags, mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write, File};
    use std::os::unix::fs::symlink;

    #[test]
    fn follows_no_link() {
        let tmp = tempfile::tempdir().expect("tmp");
        create_dir_all(tmp.path().join("a/b")).expect("mkdir");
        write(tmp.path().join("a/b/f"), b"x").expect("write");
        symlink("b", tmp.path().join("a/l")).expect("symlink");
        symlink("b/f", tmp.path().join("a/lf")).expect("symlink");
        let root = File::open(tmp.path()).expect("open");
        for opener in [stretch, by_parts] {
            assert!(opener(root.as_fd(), b"a/b/f", OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty()).is_ok());
            for bad in [&b"a/l/f"[..], b"a/lf", b"a/none/f"] {
                assert!(opener(root.as_fd(), bad, OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty()).is_err());
            }
        }
    }

    #[test]
    fn opens_paths_longer_than_the_kernel_takes() {
        let tmp = tempfile::tempdir().expect("tmp");
        let root = File::open(tmp.path()).expect("open");
        let part = [b'd'; 200];
        let mut path = Vec::new();
        let mut at: OwnedFd = root.try_clone().expect("dup").into();
        for _ in 0..60 {
            rustix::fs::mkdirat(&at, &part[..], Mode::from_raw_mode(0o700)).expect("mkdir");
            at = openat(&at, &part[..], FOLDER, Mode::empty()).expect("open");
            path = paths::join(&path, &part);
        }
        assert!(path.len() > 12_000);
        let far = open(root.as_fd(), &path, FOLDER, Mode::empty()).expect("far");
        let (a, b) = (rustix::fs::fstat(&far).expect("stat"), rustix::fs::fstat(&at).expect("stat"));
        assert_eq!(a.st_ino, b.st_ino);
    }
}
