//! The formats carry cleaning already: an old segment can be dropped once its live content and the removals that it
//! still guards have been carried into a newer one, in any order, and nothing changes.

mod common;

use std::collections::BTreeMap;

use common::{name, rows, segment, NO_LIMITS};
use proptest::prelude::*;
use statehash::block::BLOCK;
use statehash::catalog::Catalog;
use statehash::replay::Replay;
use statehash::segment::{Record, Segment};
use statehash::tree::{Body, Cursor};

/// A small world: path to content. A content of more than one byte is stored in blocks.
#[derive(Debug, Clone, PartialEq)]
enum Thing {
    Dir(u16),
    Small(u16, u8),
    /// One byte for each block, and bytes of the last one.
    Large(u16, Vec<u8>, usize),
}

type World = BTreeMap<Vec<u8>, Thing>;

const PATHS: [&[u8]; 8] = [b"a", b"a/b", b"a/b/c", b"a/d", b"e", b"e/f", b"g", b"a-"];

fn thing() -> impl Strategy<Value = Thing> {
    let mode = prop::sample::select(vec![0o600u16, 0o644, 0o755]);
    prop_oneof![
        mode.clone().prop_map(Thing::Dir),
        (mode.clone(), 0u8..4).prop_map(|(m, c)| Thing::Small(m, c)),
        (mode, prop::collection::vec(0u8..3, 2..5), prop::sample::select(vec![1, 77, BLOCK]))
            .prop_map(|(m, b, l)| Thing::Large(m, b, l)),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize, Thing),
    Drop(usize),
    Commit,
    /// Drops the n-th oldest segment, its live content carried.
    Clean(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..PATHS.len(), thing()).prop_map(|(p, t)| Step::Put(p, t)),
        2 => (0..PATHS.len()).prop_map(Step::Drop),
        3 => Just(Step::Commit),
        2 => any::<prop::sample::Index>().prop_map(Step::Clean),
    ];
    prop::collection::vec(step, 1..60)
}

fn below(path: &[u8], other: &[u8]) -> bool {
    other.len() > path.len() && other.starts_with(path) && other[path.len()] == b'/'
}

fn put(world: &mut World, path: &[u8], thing: Thing) {
    for (i, b) in path.iter().enumerate() {
        if *b == b'/' && !matches!(world.get(&path[..i]), Some(Thing::Dir(_))) {
            world.insert(path[..i].to_vec(), Thing::Dir(0o755));
        }
    }
    if !matches!(thing, Thing::Dir(_)) {
        world.retain(|p, _| !below(path, p));
    }
    world.insert(path.to_vec(), thing);
}

fn block(byte: u8, len: usize) -> Vec<u8> {
    vec![byte; len]
}

fn size(blocks: &[u8], last: usize) -> u64 {
    ((blocks.len() - 1) * BLOCK + last) as u64
}

/// A small buffer of owned records.
#[derive(Default)]
struct Out(Vec<u8>, u64);

impl Out {
    fn put(&mut self, record: Record<'_>) {
        record.put(&mut self.0);
        self.1 += 1;
    }

    fn blocks(&mut self, path: &[u8], thing: &Thing, fresh: bool, wanted: impl Fn(usize) -> bool) {
        let Thing::Large(mode, blocks, last) = thing else { return };
        self.put(Record::Meta { path, mode: *mode, mtime: 0, size: size(blocks, *last), fresh });
        for (i, byte) in blocks.iter().enumerate().filter(|(i, _)| wanted(*i)) {
            let len = if i + 1 == blocks.len() { *last } else { BLOCK };
            if *byte == 0 {
                self.put(Record::Zero { index: i as u32, count: 1 });
            } else {
                self.put(Record::Block { index: i as u32, data: &block(*byte, len) });
            }
        }
    }

    fn thing(&mut self, path: &[u8], thing: &Thing) {
        match thing {
            Thing::Dir(mode) => self.put(Record::Dir { path, mode: *mode, mtime: 0 }),
            Thing::Small(mode, c) => self.put(Record::File { path, mode: *mode, mtime: 0, content: &[*c] }),
            Thing::Large(..) => self.blocks(path, thing, true, |_| true),
        }
    }

    fn segment(self) -> Segment {
        common::raw_segment(&self.0, self.1)
    }
}

/// What a commit stores: the differences, as a pack would.
fn difference(old: &World, new: &World) -> Out {
    let mut out = Out::default();
    for path in old.keys().filter(|p| !new.contains_key(*p)) {
        out.put(Record::Drop { path });
    }
    for (path, thing) in new {
        match (old.get(path), thing) {
            (Some(was), _) if was == thing => {}
            (Some(Thing::Small(_, was)), Thing::Small(mode, c)) if was == c => {
                out.put(Record::Attr { path, mode: *mode, mtime: 0 })
            }
            (Some(Thing::Large(_, was, was_last)), Thing::Large(_, blocks, last)) => {
                let len = |b: &[u8], l: usize, i: usize| if i + 1 == b.len() { l } else { BLOCK };
                out.blocks(path, thing, false, |i| {
                    was.get(i).is_none_or(|b| *b != blocks[i] || len(was, *was_last, i) != len(blocks, *last, i))
                });
            }
            _ => out.thing(path, thing),
        }
    }
    out
}

/// What must be carried so that segment `id` can be dropped.
fn carried(catalog: &Catalog, world: &World, id: u32) -> Out {
    let mut out = Out::default();
    for (path, tombstone) in catalog.tombstones.iter().filter(|(_, t)| t.segment == id) {
        let needed = catalog.segments.iter().any(|s| s.id != id && s.id >= tombstone.born && s.id < id);
        if needed {
            out.put(Record::Drop { path });
        }
    }
    let mut cursor = Cursor::new(&catalog.tree);
    while let Some((path, node)) = cursor.next(&catalog.tree) {
        let thing = &world[&path];
        let here = node.segment == id;
        match &node.body {
            Body::Large(blocks) if here || blocks.iter().any(|b| b.segment == id) => {
                out.blocks(&path, thing, false, |i| blocks[i].segment == id);
            }
            Body::Large(_) => {}
            _ if here => out.thing(&path, thing),
            Body::Small if node.meta_segment == id => {
                let Thing::Small(mode, _) = thing else { continue };
                out.put(Record::Attr { path: &path, mode: *mode, mtime: 0 });
            }
            _ => {}
        }
    }
    out
}

fn replay(segments: &[Segment]) -> Result<Replay<()>, statehash::error::Error> {
    let mut replay = Replay::new((), NO_LIMITS);
    for s in segments {
        replay.apply(&s.bytes, "k", &name(s), 1, &|| Ok(()))?;
    }
    replay.finish()?;
    Ok(replay)
}

fn expected(world: &World) -> Vec<(Vec<u8>, char, u16, u64)> {
    let row = |(path, thing): (&Vec<u8>, &Thing)| match thing {
        Thing::Dir(mode) => (path.clone(), 'd', *mode, 0),
        Thing::Small(mode, _) => (path.clone(), 'f', *mode, 1),
        Thing::Large(mode, blocks, last) => (path.clone(), 'F', *mode, size(blocks, *last)),
    };
    world.iter().map(row).collect()
}

proptest! {
    #![proptest_config(common::cases(200))]

    #[test]
    fn nothing_comes_back_and_nothing_is_lost(steps in steps()) {
        let (mut committed, mut world) = (World::new(), World::new());
        let mut segments: Vec<Segment> = Vec::new();
        for step in steps.into_iter().chain([Step::Commit]) {
            match step {
                Step::Put(p, thing) => put(&mut world, PATHS[p], thing),
                Step::Drop(p) => world.retain(|path, _| path != PATHS[p] && !below(PATHS[p], path)),
                Step::Commit => {
                    let out = difference(&committed, &world);
                    committed = world.clone();
                    if out.1 > 0 {
                        segments.push(out.segment());
                    }
                }
                Step::Clean(at) if !segments.is_empty() => {
                    let whole = replay(&segments).map_err(|e| TestCaseError::fail(e.to_string()))?;
                    let at = at.index(segments.len());
                    let id = whole.catalog().segments[at].id;
                    let out = carried(whole.catalog(), &committed, id);
                    segments.remove(at);
                    if out.1 > 0 {
                        segments.push(out.segment());
                    }
                }
                Step::Clean(_) => {}
            }
        }
        let found = replay(&segments).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let seen: Vec<_> = rows(&found.catalog().tree).into_iter().map(|(p, k, m, s, _, _)| (p, k, m, s)).collect();
        prop_assert_eq!(seen, expected(&committed));
        // Contents: what one segment of the whole world would give.
        let mut out = Out::default();
        committed.iter().for_each(|(path, thing)| out.thing(path, thing));
        let fresh = replay(&[out.segment()]).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(rows(&found.catalog().tree), rows(&fresh.catalog().tree));
        let live = found.catalog().live();
        prop_assert!(live.iter().zip(&found.catalog().segments).all(|(l, s)| *l <= s.stored));
    }
}

#[test]
fn a_segment_in_which_nothing_counts_any_more_has_no_live_bytes() {
    let file = |content| Record::File { path: b"f", mode: 0o600, mtime: 0, content };
    let found = replay(&[segment(&[file(b"one")]), segment(&[file(b"two")])]).expect("replay");
    let live = found.catalog().live();
    assert_eq!((live[0], live[1]), (0, found.catalog().segments[1].stored));
}
