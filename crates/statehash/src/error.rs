//! What can go wrong, with the path and the reason; `python.rs` turns it into exceptions.

use rustix::io::Errno;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The system refused; `path` is relative to the root that was handed in.
    Os { path: Vec<u8>, errno: Errno },
    /// Bytes that are not ours, are damaged, or are of a newer format.
    Format(String),
    /// Bytes that are not the ones that were named.
    Digest(String),
    /// A stated limit was passed.
    Limit(String),
    /// The caller broke the order of calls that the interface states.
    Misuse(String),
    /// The caller's `Pulse` asked to stop; it keeps the reason.
    Interrupted,
}

/// Of reading what lies on a bad block, or in a damaged part of a file system.
pub const UNREADABLE: [Errno; 4] = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NODATA];

impl Error {
    pub fn os(path: &[u8], errno: Errno) -> Self {
        Error::Os { path: path.to_vec(), errno }
    }

    /// What the disk holds there cannot be read: bad blocks, or a damaged file system.
    pub fn unreadable(&self) -> bool {
        matches!(self, Error::Os { errno, .. } if UNREADABLE.contains(errno))
    }

    pub fn format(reason: impl Into<String>) -> Self {
        Error::Format(reason.into())
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Os { path, errno } => write!(f, "{}: {}", shown(path), errno),
            Error::Format(s) | Error::Digest(s) | Error::Limit(s) | Error::Misuse(s) => f.write_str(s),
            Error::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}

/// A foreign name for a message: quoted, escaped, clipped.
pub fn shown(path: &[u8]) -> String {
    let (head, cut) = if path.len() > 200 { (&path[..200], "…") } else { (path, "") };
    format!("\"{}\"{cut}", head.escape_ascii())
}

/// Called now and then during long work, from any of its threads, and cheap; an error ends the work.
pub type Pulse<'a> = &'a (dyn Fn() -> Result<()> + Sync);
