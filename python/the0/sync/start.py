"""The start of a bot run: look at disk and store, decide by the start table, claim, bring the tree to what it must be.

Used by `execute` (in a forked child) and by `daemon init`. Safe to kill at any instant and to run again.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Literal

from the0 import files, names, statehash
from the0.errors import ExitCode, Fatal, Fault, Permanent, clip
from the0.frozen import dataclass, replace
from the0.objects.store import ObjectStore
from the0.settings import SyncSettings
from the0.sync import archive, lease, table
from the0.sync.commit import Committer, Fenced
from the0.sync.head import ArchiveRef, Conflict, Content, HeadFile, Stored
from the0.sync.imports import clear_sdk_state, import_archive
from the0.sync.local import Origin, StateFolder, boot_id
from the0.sync.restore import StoppedEarly, restore
from the0.sync.table import Decision, Local, Remote

_PASSING = (None, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
"""Errors that say nothing about the index itself."""
TRIES = 20
"""How often a claim that lost the race for HEAD begins again; each loss means that somebody else won."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What a start did. `wait_s`: how long the bot must still wait, so that a former holder has noticed."""

    epoch: int
    lineage: str
    generation: int
    wait_s: float
    how: Literal["first", "kept", "restored", "imported"]
    notes: tuple[str, ...] = ()
    """Sentences for the bot's log."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The disk, opened: the index (if usable) beside what the table needs to know of it."""

    local: Local
    index: statehash.Index | None


def start(
    settings: SyncSettings,
    store: ObjectStore,
    *,
    instance: str,
    ended: str | None = None,
    stop: threading.Event | None = None,
    now_s: Callable[[], float] = time.time,
) -> Started:
    """Claims the bot's state for `instance` and makes the state folder what it must be.

    The caller holds the lock on the state folder. `ended` is the instance whose end the orchestrator saw. Raises a Fault
    with its exit code: refused (211), damaged (214), over limits (215), store unreachable or denying, local disk; nothing is
    claimed where the table refuses, and a claim is released again where a later step fails.
    """
    run = _Start(settings, store, instance=instance, ended=ended, stop=stop or threading.Event(), now_s=now_s)
    try:
        with StateFolder(settings.paths.state) as folder:
            return run.run(folder)
    except OSError as reason:
        raise files.disk_fault(reason, f"preparing the state of bot {settings.bot_id}") from reason
    except Fenced as reason:
        raise Fatal(
            f"Another instance claimed bot {settings.bot_id} while this one was starting: it goes on, this one ends.",
            code=ExitCode.FENCED,
        ) from reason


class _Start:
    def __init__(
        self,
        settings: SyncSettings,
        store: ObjectStore,
        *,
        instance: str,
        ended: str | None,
        stop: threading.Event,
        now_s: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._store = store
        self._bucket = settings.buckets.state
        self._bot_id = settings.bot_id
        self._instance = instance
        self._ended = ended
        self._stop = stop
        self._now_s = now_s
        self._heads = HeadFile(store, bucket=self._bucket, bot_id=self._bot_id)
        self._archive = archive.ArchiveFile(store, bucket=self._bucket, bot_id=self._bot_id)
        self._notes: list[str] = []
        self._archive_etag: str | None = None

    def run(self, folder: StateFolder) -> Started:
        for _ in range(TRIES):
            if self._stop.is_set():
                raise StoppedEarly
            stored, remote = self._look()
            found = self._open(folder)
            decision = table.decide(found.local, remote)
            if decision.tree == "rehash":
                decision = self._rehash(folder, found, remote, decision)
            self._refuse(decision, remote)
            wait_s = lease.takeover_wait_s(
                stored.head if stored else None, own=self._own(found.local, stored), ended=self._ended
            )
            try:
                claimed = self._claim(folder, found, stored, decision)
            except Conflict:
                continue  # somebody else moved HEAD in between: look and decide again
            return self._carry_out(folder, found, decision, claimed, wait_s=wait_s)
        raise Fatal(
            f"HEAD of bot {self._bot_id} was taken {TRIES} times while claiming it: several instances start at once; leave one.",
            code=ExitCode.FENCED,
        )

    # --- looking ----------------------------------------------------------------------------------

    def _look(self) -> tuple[Stored | None, Remote]:
        """HEAD, the archive and the store's fitness, asked at the same time."""
        heads: list[Stored | None] = []
        archives: list[tuple[str | None, bool]] = []
        _together(
            lambda: heads.append(self._heads.read()),
            lambda: archives.append(self._archive.look()),
            lambda: self._store.check_conditional_put(self._bucket, names.state_prefix(self._bot_id) + "probe"),
        )
        stored = heads[0]
        etag, ours = archives[0]
        self._archive_etag = etag
        leftovers = stored is None and (
            (etag is not None and ours)
            or next(iter(self._store.list(self._bucket, names.segments_prefix(self._bot_id))), None) is not None
        )
        if leftovers:
            # Another first start may have been at work since HEAD was looked for.
            stored = self._heads.read()
            leftovers = stored is None
        content = stored.head.content if stored else None
        return stored, Remote(
            head=stored.head if stored else None,
            archive=archive.fact(etag, ours=ours, content=content),
            leftovers=leftovers,
        )

    def _open(self, folder: StateFolder) -> _Found:
        if folder.restoring:
            # A restore was cut off: all that stands there came from the store.
            folder.wipe()
            folder.drop_index()
            folder.unmark_restoring()
        try:
            index = folder.open_index()
            origin = Origin.decode(index.meta) if index is not None else None
            pending = index.pending_meta if index is not None else None
            staged = Origin.decode(pending) if pending is not None else None
        except (statehash.FormatError, ValueError, OSError) as reason:
            if isinstance(reason, OSError) and reason.errno in _PASSING:
                raise
            self._notes.append(f"The local index could not be read ({clip(str(reason))}) and is not used.")
            return _Found(Local(empty=not folder.children(), unreadable=True), None)
        return _Found(
            Local(
                origin=origin,
                staged=staged,
                empty=not folder.children(),
                same_boot=origin is None or origin.boot_id == boot_id(),
            ),
            index,
        )

    def _rehash(self, folder: StateFolder, found: _Found, remote: Remote, decision: Decision) -> Decision:
        index = found.index
        assert index is not None
        if decision.staged_true:
            assert found.local.staged is not None
            index.confirm(replace(found.local.staged, head=None).encode())
        elif index.pending_meta is not None:
            index.abandon()
        differing = statehash.differences(folder.root_fd, index, limit=1)
        return table.after_rehash(found.local, remote, equal=not differing, now_s=self._now_s())

    def _refuse(self, decision: Decision, remote: Remote) -> None:
        if decision.tree == "refuse":
            raise Permanent(
                f"The state of bot {self._bot_id} is refused: {decision.why}. Nothing was changed; look with `runtime state show`, "
                "then choose with `runtime state adopt --local` or `runtime state adopt --store`.",
                code=ExitCode.REFUSED,
            )
        content = remote.head.content if remote.head else None
        if (
            decision.tree == "restore"
            and content is not None
            and content.incomplete
            and self._settings.policies.incomplete != "run"
        ):
            raise Permanent(
                f"Generation {content.generation} of bot {self._bot_id} is incomplete ({clip(', '.join(content.incomplete))} "
                "over MAX_STATE_FILE_SIZE_MB or unreadable): it is not restored unless config.the0.incomplete is run.",
                code=ExitCode.REFUSED,
            )

    # --- claiming ---------------------------------------------------------------------------------

    def _own(self, local: Local, stored: Stored | None) -> tuple[str, ...]:
        """Instances that are known to have ended, since this folder was theirs and nobody holds its lock. A folder that was copied
        to another machine says the same of one that may still run there: there the boot is another, and so is the machine's name."""
        if local.origin is None or stored is None:
            return ()
        if not local.same_boot and lease.machine_of(stored.head.claim) != lease.machine_here():
            return ()
        return local.origin.instances

    def _claim(self, folder: StateFolder, found: _Found, stored: Stored | None, decision: Decision) -> Stored:
        """The claim's swap. Which instances may hold it is written down before, so that a start after a crash knows its own."""
        index = found.index
        if index is None:
            index = statehash.Index()
            former = Origin()
        else:
            former = found.local.origin or Origin()
        instances = (*former.instances[-3:], self._instance)
        if found.index is None:
            if not found.local.unreadable:
                index.set_meta(replace(former, instances=instances).encode())
                folder.save_index(index)
        elif index.pending_meta is None or decision.tree == "keep":
            index.set_meta(replace(Origin.decode(index.meta), instances=instances).encode())
        importing = self._archive_etag if decision.archive == "import" else None
        head = lease.claimed(
            stored.head if stored else None,
            holder=lease.holder_here(),
            instance=self._instance,
            new_lineage=decision.new_lineage,
            import_etag=importing,
        )
        if decision.new_lineage and importing is None and self._archive_etag is not None:
            # What a removed bot left behind is known, so that it is not imported later.
            head = replace(head, content=replace(head.content, archive=ArchiveRef(self._archive_etag, 0)))
        return self._heads.swap(stored, head)

    # --- carrying out -----------------------------------------------------------------------------

    def _carry_out(
        self, folder: StateFolder, found: _Found, decision: Decision, claimed: Stored, *, wait_s: float
    ) -> Started:
        origin = Origin(instances=(self._instance,))
        committer: Committer | None = None
        try:
            index = self._tree(folder, found, decision, claimed.head.content, origin)
            committer = Committer.of(self._settings, self._store, folder=folder, index=index, stored=claimed)
            self._settle(folder, committer, decision)
        except BaseException:
            self._give_back(committer.stored if committer else claimed)
            raise
        content = committer.content
        how: Literal["first", "kept", "restored", "imported"] = "first"
        if decision.archive == "import":
            how = "imported"
        elif decision.tree in ("keep", "adopt"):
            how = "kept"
        elif decision.tree == "restore":
            how = "restored"
        return Started(
            epoch=claimed.head.claim.epoch,
            lineage=content.lineage,
            generation=content.generation,
            wait_s=wait_s,
            how=how,
            notes=tuple(self._notes),
        )

    def _tree(
        self, folder: StateFolder, found: _Found, decision: Decision, content: Content, origin: Origin
    ) -> statehash.Index:
        """Brings the tree to where the decision wants it; returns its index, saved."""
        if decision.tree == "keep":
            assert found.index is not None
            assert found.local.origin is not None
            index = found.index
            if decision.staged_true and index.pending_meta is not None:
                index.confirm(origin.at(content).encode())
            elif index.pending_meta is not None:
                index.abandon()  # the claim moved HEAD, so what was staged can never arrive
            index.set_meta(origin.at(content).encode())
            if not found.local.same_boot:
                folder.save_index(index)  # the rehash took down new times
            return index

        def make_way() -> None:
            if decision.aside:
                self._leave_tree(folder, found, decision)
            else:
                folder.drop_index()

        if decision.tree == "restore":
            return restore(
                folder,
                content,
                store=self._store,
                bucket=self._bucket,
                bot_id=self._bot_id,
                origin=origin,
                max_bytes=self._settings.limits.state_bytes,
                stop=self._stop,
                make_way=make_way,
            )
        make_way()
        index = statehash.Index()
        index.set_meta(origin.at(content).encode())
        folder.save_index(index)
        return index

    def _leave_tree(self, folder: StateFolder, found: _Found, decision: Decision) -> None:
        """Sets the present tree aside; drops it where it is just an older generation that the store holds too."""
        index, origin = found.index, found.local.origin
        if index is not None and origin is not None and origin.lineage and found.local.same_boot:
            if index.pending_meta is not None:
                index.abandon()
            older = decision.tree == "restore" and decision.why == table.ANOTHER_HOST
            if older and not statehash.differences(folder.root_fd, index, limit=1):
                # The mark first: a crash in between must not take the rest for a tree that somebody emptied.
                folder.mark_restoring()
                folder.wipe()
                return
        name = folder.set_aside("replaced")
        if name is not None:
            self._notes.append(
                f"The local state tree was set aside as {names.RESERVED_DIR}/{names.ASIDE}/{name} ({decision.why}); "
                "the store's state is used."
            )

    def _settle(self, folder: StateFolder, committer: Committer, decision: Decision) -> None:
        """What must be committed before the bot may start: an adopted tree, an imported or cleared archive."""
        if decision.tree == "adopt":
            committer.commit(committer.scan())
        # Looked at again under the claim: a former holder may have written its first archive while we looked.
        if decision.archive == "clear" and self._archive.look()[0] is None:
            clear_sdk_state(folder, committer, self._archive)
            self._notes.append("The SDK state was cleared from outside; the bot starts with an empty one.")
        elif decision.archive == "import":
            self._notes += import_archive(
                folder, committer, self._archive, max_bytes=self._settings.limits.state_bytes, bot_id=self._bot_id
            )

    def _give_back(self, stored: Stored) -> None:
        """Releases the claim of a start that failed, so that the next one need not wait. Best effort: an unreleased claim
        only costs that wait."""
        try:
            self._heads.swap(stored, lease.released(stored.head))
        except (Fault, Conflict):
            pass  # the failure that brought us here is the one to tell


def _together(*tasks: Callable[[], object]) -> None:
    """Runs all in threads of their own; raises the first error once all have ended."""
    errors: list[BaseException] = []

    def guard(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as reason:  # noqa: BLE001 - carried to the caller's thread below
            errors.append(reason)

    threads = [threading.Thread(target=guard, args=(task,), name="look", daemon=True) for task in tasks[1:]]
    for thread in threads:
        thread.start()
    guard(tasks[0])
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
