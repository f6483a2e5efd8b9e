//! Plain system work to hold ours against, timed inside one process: reads lines `walk DIR`, `read DIR` or `pack DIR` and
//! answers each with `MILLISECONDS COUNT` (entries of a walk, bytes else).
//!
//! `walk`: getdents and statx of every entry, one thread. `read`: every byte of every file. `pack`: two threads read,
//! hash (BLAKE3) and compress (zstd as in segments, a MiB at a time) every file, and nothing else.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::fs::{openat, statx, AtFlags, FileType, Mode, OFlags, RawDir, StatxFlags, CWD};

const BLOCK_BYTES: usize = 1 << 20;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn walk(root: &Path) -> io::Result<u64> {
    let mut todo = vec![openat(CWD, root, FOLDER, Mode::empty())?];
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut seen = 0;
    while let Some(dir) = todo.pop() {
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." || name == c".the0" {
                continue;
            }
            let stat = statx(&dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
            seen += 1;
            if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory {
                todo.push(openat(&dir, name, FOLDER, Mode::empty())?);
            }
        }
    }
    Ok(seen)
}

fn files(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut todo = vec![root.to_path_buf()];
    let mut found = Vec::new();
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name() == ".the0" {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Every byte of every file, in pieces, on so many threads, each with a state of its own; the bytes.
fn each_block<S>(
    root: &Path,
    threads: usize,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &[u8]) + Sync,
) -> io::Result<u64> {
    let found = files(root)?;
    let next = AtomicUsize::new(0);
    let bytes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let one = || -> io::Result<()> {
            let mut state = start();
            let mut buffer = vec![0; BLOCK_BYTES];
            while let Some(path) = found.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut file = File::open(path)?;
                loop {
                    let got = file.read(&mut buffer)?;
                    if got == 0 {
                        break;
                    }
                    bytes.fetch_add(got as u64, Ordering::Relaxed);
                    work(&mut state, &buffer[..got]);
                }
            }
            Ok(())
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        running.into_iter().try_for_each(|thread| thread.join().map_err(|_| io::Error::other("a thread panicked"))?)
    })?;
    Ok(bytes.load(Ordering::Relaxed))
}

struct Packing {
    zstd: zstd::bulk::Compressor<'static>,
    pending: Vec<u8>,
    frame: Vec<u8>,
}

impl Packing {
    fn new() -> Self {
        let zstd = zstd::bulk::Compressor::new(1).expect("zstd has a level 1");
        Self {
            zstd,
            pending: Vec::with_capacity(2 * BLOCK_BYTES),
            frame: vec![0; zstd::zstd_safe::compress_bound(2 * BLOCK_BYTES)],
        }
    }

    /// The last MiB of each thread stays uncompressed: in this measure's favour.
    fn add(&mut self, piece: &[u8]) {
        std::hint::black_box(blake3::hash(piece));
        self.pending.extend_from_slice(piece);
        if self.pending.len() >= BLOCK_BYTES {
            let made = self.zstd.compress_to_buffer(&self.pending, &mut self.frame[..]);
            std::hint::black_box(made.expect("the buffer is large enough"));
            self.pending.clear();
        }
    }
}

fn main() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (what, root) = line.split_once(' ').ok_or_else(|| io::Error::other("give a word and a folder"))?;
        let root = Path::new(root);
        let begun = Instant::now();
        let bytes = match what {
            "walk" => walk(root)?,
            "read" => each_block(
                root,
                1,
                || (),
                |(), block| {
                    std::hint::black_box(block);
                },
            )?,
            "pack" => each_block(root, 2, Packing::new, Packing::add)?,
            _ => return Err(io::Error::other("walk, read or pack")),
        };
        writeln!(out, "{} {bytes}", begun.elapsed().as_secs_f64() * 1000.0)?;
        out.flush()?;
    }
    Ok(())
}
