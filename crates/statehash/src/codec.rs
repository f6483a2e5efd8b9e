//! How the index is written: the base, and the transactions of its log. Reading trusts nothing: every length, order
//! and number is checked, since the bot could have written the file.
//!
//! The base holds meta, the segments, the folders one after the other (the root first, each folder's children in
//! order of their names, its folders' lists following in the order in which they were named) and the tombstones.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::block;
use crate::catalog::{Catalog, Change, Op, Segment, Tombstone};
use crate::error::{shown, Error, Result};
use crate::paths;
use crate::tree::{Block, Body, Meta, Node, ROOT};
use crate::wire::{put_sized, Reader, Source, Stream};

const RACY: u8 = 1;

/// A transaction that waits for its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    pub meta: Vec<u8>,
    /// (key, digest, stored, raw)
    pub segments: Vec<(String, [u8; 32], u64, u64)>,
    /// With the segments' ids.
    pub changes: Arc<Vec<Change>>,
    /// Ids of segments that are no longer listed then.
    pub dropped: Vec<u32>,
}

fn put_meta(out: &mut Vec<u8>, m: &Meta) {
    out.extend_from_slice(&m.mode.to_le_bytes());
    out.push(if m.racy { RACY } else { 0 });
    out.extend_from_slice(&m.size.to_le_bytes());
    out.extend_from_slice(&m.mtime.to_le_bytes());
    out.extend_from_slice(&m.ctime.to_le_bytes());
    out.extend_from_slice(&m.ino.to_le_bytes());
}

fn get_meta(r: &mut Reader<'_>) -> Result<Meta> {
    let (mode, flags) = (r.u16()?, r.u8()?);
    if mode > 0o7777 || flags > RACY {
        return Err(Error::format("the index holds an impossible mode"));
    }
    let meta = Meta { mode, racy: flags == RACY, size: r.u64()?, mtime: r.i64()?, ctime: r.i64()?, ino: r.u64()? };
    if meta.size > block::FILE_BYTES {
        return Err(Error::format("the index holds an impossible size"));
    }
    Ok(meta)
}

fn put_segment(out: &mut Vec<u8>, key: &str, digest: &[u8; 32], stored: u64, raw: u64) {
    put_sized(out, key.as_bytes());
    out.extend_from_slice(digest);
    out.extend_from_slice(&stored.to_le_bytes());
    out.extend_from_slice(&raw.to_le_bytes());
}

fn get_segment(r: &mut Reader<'_>) -> Result<(String, [u8; 32], u64, u64)> {
    Ok((key(r.sized()?)?, r.array()?, r.u64()?, r.u64()?))
}

fn key(bytes: &[u8]) -> Result<String> {
    let key = std::str::from_utf8(bytes).map_err(|_| Error::format("the index holds an impossible key"))?;
    Ok(key.to_owned())
}

const SMALL: u8 = 0;
const LARGE: u8 = 1;
const LINK: u8 = 2;
const DIR: u8 = 3;

pub fn put_base(out: &mut Vec<u8>, catalog: &Catalog, meta: &[u8]) {
    put_sized(out, meta);
    out.extend_from_slice(&catalog.last_id.to_le_bytes());
    out.extend_from_slice(&(catalog.segments.len() as u32).to_le_bytes());
    for s in &catalog.segments {
        out.extend_from_slice(&s.id.to_le_bytes());
        put_segment(out, &s.key, &s.digest, s.stored, s.raw);
    }
    let tree = &catalog.tree;
    let mut lists = VecDeque::from([ROOT]);
    while let Some(dir) = lists.pop_front() {
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        let mut count = 0u32;
        for node in tree.children(dir) {
            count += 1;
            let name = tree.name(node);
            let kind = match node.body {
                Body::Small => SMALL,
                Body::Large(_) => LARGE,
                Body::Link => LINK,
                Body::Dir(id) => {
                    lists.push_back(id);
                    DIR
                }
            };
            out.extend_from_slice(&[kind, name.len() as u8]);
            put_meta(out, &node.meta);
            for id in [node.segment, node.meta_segment, node.born] {
                out.extend_from_slice(&id.to_le_bytes());
            }
            out.extend_from_slice(&node.digest);
            out.extend_from_slice(name);
            if let Body::Large(blocks) = &node.body {
                for b in blocks.iter() {
                    out.extend_from_slice(&b.digest);
                    out.extend_from_slice(&b.segment.to_le_bytes());
                }
            }
        }
        out[at..at + 4].copy_from_slice(&count.to_le_bytes());
    }
    out.extend_from_slice(&(catalog.tombstones.len() as u32).to_le_bytes());
    for (path, t) in &catalog.tombstones {
        put_sized(out, path);
        out.extend_from_slice(&t.segment.to_le_bytes());
        out.extend_from_slice(&t.born.to_le_bytes());
    }
}

pub fn get_base(base: &[u8]) -> Result<(Catalog, Vec<u8>)> {
    read_base(&mut Stream::new(base, base.len() as u64))
}

/// A node's fields before its name.
const NODE: usize = 2 + 35 + 3 * 4 + 16;

pub fn read_base<S: Source>(r: &mut Stream<S>) -> Result<(Catalog, Vec<u8>)> {
    let meta = r.sized()?.to_vec();
    let mut catalog = Catalog { last_id: r.u32()?, ..Catalog::default() };
    for _ in 0..r.u32()? {
        let id = r.u32()?;
        let key = key(r.sized()?)?;
        let rest = &mut Reader::new(r.view(32 + 8 + 8)?);
        let (digest, stored, raw) = (rest.array()?, rest.u64()?, rest.u64()?);
        if id == 0 || id > catalog.last_id || catalog.segments.last().is_some_and(|s| s.id >= id) {
            return Err(Error::format("the index's segments are out of order"));
        }
        catalog.segments.push(Segment { id, key, digest, stored, raw });
    }
    let tree = &mut catalog.tree;
    let mut lists = VecDeque::from([(ROOT, 0)]);
    let mut buffer = [0; u8::MAX as usize];
    while let Some((dir, depth)) = lists.pop_front() {
        let count = r.u32()?;
        for at in 0..count {
            let fields = &mut Reader::new(r.view(NODE)?);
            let (kind, len) = (fields.u8()?, usize::from(fields.u8()?));
            let meta = get_meta(fields)?;
            let ids = [fields.u32()?, fields.u32()?, fields.u32()?];
            let digest = fields.array()?;
            buffer[..len].copy_from_slice(r.view(len)?);
            let name = &buffer[..len];
            if let Some(why) = paths::name_refusal(name) {
                return Err(Error::format(format!("the index holds the name {}: {why}", shown(name))));
            }
            let depth = depth + 1 + name.len();
            if name.contains(&b'/') || depth > paths::PATH_BYTES + 1 || (dir == ROOT && name == paths::RESERVED) {
                return Err(Error::format("the index holds an impossible path"));
            }
            if ids.iter().any(|id| *id > catalog.last_id) {
                return Err(Error::format("the index names an unknown segment"));
            }
            let body = match kind {
                SMALL => Body::Small,
                LARGE => {
                    let count = block::count(meta.size) as usize;
                    let mut rows = Reader::new(r.view(count.saturating_mul(20))?);
                    let mut blocks = Vec::with_capacity(count);
                    while !rows.is_empty() {
                        blocks.push(Block { digest: rows.array()?, segment: rows.u32()? });
                    }
                    Body::Large(Box::new(blocks))
                }
                LINK => Body::Link,
                DIR => {
                    let id = tree.new_dir();
                    lists.push_back((id, depth));
                    Body::Dir(id)
                }
                _ => return Err(Error::format("the index holds an entry of unknown kind")),
            };
            let mut node = Node::new(body, meta, digest, ids[0]);
            (node.meta_segment, node.born) = (ids[1], ids[2]);
            if !tree.push(dir, name, node, (count - at) as usize)? {
                return Err(Error::format("the index's entries are out of order"));
            }
        }
    }
    for _ in 0..r.u32()? {
        let path = r.sized()?.to_vec();
        let tombstone = Tombstone { segment: r.u32()?, born: r.u32()? };
        if let Some(why) = paths::refusal(&path) {
            return Err(Error::format(format!("the index holds the removed path {}: {why}", shown(&path))));
        }
        if tombstone.segment > catalog.last_id || tombstone.born > catalog.last_id {
            return Err(Error::format("the index names an unknown segment"));
        }
        if catalog.tombstones.last_key_value().is_some_and(|(last, _)| *last >= path) {
            return Err(Error::format("the index's removed paths are out of order"));
        }
        catalog.tombstones.insert(path, tombstone);
    }
    if !r.is_empty() {
        return Err(Error::format("the index holds more than it should"));
    }
    Ok((catalog, meta))
}

pub fn put_staged(staged: &Staged) -> Vec<u8> {
    let mut out = Vec::new();
    put_sized(&mut out, &staged.meta);
    out.extend_from_slice(&(staged.segments.len() as u32).to_le_bytes());
    for (key, digest, stored, raw) in &staged.segments {
        put_segment(&mut out, key, digest, *stored, *raw);
    }
    out.extend_from_slice(&(staged.changes.len() as u32).to_le_bytes());
    for Change { path, segment, op } in staged.changes.iter() {
        put_sized(&mut out, path);
        out.extend_from_slice(&segment.to_le_bytes());
        let mut head = |kind: u8, meta: &Meta| {
            out.push(kind);
            put_meta(&mut out, meta);
        };
        match op {
            Op::Dir(meta) => head(0, meta),
            Op::Attr(meta) => head(1, meta),
            Op::Refresh(meta) => head(2, meta),
            Op::Drop => out.push(3),
            Op::Small(meta, digest) | Op::Link(meta, digest) => {
                head(if matches!(op, Op::Small(..)) { 4 } else { 5 }, meta);
                out.extend_from_slice(digest);
            }
            Op::Large { meta, fresh, blocks } => {
                head(if *fresh { 6 } else { 7 }, meta);
                out.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
                for (index, b) in blocks {
                    out.extend_from_slice(&index.to_le_bytes());
                    out.extend_from_slice(&b.digest);
                    out.extend_from_slice(&b.segment.to_le_bytes());
                }
            }
        }
    }
    // Left out where there are none, as it was before there was any.
    if !staged.dropped.is_empty() {
        out.extend_from_slice(&(staged.dropped.len() as u32).to_le_bytes());
        staged.dropped.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
    }
    out
}

pub fn get_staged(payload: &[u8]) -> Result<Staged> {
    let r = &mut Reader::new(payload);
    let (meta, mut segments, mut changes) = (r.sized()?.to_vec(), Vec::new(), Vec::new());
    for _ in 0..r.u32()? {
        segments.push(get_segment(r)?);
    }
    for _ in 0..r.u32()? {
        let path = r.sized()?.to_vec();
        let segment = r.u32()?;
        let op = match r.u8()? {
            0 => Op::Dir(get_meta(r)?),
            1 => Op::Attr(get_meta(r)?),
            2 => Op::Refresh(get_meta(r)?),
            3 => Op::Drop,
            4 => Op::Small(get_meta(r)?, r.array()?),
            5 => Op::Link(get_meta(r)?, r.array()?),
            kind @ 6..=7 => {
                let meta = get_meta(r)?;
                let mut blocks = Vec::new();
                for _ in 0..r.u32()? {
                    blocks.push((r.u32()?, Block { digest: r.array()?, segment: r.u32()? }));
                }
                Op::Large { meta, fresh: kind == 6, blocks }
            }
            _ => return Err(Error::format("the index's log holds a change of unknown kind")),
        };
        changes.push(Change { path, segment, op });
    }
    let mut dropped = Vec::new();
    if !r.is_empty() {
        for _ in 0..r.u32()? {
            dropped.push(r.u32()?);
        }
    }
    if !r.is_empty() {
        return Err(Error::format("the index's log holds more than it should"));
    }
    Ok(Staged { meta, segments, changes: Arc::new(changes), dropped })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(dropped: Vec<u32>) -> Staged {
        let changes = vec![Change { path: b"gone".to_vec(), segment: 3, op: Op::Drop }];
        Staged { meta: b"m".to_vec(), segments: vec![("k".into(), [7; 32], 5, 6)], changes: Arc::new(changes), dropped }
    }

    /// As logs were written before commits could drop segments.
    #[test]
    fn a_transaction_that_drops_nothing_is_as_it_was() {
        let mut bytes = b"\x01\0\0\0m\x01\0\0\0\x01\0\0\0k".to_vec();
        bytes.extend([7; 32]);
        bytes.extend(b"\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x01\0\0\0\x04\0\0\0gone\x03\0\0\0\x03");
        assert_eq!(put_staged(&staged(Vec::new())), bytes);
        assert_eq!(get_staged(&bytes).expect("read"), staged(Vec::new()));
    }

    /// A removal is carried into new segments, so a path that no reader accepts would make these unreadable.
    #[test]
    fn removed_paths_that_we_never_write_are_refused() {
        let base = |removed: &[(&[u8], u32, u32)]| {
            let mut out = [0u32, 2, 0, 0, removed.len() as u32].map(u32::to_le_bytes).concat();
            for (path, segment, born) in removed {
                put_sized(&mut out, path);
                out.extend([segment.to_le_bytes(), born.to_le_bytes()].concat());
            }
            out
        };
        let good = base(&[(b"a", 2, 1), (b"b/c", 1, 1)]);
        let (catalog, meta) = get_base(&good).expect("read");
        let mut again = Vec::new();
        put_base(&mut again, &catalog, &meta);
        assert_eq!(again, good);
        for removed in [
            &[(&b"../x"[..], 2, 1)][..],
            &[(b"", 2, 1)],
            &[(b".the0/x", 2, 1)],
            &[(&[b'a'; 300], 2, 1)],
            &[(b"a", 3, 1)],
            &[(b"a", 1, 3)],
            &[(b"a", 1, 1), (b"a", 2, 1)],
            &[(b"b", 1, 1), (b"a", 2, 1)],
        ] {
            assert!(matches!(get_base(&base(removed)), Err(Error::Format(_))), "{removed:?}");
        }
    }

    #[test]
    fn what_is_dropped_comes_back_whole_or_not_at_all() {
        let short = put_staged(&staged(Vec::new())).len();
        let bytes = put_staged(&staged(vec![1, 2]));
        assert_eq!(get_staged(&bytes).expect("read"), staged(vec![1, 2]));
        for end in (0..bytes.len()).filter(|end| *end != short) {
            assert!(get_staged(&bytes[..end]).is_err(), "{end}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(get_staged(&longer).is_err());
    }
}
