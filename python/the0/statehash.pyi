"""Scanning, hashing, packing and unpacking of state directories (Rust, `crates/statehash`).

Paths are bytes relative to the root, `/` between parts, never beginning with one. Roots are directory
descriptors: nothing is ever opened by an absolute path or through a symlink. The GIL is released around
all work. Nothing here knows an object store, a claim or a bot.

Errors: OSError with errno and path as the system gave it; `FormatError` for bytes that are not ours, damaged,
or of a newer format; `DigestError` when bytes are not the ones that were named; `LimitError` when a stated
limit is passed (nothing half done remains visible to the caller's caller: they own the folder and wipe it).
"""

from collections.abc import Iterator
from typing import Any, Literal, final

BLOCK_BYTES: int
"""65536: files larger than one block are hashed and stored block by block."""
SEGMENT_FORMAT: int
INDEX_FORMAT: int

class FormatError(ValueError): ...
class DigestError(ValueError): ...
class LimitError(ValueError): ...

def digest(data: Any, /) -> str:
    """BLAKE3 of a bytes-like object, 64 hex digits."""

def trim() -> None:
    """Gives freed memory back to the system (`malloc_trim`); call after large work."""

Kind = Literal["file", "dir", "link"]

@final
class Entry:
    """One path of an index or a listing."""

    path: bytes
    kind: Kind
    mode: int
    """Permission bits, 0..0o7777."""
    size: int
    """Bytes of a file, length of a link's target; 0 for a directory."""
    mtime_ns: int
    digest: str
    """32 hex digits over the whole content: equal digests mean equal content. Of a file up to BLOCK_BYTES and of a link's target
    `digest(content)[:32]`; of a larger file a digest of its length and its blocks' digests; empty for a directory."""

@final
class Index:
    """What the tree held at the last commit: for each path its metadata and digest, for each block of a large
    file its digest and segment, for each segment its key, digest, stored bytes and live bytes; `meta`, opaque
    bytes of the caller's. On disk: a base and an append log of transactions, each checksummed. A crash at any instant leaves
    either the former or the new transaction, never a mixture. Not thread-safe."""

    def __init__(self) -> None:
        """Empty, in memory only."""
    @classmethod
    def open(cls, dir_fd: int, name: str) -> Index:
        """Reads `name` below dir_fd (regular file, no links followed, bounded); every offset is checked. A torn tail of the log is cut off.
        FileNotFoundError if there is none, FormatError if it is unreadable."""
    def save(self, dir_fd: int, name: str, *, sync: bool = False) -> None:
        """Writes a whole new base beside the old one and renames it; later changes are appended there.
        `sync` also fsyncs file and folder."""
    @property
    def meta(self) -> bytes:
        """The caller's bytes as of the last `confirm` or `set_meta`."""
    def set_meta(self, meta: bytes) -> None:
        """Replaces meta durably against a crash of the process (not of the host)."""
    @property
    def pending_meta(self) -> bytes | None:
        """Meta of a staged transaction that was neither confirmed nor abandoned, also after `open`."""
    def stage(self, pack: Pack, keys: list[str], meta: bytes) -> None:
        """Writes down what the index will be once `pack`, stored under `keys` (one for each segment, in order), is committed
        and the pack's `dropped` segments are no longer listed.
        Only one transaction can be staged. ValueError if the index changed since the pack's scan; an abandoned pack may be staged again."""
    def confirm(self, meta: bytes) -> None:
        """The staged transaction became true; meta replaces the former."""
    def abandon(self) -> None:
        """The staged transaction did not happen."""
    def segments(self) -> list[tuple[str, str, int, int]]:
        """(key, digest, stored bytes, live bytes) in generation order. Live: the share of the stored bytes whose records still
        count, removals that keep older segments from bringing paths back included (catalog.rs says why)."""
    def entries(self) -> Iterator[Entry]:
        """In byte order of the paths."""
    def get(self, path: bytes) -> Entry | None: ...
    @property
    def files(self) -> int: ...
    @property
    def bytes(self) -> int:
        """Content bytes of all files."""

@final
class Scan:
    """The outcome of a metadata walk against an index; holds what has to be looked into."""

    changed: int
    """Entries that are new or whose metadata differ or that were changed too recently for the clock to tell."""
    removed: int
    specials: list[bytes]
    """Up to 100 sockets, FIFOs, devices (never opened)."""
    largest: tuple[bytes, int] | None
    whole: bool
    """False where only folders with news were read."""
    def __bool__(self) -> bool:
        """True if there is anything to pack."""
    def touches(self, prefix: bytes) -> bool:
        """Whether anything that changed or vanished is `prefix` or lies below it."""
    def carry(self, index: Index, keys: list[str]) -> Scan:
        """This scan, and all that still counts in the index's segments of these keys, removals included: its pack stores that anew,
        so that they can be dropped. ValueError for an unknown key, or if the index changed since the scan."""
    def keep(self, paths: list[bytes]) -> Scan:
        """This scan without these files, also for all folds of its pack: each stays as it is stored (absent if it is not), unless its
        folder is gone or something else than a file is there now. After `carry`, if that is called as well."""
    files: int
    bytes: int
    """Of the whole tree as it is now. (Last, since the name hides the type.)"""

def scan(
    root_fd: int,
    index: Index,
    *,
    skip: bytes = b".the0",
    threads: int = 1,
    watch: Watch | None = None,
    whole: bool = True,
) -> Scan:
    """Walks the tree below root_fd: getdents and statx only, no file opened. `skip` is a top-level name left out, as `.the0` always is.
    With a watch every folder is watched before it is read; where `whole` is False, only folders that the watch has news of are read, and
    what lies below them that is new (all of it after all where the watch is blind, or where a file that changed has several names).
    The `-shm` file of a SQLite database is left out, too: it is made anew from the `-wal`.
    An entry counts as unchanged when kind, mode, size, mtime_ns, ctime_ns and inode are the index's and its
    times are older than the look that recorded them by more than the clock's granularity."""

@final
class Watch:
    """Knows by inotify in which folders anything changed since; readable (`fileno`, for poll) when there is news. Folders are added by
    `scan(watch=…)`, so one whole scan begins it. Writes through mmap, and through a hard link from elsewhere, give no news.
    Freeing it ends all watches. OSError where the system has none to give."""

    def __init__(self, root_fd: int, *, skip: bytes = b".the0", max_folders: int = 100_000) -> None: ...
    def fileno(self) -> int: ...
    def gather(self) -> int:
        """Takes in what came, without waiting; the number of all news so far."""
    @property
    def blind(self) -> str | None:
        """Why it cannot tell any more, for good: "overflow" (news were lost), "limit" (more folders than max_folders or than the system
        allows), or what the system said. None while it works."""
    @property
    def folders(self) -> int:
        """How many are watched."""
    @property
    def dirty(self) -> list[bytes]:
        """Folders with news that are not settled."""
    def moved_since(self, scan: Scan) -> bool:
        """Whether anything in the tree changed since that scan (with this watch) began, or may have: takes in what came first."""
    def settle(self, scan: Scan) -> None:
        """What that scan found is committed: news from before it began are done with."""

@final
class Recheck:
    """Reads the files of an index a share at a time, round after round, and finds content that changed without a trace in the metadata."""

    def __init__(self) -> None: ...
    def step(
        self, root_fd: int, index: Index, *, budget_bytes: int, budget_s: float, preferred_only: bool = False
    ) -> list[bytes]:
        """Reads on from where it was, about so much (a file counts as 4 KiB at least), at most to the round's end, or to the
        end of what is put first. Returns the paths that
        differ; in the index, in memory, they count as changed from now on, so that the next whole scan finds them. Scans and packs made
        before do not fit the index any more where there are any."""
    def prefer(self, index: Index, after_ns: int, upto_ns: int) -> None:
        """Puts files first whose ctime (of the clock of files, nanoseconds since 1970) is after the one and not after the other."""
    @property
    def preferred(self) -> int:
        """How many files are put first and not begun."""
    @property
    def rounds(self) -> int:
        """How often the whole tree was read."""
    @property
    def bytes(self) -> int:
        """Read so far."""

@final
class Segment:
    """Supports the buffer protocol (read-only bytes as stored)."""

    digest: str
    size: int
    raw_bytes: int
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...

@final
class Pack:
    """Turns a scan into segments: reads, hashes and compresses in one pass; files whose content proves unchanged are left out
    (their metadata, if changed, is stored). Memory stays below about two segments."""

    def __init__(
        self,
        root_fd: int,
        index: Index,
        scan: Scan,
        *,
        segment_bytes: int = 33554432,
        max_file_bytes: int | None = None,
        threads: int = 2,
    ) -> None: ...
    def next(self) -> Segment | None:
        """The next segment, or None at the end (or at once if nothing turned out to differ)."""
    def fold(self, *, watch: Watch | None = None, skip: bytes = b".the0", threads: int = 1) -> Scan:
        """After the end: looks for what changed since, holding the tree against what the index and this pack add up to; further calls of
        `next` pack it, into segments of the same commit. With the watch of the pack's scan only folders with news since are read.
        Without one the whole tree is walked, and a file changed within the clock's granularity counts as changed."""
    def replace(self, root_fd: int, paths: list[bytes]) -> Scan:
        """After the end: further calls of `next` pack these files as they are below root_fd, a folder of copies that bear mode and time of
        their originals; one that is not there is removed. The index sees them as changed at the next look. Those whose folder is not stored
        are passed over."""
    def differing(self, paths: list[bytes]) -> list[bytes]:
        """After the end: those that are not, by their metadata now, what the index and this pack add up to, or too fresh to tell."""
    @property
    def databases(self) -> list[bytes]:
        """After the end: main files of SQLite databases that were read, and those (maybe none) whose `-wal` or `-journal` changed."""
    @property
    def empty(self) -> bool:
        """After the end: nothing differed from the index (a racy or touched-back file); no generation is needed, but staging
        with no keys refreshes the index's times."""
    @property
    def moved(self) -> bool:
        """After the end: some file changed while it was read (it was read again, at most three times; the last
        state read is stored, whole)."""
    @property
    def incomplete(self) -> list[bytes]:
        """Files left at their last stored version: over max_file_bytes, or unreadable (EACCES). Also folders that may not be read
        (all below them stays as it was) and names whose path exceeds 16 KiB."""
    @property
    def dropped(self) -> list[str]:
        """After the end and before staging: those of the carried segments that nothing needs any more once this is committed.
        `Index.stage` takes exactly them out of the index's list."""
    @property
    def doubtful(self) -> list[bytes]:
        """What could not be carried: unreadable, or of other content than the index says although its metadata show no change
        (mmap, a failing disk). Nothing is stored for it, and the segments that hold it are not in `dropped`."""
    def touches(self, prefix: bytes) -> bool:
        """After the end: whether what was stored, changed or carried, lies at or below prefix."""

@final
class Restore:
    """Builds a tree below dest_fd (an empty folder) from segments given in generation order. Input is hostile:
    every length, path and number is checked; nothing is written outside dest_fd; links are never followed."""

    def __init__(self, dest_fd: int, *, max_bytes: int | None = None, max_entries: int = 50_000_000) -> None: ...
    def apply(self, segment: Any, *, key: str, digest: str) -> None: ...
    def finish(self, *, movable: bool = True) -> None:
        """Directory modes and times last. FormatError if a large file lacks a block. With `movable`, top-level folders stay
        writable for their owner until `index()` gives them their own mode: nobody but root can rename a folder that he may not write."""
    def index(self, root_fd: int) -> Index:
        """The index of the restored tree, found at root_fd now (after the caller renamed it into place); times and inodes read there.
        OSError or FormatError when the tree is not what was restored."""
    @property
    def bytes(self) -> int:
        """Content bytes of all files, as of the last segment. On the way there, `max_bytes` also bounds what later segments shrink."""

@final
class Listing:
    """What segments hold, without writing anything: for `ls` and `verify`. Every byte is decoded and checked."""

    def __init__(self) -> None: ...
    def apply(self, segment: Any, *, key: str, digest: str) -> None: ...
    def finish(self) -> None:
        """FormatError if a large file lacks a block."""
    def entries(self) -> Iterator[Entry]: ...

def differences(
    root_fd: int, index: Index, *, skip: bytes = b".the0", limit: int = 100, threads: int = 2
) -> list[bytes]:
    """Reads and hashes the whole tree: up to `limit` paths whose kind, mode, size or content are not the index's
    (mtime alone is no difference). When empty, the index's times and inodes are refreshed in memory, so that the next scan is quiet."""

@final
class Unzipped:
    entries: int
    bytes: int

def unzip(
    archive_fd: int,
    dest_fd: int,
    *,
    max_entries: int = 200_000,
    max_bytes: int = 8 << 30,
    max_ratio: int = 200,
    threads: int = 2,
) -> Unzipped:
    """Extracts a zip below dest_fd. Modes are kept (owner always rw, directories rwx); an entry marked as a link holds the target's content
    and becomes a regular file. Absolute names, `..`, NUL, backslash names that would escape, duplicates and files that are also
    folders are refused; so is anything over the limits (counted while streaming, not believed from headers;
    the ratio only counts beyond 64 MiB). FormatError names the entry and the reason."""
