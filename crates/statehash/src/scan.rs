//! A metadata walk of the tree against the index: what is new, what differs, what is gone. Of all folders, or of those
//! that a watch has news of.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::beneath;
use crate::carry::Carry;
use crate::database;
use crate::error::{Error, Pulse, Result, UNREADABLE};
use crate::index::Index;
use crate::paths;
use crate::tree::{Body, Node, Tree, ROOT};
use crate::walk::{now, spread, stat_fd, Kind, Listing, Stat};
use crate::watch::Watch;

/// How many sockets, FIFOs and devices are named.
const SPECIALS: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub path: Vec<u8>,
    pub stat: Stat,
}

#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// In byte order of the paths.
    pub changed: Vec<Seen>,
    pub removed: Vec<Vec<u8>>,
    /// Folders that can't be read, and what has a path too long to store; all at or below them stays as it was.
    pub unreadable: Vec<Vec<u8>>,
    pub specials: Vec<Vec<u8>>,
    pub files: u64,
    pub bytes: u64,
    pub largest: Option<(Vec<u8>, u64)>,
    /// The clock before the walk began.
    pub look: i64,
    /// The index's state that this was held against.
    pub stamp: u64,
    /// What is packed besides, see `carry`.
    pub carry: Carry,
    /// The watch's number of news before the walk began.
    pub news: u64,
    /// All folders were read.
    pub whole: bool,
    /// Left as they are stored, whatever is there now, see `keep`; sorted.
    pub kept: Vec<Vec<u8>>,
}

impl Scan {
    pub fn touches(&self, prefix: &[u8]) -> bool {
        let hit = |path: &[u8]| paths::at_or_below(path, prefix);
        self.changed.iter().any(|s| hit(&s.path)) || self.removed.iter().any(|p| hit(p))
    }

    /// This scan, without these files: each stays as it is stored, absent if it is not, unless its folder is gone or it is no
    /// file any more.
    pub fn keep(&self, paths: &[Vec<u8>]) -> Scan {
        let mut found = self.clone();
        found.kept.extend_from_slice(paths);
        found.kept.sort_unstable();
        found.kept.dedup();
        let kept = |path: &[u8]| found.kept.binary_search_by(|p| p[..].cmp(path)).is_ok();
        let folder_stays = |path: &[u8]| {
            let dir = paths::split(path).0;
            let replaced = |at: usize| self.changed[at].stat.kind != Kind::Dir;
            self.removed.binary_search_by(|p| p[..].cmp(dir)).is_err()
                && !self.changed.binary_search_by(|s| s.path[..].cmp(dir)).is_ok_and(replaced)
        };
        found.changed.retain(|seen| seen.stat.kind != Kind::File || !kept(&seen.path));
        found.removed.retain(|path| !kept(path) || !folder_stays(path));
        found
    }
}

pub struct Options<'a> {
    /// A top-level name that is left out, as the reserved one always is.
    pub skip: &'a [u8],
    pub threads: usize,
    /// Every file and link counts as changed.
    pub all: bool,
}

/// A folder still to be read.
struct Folder {
    path: Vec<u8>,
    /// None for the root.
    stat: Option<Stat>,
    /// The index's folder there.
    known: Option<u32>,
    settled: bool,
    /// A watch has news of it, so nobody looked at the folder itself yet.
    dirty: bool,
}

struct Walk<'a> {
    root: BorrowedFd<'a>,
    tree: &'a Tree,
    options: &'a Options<'a>,
    watch: Option<&'a Watch>,
    /// Watched folders are passed over.
    partial: bool,
}

#[derive(Default)]
struct Worker {
    out: Scan,
    listing: Listing,
}

/// `root` may have been opened with `O_PATH`. Errors other than "gone" and "not allowed" end the walk.
pub fn scan(root: BorrowedFd<'_>, index: &Index, options: &Options<'_>, pulse: Pulse<'_>) -> Result<Scan> {
    let walk = Walk { root, tree: index.tree(), options, watch: None, partial: false };
    walk.run(vec![Folder { path: Vec::new(), stat: None, known: Some(ROOT), settled: true, dirty: false }], index.stamp(), pulse)
}

/// The same, and every folder is watched before it is read. With `since` only folders with news after that number are
/// read, and what lies below them that is new or not watched; the sums are the index's with what changed. A blind watch
/// says nothing: then everything is read.
pub fn watched(
    root: BorrowedFd<'_>,
    index: &Index,
    options: &Options<'_>,
    watch: &Watch,
    since: Option<u64>,
    pulse: Pulse<'_>,
) -> Result<Scan> {
    let (news, tree) = (watch.gather(), index.tree());
    let mut walk = Walk { root, tree, options, watch: Some(watch), partial: false };
    if let (Some(since), None) = (since, watch.blind()) {
        walk.partial = true;
        let mut dirty = watch.dirty(since);
        dirty.reverse(); // the last one is taken first
        let folders = dirty.into_iter().map(|path| {
            let known = tree.dir(&path);
            Folder { path, stat: None, known, settled: true, dirty: true }
        });
        let mut found = walk.run(folders.collect(), index.stamp(), pulse)?;
        let linked = found.changed.iter().any(|s| s.stat.kind == Kind::File && s.stat.links > 1);
        // A file of several names may have changed in folders that nobody told of.
        if !linked && watch.blind().is_none() {
            found.sum(tree);
            found.news = news;
            return Ok(found);
        }
        walk.partial = false;
    }
    let first = Folder { path: Vec::new(), stat: None, known: Some(ROOT), settled: true, dirty: false };
    let mut found = walk.run(vec![first], index.stamp(), pulse)?;
    found.news = news;
    Ok(found)
}

impl Scan {
    /// Files and bytes of the whole tree, from those of the index.
    fn sum(&mut self, tree: &Tree) {
        (self.files, self.bytes) = (tree.files, tree.bytes);
        let known = |path: &[u8]| tree.get(path).filter(|n| n.is_file()).map(|n| n.meta.size);
        for seen in &self.changed {
            if let Some(size) = known(&seen.path) {
                self.files = self.files.saturating_sub(1);
                self.bytes = self.bytes.saturating_sub(size);
            }
            if seen.stat.kind == Kind::File {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(seen.stat.size);
            }
        }
        for size in self.removed.iter().filter_map(|path| known(path)) {
            self.files = self.files.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(size);
        }
    }
}

impl Walk<'_> {
    fn run(&self, first: Vec<Folder>, stamp: u64, pulse: Pulse<'_>) -> Result<Scan> {
        let look = now();
        let visit = |folder: Folder, worker: &mut Worker, more: &mut Vec<Folder>| {
            pulse()?;
            self.visit(folder, worker, more, pulse)
        };
        let workers = spread(self.options.threads, first, Worker::default, visit)?;
        let mut all = Scan { look, stamp, whole: !self.partial, ..Scan::default() };
        for Worker { out, .. } in workers {
            all.changed.extend(out.changed);
            all.removed.extend(out.removed);
            all.unreadable.extend(out.unreadable);
            all.specials.extend(out.specials);
            all.files += out.files;
            all.bytes += out.bytes;
            if out.largest.as_ref().map(|l| l.1) > all.largest.as_ref().map(|l| l.1) {
                all.largest = out.largest;
            }
        }
        all.changed.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        all.removed.sort_unstable();
        all.unreadable.sort_unstable();
        all.specials.sort_unstable();
        if self.partial {
            // A dirty folder may also have been reached from the one around it.
            all.changed.dedup_by(|a, b| a.path == b.path);
            all.removed.dedup();
            all.unreadable.dedup();
            all.specials.dedup();
        }
        all.specials.truncate(SPECIALS);
        Ok(all)
    }

    fn visit(&self, mut folder: Folder, worker: &mut Worker, more: &mut Vec<Folder>, pulse: Pulse<'_>) -> Result<()> {
        let Walk { root, tree, options, watch, partial } = *self;
        let Worker { out, listing } = worker;
        let read = beneath::open(root, &folder.path, beneath::FOLDER, rustix::fs::Mode::empty()).and_then(|fd| {
            if let Some(watch) = watch {
                watch.add(&folder.path, fd.as_fd());
            }
            if folder.dirty && !folder.path.is_empty() {
                let stat = stat_fd(fd.as_fd())?;
                folder.settled = tree.get(&folder.path).is_some_and(|n| n.dir().is_some() && stat.settled(&n.meta));
                folder.stat = Some(stat);
            }
            listing.read(&fd, || pulse().is_ok())
        });
        let readable = match read {
            Ok(()) => true,
            // The folder around it has news of that as well.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if folder.dirty && !folder.path.is_empty() => return Ok(()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if folder.stat.is_some() => {
                // Gone or replaced since its own folder was read; the next scan sees what is there now.
                if let Some(id) = folder.known {
                    out.removed.extend(tree.below(id, &folder.path));
                    out.removed.push(folder.path);
                }
                return Ok(());
            }
            Err(e) if (e == Errno::ACCESS || UNREADABLE.contains(&e)) && !folder.path.is_empty() => false,
            // Interrupted, which the pulse says again, or an error.
            Err(e) => return pulse().and(Err(Error::os(&folder.path, e))),
        };
        if let Some(stat) = folder.stat {
            if !folder.settled {
                out.changed.push(Seen { path: folder.path.clone(), stat });
            }
        }
        if !readable {
            out.unreadable.push(folder.path);
            return Ok(());
        }
        let mut known = folder.known.into_iter().flat_map(|id| tree.children(id)).peekable();
        for (name, stat) in listing.entries() {
            while let Some(gone) = known.next_if(|n| tree.name(n) < name) {
                remove(tree, &folder.path, gone, out);
            }
            let node = known.next_if(|n| tree.name(n) == name);
            if folder.path.is_empty() && (name == options.skip || name == paths::RESERVED) {
                continue;
            }
            let shared = stat.kind == Kind::File && database::is_shared_memory(root, &folder.path, name);
            if stat.kind == Kind::Special || shared {
                if !shared && out.specials.len() < SPECIALS {
                    out.specials.push(paths::join(&folder.path, name));
                }
                if let Some(node) = node {
                    remove(tree, &folder.path, node, out);
                }
                continue;
            }
            if folder.path.len() + 1 + name.len() > paths::PATH_BYTES {
                out.unreadable.push(paths::join(&folder.path, name));
                continue;
            }
            let same_kind = node.filter(|n| match n.body {
                Body::Dir(_) => stat.kind == Kind::Dir,
                Body::Link => stat.kind == Kind::Link,
                Body::Small | Body::Large(_) => stat.kind == Kind::File,
            });
            if let (Some(node), None) = (node, same_kind) {
                // Another kind took its place: what lay below is gone, the path itself is replaced.
                if let Some(id) = node.dir() {
                    out.removed.extend(tree.below(id, &paths::join(&folder.path, name)));
                }
            }
            if stat.kind == Kind::Dir {
                let path = paths::join(&folder.path, name);
                let settled = same_kind.is_some_and(|n| stat.settled(&n.meta));
                if !(partial && same_kind.is_some() && watch.is_some_and(|w| w.watches(&path))) {
                    more.push(Folder { path, stat: Some(*stat), known: same_kind.and_then(Node::dir), settled, dirty: false });
                } else if !settled {
                    out.changed.push(Seen { path, stat: *stat });
                }
                continue;
            }
            if stat.kind == Kind::File {
                out.files += 1;
                out.bytes += stat.size;
                if out.largest.as_ref().is_none_or(|l| l.1 < stat.size) {
                    out.largest = Some((paths::join(&folder.path, name), stat.size));
                }
            }
            if options.all || !same_kind.is_some_and(|n| stat.settled(&n.meta)) {
                out.changed.push(Seen { path: paths::join(&folder.path, name), stat: *stat });
            }
        }
        for gone in known {
            remove(tree, &folder.path, gone, out);
        }
        Ok(())
    }
}

fn remove(tree: &Tree, dir: &[u8], node: &Node, out: &mut Scan) {
    let path = paths::join(dir, tree.name(node));
    if let Body::Dir(id) = node.body {
        out.removed.extend(tree.below(id, &path));
    }
    out.removed.push(path);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_folder_of_many_entries_is_left_when_told() {
        let tmp = tempfile::tempdir().expect("tmp");
        std::fs::write(tmp.path().join("first"), b"").expect("write");
        for number in 0..5000 {
            std::fs::hard_link(tmp.path().join("first"), tmp.path().join(format!("{number}"))).expect("link");
        }
        let root = std::fs::File::open(tmp.path()).expect("open");
        let options = Options { skip: b"", threads: 1, all: false };
        let asked = AtomicU32::new(0);
        let pulse = || if asked.fetch_add(1, Ordering::Relaxed) == 0 { Ok(()) } else { Err(Error::Interrupted) };
        let found = scan(root.as_fd(), &Index::default(), &options, &pulse);
        assert_eq!(found.map(|scan| scan.files).err(), Some(Error::Interrupted));
        assert_eq!(scan(root.as_fd(), &Index::default(), &options, &|| Ok(())).map(|scan| scan.files), Ok(5001));
    }
}
