//! Segments after each other, of records that could stand in them and some that could not.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use statehash::block::{length, BLOCK};
use statehash::segment::Record;
use statehash_fuzz::input::Input;
use statehash_fuzz::place::Place;
use statehash_fuzz::segments::{of_records, play};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);
const PATHS: [&[u8]; 9] = [b"a", b"a/b", b"a/b/c", b"b", b"c", b"c/d", b"l/x", b"l", b"a-"];
const MODES: [u16; 6] = [0o644, 0, 0o4755, 0o400, 0o1777, 0o700];
const TARGETS: [&[u8]; 4] = [b"../elsewhere", b"../outside", b"a", b"/"];
const SIZES: [u64; 8] = [0, 1, 70, 65_536, 65_537, 131_142, 200_000, 1 << 24];

fn path<'a>(input: &mut Input<'a>) -> &'a [u8] {
    match input.u8() {
        255 => input.sized(),
        n => PATHS[usize::from(n) % PATHS.len()],
    }
}

fn size(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        255 => input.u64(),
        n => SIZES[usize::from(n) % SIZES.len()],
    }
}

/// One record, or a large file's with its blocks; None ends the segment.
fn put(input: &mut Input<'_>, raw: &mut Vec<u8>) -> Option<()> {
    let kind = input.u8();
    let (mode, mtime) = (input.pick(&MODES), 5);
    match kind % 12 {
        0 => return None,
        1 => Record::File { path: path(input), mode, mtime, content: input.sized() }.put(raw),
        2 => {
            let path = path(input);
            let len = [1, BLOCK - 1, BLOCK, BLOCK + 1][usize::from(input.u8() % 4)];
            Record::File { path, mode, mtime, content: &vec![input.u8(); len] }.put(raw);
        }
        3 => Record::Attr { path: path(input), mode, mtime: 6 }.put(raw),
        4 => Record::Dir { path: path(input), mode, mtime: 7 }.put(raw),
        5 => Record::Link { path: path(input), mtime: 8, target: input.pick(&TARGETS) }.put(raw),
        6 => Record::Drop { path: path(input) }.put(raw),
        7 => Record::Meta { path: path(input), mode, mtime, size: size(input), fresh: input.u8() % 2 == 0 }.put(raw),
        8 => {
            let (path, size, lacking) = (path(input), size(input) % (1 << 18), input.u8());
            Record::Meta { path, mode, mtime, size, fresh: lacking % 2 == 0 }.put(raw);
            for index in 0..size.div_ceil(BLOCK as u64) as u32 {
                match input.u8() {
                    _ if lacking / 2 == index as u8 => {}
                    0 => Record::Zero { index, count: 1 }.put(raw),
                    fill => Record::Block { index, data: &vec![fill; length(size, index.into())] }.put(raw),
                }
            }
        }
        9 => {
            let (index, len) = (input.u8(), input.u16());
            Record::Block { index: index.into(), data: &vec![input.u8(); usize::from(len) + 1] }.put(raw);
        }
        10 => Record::Zero { index: u32::from(input.u8()), count: input.pick(&[0, 1, 2, 3, 256, u32::MAX]) }.put(raw),
        _ => raw.extend(input.sized()),
    }
    (raw.len() < 1 << 20).then_some(())
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut segments = Vec::new();
    while !input.is_empty() && segments.len() < 5 {
        let mut raw = Vec::new();
        while !input.is_empty() && put(&mut input, &mut raw).is_some() {}
        segments.push(of_records(&raw).bytes);
    }
    let segments: Vec<_> = segments.iter().map(Vec::as_slice).collect();
    let _ = play(&PLACE, &segments, 1);
});
