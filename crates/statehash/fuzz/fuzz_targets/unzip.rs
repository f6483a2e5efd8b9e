//! Archives: any bytes, and ones of ours with a byte changed. Nothing is written beside the destination nor beyond the
//! limits, and no content comes out that was not put in.
#![no_main]

use std::fs::File;
use std::io::{Cursor, Write};
use std::os::fd::AsFd;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{memfd_create, MemfdFlags};
use statehash::error::{Error, Result};
use statehash::unzip::{unzip, Limits, Unzipped};
use statehash_fuzz::input::Input;
use statehash_fuzz::place::{read, Entry, Place};
use statehash_fuzz::seeds::sow;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

static PLACE: LazyLock<Place> = LazyLock::new(Place::new);
const LIMITS: Limits = Limits { max_entries: 100, max_bytes: 1 << 20, max_ratio: 100 };
const NAMES: [&str; 8] = ["main.py", "d/", "d/f", "../x", "/x", "a\\b", "d/./g", "main.py/x"];
const MODES: [u32; 5] = [0o644, 0, 0o777, 0o4755, 0o120_777];

fn run(bytes: &[u8], threads: usize) -> Result<Unzipped> {
    let fd = memfd_create("archive", MemfdFlags::CLOEXEC).expect("memfd");
    let mut file = File::from(fd);
    file.write_all(bytes).expect("write");
    unzip(file.as_fd(), PLACE.fd().as_fd(), LIMITS, threads, &|| Ok(()))
}

/// What was written, whether or not the archive was refused in the end.
fn contents(result: &Result<Unzipped>) -> Vec<Vec<u8>> {
    let found = read(&PLACE.path());
    assert!(found.len() as u64 <= 20 * LIMITS.max_entries);
    let mut contents = Vec::new();
    for (path, entry) in found {
        match entry {
            Entry::Link { .. } => panic!("{} is a link", path.escape_ascii()),
            Entry::Dir { mode, .. } => assert_eq!(mode & !0o777, 0),
            Entry::File { mode, content, .. } => {
                assert_eq!(mode & 0o600, 0o600);
                assert_eq!(mode & !0o777, 0);
                contents.push(content);
            }
        }
    }
    let bytes: u64 = contents.iter().map(|content| content.len() as u64).sum();
    assert!(bytes <= LIMITS.max_bytes + 64 * 1024);
    match result {
        Ok(unzipped) => {
            assert_eq!(unzipped.bytes, bytes);
            assert!(contents.len() as u64 <= unzipped.entries);
        }
        Err(e) => assert!(matches!(e, Error::Format(_) | Error::Limit(_)), "{e}"),
    }
    PLACE.check_and_clear();
    contents
}

/// An archive of ours, and what its entries hold.
fn ours(input: &mut Input<'_>) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let mut contents = Vec::new();
    for _ in 0..input.u8() % 5 {
        let name = input.pick(&NAMES);
        let method = input.pick(&[CompressionMethod::Stored, CompressionMethod::Deflated]);
        let options = SimpleFileOptions::default().compression_method(method).unix_permissions(input.pick(&MODES));
        // Names that occur twice are refused by the writer.
        if name.ends_with('/') {
            // Nothing guards a name: without its slash it is an empty file's.
            writer.add_directory(name, options).ok()?;
            contents.push(Vec::new());
            continue;
        }
        let times = usize::from(input.u8()) + 1;
        let content = input.sized().repeat(times);
        writer.start_file(name, options).ok()?;
        writer.write_all(&content).ok()?;
        contents.push(content);
    }
    Some((writer.finish().ok()?.into_inner(), contents))
}

/// An archive with one of each, the end of one file told in 64 bits, and something before it all.
fn seeds() -> [Vec<u8>; 2] {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let deflated = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated).unix_permissions(0o755);
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    writer.add_directory("d/", deflated).expect("folder");
    writer.start_file("d/f", deflated).and_then(|()| Ok(writer.write_all(&[b'x'; 300])?)).expect("file");
    writer.start_file("main.py", stored).and_then(|()| Ok(writer.write_all(b"print()")?)).expect("file");
    writer.set_comment("a comment");
    let archive = writer.finish().expect("finish").into_inner();
    let after = [b"#!/bin/sh\n".as_slice(), &archive].concat();
    [archive, after]
}

fuzz_target!(init: sow(seeds()), |data: &[u8]| {
    let Some((b'w', rest)) = data.split_first() else {
        let result = run(data, 1);
        contents(&result);
        return;
    };
    let mut input = Input::new(rest);
    let Some((mut archive, put)) = ours(&mut input) else { return };
    let at = input.below(archive.len());
    archive[at] ^= input.u8();
    let result = run(&archive, 1 + usize::from(input.u8() % 2));
    let complete = result.is_ok();
    for found in contents(&result) {
        // What was refused may have been written up to where it was found out.
        assert!(!complete || put.contains(&found), "content that nobody put in");
    }
});
