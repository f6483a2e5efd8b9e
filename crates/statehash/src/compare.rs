//! Reads and hashes the whole tree and holds it against the index.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;

use crate::block::{self, BLOCK};
use crate::error::{Error, Pulse, Result};
use crate::index::Index;
use crate::read::{self, Look};
use crate::scan::{scan, Options, Seen};
use crate::tree::{Block, Body, Node};
use crate::walk::{stat_fd, Kind};

/// What one thread takes at a time.
const BATCH: usize = 64;

enum Work<'a> {
    /// Files of at most `read::WHOLE`, links.
    Small(Vec<(&'a Seen, &'a Node)>),
    /// Blocks of a large file, from this one on.
    Range(&'a Seen, &'a [Block], usize),
}

/// Up to `limit` paths whose kind, mode, size or content differ. When there are none, the index takes over the times
/// and inodes that were seen.
pub fn differences(
    root: BorrowedFd<'_>,
    index: &mut Index,
    skip: &[u8],
    limit: usize,
    threads: usize,
    pulse: Pulse<'_>,
) -> Result<Vec<Vec<u8>>> {
    let found = scan(root, index, &Options { skip, threads, all: true }, pulse)?;
    let mut differing: Vec<Vec<u8>> = found.removed.iter().chain(&found.unreadable).cloned().collect();
    let mut works = Vec::new();
    let mut batch = Vec::new();
    for seen in &found.changed {
        let node = index.tree().get(&seen.path).filter(|n| {
            let kind = match n.body {
                Body::Dir(_) => Kind::Dir,
                Body::Link => Kind::Link,
                Body::Small | Body::Large(_) => Kind::File,
            };
            kind == seen.stat.kind && n.meta.size == seen.stat.size && n.meta.mode == seen.stat.mode
        });
        match node {
            None => differing.push(seen.path.clone()),
            Some(node) => match &node.body {
                Body::Dir(_) => {}
                Body::Large(blocks) if node.meta.size > read::WHOLE => {
                    let step = (read::WHOLE / BLOCK as u64) as usize;
                    works.extend((0..blocks.len()).step_by(step).map(|at| Work::Range(seen, blocks, at)));
                }
                _ => {
                    batch.push((seen, node));
                    if batch.len() >= BATCH {
                        works.push(Work::Small(std::mem::take(&mut batch)));
                    }
                }
            },
        }
    }
    works.push(Work::Small(batch));
    let next = AtomicUsize::new(0);
    let enough = AtomicBool::new(differing.len() >= limit);
    let results = Mutex::new((differing, Ok(())));
    let lock = || results.lock().unwrap_or_else(|e| e.into_inner());
    let run = || {
        let mut buffer = Vec::new();
        while !enough.load(Ordering::Relaxed) {
            let Some(work) = works.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let result = pulse().and_then(|()| check(root, work, &mut buffer));
            let mut results = lock();
            match result {
                Ok(paths) => results.0.extend(paths),
                Err(e) => results.1 = Err(e),
            }
            if results.0.len() >= limit || results.1.is_err() {
                enough.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    let (mut differing, outcome) = results.into_inner().unwrap_or_else(|e| e.into_inner());
    outcome?;
    differing.sort_unstable();
    differing.dedup();
    differing.truncate(limit);
    if differing.is_empty() && limit > 0 {
        index.refresh(found.changed.iter().map(|s| (&s.path[..], s.stat.meta(found.look))));
    }
    Ok(differing)
}

fn check(root: BorrowedFd<'_>, work: &Work<'_>, buffer: &mut Vec<u8>) -> Result<Vec<Vec<u8>>> {
    let mut differing = Vec::new();
    match work {
        Work::Small(files) => {
            for (seen, node) in files {
                let look = match node.body {
                    Body::Link => read::link(root, &seen.path, buffer)?,
                    _ => read::file(root, &seen.path, buffer)?,
                };
                let same = matches!(look, Look::Content { meta, moved: false } if {
                    let content = &buffer[..meta.size as usize];
                    meta.size == node.meta.size && node.digest == match node.body {
                        Body::Large(_) => block::whole(meta.size, content.chunks(BLOCK).map(block::digest)),
                        _ => block::digest(content),
                    }
                });
                if !same {
                    differing.push(seen.path.clone());
                }
            }
        }
        Work::Range(seen, blocks, at) => {
            let same = match read::open(root, &seen.path)? {
                Err(_) => false,
                Ok(fd) => {
                    let error = |e| Error::os(&seen.path, e);
                    let size = seen.stat.size;
                    let from = (*at * BLOCK) as u64;
                    let want = (size - from).min(read::WHOLE) as usize;
                    if buffer.len() < want {
                        buffer.resize(want, 0);
                    }
                    let stat = stat_fd(fd.as_fd()).map_err(error)?;
                    stat.kind == Kind::File
                        && stat.size == size
                        && read::fill_sparse(&fd, &mut buffer[..want], from).map_err(error)? == want
                        && buffer[..want]
                            .chunks(BLOCK)
                            .map(block::digest)
                            .eq(blocks[*at..].iter().take(want.div_ceil(BLOCK)).map(|b| b.digest))
                }
            };
            if !same {
                differing.push(seen.path.clone());
            }
        }
    }
    Ok(differing)
}
