//! The index's file as any bytes, and one of ours damaged or cut: what is accepted is a state that it had.
#![no_main]

use std::os::fd::AsFd;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use statehash::error::Error;
use statehash::index::Index;
use statehash_fuzz::commits::packed;
use statehash_fuzz::input::Input;
use statehash_fuzz::place::Place;
use statehash_fuzz::{folder, rows, Rows};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);
const NAME: &str = "index";

struct Sample {
    bytes: Vec<u8>,
    /// (meta, tree) after each step.
    states: Vec<(Vec<u8>, Rows)>,
}

static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let (root, home) = (PLACE.path().join("root"), folder(&PLACE.path()));
    std::fs::create_dir(&root).expect("mkdir");
    let mut index = Index::default();
    index.save(home.as_fd(), NAME, false).expect("save");
    let mut states = vec![(Vec::new(), rows(index.tree()))];
    for n in 0..4u8 {
        std::fs::write(root.join("small"), [n; 20]).expect("write");
        std::fs::write(root.join("large"), vec![n; 70_000]).expect("write");
        let (pack, segments) = packed(&root, &index, &[], 1);
        let keys: Vec<_> = segments.iter().map(|_| format!("key-{n}")).collect();
        index.stage(pack.staged(&index, &keys, b"staged").expect("staged")).expect("stage");
        if n == 1 {
            index.abandon().expect("abandon");
            index.set_meta(b"one").expect("set_meta");
        } else {
            index.confirm(&[n]).expect("confirm");
        }
        states.push((index.meta().to_vec(), rows(index.tree())));
        if n == 0 {
            index.save(home.as_fd(), NAME, false).expect("save");
            states.drain(..1);
        }
    }
    let bytes = std::fs::read(PLACE.path().join(NAME)).expect("read");
    PLACE.clear();
    Sample { bytes, states }
});

fuzz_target!(|data: &[u8]| {
    let sample = &*SAMPLE;
    let mut input = Input::new(data);
    // Few enough that no checksum can be made right again.
    let damage = usize::from(input.u8());
    let forged = damage > 4;
    let mut bytes = if forged { data.to_vec() } else { sample.bytes.clone() };
    if !forged {
        for _ in 0..damage {
            let (at, by) = (input.below(bytes.len()), input.u8());
            bytes[at] ^= by;
        }
        if !input.is_empty() {
            bytes.truncate(input.below(bytes.len()));
            bytes.extend(input.rest());
        }
    }
    let path = PLACE.path().join(NAME);
    std::fs::write(&path, &bytes).expect("write");
    match Index::open(folder(&PLACE.path()).as_fd(), NAME) {
        Err(e) => assert!(matches!(e, Error::Format(_)), "{e}"),
        Ok(mut index) => {
            let state = (index.meta().to_vec(), rows(index.tree()));
            assert!(forged || sample.states.contains(&state), "a state that never was: {state:?}");
            // What is appended follows the last whole record, and the file says the same again.
            index.set_meta(b"next").expect("set_meta");
            let again = Index::open(folder(&PLACE.path()).as_fd(), NAME).expect("open");
            assert_eq!((again.meta(), rows(again.tree()), again.staged()), (&b"next"[..], state.1, index.staged()));
        }
    }
    std::fs::remove_file(&path).expect("remove");
});
