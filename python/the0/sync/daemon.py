"""The sync daemon: as long as a bot runs, its state and logs follow into the store; at its end, all of it.

One loop owns the state (`Keeper`), one thread ships logs. Both stop when told, the final commit and the last lines last.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from the0 import files, names, statehash, threads
from the0.errors import ExitCode, Fatal, Fault, Permanent, clip
from the0.objects.store import ObjectStore, PreconditionFailed, Unavailable
from the0.settings import SyncSettings
from the0.sync import imports, lease
from the0.sync.archive import ArchiveFile
from the0.sync.commit import SDK_PREFIX, Committed, Committer, Fenced, OverLimit, reclaim
from the0.sync.head import HeadFile
from the0.sync.local import Origin, StateFolder
from the0.sync.logs import LogShipper
from the0.sync.rehash import Rehash
from the0.sync.sweep import Sweeper, Sweeping
from the0.sync.table import FAILING_S
from the0.sync.watching import Bell, Watching

TICK_S = 1.0
"""How often the whole tree's metadata are looked at where it cannot be watched; less often where that would take over 1/20 of a core."""
SHARE = 20
PACK_SHARE = 5
"""Storing takes at most 1/5 of a core, until it would have to wait for longer than `PAUSE_S`."""
PAUSE_S = 5.0
ARCHIVE_EVERY_S = 60.0
LOOK_AGAIN_S = 5.0
"""When HEAD is looked at again after it could not be read."""
_WORTH_TRIMMING_BYTES = 1 << 20
FINAL_S = 20.0
"""How long a stop goes on trying to reach a store that does not answer. What does not get there stays on the disk."""


@dataclass(slots=True)
class _Said:
    """What was said already, so that it is said once."""

    over_limit: bool = False
    failing: bool = False
    archive: bool = False
    incomplete: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    specials: bool = False


class Keeper:
    """Keeps one state folder in the store under one claim. `one_pass` is called until the bot has ended, then `finish`."""

    def __init__(
        self,
        settings: SyncSettings,
        store: ObjectStore,
        *,
        folder: StateFolder,
        committer: Committer,
        say: Callable[[str], None],
        now_s: float,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._committer = committer
        committer.live = True
        self._archive = ArchiveFile(store, bucket=settings.buckets.state, bot_id=settings.bot_id)
        self._say = say
        self._said = _Said()
        # A predecessor may have died between a commit and its archive.
        archived = committer.content.archive
        self._archive_due = (archived.generation if archived else 0) < committer.content.generation
        self._base_checked = False
        claim = committer.stored.head.claim
        self._sweeping = Sweeping(
            Sweeper(
                store,
                bucket=settings.buckets.state,
                bot_id=settings.bot_id,
                epoch=claim.epoch,
                instance=claim.instance,
            ),
            say=say,
        )
        self._archived_s = now_s
        self._looked_s = now_s
        self._next_look_s = now_s + lease.LOOK_S
        self._blind = False
        self._failing_since_s: float | None = None
        self._next_try_s = 0.0
        self._backoff_s = TICK_S
        self.watching = Watching(folder.root_fd, say=say)
        self._rehash = Rehash(now_s=now_s, clock_s=time.time())
        self._whole = True
        self._next_whole_s = now_s
        self._not_before_s = now_s
        self.store_down = False
        """The store has been out of reach for longer than the policy allows."""

    def one_pass(self, now_s: float) -> float:
        """Looks, commits what changed, keeps the claim in sight. Raises Fenced.

        Returns the seconds until the next look is due without news.
        """
        really_s = time.monotonic()
        trouble: Fault | None = None
        try:
            if now_s >= self._next_try_s:
                scan = self._scan(now_s)
                if scan is not None:
                    begun_s = time.process_time()
                    self._commit(scan, between=lambda: self._glance(now_s + time.monotonic() - really_s))
                    pause_s = min((time.process_time() - begun_s) * (PACK_SHARE - 1), PAUSE_S)
                    self._not_before_s = max(self._not_before_s, now_s + time.monotonic() - really_s + pause_s)
                self._publish(now_s, at_most_every_s=ARCHIVE_EVERY_S)
                self._sweeping.tend(now_s, live_bytes=self._committer.live_bytes)
        except Fault as reason:
            trouble = reason
        except OSError as reason:
            trouble = files.disk_fault(reason, f"storing the state of bot {self._settings.bot_id}")
        try:
            # Whatever cannot be stored: another claim must not go unseen, and no pause after a failure delays this.
            self._look(now_s)
        except Fault as reason:
            trouble = reason
        if trouble is not None:
            self._failed(trouble, now_s)
        elif now_s >= self._next_try_s and not self._blind:
            try:
                self._recovered(now_s)
            except OSError as reason:
                self._failed(files.disk_fault(reason, f"storing the state of bot {self._settings.bot_id}"), now_s)
        return self._due_s(now_s) - now_s

    @property
    def not_before_s(self) -> float:
        """When news are next worth a pass."""
        return max(self._not_before_s, self._next_try_s)

    def _due_s(self, now_s: float) -> float:
        due = [self._next_look_s, self._next_whole_s]
        if self._archive_due:
            due.append(self._archived_s + ARCHIVE_EVERY_S)
        if self._failing_since_s is not None:
            due.append(self._next_try_s)
        return max(min(due), self.not_before_s, now_s)

    def _scan(self, now_s: float) -> statehash.Scan | None:
        """Of the whole tree, of what the watch has news of, or nothing."""
        committer = self._committer
        if self._rehash.step(self._folder.root_fd, committer.index, now_s=now_s, clock_s=time.time()):
            self._whole = True
        sees = self.watching.sees(now_s)
        committer.watch = self.watching.watch
        unfinished = committer.index.pending_meta is not None or committer.lacking
        self._whole = self._whole or not sees or unfinished or now_s >= self._next_whole_s
        if not self._whole and self.watching.watch is not None and not self.watching.watch.dirty:
            return None
        begun_s = time.thread_time()
        scan = committer.scan(whole=self._whole)
        if scan.whole:
            cost_s = time.thread_time() - begun_s
            every_s = TICK_S if self.watching.watch is None else self._settings.interval_s
            self._next_whole_s = now_s + max(every_s, cost_s * SHARE)
            self._not_before_s = now_s + min(cost_s * SHARE, PAUSE_S)
        return scan

    def finish(self, *, deadline_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        """The final commit and the archive. The bot has ended. Raises the last Fault when the deadline has passed, or Fenced."""
        try:
            self._rehash.finish(self._folder.root_fd, self._committer.index, clock_s=time.time())
        except OSError as reason:
            raise files.disk_fault(reason, f"reading the state of bot {self._settings.bot_id}") from reason
        while True:
            try:
                self._commit(self._committer.scan())
                if self._said.over_limit:
                    raise Fatal("it is over MAX_STATE_SIZE_MB.", code=ExitCode.STATE_LIMIT)
                self._publish(now_s(), at_most_every_s=0.0)
                self._sweeping.finish(live_bytes=self._committer.live_bytes)
                return
            except Unavailable:
                if now_s() >= deadline_s:
                    raise
                threading.Event().wait(0.2)
            except OSError as reason:
                raise files.disk_fault(reason, f"storing the last state of bot {self._settings.bot_id}") from reason

    def release(self) -> None:
        """The last thing of a run: the next one need not wait for us."""
        self._committer.record(release=True)

    def set_aside_unsynced(self) -> None:
        """After a fence, once the bot has ended: another instance went on from the last generation; what is newer here is kept aside."""
        if self._committer.scan():
            name = self._folder.set_aside("fenced")
            self._say(
                f"Another instance took over; unsynced state is set aside as {names.RESERVED_DIR}/{names.ASIDE}/{name}."
            )

    # --- parts of a pass --------------------------------------------------------------------------

    def _look(self, now_s: float) -> None:
        """Looks at HEAD where that is due. `_looked_s` is when it was last seen to be ours."""
        if now_s < self._next_look_s:
            return
        self._blind, self._next_look_s = True, now_s + LOOK_AGAIN_S
        self._committer.look()
        self._blind, self._looked_s, self._next_look_s = False, now_s, now_s + lease.LOOK_S

    def _glance(self, now_s: float) -> None:
        """The same in the middle of a long upload, which a failing look does not end; the pass looks again."""
        try:
            self._look(now_s)
        except Fault:
            pass

    def _commit(self, scan: statehash.Scan, *, between: Callable[[], None] | None = None) -> None:
        if not self._committer.due(scan):
            self._committer.settle(scan)
            self._whole = False
            self._within_limit()
            return
        try:
            done = self._committer.commit(scan, between=between)
        except OverLimit as reason:
            # News wake us again; what was found is not stored, so the next scan is of everything.
            self._committer.settle(scan)
            self._whole = True
            if not self._said.over_limit:
                self._said.over_limit = True
                self._say(reason.sentence)
            return
        except BaseException:
            self._whole = True
            raise
        self._whole = False
        self._within_limit()
        self._tell(done)
        if done.generation is not None:
            self._sweeping.note(dropped=done.dropped)
        if done.touched_sdk:
            self._archive_due = True
        if done.stored_bytes > _WORTH_TRIMMING_BYTES:
            statehash.trim()

    def _within_limit(self) -> None:
        if self._said.over_limit:
            self._said.over_limit = False
            self._say("The state is within its limit again and was stored.")

    def _check_base(self) -> None:
        """Once: a predecessor, or the import of this start, may have been cut off before it wrote down what the archive holds."""
        archived = self._committer.content.archive
        if archived is not None and not self._base_checked:
            try:
                known = self._archive.read_base()[0] == archived.etag
            except Permanent as reason:
                if reason.code is not ExitCode.STATE_DAMAGED:
                    raise
                known = False
            self._archive_due = self._archive_due or not known
        self._base_checked = True

    def _publish(self, now_s: float, *, at_most_every_s: float) -> None:
        self._check_base()
        if not self._archive_due or now_s - self._archived_s < at_most_every_s:
            return
        former = self._committer.content.archive
        if former is None and self._committer.index.get(SDK_PREFIX) is None:
            self._archive_due = False  # the bot never had SDK state: there is nothing to show
            return
        self._archived_s = now_s
        try:
            fits = imports.publish(
                self._folder, self._committer, self._archive, former_etag=former.etag if former else None
            )
        except PreconditionFailed:
            fits = True
            if not self._said.archive:
                self._said.archive = True
                self._say("The state archive was written from outside; it is imported at the bot's next start.")
        if not fits and not self._said.archive:
            self._said.archive = True
            self._say("The SDK state is over 100 MiB: it is stored, but the state archive no longer follows it.")
        self._archive_due = False

    def _tell(self, done: Committed) -> None:
        if done.incomplete and done.incomplete != self._said.incomplete:
            self._say(
                "Files over MAX_STATE_FILE_SIZE_MB or unreadable keep their last stored version: "
                + clip(", ".join(done.incomplete))
            )
        self._said.incomplete = done.incomplete
        if set(done.stale) - set(self._said.stale):
            self._say(
                "Databases that are written all the time stay as they were last stored, until they rest for a moment: "
                + clip(", ".join(done.stale))
            )
        self._said.stale = done.stale
        if done.specials and not self._said.specials:
            self._said.specials = True
            self._say(
                "Sockets, pipes and devices in the state folder are not stored: " + clip(", ".join(done.specials))
            )

    def _failed(self, reason: Fault, now_s: float) -> None:
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        self._next_try_s = now_s + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, 15.0)
        failing_s = now_s - self._failing_since_s
        if not self._said.failing:
            self._said.failing = True
            self._say(f"State is not stored for now: {reason.sentence}")
        if failing_s > FAILING_S:
            origin = Origin.decode(self._committer.index.meta)
            if origin.failing_since_s is None:
                since_s = time.time() - failing_s
                try:
                    self._committer.index.set_meta(replace(origin, failing_since_s=since_s).encode())
                except OSError:
                    pass  # the disk is what fails; the next failure tries again
        if self._blind and now_s - self._looked_s > lease.BLIND_S and self._settings.policies.store_down == "stop":
            self.store_down = True

    def _recovered(self, now_s: float) -> None:
        if self._failing_since_s is None:
            return
        if self._said.failing:
            self._say(f"State is stored again after {now_s - self._failing_since_s:.0f} s.")
        self._said.failing = False
        self._failing_since_s = None
        self._backoff_s = TICK_S
        origin = Origin.decode(self._committer.index.meta)
        if origin.failing_since_s is not None:
            self._committer.index.set_meta(replace(origin, failing_since_s=None).encode())


def run(
    settings: SyncSettings,
    store: ObjectStore,
    *,
    instance: str,
    epoch: int,
    stop: threading.Event,
    notify: Callable[[str], None],
    done_file: str | None = None,
    notes: tuple[str, ...] = (),
) -> int:
    """Syncs until `stop` is set (or the done file appears), then for the last time. Returns the exit code: 0, 209 where the last state or
    logs did not reach the store, 210 where another instance took over.

    Never claims and never restores: it goes on under (instance, epoch), also after it died and was started again. `notify` is told
    "ready", "fenced" and "store-down"; the latter two mean: stop the bot, then set `stop`. `notes` go to the bot's log.
    """
    with StateFolder(settings.paths.state) as folder:
        try:
            keeper, shipper = _begin(settings, store, folder, instance=instance, epoch=epoch)
        except Fenced:
            _fence(settings, notify, stop)
            return ExitCode.FENCED
        for note in notes:
            shipper.say(note, level="info")
        logs_stop = threading.Event()
        logs = threading.Thread(target=shipper.run, args=(logs_stop,), name="logs", daemon=True)
        threads.start(logs)
        notify("ready")
        fenced = False
        try:
            _loop(keeper, stop=stop, notify=notify, done_file=done_file)
        except Fenced:
            fenced = True
            shipper.fence()
            _fence(settings, notify, stop)
        return _end(keeper, shipper, logs, logs_stop, fenced=fenced)


def _begin(
    settings: SyncSettings, store: ObjectStore, folder: StateFolder, *, instance: str, epoch: int
) -> tuple[Keeper, LogShipper]:
    stored = reclaim(
        HeadFile(store, bucket=settings.buckets.state, bot_id=settings.bot_id), epoch=epoch, instance=instance
    )
    try:
        index = folder.open_index()
    except ValueError as reason:
        raise Fatal(
            f"The index in {settings.paths.state} cannot be read ({clip(str(reason))}): start the bot anew, so that its start "
            "decides between the tree and the store.",
            code=ExitCode.REFUSED,
        ) from reason
    if index is None:
        raise Fatal(
            f"{settings.paths.state} has no index: run `runtime daemon init` first, which restores the state.",
            code=ExitCode.REFUSED,
        )
    committer = Committer.of(settings, store, folder=folder, index=index, stored=stored)
    committer.resolve()
    origin = Origin.decode(index.meta)
    if not origin.of(stored.head.content) and not origin.of(committer.content):
        raise Fatal(
            f"The index in {settings.paths.state} is not of the generation that HEAD names: start the bot anew, so that its "
            "start decides between them.",
            code=ExitCode.REFUSED,
        )
    shipper = LogShipper(
        store=store,
        bucket=settings.buckets.logs,
        bot_id=settings.bot_id,
        logs_path=settings.paths.logs,
        spool_path=os.path.join(settings.paths.state, names.RESERVED_DIR, names.SPOOL),
        epoch=epoch,
    )
    keeper = Keeper(settings, store, folder=folder, committer=committer, say=shipper.say, now_s=time.monotonic())
    return keeper, shipper


def _loop(
    keeper: Keeper,
    *,
    stop: threading.Event,
    notify: Callable[[str], None],
    done_file: str | None,
) -> None:
    told_down = False
    bell = Bell(stop)
    try:
        while not stop.is_set():
            begun_s = time.monotonic()
            wait_s = keeper.one_pass(begun_s)
            if keeper.store_down and not told_down:
                told_down = True
                notify("store-down")
            if done_file is not None:
                if os.path.lexists(done_file):
                    return
                wait_s = min(wait_s, TICK_S)
            keeper.watching.rest(bell, until_s=begun_s + wait_s, not_before_s=keeper.not_before_s)
    finally:
        bell.close()


def _fence(settings: SyncSettings, notify: Callable[[str], None], stop: threading.Event) -> None:
    """Says it in both ways (`execute` beside us listens to one of them), then waits until the bot was stopped."""
    try:
        with files.folder(settings.paths.run) as run_fd:
            files.write_atomic(run_fd, names.FENCED, b"210\n", durable=False)
    except OSError:
        pass  # without the file there is still the notice; in a Pod the folder is shared and writable
    notify("fenced")
    stop.wait()


def _end(
    keeper: Keeper, shipper: LogShipper, logs: threading.Thread, logs_stop: threading.Event, *, fenced: bool
) -> int:
    # State and logs are finished side by side; the claim is released when both are through.
    deadline_s = time.monotonic() + FINAL_S
    logs_stop.set()
    shipped: list[bool] = []

    def finish_logs() -> None:
        logs.join()
        shipped.append(shipper.finish(deadline_s - time.monotonic()))

    last_lines = threading.Thread(target=finish_logs, name="last-lines", daemon=True)
    try:
        if fenced:
            raise Fenced
        threads.start(last_lines)
        keeper.finish(deadline_s=deadline_s)
        last_lines.join()
        keeper.release()
    except Fenced:
        shipper.fence()
        try:
            keeper.set_aside_unsynced()
        except (Fault, OSError) as reason:
            # The tree stays where it is, with its index: the next start here compares it and sets it aside.
            told = reason.sentence if isinstance(reason, Fault) else str(reason)
            shipper.say(f"Another instance took over, and unsynced state could not be set aside: {clip(told)}")
        if last_lines.ident is None:
            threads.start(last_lines)
        last_lines.join()
        return ExitCode.FENCED
    except Fault as reason:
        # Said for the next run, which ships it: the claim stays unreleased, and this disk's own start knows it.
        last_lines.join()
        shipper.say(f"The last state was not stored: {reason.sentence}")
        return ExitCode.FINAL_SYNC
    return 0 if shipped == [True] else ExitCode.FINAL_SYNC
