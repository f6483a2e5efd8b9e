"""A commit: what changed becomes segments, the segments are stored, then HEAD moves. Two PUTs where little changed, three where it
also cleans (`cleaning`).

What was sent is written down in the index first (`stage`), so that after any interruption it is known whether HEAD holds it.
As long as the outcome of a swap is unknown, nothing else is sent than that very swap again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from the0 import names, statehash
from the0.errors import ExitCode, Permanent, Transient
from the0.frozen import dataclass, replace
from the0.objects.store import ObjectStore
from the0.settings import SyncSettings
from the0.sync import cleaning, lease
from the0.sync.cleaning import Bounds, Held
from the0.sync.databases import Databases, files_of
from the0.sync.head import ArchiveRef, Conflict, Content, Head, HeadFile, SegmentRef, Stored, decode, with_nonce
from the0.sync.history import HistoryFiles
from the0.sync.lanes import Lane
from the0.sync.local import Origin, StateFolder

SDK_PREFIX = names.SDK_STATE_DIR.encode()
SPARED_S = 600.0
"""For how long a segment that could not be carried whole is not chosen again."""
WEIGHED_S = 0.0005
"""Weighing what still counts in each segment takes longer the more files there are. Where it takes longer than this, it is not done
at each commit, but so that it takes at most 1/`WEIGHED_SHARE` of the time."""
WEIGHED_SHARE = 1000.0
CUT_TRIES = 3
"""How often what moved during a commit is folded in."""
_TORN_TRIES = 5
UNREADABLE = (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA)
"""Of reading what lies on a bad block, or in a damaged part of a file system."""
UNREADABLE_S = 60.0
"""For how long a large file that could not be read stays as it is stored before it is tried again."""
_CHEAP_S = 0.05
"""A pack that took less is made anew rather than followed by another segment."""
_PAST_THE_CLOCK_S = 0.03
"""More than the granularity of the clock that files are stamped with."""


class Fenced(Exception):
    """Another instance holds the claim: this one must not write any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What one pass stored. `generation` is None where nothing had to be stored."""

    generation: int | None
    segments: int = 0
    stored_bytes: int = 0
    touched_sdk: bool = False
    incomplete: tuple[str, ...] = ()
    specials: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    """Databases that were written all the time, and stay as they were stored."""
    dropped: int = 0
    """Segments that HEAD no longer lists."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """What is stored and not yet named by HEAD."""

    pack: statehash.Pack
    refs: list[SegmentRef]
    scan: statehash.Scan
    """The last one that was packed."""
    carried: list[str]
    """Keys of the segments of which what counts was packed, too."""
    cut: bool
    stale: frozenset[bytes]
    """Databases that were left as they are stored."""


class _Torn(Exception):
    """What was packed of these databases is not whole."""

    def __init__(self, mains: frozenset[bytes]) -> None:
        super().__init__("databases were written while they were packed")
        self.mains = mains


class OverLimit(Permanent):
    """The tree is over MAX_STATE_SIZE_MB: the last generation stays."""


class Committer:
    """Commits the tree of one state folder under one claim. Not thread-safe."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        bucket: str,
        bot_id: str,
        folder: StateFolder,
        index: statehash.Index,
        stored: Stored,
        max_bytes: int,
        max_file_bytes: int | None,
        bounds: Bounds | None = None,
    ) -> None:
        self.stored = stored
        self.index = index
        self.live = False
        """A bot runs beside us: what moves during a commit is looked for and folded in."""
        self.watch: statehash.Watch | None = None
        """Where there is one, scans watch every folder, and it tells what moved during a commit."""
        self._store = store
        self._bucket = bucket
        self._bot_id = bot_id
        self._folder = folder
        self._heads = HeadFile(store, bucket=bucket, bot_id=bot_id)
        self._epoch = stored.head.claim.epoch
        self._instance = stored.head.claim.instance
        self._max_bytes = max_bytes
        self._max_file_bytes = max_file_bytes
        self._bounds = bounds or Bounds()
        self._history = HistoryFiles(store, bucket=bucket, bot_id=bot_id)
        self._spared: dict[str, float] = {}
        self._weighed_again_s = 0.0
        self._unreadable: dict[bytes, float] = {}
        """Large files that could not be read, and until when they stay as they are stored."""
        self._databases = Databases(folder)
        self._restless: frozenset[bytes] = frozenset()
        """Databases that were written while we looked: only copies of them are packed."""
        self._halved: dict[bytes, frozenset[bytes]] = {}
        """Databases of which a file is incomplete, and their other files, which then stay as they are stored, too."""

    @classmethod
    def of(
        cls,
        settings: SyncSettings,
        store: ObjectStore,
        *,
        folder: StateFolder,
        index: statehash.Index,
        stored: Stored,
        bounds: Bounds | None = None,
    ) -> Committer:
        """Of the bot that the settings name, within its limits."""
        return cls(
            store=store,
            bucket=settings.buckets.state,
            bot_id=settings.bot_id,
            folder=folder,
            index=index,
            stored=stored,
            max_bytes=settings.limits.state_bytes,
            max_file_bytes=settings.limits.left_out_over_bytes,
            bounds=bounds,
        )

    @property
    def content(self) -> Content:
        return self.stored.head.content

    def live_bytes(self) -> int:
        """Stored bytes that still count."""
        return sum(live for _, _, _, live in self.index.segments())

    def scan(self, *, whole: bool = True) -> statehash.Scan:
        """Of the whole tree, or of the folders that the watch has news of."""
        threads = 2 if self.index.files == 0 else 1  # a first scan is part of a large upload, others shall not be felt
        return statehash.scan(
            self._folder.root_fd, self.index, watch=self.watch, whole=whole or self.watch is None, threads=threads
        )

    def settle(self, scan: statehash.Scan) -> None:
        """That scan, made with the present watch, is dealt with."""
        if self.watch is not None:
            self.watch.settle(scan)

    def due(self, scan: statehash.Scan) -> bool:
        """Whether there is anything to commit: a change, a commit whose end is not known, or what the last one left out."""
        return bool(scan) or self.index.pending_meta is not None or self.lacking

    @property
    def lacking(self) -> bool:
        """Whether the last generation left something out that may be to be had by now."""
        return bool(self.content.incomplete or self.content.stale)

    def commit(
        self, scan: statehash.Scan, *, imported_etag: str | None = None, between: Callable[[], None] | None = None
    ) -> Committed:
        """Stores what the scan found. `imported_etag` also records that archive and ends the claim's import in the same swap;
        `between` is called before each segment's upload, and what it raises ends the commit.

        Raises OverLimit, Fenced, Unavailable (outcome unknown: `resolve`, or commit again), OSError of the local disk.
        """
        if self.index.pending_meta is not None:
            self.resolve()
            scan = self.scan()  # the one given was held against the index as it was before
        generation = self.content.generation + 1
        packed = self._upload(scan, generation, between)
        pack, refs = packed.pack, packed.refs
        dropped = pack.dropped
        now_s = time.monotonic()
        self._spared.update((key, now_s + SPARED_S) for key in set(packed.carried) - set(dropped))
        outcome = Committed(
            generation=generation if refs or dropped else None,
            segments=len(refs),
            stored_bytes=sum(ref.bytes for ref in refs),
            touched_sdk=bool(refs) and pack.touches(SDK_PREFIX),
            incomplete=tuple(os.fsdecode(path) for path in self._incomplete(pack)),
            specials=tuple(os.fsdecode(path) for path in scan.specials),
            stale=tuple(sorted(os.fsdecode(path) for path in packed.stale)),
            dropped=len(dropped),
        )
        if refs or dropped:
            self._send(packed, dropped, outcome, imported_etag)
        else:
            self.index.stage(pack, [], self.index.meta)
            self.index.confirm(self.index.meta)
            archive = _imported(imported_etag, self.content.generation) if imported_etag is not None else None
            lacks = (outcome.incomplete, outcome.stale)
            if archive is not None or lacks != (self.content.incomplete, self.content.stale):
                self.record(archive=archive, end_import=archive is not None, lacks=lacks)
        self.settle(packed.scan)
        return outcome

    def resolve(self) -> None:
        """Finds out how a staged commit ended, repeating its swap if HEAD has not moved since. Without one, does nothing."""
        while (staged := self.index.pending_meta) is not None:
            origin = Origin.decode(staged)
            if origin.of(self.content):
                self._confirm()
                return
            head = decode(origin.head.encode(), bot_id=self._bot_id) if origin.head is not None else None
            if head is None or not self._follows(head):
                self.index.abandon()
                return
            try:
                self.stored = self._heads.swap(self.stored, head)
            except Conflict as conflict:
                self._rebase(conflict.stored)

    def record(
        self,
        *,
        archive: ArchiveRef | None = None,
        end_import: bool = False,
        release: bool = False,
        lacks: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
    ) -> None:
        """Swaps HEAD without new content: the archive as it now is, the end of an import, the release of the claim, the files and the
        databases (`incomplete`, `stale`) that this generation lacks."""
        self.resolve()
        while True:
            head = self.stored.head
            content = replace(
                head.content,
                archive=head.content.archive if archive is None else archive,
                incomplete=head.content.incomplete if lacks is None else lacks[0],
                stale=head.content.stale if lacks is None else lacks[1],
                cut=head.content.cut and not (lacks is not None and lacks[1]),
            )
            claim = replace(
                head.claim,
                released=head.claim.released or release,
                import_etag=None if end_import else head.claim.import_etag,
            )
            try:
                self.stored = self._heads.swap(self.stored, with_nonce(Head(content=content, claim=claim)))
            except Conflict as conflict:
                self._rebase(conflict.stored)
            else:
                return

    def look(self) -> None:
        """Looks at HEAD, cheaply. Raises Fenced where the claim is another's, Unavailable where it cannot be read."""
        now = self._heads.read_if_changed(self.stored)
        if now is None or now.etag != self.stored.etag:
            self._rebase(now)

    def _to_carry(self) -> list[str]:
        """Keys of the segments that this commit also carries and drops."""
        now_s = time.monotonic()
        if now_s < self._weighed_again_s:
            return []
        self._spared = {key: until_s for key, until_s in self._spared.items() if until_s > now_s}
        begun_s = time.thread_time()
        held = [Held(key, stored, live) for key, _, stored, live in self.index.segments()]
        took_s = time.thread_time() - begun_s
        if took_s > WEIGHED_S:
            self._weighed_again_s = now_s + took_s * WEIGHED_SHARE
        return list(cleaning.choose(held, bounds=self._bounds, spared=self._spared))

    def _upload(self, scan: statehash.Scan, generation: int, between: Callable[[], None] | None) -> _Packed:
        """Packs and stores what changed. Where that holds databases that are not whole, it is done again without them."""
        self._restless = self._databases.present(self._restless)
        now_s, torn = time.monotonic(), 0
        self._unreadable = {path: until_s for path, until_s in self._unreadable.items() if until_s > now_s}
        carried = self._to_carry()
        # In each case: what was stored is not named by any HEAD, and swept some day.
        while torn < _TORN_TRIES:
            try:
                return self._store_all(scan, generation, between, carried)
            except _Torn as reason:
                torn += 1
                self._restless |= reason.mains
            except OSError as reason:
                path = reason.filename
                if reason.errno not in UNREADABLE or not isinstance(path, bytes) or path in self._unreadable:
                    raise
                self._unreadable[path] = now_s + UNREADABLE_S
            scan = self.scan()
        raise Transient(
            f"The state of bot {self._bot_id} has new databases at every look that are written all the time: generation "
            f"{self.content.generation} stays the last one stored until they rest.",
            code=ExitCode.FINAL_SYNC,
        )

    def _store_all(
        self, scan: statehash.Scan, generation: int, between: Callable[[], None] | None, carried: list[str]
    ) -> _Packed:
        """Packs and stores what changed, and what changed meanwhile, until nothing did or the tries are used up. Raises _Torn."""
        restless = self._restless
        refs: list[SegmentRef] = []
        with Lane("upload") as lane:

            def send(segment: statehash.Segment | None) -> None:
                if segment is None:
                    return
                key = names.segment_key(
                    self._bot_id, lineage=self.content.lineage, generation=generation, digest=segment.digest
                )
                refs.append(SegmentRef(key, segment.digest, segment.size))
                if between is not None:
                    between()
                lane.do(_putter(self._store, self._bucket, key, segment))

            pack = self._pack(scan, carried)
            begun_s, cut = time.monotonic(), False
            for left in reversed(range(CUT_TRIES)):
                last: statehash.Segment | None = None
                while (segment := pack.next()) is not None:
                    send(last)
                    last = segment
                watch = self.watch if self.watch is not None and self.watch.blind is None else None
                cut = not self.live or (watch is not None and not watch.moved_since(scan))
                if cut or not left or (last is None and not refs and not pack.dropped):
                    send(last)
                    break
                if watch is not None and not scan.whole and not refs and time.monotonic() - begun_s < _CHEAP_S:
                    scan = self.scan(whole=False)
                    pack = self._pack(scan, carried)
                    continue
                send(last)
                if watch is None:
                    # A change within the clock's granularity of our look would not show.
                    time.sleep(_PAST_THE_CLOCK_S)
                scan = self._within(pack.fold(watch=watch))
                if watch is None and not scan:
                    cut = True
                    break
            self._check_halved(pack)
            cut = cut and not pack.moved and not restless
            stale = frozenset[bytes]() if cut or not self.live else self._pack_databases(pack, restless, send)
        return _Packed(pack, refs, scan, carried, cut=cut, stale=stale)

    def _incomplete(self, pack: statehash.Pack) -> list[bytes]:
        """Files that stay as they are stored, since they are too large, or cannot be read."""
        return sorted({*pack.incomplete, *self._unreadable})

    def _check_halved(self, pack: statehash.Pack) -> None:
        """Raises _Torn where of a database some files are incomplete and others not."""
        incomplete = frozenset(self._incomplete(pack))
        if not incomplete and not self._halved:
            return
        mains = self._databases.present(frozenset(pack.databases).union(self._halved))
        halved = {
            main: frozenset(files_of(main)) - incomplete for main in mains if incomplete.intersection(files_of(main))
        }
        if halved != self._halved:
            self._halved = halved
            raise _Torn(frozenset())

    def _pack_databases(
        self, pack: statehash.Pack, restless: frozenset[bytes], send: Callable[[statehash.Segment | None], None]
    ) -> frozenset[bytes]:
        """Packs copies of the databases that moved since they were read, or were left out for that. Returns those of the latter that
        could not be copied. Raises _Torn for the former."""
        mains = sorted(restless.union(pack.databases).difference(self._halved))
        if not mains:
            return frozenset()
        copied = self._databases.copy(mains, pack.differing)
        try:
            pack.replace(copied.folder_fd, list(copied.paths))
            while (segment := pack.next()) is not None:
                send(segment)
        finally:
            self._databases.done(copied.folder_fd)
        if torn := copied.torn - restless:
            raise _Torn(torn)
        self._restless = (restless | copied.moving) - copied.rested
        return copied.torn

    def _pack(self, scan: statehash.Scan, carried: list[str]) -> statehash.Pack:
        """Of the scan, and of what still counts in the segments that are to be carried."""
        if carried:
            scan = scan.carry(self.index, carried)
        kept = {path for main in self._restless.difference(self._halved) for path in files_of(main)}
        kept.update(*self._halved.values(), self._unreadable)
        if kept:
            scan = scan.keep(sorted(kept))
        scan = self._within(scan)
        return statehash.Pack(self._folder.root_fd, self.index, scan, max_file_bytes=self._max_file_bytes)

    def _within(self, scan: statehash.Scan) -> statehash.Scan:
        if scan.bytes > self._max_bytes:
            raise OverLimit(
                f"The state of bot {self._bot_id} is {scan.bytes} bytes, over MAX_STATE_SIZE_MB ({self._max_bytes // 2**20}): "
                f"generation {self.content.generation} stays the last one stored; make it smaller or raise the limit.",
                code=ExitCode.STATE_LIMIT,
            )
        return scan

    def _send(self, packed: _Packed, dropped: list[str], outcome: Committed, imported_etag: str | None) -> None:
        pack, refs = packed.pack, packed.refs
        gone = frozenset(dropped)
        if gone:
            # What is no longer listed then stays restorable by this, until `sweep` finds it too old.
            self._history.write(self.content)
        while True:
            former = self.stored.head
            generation = former.content.generation + 1
            content = replace(
                former.content,
                generation=generation,
                segments=(*(ref for ref in former.content.segments if ref.key not in gone), *refs),
                since=generation if gone else former.content.since,
                cut=packed.cut,
                stale=outcome.stale,
                incomplete=outcome.incomplete,
            )
            claim = former.claim
            if imported_etag is not None:
                content = replace(content, archive=_imported(imported_etag, content.generation))
                claim = replace(claim, import_etag=None)
            head = with_nonce(Head(content=content, claim=claim))
            origin = Origin.decode(self.index.meta).at(content)
            self.index.stage(pack, [ref.key for ref in refs], replace(origin, head=head.encode().decode()).encode())
            try:
                self.stored = self._heads.swap(self.stored, head)
            except Conflict as conflict:
                self.index.abandon()
                self._rebase(conflict.stored)
            else:
                self._confirm()
                return

    def _confirm(self) -> None:
        self.index.confirm(Origin.decode(self.index.meta).at(self.content).encode())

    def _follows(self, head: Head) -> bool:
        """Whether a staged HEAD could still be sent on top of the one stored now."""
        former = self.stored.head
        return (
            (head.claim.epoch, head.claim.instance) == (former.claim.epoch, former.claim.instance)
            and head.content.lineage == former.content.lineage
            and head.content.generation == former.content.generation + 1
        )

    def _rebase(self, now: Stored | None) -> None:
        """HEAD is not what we left. Where the claim and the content are still ours (a request of our killed predecessor came
        in late), go on from there; everything else is another holder."""
        if now is None or not lease.holds(now.head, epoch=self._epoch, instance=self._instance):
            raise Fenced
        staged = self.index.pending_meta
        known = Origin().at(self.content)
        if not known.of(now.head.content) and not (staged and Origin.decode(staged).of(now.head.content)):
            raise Fenced
        self.stored = now


def _imported(etag: str, generation: int) -> ArchiveRef:
    """As of the generation before, so that the daemon soon writes ours in its place: an edit of one key in an archive of the
    earlier layout would else be taken for a whole state."""
    return ArchiveRef(etag, max(generation - 1, 0))


def _putter(store: ObjectStore, bucket: str, key: str, segment: statehash.Segment) -> Callable[[], None]:
    def put() -> None:
        store.put(bucket, key, memoryview(segment))

    return put


def reclaim(heads: HeadFile, *, epoch: int, instance: str) -> Stored:
    """HEAD as the holder finds it after its process was started again; Fenced where the claim is another's."""
    stored = heads.read()
    if stored is None or not lease.holds(stored.head, epoch=epoch, instance=instance):
        raise Fenced
    return stored
