//! Times the core against plain system work on one tree, paired in one run:
//! `cargo run --release --example measure -- FOLDER [FOLDERS FILES BYTES]` (default 100 folders of 100 files of 4096 bytes).
//!
//! A plain walk is getdents and statx of every entry on one thread; the restore is held against `cp -a`, the zip
//! against `unzip -q`. Medians of several rounds, caches warm.

use std::fs::{create_dir_all, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Instant;

use statehash::error::{Error, Result};
use statehash::index::Index;
use statehash::pack::{self, Pack};
use statehash::replay::Limits;
use statehash::scan::{scan, watched, Options, Scan};
use statehash::segment::Segment;
use statehash::unpack::Restore;
use statehash::watch::Watch;
use statehash::{beneath, compare, unzip};

/// Fewer when every round moves much.
static ROUNDS: AtomicUsize = AtomicUsize::new(9);

fn median(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    let rounds = ROUNDS.load(Ordering::Relaxed);
    for _ in 0..rounds {
        let begun = Instant::now();
        work()?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[rounds / 2])
}

/// Median times of several works that take turns, so that what else the machine does meets all of them alike.
fn turns<const N: usize>(base: &Path, root: &OwnedFd, works: [&mut dyn FnMut() -> Result<()>; N]) -> Result<[f64; N]> {
    let rounds = ROUNDS.load(Ordering::Relaxed);
    let mut times = [(); N].map(|()| Vec::new());
    let mut works = works;
    for _ in 0..rounds {
        for (work, times) in works.iter_mut().zip(&mut times) {
            // What the one before left to be written is not this one's to wait for.
            clear(base)?;
            sync(root)?;
            let begun = Instant::now();
            work()?;
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    Ok(times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        t[rounds / 2]
    }))
}

/// What the works make, all in one place, so that a long run does not fill the disk.
const MADE: &str = "made";

fn clear(base: &Path) -> Result<()> {
    match std::fs::remove_dir_all(base.join(MADE)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::format(e.to_string())
}

fn folder(path: &Path) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).map_err(failed)
}

fn fresh(path: &Path) -> Result<OwnedFd> {
    if path.exists() {
        std::fs::remove_dir_all(path).map_err(failed)?;
    }
    create_dir_all(path).map_err(failed)?;
    folder(path)
}

/// statx of every entry below `root`, and nothing else.
fn plain_walk(root: &OwnedFd) -> Result<u64> {
    use rustix::fs::{openat, statx, AtFlags, FileType, Mode, RawDir, StatxFlags};
    let mut todo = vec![openat(root, c".", beneath::FOLDER, Mode::empty()).map_err(|e| Error::os(b".", e))?];
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut seen = 0;
    while let Some(dir) = todo.pop() {
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|e| Error::os(b"", e))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = statx(&dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
            let stat = stat.map_err(|e| Error::os(name.to_bytes(), e))?;
            seen += 1;
            if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory {
                todo.push(openat(&dir, name, beneath::FOLDER, Mode::empty()).map_err(|e| Error::os(name.to_bytes(), e))?);
            }
        }
    }
    Ok(seen)
}

fn look(root: &OwnedFd, index: &Index, threads: usize) -> Result<Scan> {
    scan(root.as_fd(), index, &Options { skip: b".the0", threads, all: false }, &|| Ok(()))
}

fn packed(root: &OwnedFd, index: &Index, threads: usize) -> Result<(Pack, Vec<Segment>)> {
    let seen = look(root, index, threads)?;
    packed_of(root, index, seen, threads)
}

fn packed_of(root: &OwnedFd, index: &Index, seen: Scan, threads: usize) -> Result<(Pack, Vec<Segment>)> {
    let seen = Arc::new(seen);
    let options = pack::Options { segment_bytes: 32 << 20, max_file_bytes: None, threads };
    let fd = rustix::io::dup(root).map_err(|e| Error::os(b"", e))?;
    let mut packing = Pack::new(fd, seen, options);
    let mut segments = Vec::new();
    while let Some(segment) = packing.next(index, &|| Ok(()))? {
        segments.push(segment);
    }
    Ok((packing, segments))
}

fn commit(root: &OwnedFd, index: &mut Index) -> Result<Vec<Segment>> {
    let seen = look(root, index, 2)?;
    commit_of(root, index, seen)
}

fn commit_of(root: &OwnedFd, index: &mut Index, seen: Scan) -> Result<Vec<Segment>> {
    let (packing, segments) = packed_of(root, index, seen, 2)?;
    let keys: Vec<_> = segments.iter().map(|s| blake3::Hash::from_bytes(s.digest).to_hex().to_string()).collect();
    let staged = packing.staged(index, &keys, b"")?;
    index.stage(staged)?;
    index.confirm(b"")?;
    Ok(segments)
}

fn run(command: &mut Command) -> Result<()> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        other => Err(Error::format(format!("{command:?}: {other:?}"))),
    }
}

fn sync(dir: &OwnedFd) -> Result<()> {
    rustix::fs::syncfs(dir).map_err(|e| Error::os(b"", e))
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let base = args.next().ok_or_else(|| Error::format("give a folder to work in"))?;
    let base = Path::new(&base);
    let number = |arg: Option<String>, or: usize| arg.and_then(|a| a.parse().ok()).unwrap_or(or);
    let (folders, files, bytes) = (number(args.next(), 100), number(args.next(), 100), number(args.next(), 4096));
    let source = base.join("tree");
    let root = fresh(&source)?;
    let mut noise = blake3::Hasher::new().update(b"measure").finalize_xof();
    let mut content = vec![0; bytes];
    for d in 0..folders {
        let dir = source.join(format!("folder-{d:04}"));
        create_dir_all(&dir).map_err(failed)?;
        for f in 0..files {
            // Half of it compresses.
            noise.fill(&mut content[..bytes / 2]);
            File::create(dir.join(format!("file-{f:05}"))).and_then(|mut file| file.write_all(&content)).map_err(failed)?;
        }
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    if folders * files * bytes > 256 << 20 {
        ROUNDS.store(3, Ordering::Relaxed);
    }
    println!("{folders} folders of {files} files of {bytes} bytes; medians of {}, ms", ROUNDS.load(Ordering::Relaxed));

    let mut index = Index::default();
    let segments = commit(&root, &mut index)?;
    let home = fresh(&base.join("home"))?;
    index.save(home.as_fd(), "index", false)?;
    let [walk, tick, tick2, opened] = turns(
        base,
        &root,
        [
            &mut || plain_walk(&root).map(drop),
            &mut || look(&root, &index, 1).map(|s| assert!(s.changed.is_empty() && s.removed.is_empty())),
            &mut || look(&root, &index, 2).map(drop),
            &mut || Index::open(home.as_fd(), "index").and_then(|i| look(&root, &i, 1)).map(drop),
        ],
    )?;
    let open = median(|| Index::open(home.as_fd(), "index").map(drop))?;
    let save = median(|| index.save(home.as_fd(), "index", false))?;
    let stored: usize = segments.iter().map(|s| s.bytes.len()).sum();
    println!("plain walk S                    {walk:8.2}");
    println!("tick, 1 thread                  {tick:8.2}  {:5.2} S", tick / walk);
    println!("tick, 2 threads                 {tick2:8.2}  {:5.2} S", tick2 / walk);
    println!("index opened anew and tick      {opened:8.2}  {:5.2} S", opened / walk);
    let [first, first_alone] = turns(
        base,
        &root,
        [&mut || packed(&root, &Index::default(), 2).map(drop), &mut || packed(&root, &Index::default(), 1).map(drop)],
    )?;
    println!("index: open {open:.2}, save {save:.2}");
    println!("first scan and pack, 2 threads  {first:8.2}  ({stored} bytes stored)");
    println!("first scan and pack, 1 thread   {first_alone:8.2}");
    let hash = median(|| compare::differences(root.as_fd(), &mut index, b".the0", 10, 2, &|| Ok(())).map(drop))?;
    println!("everything hashed, 2 threads    {hash:8.2}");
    let mut at = 0;
    let one = median(|| {
        at += 1;
        std::fs::write(source.join("folder-0000/changing"), format!("{at}")).map_err(failed)?;
        commit(&root, &mut index).map(drop)
    })?;
    println!("one small file changed: commit  {one:8.2}");
    let watch = Watch::new(root.as_fd(), b".the0", 1_000_000)?;
    let all = |index: &Index, since: Option<u64>| {
        watched(root.as_fd(), index, &Options { skip: b".the0", threads: 1, all: false }, &watch, since, &|| Ok(()))
    };
    let begun = Instant::now();
    watch.settle(all(&index, None)?.news);
    println!("first tick, watches set         {:8.2}  ({} folders)", begun.elapsed().as_secs_f64() * 1000.0, watch.folders());
    let again = median(|| all(&index, None).map(drop))?;
    println!("tick, 1 thread, watched         {again:8.2}");
    let woken = median(|| {
        at += 1;
        std::fs::write(source.join("folder-0000/changing"), format!("{at}")).map_err(failed)?;
        let seen = all(&index, Some(0))?;
        assert!(!seen.whole && !seen.changed.is_empty());
        let news = seen.news;
        commit_of(&root, &mut index, seen)?;
        assert_eq!(watch.gather(), news, "nothing moved");
        watch.settle(news);
        Ok(())
    })?;
    println!("woken: one folder, commit       {woken:8.2}");
    let held = median(|| {
        at += 1;
        std::fs::write(source.join("folder-0000/changing"), format!("{at}")).map_err(failed)?;
        let options = pack::Options { segment_bytes: 32 << 20, max_file_bytes: None, threads: 2 };
        let fd = rustix::io::dup(&root).map_err(|e| Error::os(b"", e))?;
        let mut packing = Pack::new(fd, Arc::new(all(&index, Some(0))?), options);
        while packing.next(&index, &|| Ok(()))?.is_some() {}
        let options = Options { skip: b".the0", threads: 1, all: false };
        packing.fold(&index, &options, Some(&watch), &|| Ok(())).map(drop)
    })?;
    println!("woken, packed, folded once      {held:8.2}");

    let restore = |threads: usize, synced: bool| -> Result<()> {
        let dest = fresh(&base.join(MADE))?;
        let to = rustix::io::dup(&dest).map_err(|e| Error::os(b"", e))?;
        let mut restoring = Restore::new(to, Limits { max_bytes: None, max_entries: u64::MAX });
        for segment in &segments {
            let digest = blake3::Hash::from_bytes(segment.digest).to_hex();
            restoring.apply(&segment.bytes, "k", digest.as_str(), threads, &|| Ok(()))?;
        }
        restoring.finish(true, &|| Ok(()))?;
        if synced {
            sync(&dest)?;
        }
        Ok(())
    };
    let copy = |synced: bool| {
        let dest = base.join(MADE);
        run(Command::new("cp").arg("-a").arg(&source).arg(&dest))?;
        if synced {
            sync(&folder(&dest)?)?;
        }
        Ok(())
    };
    for synced in [false, true] {
        let works: [&mut dyn FnMut() -> Result<()>; 3] =
            [&mut || restore(1, synced), &mut || restore(2, synced), &mut || copy(synced)];
        let [alone, two, copied] = turns(base, &root, works)?;
        let what = if synced { "with syncfs" } else { "alone" };
        println!("restore 1 / 2 threads           {alone:8.2}  {two:8.2}; cp -a {copied:.2}: {:.2} of it, {what}", two / copied);
    }

    let archive = base.join("code.zip");
    if let Some(zip) = std::env::args().nth(5) {
        std::fs::copy(zip, &archive).map_err(failed)?;
        let fd = folder(&archive)?;
        let ours = |threads: usize| {
            let dest = fresh(&base.join(MADE))?;
            let limits = unzip::Limits { max_entries: 200_000, max_bytes: 8 << 30, max_ratio: 200 };
            unzip::unzip(fd.as_fd(), dest.as_fd(), limits, threads, &|| Ok(())).map(drop)
        };
        let theirs = || run(Command::new("unzip").arg("-q").arg(&archive).arg("-d").arg(base.join(MADE)));
        let [alone, two, theirs] = turns(base, &root, [&mut || ours(1), &mut || ours(2), &mut || theirs()])?;
        println!("unzip 1 / 2 threads             {alone:8.2}  {two:8.2}; unzip -q {theirs:.2}");
    }
    std::fs::remove_dir_all(base).map_err(failed)
}
