//! Reading little-endian fields out of untrusted bytes, in memory or as they come in: every step is bounds-checked.

use crate::error::Result as Read;

/// The bytes ended before the field did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short;

#[derive(Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn left(&self) -> usize {
        self.rest.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Short> {
        if n > self.rest.len() {
            return Err(Short);
        }
        let (head, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Short)?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    pub fn u8(&mut self) -> Result<u8, Short> {
        self.array::<1>().map(|[b]| b)
    }

    #[inline]
    pub fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline]
    pub fn i64(&mut self) -> Result<i64, Short> {
        self.array().map(i64::from_le_bytes)
    }

    /// A length of 32 bits, then that many bytes.
    pub fn sized(&mut self) -> Result<&'a [u8], Short> {
        let n = self.u32()? as usize;
        self.take(n)
    }
}

/// Where a `Stream`'s bytes come from.
pub trait Source {
    /// Puts the next bytes at the beginning of `room`, which is not empty; 0 at the end.
    fn more(&mut self, room: &mut [u8]) -> Read<usize>;
}

impl Source for &[u8] {
    fn more(&mut self, room: &mut [u8]) -> Read<usize> {
        let (head, rest) = self.split_at(room.len().min(self.len()));
        room[..head.len()].copy_from_slice(head);
        *self = rest;
        Ok(head.len())
    }
}

/// Few enough that what was read is still near the core when it is looked at.
pub const PIECE: usize = 256 * 1024;

/// `len` bytes of a source, of which about `PIECE` are in memory.
pub struct Stream<S> {
    source: S,
    /// What the source is still to give.
    ahead: u64,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

impl<S: Source> Stream<S> {
    pub fn new(source: S, len: u64) -> Self {
        Self { source, ahead: len, buffer: Vec::new(), at: 0, end: 0 }
    }

    /// The next `n` bytes.
    #[inline]
    pub fn view(&mut self, n: usize) -> Read<&[u8]> {
        if self.end - self.at < n {
            self.gather(n)?;
        }
        let from = self.at;
        self.at += n;
        Ok(&self.buffer[from..self.at])
    }

    pub fn u32(&mut self) -> Read<u32> {
        Ok(Reader::new(self.view(4)?).u32()?)
    }

    /// A length of 32 bits, then that many bytes.
    pub fn sized(&mut self) -> Read<&[u8]> {
        let n = self.u32()? as usize;
        self.view(n)
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.end && self.ahead == 0
    }

    /// Reads what is left, and gives the source back.
    pub fn finish(mut self) -> Read<S> {
        while self.ahead > 0 {
            self.at = self.end;
            self.gather(1)?;
        }
        Ok(self.source)
    }

    /// Sees to it that `n` bytes are in memory. Nothing is allocated for more than are left.
    fn gather(&mut self, n: usize) -> Read<()> {
        let have = self.end - self.at;
        if (n - have) as u64 > self.ahead {
            return Err(Short.into());
        }
        self.buffer.copy_within(self.at..self.end, 0);
        (self.at, self.end) = (0, have);
        let room = (n as u64 + PIECE as u64).min(have as u64 + self.ahead) as usize;
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        while self.end < n {
            let room = &mut self.buffer[self.end..];
            let most = self.ahead.min(room.len() as u64) as usize;
            let got = self.source.more(&mut room[..most])?;
            if got == 0 {
                return Err(Short.into());
            }
            self.end += got;
            self.ahead -= got as u64;
        }
        Ok(())
    }
}

/// A length of 32 bits, then the bytes. Callers keep `bytes` below 4 GiB.
pub fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time.
    struct Drops<'a>(&'a [u8], usize);

    impl Source for Drops<'_> {
        fn more(&mut self, room: &mut [u8]) -> Read<usize> {
            let most = room.len().min(self.1);
            self.0.more(&mut room[..most])
        }
    }

    #[test]
    fn a_stream_gives_what_its_source_has() {
        let bytes: Vec<u8> = (0..3 * PIECE).map(|n| (n / 251 + n) as u8).collect();
        for (drop, take) in [(1 << 30, 65), (7, 3), (PIECE, PIECE + 1), (1000, 2 * PIECE)] {
            let mut stream = Stream::new(Drops(&bytes, drop), bytes.len() as u64);
            let mut seen = Vec::new();
            while seen.len() + take <= bytes.len() {
                seen.extend_from_slice(stream.view(take).expect("view"));
            }
            assert_eq!(seen, bytes[..seen.len()]);
            assert_eq!(stream.is_empty(), seen.len() == bytes.len());
            assert!(stream.view(bytes.len()).is_err(), "more than is left");
            let last = bytes.len() - seen.len();
            assert_eq!(stream.view(last).expect("what is left"), &bytes[seen.len()..]);
            assert!(stream.is_empty() && stream.view(1).is_err());
        }
        let mut short = Stream::new(&bytes[..10], 20);
        assert!(short.view(11).is_err(), "the source ends early");
        assert!(Stream::new(&bytes[..10], 20).finish().is_err());
        let mut part = Stream::new(&bytes[..], 10);
        assert_eq!(part.view(4).expect("view"), &bytes[..4]);
        assert_eq!(part.finish().expect("finish"), &bytes[10..]);
    }

    #[test]
    fn never_reads_past_the_end() {
        let mut out = Vec::new();
        put_sized(&mut out, b"abc");
        assert_eq!(Reader::new(&out).sized(), Ok(&b"abc"[..]));
        for cut in 0..out.len() {
            assert_eq!(Reader::new(&out[..cut]).sized(), Err(Short));
        }
        assert_eq!(Reader::new(&[1, 2, 3]).u32(), Err(Short));
    }
}
