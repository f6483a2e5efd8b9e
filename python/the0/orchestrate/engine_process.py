"""Bots as process groups of this machine: what `runtime up` uses.

Each bot is `runtime execute` in a session of its own, with folders of its own below the data folder. It does not need
us: when we end without stopping it, it runs on, and the next engine on this folder finds it by its record.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from the0 import files, names, privacy
from the0.documents import BadBot, Bot
from the0.errors import ExitCode, Fatal, clip
from the0.orchestrate import groups, leftovers, process_record, process_start, processes
from the0.orchestrate.data import BotFolders, Data
from the0.orchestrate.engine import Instance, QueryAnswer, Start, Usage
from the0.orchestrate.process_place import Places
from the0.orchestrate.process_record import Record
from the0.orchestrate.process_usage import Usages
from the0.orchestrate.query_place import QueryPlaces
from the0.orchestrate.stored_queries import StoredQueries
from the0.ports import free_port
from the0.sync.lock import is_free

DRAIN_LOOK_S: Final = 0.1
"""How often is looked whether the final sync of a supervisor that was killed has ended."""
CLEAR_TIMES: Final = 100
"""What is not dead by then is beyond anybody's reach; the bot's lock and records do not hang on it."""


@dataclass(slots=True)
class _Process:
    record: Record
    folders: BotFolders
    child: subprocess.Popen[bytes] | None = None
    """None: adopted."""
    pidfd: int | None = None
    draining: threading.Timer | None = field(default=None, repr=False)
    cleared: int = 0
    """How often what was left in its control groups was killed."""

    @property
    def instance(self) -> Instance:
        return self.record.instance


class ProcessEngine:
    """One for a data folder, whose lock its owner holds."""

    def __init__(
        self,
        data: Data,
        *,
        environ: Mapping[str, str],
        stop_grace_s: float,
        observe: Callable[[Instance], None] | None = None,
    ) -> None:
        """Adopts what runs. `environ` is what bots may see a part of. `observe` is told of each instance that has started or ended."""
        self._data = data
        shared = privacy.shared_environment(environ)
        try:
            self._places = Places(data, environ={**shared, names.STOP_GRACE_S: f"{stop_grace_s:g}"})
        except OSError as reason:
            raise files.disk_fault(reason, "looking what this machine gives to bots") from reason
        self._queries = StoredQueries(data, QueryPlaces(data, self._places))
        self._lock = threading.RLock()
        self._found: dict[str, _Process] = {}
        self._actual: tuple[Instance, ...] | None = None
        self._observe = observe
        self._wakes: list[Callable[[], None]] = []
        self._usages = Usages()
        self._closed = False
        self._watcher = processes.Watcher()
        self._adopt()

    # --- what there is ----------------------------------------------------------------------------

    def actual(self) -> Sequence[Instance]:
        with self._lock:
            if self._actual is None:
                self._actual = tuple(found.instance for found in self._found.values())
            return self._actual

    def subscribe(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)

    def _adopt(self) -> None:
        with self._lock:
            for name in leftovers.kept(self._data):
                folders = BotFolders(os.path.join(self._data.bots, name))
                record = process_record.read(folders)
                if record is None:
                    continue
                found = self._found[name] = _Process(record, folders)
                if record.instance.state == "ended":
                    continue
                found.pidfd = processes.open_pidfd(record.process) if record.process is not None else None
                if found.pidfd is None:
                    self._ended(found)
                    continue
                self._watch(found)
                if record.instance.stop_asked_s is not None:
                    processes.send(found.pidfd, signal.SIGTERM)  # who asked for it may have died before it was sent

    # --- starting ---------------------------------------------------------------------------------

    def start(self, wanted: Start) -> str:
        bot = wanted.bot
        name = names.encode_id(bot.id)
        folders = self._data.bot(bot.id)
        with self._lock:
            if self._closed:
                raise Fatal("This platform is ending and starts nothing any more.", code=ExitCode.STOPPED_EARLY)
            former = self._found.get(name)
            if former is not None and former.instance.state != "ended":
                raise Fatal(f"Bot {clip(bot.id)} runs already: stop it first.", code=ExitCode.RUNNING_HERE)
            instance = Instance(
                bot_id=bot.id,
                kind=bot.kind,
                name=name,
                config_hash=bot.config_hash,
                restart=wanted.restart,
                failures=wanted.failures,
                state="starting",
                started_s=time.time(),
                slot=wanted.slot,
                token=wanted.token,
                previous=wanted.previous,
            )
            # Under this name nothing else starts from here on.
            found = self._found[name] = _Process(Record(instance=instance, process=None), folders)
            self._changed()
        try:
            self._spawn(found, bot, wanted)
        except BaseException as reason:
            with self._lock:
                if former is not None:
                    self._found[name] = former
                else:
                    del self._found[name]
                self._changed()
            if isinstance(reason, OSError):
                raise files.disk_fault(reason, f"starting bot {clip(bot.id)}") from reason
            raise
        return name

    def _spawn(self, found: _Process, bot: Bot, wanted: Start) -> None:
        folders = found.folders
        port = free_port() if bot.query_entrypoint is not None and bot.kind == "realtime" else None
        limited = self._places.groups_for(found.instance.name, bot.limits)
        told = process_start.environment(bot, wanted, query_port=port)
        place = self._places.place(folders, told, groups=limited)
        said_fd = os.open(folders.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            begun = process_start.begin(stdout=subprocess.DEVNULL, stderr=said_fd)
        finally:
            os.close(said_fd)
        try:
            who = processes.identify(begun.child.pid)
            assert who is not None, "a child that was not reaped"
            with self._lock:
                stop_asked = found.instance.stop_asked_s is not None
                found.child = begun.child
                found.record = replace(
                    found.record if stop_asked else found.record.with_instance(state="running"),
                    process=who,
                    query_port=port,
                    cgroups=limited,
                )
                process_record.write(folders, found.record)
                found.pidfd = os.pidfd_open(begun.child.pid)
                looked = os.dup(found.pidfd)
                self._changed()
                self._watch(found)
        except BaseException:
            begun.drop()
            begun.child.kill()
            begun.child.wait()
            raise
        self._tell(found)
        # The record is there for whoever comes after us: the process may begin, unless it need not any more.
        if stop_asked:
            begun.drop()
        else:
            begun.tell(place)
        try:
            process_start.settle(begun.child.pid, looked)
        finally:
            os.close(looked)

    # --- stopping ---------------------------------------------------------------------------------

    def stop(self, name: str, *, grace_s: float, reason: str) -> None:
        """The grace period is the one that the bot was started with (STOP_GRACE_S)."""
        del grace_s
        with self._lock:
            found = self._found.get(name)
            if found is None or found.instance.state == "ended":
                return
            if found.instance.stop_asked_s is None:
                found.record = found.record.with_instance(
                    stop_asked_s=time.time(), stop_reason=reason, state="stopping"
                )
                self._save(found)
            if found.pidfd is not None:
                processes.send(found.pidfd, signal.SIGTERM)

    def kill(self, name: str) -> None:
        with self._lock:
            found = self._found.get(name)
            if found is not None and found.pidfd is not None:
                # Its sync process then kills the bot, stores what there is, and ends.
                processes.send(found.pidfd, signal.SIGKILL)
            elif found is not None and found.draining is not None:
                groups.end(found.record.cgroups, signal.SIGKILL)

    def remove(self, name: str) -> None:
        with self._lock:
            found = self._found.get(name)
            if found is None or found.instance.state != "ended":
                return
            _unlink(found.folders.process)
            del self._found[name]
            self._changed()

    def discard(self, bot_id: str) -> None:
        self._queries.drop(bot_id)
        name = names.encode_id(bot_id)
        with self._lock:
            found = self._found.get(name)
            if (found is not None and found.instance.state != "ended") or not _is_free(self._data.bot(bot_id)):
                return
            self.remove(name)
            gone = leftovers.take_away(self._data, self._data.bot(bot_id))
        if gone is not None:
            leftovers.clear(gone)

    # --- ends -------------------------------------------------------------------------------------

    def _watch(self, found: _Process) -> None:
        assert found.pidfd is not None
        self._watcher.watch(found.pidfd, lambda: self._ended(found))

    def _ended(self, found: _Process) -> None:
        """Its supervisor has ended; what that had forked may still store the last state."""
        with self._lock:
            if self._closed:
                return
            code = None
            if found.child is not None:
                code = found.child.wait()
                code = code if code >= 0 else 128 - code
            if found.pidfd is not None:
                os.close(found.pidfd)
                found.pidfd = None
            self._drain(found, code)

    def _drain(self, found: _Process, code: int | None) -> None:
        with self._lock:
            if self._closed:
                return
            free = _is_free(found.folders)
            # Once that is stored, whatever is left in its groups is a bot's that nobody supervises.
            if not free or (found.cleared < CLEAR_TIMES and not groups.clear(found.record.cgroups)):
                found.cleared += free
                if found.instance.state != "stopping":
                    reason = "what it left behind is being ended" if free else "its last state is being stored"
                    found.record = found.record.with_instance(state="stopping", stop_reason=reason)
                    self._changed()
                found.draining = threading.Timer(DRAIN_LOOK_S, self._drain, (found, code))
                found.draining.daemon = True
                found.draining.start()
                return
            found.draining = None
            groups.remove(found.record.cgroups)
            how = process_record.read_exit(found.folders, code=code, at_s=time.time())
            found.record = found.record.with_instance(state="ended", exit=how)
            self._save(found)
        self._tell(found)
        for wake in self._wakes:
            wake()

    # --- more -------------------------------------------------------------------------------------

    def usage(self, name: str) -> Usage | None:
        with self._lock:
            found = self._found.get(name)
            if found is None or found.pidfd is None or found.record.process is None:
                return None
            pid = found.record.process.pid
        return self._usages.of(pid, among=self._pids)

    def _pids(self) -> list[int]:
        with self._lock:
            return [
                each.record.process.pid
                for each in self._found.values()
                if each.pidfd is not None and each.record.process is not None
            ]

    def query_address(self, bot_id: str) -> tuple[str, int] | None:
        with self._lock:
            found = self._found.get(names.encode_id(bot_id))
            if found is None or found.instance.state != "running" or found.record.query_port is None:
                return None
            return "127.0.0.1", found.record.query_port

    def query(self, bot: Bot, *, path: str, params: Mapping[str, Any], timeout_s: float) -> QueryAnswer:
        return self._queries.ask(bot, path=path, params=params, timeout_s=timeout_s)

    def keep_queries(self, bots: Mapping[str, Bot | BadBot]) -> None:
        """These are stored now: query processes that were kept for others, or for former versions, end. Returns at once."""
        self._queries.keep_only(bots)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for found in self._found.values():
                if found.draining is not None:
                    found.draining.cancel()
        self._queries.close()
        self._watcher.close()
        self._places.close()
        with self._lock:
            for found in self._found.values():
                if found.pidfd is not None:
                    os.close(found.pidfd)
                    found.pidfd = None

    def _save(self, found: _Process) -> None:
        self._changed()
        try:
            process_record.write(found.folders, found.record)
        except OSError as reason:
            # What is in memory counts as long as we live; who comes after us finds out by the process itself.
            fault = files.disk_fault(reason, f"noting what became of bot {clip(found.instance.bot_id)}")
            print(f"the0: {fault.sentence}", file=sys.stderr, flush=True)

    def _tell(self, found: _Process) -> None:
        if self._observe is not None:
            self._observe(found.instance)

    def _changed(self) -> None:
        self._actual = None


def _is_free(folders: BotFolders) -> bool:
    """Whether no run holds the lock on the state folder: its final sync has ended, too."""
    return is_free(folders.state)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # as wanted
