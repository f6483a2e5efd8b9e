//! SQLite's files: a database, and beside it its rollback journal, its write-ahead log, and the memory that those who have it
//! open share. Only their names and first bytes are looked at here.

use std::os::fd::BorrowedFd;

use crate::paths;
use crate::read;

const MAGIC: &[u8] = b"SQLite format 3\0";
/// Each belongs to the database whose name it follows, and means nothing without it.
const COMPANIONS: [&[u8]; 2] = [b"-wal", b"-journal"];
const SHARED_MEMORY: &[u8] = b"-shm";

pub fn is_database(content: &[u8]) -> bool {
    content.starts_with(MAGIC)
}

/// The database that a journal or a write-ahead log of this path would belong to.
pub fn of_companion(path: &[u8]) -> Option<&[u8]> {
    COMPANIONS.iter().find_map(|suffix| path.strip_suffix(*suffix)).filter(|main| !paths::split(main).1.is_empty())
}

/// Whether a file of that name is a database's shared memory: an index of its log that is built anew when it is missing.
pub fn is_shared_memory(root: BorrowedFd<'_>, dir: &[u8], name: &[u8]) -> bool {
    let Some(main) = name.strip_suffix(SHARED_MEMORY).filter(|main| !main.is_empty()) else { return false };
    let mut start = [0; MAGIC.len()];
    match read::open(root, &paths::join(dir, main)) {
        Ok(Ok(fd)) => read::fill(&fd, &mut start, 0) == Ok(start.len()) && is_database(&start),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{write, File};
    use std::os::fd::AsFd;

    #[test]
    fn companions_name_their_database() {
        assert_eq!(of_companion(b"a/b.db-wal"), Some(&b"a/b.db"[..]));
        assert_eq!(of_companion(b"b-journal"), Some(&b"b"[..]));
        for path in [&b"-wal"[..], b"a/-journal", b"a/b.db", b"b-shm"] {
            assert_eq!(of_companion(path), None);
        }
    }

    #[test]
    fn shared_memory_lies_beside_a_database() {
        let tmp = tempfile::tempdir().expect("tmp");
        write(tmp.path().join("a"), b"SQLite format 3\0 and so on").expect("write");
        write(tmp.path().join("b"), b"SQLite format 3").expect("write");
        let root = File::open(tmp.path()).expect("open");
        assert!(is_shared_memory(root.as_fd(), b"", b"a-shm"));
        for name in [&b"b-shm"[..], b"c-shm", b"-shm", b"a-wal", b"a"] {
            assert!(!is_shared_memory(root.as_fd(), b"", name));
        }
    }
}
