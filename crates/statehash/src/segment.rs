//! The format of segments.
//!
//! ```text
//! "the0seg\0"  version u32
//! chunk*       raw_len u32 (1 ..= 4 MiB)  stored_len u32  one zstd frame that decodes to whole records
//! end          0 u32  chunks u32  records u64  raw_bytes u64; nothing follows
//! ```
//! All numbers are little-endian. Records, each beginning with its tag; `path` is a u16 length and that many bytes:
//! ```text
//! 1 FILE   mode u16  mtime_ns i64  path  len u32  content     a whole file of at most 64 KiB
//! 2 META   flags u8  mode u16  mtime_ns i64  size u64  path   a file stored in blocks; flag 1, fresh: forget its former blocks
//! 3 BLOCK  index u32  len u32  data                           of the META before it in the same chunk
//! 4 ZERO   index u32  count u32                               blocks of zeros, of that same META
//! 5 ATTR   mode u16  mtime_ns i64  path                       metadata of a small file whose content is in another segment
//! 6 DIR    mode u16  mtime_ns i64  path
//! 7 LINK   mtime_ns i64  path  target (u16 length)
//! 8 DROP   path                                               no longer there, nor anything below it
//! ```
//! Segments apply in the order of their generations and later records win. A record for a path of another kind
//! replaces what was there; parents that are missing or no folders become folders, described by a DIR of any
//! segment. The digest of a segment is the BLAKE3 of its bytes as stored.

use crate::block::BLOCK;
use crate::error::{shown, Error, Result};
use crate::paths;
use crate::wire::{put_sized, Reader, Short};

pub const MAGIC: &[u8; 8] = b"the0seg\0";
pub const VERSION: u32 = 1;
/// What one chunk decodes to at most.
pub const CHUNK_RAW: usize = 4 << 20;
/// What one segment decodes to at most, so that a forged one costs bounded time.
pub const SEGMENT_RAW: u64 = 1 << 30;
const HEADER: usize = 12;
const END: usize = 24;
const FRESH: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    File { path: &'a [u8], mode: u16, mtime: i64, content: &'a [u8] },
    Meta { path: &'a [u8], mode: u16, mtime: i64, size: u64, fresh: bool },
    Block { index: u32, data: &'a [u8] },
    Zero { index: u32, count: u32 },
    Attr { path: &'a [u8], mode: u16, mtime: i64 },
    Dir { path: &'a [u8], mode: u16, mtime: i64 },
    Link { path: &'a [u8], mtime: i64, target: &'a [u8] },
    Drop { path: &'a [u8] },
}

/// Raw lengths of records, for the accounting of live bytes.
pub mod cost {
    pub const ZERO: usize = 9;
    pub fn file(path: usize, content: usize) -> usize {
        17 + path + content
    }
    pub fn meta(path: usize) -> usize {
        22 + path
    }
    pub fn block(data: usize) -> usize {
        9 + data
    }
    pub fn attr(path: usize) -> usize {
        13 + path
    }
    pub fn link(path: usize, target: usize) -> usize {
        13 + path + target
    }
    pub fn drop(path: usize) -> usize {
        3 + path
    }
}

fn put_path(out: &mut Vec<u8>, path: &[u8]) {
    out.extend_from_slice(&(path.len() as u16).to_le_bytes());
    out.extend_from_slice(path);
}

impl Record<'_> {
    /// Appends the record. Paths, contents and targets are within the format's bounds.
    pub fn put(&self, out: &mut Vec<u8>) {
        let attr = |out: &mut Vec<u8>, tag: u8, mode: u16, mtime: i64, path: &[u8]| {
            out.push(tag);
            out.extend_from_slice(&mode.to_le_bytes());
            out.extend_from_slice(&mtime.to_le_bytes());
            put_path(out, path);
        };
        match *self {
            Record::File { path, mode, mtime, content } => {
                attr(out, 1, mode, mtime, path);
                out.extend_from_slice(&(content.len() as u32).to_le_bytes());
                out.extend_from_slice(content);
            }
            Record::Meta { path, mode, mtime, size, fresh } => {
                out.extend_from_slice(&[2, if fresh { FRESH } else { 0 }]);
                out.extend_from_slice(&mode.to_le_bytes());
                out.extend_from_slice(&mtime.to_le_bytes());
                out.extend_from_slice(&size.to_le_bytes());
                put_path(out, path);
            }
            Record::Block { index, data } => {
                out.push(3);
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&(data.len() as u32).to_le_bytes());
                out.extend_from_slice(data);
            }
            Record::Zero { index, count } => {
                out.push(4);
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(&count.to_le_bytes());
            }
            Record::Attr { path, mode, mtime } => attr(out, 5, mode, mtime, path),
            Record::Dir { path, mode, mtime } => attr(out, 6, mode, mtime, path),
            Record::Link { path, mtime, target } => {
                out.push(7);
                out.extend_from_slice(&mtime.to_le_bytes());
                put_path(out, path);
                put_path(out, target);
            }
            Record::Drop { path } => {
                out.push(8);
                put_path(out, path);
            }
        }
    }
}

/// The records of one decoded chunk, each checked on its own; what needs the tree is checked in `replay`.
pub struct Records<'a> {
    rest: Reader<'a>,
}

impl<'a> Records<'a> {
    pub fn new(raw: &'a [u8]) -> Self {
        Self { rest: Reader::new(raw) }
    }

    fn path(&mut self) -> Result<&'a [u8]> {
        let n = self.rest.u16()?;
        let path = self.rest.take(n.into())?;
        match paths::refusal(path) {
            None => Ok(path),
            Some(why) => Err(Error::format(format!("the segment names the path {}: {why}", shown(path)))),
        }
    }

    fn mode(&mut self) -> Result<u16> {
        match self.rest.u16()? {
            mode @ 0..=0o7777 => Ok(mode),
            _ => Err(Error::format("a mode in the segment has more than permission bits")),
        }
    }

    fn record(&mut self) -> Result<Record<'a>> {
        Ok(match self.rest.u8()? {
            1 => {
                let (mode, mtime, path) = (self.mode()?, self.rest.i64()?, self.path()?);
                let content = self.rest.sized()?;
                if content.len() > BLOCK {
                    return Err(Error::format(format!("{} is stored whole although it is over 64 KiB", shown(path))));
                }
                Record::File { path, mode, mtime, content }
            }
            2 => {
                let flags = self.rest.u8()?;
                if flags > FRESH {
                    return Err(Error::format("a file in the segment has unknown flags"));
                }
                let (mode, mtime, size) = (self.mode()?, self.rest.i64()?, self.rest.u64()?);
                Record::Meta { path: self.path()?, mode, mtime, size, fresh: flags == FRESH }
            }
            3 => {
                let index = self.rest.u32()?;
                let data = self.rest.sized()?;
                if data.is_empty() || data.len() > BLOCK {
                    return Err(Error::format("a block in the segment is empty or over 64 KiB"));
                }
                Record::Block { index, data }
            }
            4 => Record::Zero { index: self.rest.u32()?, count: self.rest.u32()? },
            5 => Record::Attr { mode: self.mode()?, mtime: self.rest.i64()?, path: self.path()? },
            6 => Record::Dir { mode: self.mode()?, mtime: self.rest.i64()?, path: self.path()? },
            7 => {
                let (mtime, path) = (self.rest.i64()?, self.path()?);
                let n = self.rest.u16()?;
                let target = self.rest.take(n.into())?;
                if target.is_empty() || target.len() > paths::TARGET_BYTES || target.contains(&0) {
                    return Err(Error::format(format!("the link {} has an impossible target", shown(path))));
                }
                Record::Link { path, mtime, target }
            }
            8 => Record::Drop { path: self.path()? },
            tag => return Err(Error::format(format!("the segment holds a record of unknown kind {tag}"))),
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.rest = Reader::new(&[]);
        }
        Some(record)
    }
}

impl From<Short> for Error {
    fn from(_: Short) -> Self {
        Error::format("the bytes are damaged: a record ends before its length")
    }
}

/// Compresses the records of one chunk into `frame`.
pub fn compress(zstd: &mut zstd::bulk::Compressor<'_>, raw: &[u8], frame: &mut Vec<u8>) -> Result<()> {
    frame.clear();
    frame.reserve(zstd::zstd_safe::compress_bound(raw.len()));
    zstd.compress_to_buffer(raw, frame).map(drop).map_err(|e| Error::format(format!("zstd: {e}")))
}

/// A segment being built.
pub struct Builder {
    bytes: Vec<u8>,
    hasher: blake3::Hasher,
    chunks: u32,
    records: u64,
    raw: u64,
}

/// A finished segment.
#[derive(Debug, Clone)]
pub struct Segment {
    pub bytes: Vec<u8>,
    pub digest: [u8; 32],
    pub raw: u64,
}

impl Builder {
    /// Builds in `bytes`, which is empty.
    pub fn new(mut bytes: Vec<u8>, capacity: usize) -> Self {
        bytes.reserve(capacity + HEADER + END);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        Self { bytes, hasher, chunks: 0, records: 0, raw: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.chunks == 0
    }

    /// Whether another chunk still keeps the segment within `limit` stored bytes and the format's raw bound.
    pub fn fits(&self, frame: usize, raw: usize, limit: usize) -> bool {
        // A little is left for a last META, see `pack`.
        let room = SEGMENT_RAW - (paths::PATH_BYTES as u64 + 64);
        raw == 0 || self.is_empty() || (self.bytes.len() + 8 + frame + END <= limit && self.raw + raw as u64 <= room)
    }

    /// Adds a chunk; nothing if there are no records.
    pub fn push(&mut self, frame: &[u8], raw: usize, records: u64) {
        if raw == 0 {
            return;
        }
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&(raw as u32).to_le_bytes());
        put_sized(&mut self.bytes, frame);
        self.hasher.update(&self.bytes[at..]);
        self.chunks += 1;
        self.records += records;
        self.raw += raw as u64;
    }

    pub fn finish(mut self) -> Segment {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_le_bytes());
        self.bytes.extend_from_slice(&self.chunks.to_le_bytes());
        self.bytes.extend_from_slice(&self.records.to_le_bytes());
        self.bytes.extend_from_slice(&self.raw.to_le_bytes());
        self.hasher.update(&self.bytes[at..]);
        Segment { digest: *self.hasher.finalize().as_bytes(), bytes: self.bytes, raw: self.raw }
    }
}

/// The chunks of a stored segment, not yet decoded.
pub struct Chunks<'a> {
    rest: Reader<'a>,
    chunks: u32,
    raw: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    Chunk {
        raw_len: usize,
        frame: &'a [u8],
    },
    /// How many records the chunks before held.
    End {
        records: u64,
        raw: u64,
    },
}

impl<'a> Chunks<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        let mut rest = Reader::new(bytes);
        if rest.take(MAGIC.len()) != Ok(MAGIC) {
            return Err(Error::format("these bytes are no state segment"));
        }
        match rest.u32()? {
            VERSION => Ok(Self { rest, chunks: 0, raw: 0 }),
            v if v > VERSION => {
                Err(Error::format(format!("the segment has the newer format {v}; this runtime reads up to {VERSION}")))
            }
            v => Err(Error::format(format!("the segment has an unknown format {v}"))),
        }
    }

    /// The next part; after `End` there is nothing more to ask for.
    pub fn part(&mut self) -> Result<Part<'a>> {
        let cut = |_: Short| Error::format("the segment is cut short");
        let raw_len = self.rest.u32().map_err(cut)? as usize;
        if raw_len == 0 {
            let chunks = self.rest.u32().map_err(cut)?;
            let (records, raw) = (self.rest.u64().map_err(cut)?, self.rest.u64().map_err(cut)?);
            if chunks != self.chunks || raw != self.raw || !self.rest.is_empty() {
                return Err(Error::format("the end of the segment does not match what came before"));
            }
            return Ok(Part::End { records, raw });
        }
        let frame = self.rest.sized().map_err(cut)?;
        self.chunks += 1;
        self.raw += raw_len as u64;
        if raw_len > CHUNK_RAW || self.raw > SEGMENT_RAW {
            return Err(Error::format("the segment decodes to more than the format allows"));
        }
        Ok(Part::Chunk { raw_len, frame })
    }
}

/// Decodes one chunk into `out`, exactly `raw_len` bytes.
pub fn decompress(zstd: &mut zstd::bulk::Decompressor<'_>, raw_len: usize, frame: &[u8], out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    out.reserve(raw_len);
    match zstd.decompress_to_buffer(frame, out) {
        Ok(n) if n == raw_len => Ok(()),
        Ok(_) => Err(Error::format("a chunk of the segment decodes to another length than stated")),
        Err(e) => Err(Error::format(format!("a chunk of the segment is damaged: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> Vec<Record<'static>> {
        vec![
            Record::Drop { path: b"gone" },
            Record::Dir { path: b"d", mode: 0o755, mtime: -5 },
            Record::File { path: b"d/f\xff\n", mode: 0o600, mtime: 7, content: b"hello" },
            Record::File { path: b"empty", mode: 0, mtime: 0, content: b"" },
            Record::Meta { path: b"big", mode: 0o644, mtime: i64::MAX, size: 200_000, fresh: true },
            Record::Block { index: 0, data: &[7; BLOCK] },
            Record::Zero { index: 1, count: 2 },
            Record::Attr { path: b"x", mode: 0o7777, mtime: i64::MIN },
            Record::Link { path: b"l", mtime: 3, target: b"../elsewhere" },
        ]
    }

    #[test]
    fn records_come_back_and_cost_what_is_stated() {
        let mut raw = Vec::new();
        for record in samples() {
            let before = raw.len();
            record.put(&mut raw);
            let len = raw.len() - before;
            assert_eq!(
                len,
                match record {
                    Record::File { path, content, .. } => cost::file(path.len(), content.len()),
                    Record::Meta { path, .. } => cost::meta(path.len()),
                    Record::Block { data, .. } => cost::block(data.len()),
                    Record::Zero { .. } => cost::ZERO,
                    Record::Attr { path, .. } | Record::Dir { path, .. } => cost::attr(path.len()),
                    Record::Link { path, target, .. } => cost::link(path.len(), target.len()),
                    Record::Drop { path } => cost::drop(path.len()),
                }
            );
        }
        let back: Result<Vec<_>> = Records::new(&raw).collect();
        assert_eq!(back, Ok(samples()));
    }

    #[test]
    fn a_future_version_is_named() {
        let mut bytes = Builder::new(Vec::new(), 0).finish().bytes;
        bytes[8] = 9;
        assert!(Chunks::new(&bytes).is_err_and(|e| e.to_string().contains("newer format 9")));
    }

    #[test]
    fn every_truncation_shows() {
        let mut builder = Builder::new(Vec::new(), 100);
        let mut raw = Vec::new();
        samples().iter().for_each(|r| r.put(&mut raw));
        let mut zstd = zstd::bulk::Compressor::new(1).expect("zstd");
        let mut frame = Vec::new();
        compress(&mut zstd, &raw, &mut frame).expect("compress");
        builder.push(&frame, raw.len(), 9);
        let segment = builder.finish();
        assert_eq!(segment.digest, *blake3::hash(&segment.bytes).as_bytes());
        let read = |bytes: &[u8]| -> Result<u64> {
            let mut chunks = Chunks::new(bytes)?;
            loop {
                if let Part::End { records, .. } = chunks.part()? {
                    return Ok(records);
                }
            }
        };
        assert_eq!(read(&segment.bytes), Ok(9));
        for cut in 0..segment.bytes.len() {
            assert!(read(&segment.bytes[..cut]).is_err());
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..200), tag in 1u8..9) {
            let mut tagged = vec![tag];
            tagged.extend_from_slice(&raw);
            for bytes in [&raw, &tagged] {
                for record in Records::new(bytes) {
                    drop(record);
                }
            }
        }
    }
}
