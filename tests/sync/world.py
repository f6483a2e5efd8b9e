"""One bot's world for state tests: a store, any number of hosts, and processes that can be killed at every step.

A step is a request to the store (just before it is sent, or when it was applied and its reply is not read yet) or a change of
the local disk. A killed process is a real one, ended by SIGKILL.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from the0 import files, names
from the0.objects.credentials import StoreSettings
from the0.objects.store import Bytes, Object, ObjectInfo, ObjectStore
from the0.settings import Buckets, Paths, Policies, SyncSettings
from the0.settings import Limits as SizeLimits
from the0.sync.cleaning import Bounds
from the0.sync.commit import Committed, Committer
from the0.sync.head import Content, Head, HeadFile
from the0.sync.history import HistoryFiles
from the0.sync.local import Origin, StateFolder
from the0.sync.restore import restore
from the0.sync.start import Started, start
from the0.sync.sweep import Limits, Sweeper, Swept
from the0.sync.verify import verify

Tree = dict[bytes, tuple[str, bytes]]
"""Path to (kind, content or link target)."""


def read_tree(root: Path, *, skip: str | None = names.RESERVED_DIR) -> Tree:
    found: Tree = {}
    top = os.fsencode(root)

    def walk(folder: bytes, prefix: bytes) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if skip is not None and path == os.fsencode(skip):
                    continue
                if entry.is_symlink():
                    found[path] = ("link", os.readlink(entry.path))
                elif entry.is_dir():
                    found[path] = ("dir", b"")
                    walk(entry.path, path + b"/")
                elif stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                    with open(entry.path, "rb") as file:
                        found[path] = ("file", file.read())

    walk(top, b"")
    return found


def write_tree(root: Path, tree: Mapping[str, bytes | None]) -> None:
    """Text paths to content; None is an empty folder."""
    for path, content in tree.items():
        target = root / path
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


@dataclass
class Host:
    """One machine's disk."""

    settings: SyncSettings

    @property
    def state(self) -> Path:
        return Path(self.settings.paths.state)

    @property
    def tree(self) -> Tree:
        return read_tree(self.state)

    @property
    def asides(self) -> list[Path]:
        folder = self.state / names.RESERVED_DIR / names.ASIDE
        return sorted(folder.iterdir()) if folder.is_dir() else []


@dataclass
class World:
    store: ObjectStore
    buckets: Buckets
    base: Path
    bot_id: str = "bot-1"
    clock: int = 0

    def host(self, name: str = "here", *, limits: SizeLimits | None = None, policies: Policies | None = None) -> Host:
        root = self.base / name
        return Host(
            SyncSettings(
                bot_id=self.bot_id,
                store=StoreSettings(folder=str(self.base / "store")),
                buckets=self.buckets,
                limits=limits or SizeLimits(),
                policies=policies or Policies(),
                paths=Paths(
                    code=str(root / "code"),
                    state=str(root / "state"),
                    logs=str(root / "logs"),
                    sdk_state=str(root / "state" / names.SDK_STATE_DIR),
                    run=str(root / "run"),
                ),
            )
        )

    def reset(self) -> None:
        """All hosts and the store as at first."""
        for path in list(self.base.iterdir()):
            shutil.rmtree(path)
        (self.base / "store").mkdir()
        for bucket in (self.buckets.code, self.buckets.state, self.buckets.logs, self.buckets.query_results):
            self.store.ensure_bucket(bucket)

    def instance(self) -> str:
        self.clock += 1
        return f"instance-{self.clock}"

    def start(
        self, host: Host, *, instance: str | None = None, ended: str | None = None, store: ObjectStore | None = None
    ) -> Started:
        return start(host.settings, store or self.store, instance=instance or self.instance(), ended=ended)

    def committer(
        self, host: Host, folder: StateFolder, *, store: ObjectStore | None = None, bounds: Bounds | None = None
    ) -> Committer:
        """As the daemon has it: of the claim that HEAD carries."""
        stored = HeadFile(store or self.store, bucket=self.buckets.state, bot_id=self.bot_id).read()
        assert stored is not None
        index = folder.open_index()
        assert index is not None
        return Committer.of(
            host.settings, store or self.store, folder=folder, index=index, stored=stored, bounds=bounds
        )

    def commit(self, host: Host, *, store: ObjectStore | None = None, bounds: Bounds | None = None) -> Committed:
        with StateFolder(host.settings.paths.state) as folder:
            committer = self.committer(host, folder, store=store, bounds=bounds)
            return committer.commit(committer.scan())

    def sweep(
        self, *, store: ObjectStore | None = None, limits: Limits | None = None, live_bytes: int = 1 << 30
    ) -> Swept:
        """As the holder does it that HEAD names."""
        claim = self.head.claim
        return Sweeper(
            store or self.store,
            bucket=self.buckets.state,
            bot_id=self.bot_id,
            epoch=claim.epoch,
            instance=claim.instance,
            limits=limits,
        ).sweep(live_bytes=live_bytes, stop=threading.Event())

    def release(self, host: Host) -> None:
        with StateFolder(host.settings.paths.state) as folder:
            self.committer(host, folder).record(release=True)

    @property
    def head(self) -> Head:
        stored = HeadFile(self.store, bucket=self.buckets.state, bot_id=self.bot_id).read()
        assert stored is not None
        return stored.head

    @property
    def history(self) -> HistoryFiles:
        return HistoryFiles(self.store, bucket=self.buckets.state, bot_id=self.bot_id)

    def segment_keys(self) -> set[str]:
        return {info.key for info in self.store.list(self.buckets.state, names.segments_prefix(self.bot_id))}

    def stored_tree(self, content: Content | None = None) -> Tree:
        """What HEAD's generation, or that content, restores to, on a host of its own."""
        self.clock += 1
        path = self.base / f"restored-{self.clock}"
        with StateFolder(str(path)) as folder:
            restore(
                folder,
                content or self.head.content,
                store=self.store,
                bucket=self.buckets.state,
                bot_id=self.bot_id,
                origin=Origin(),
                max_bytes=1 << 40,
                stop=threading.Event(),
            )
        return read_tree(path)

    def check(self) -> None:
        """The last assertion of every state test."""
        found = verify(self.store, bucket=self.buckets.state, bot_id=self.bot_id)
        assert found.problems == ()


class Stepping:
    """A store that counts requests, and ends this very process by SIGKILL at a given step."""

    def __init__(self, store: ObjectStore, steps: Steps) -> None:
        self._store = store
        self._steps = steps

    @property
    def name(self) -> str:
        return self._store.name

    def __getattr__(self, attribute: str) -> Any:
        method = getattr(self._store, attribute)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            self._steps.step()
            try:
                result = method(*args, **kwargs)
                return list(result) if attribute == "list" else result
            finally:
                self._steps.step()

        return stepped


class Steps:
    def __init__(self, kill_at: int) -> None:
        self._kill_at = kill_at
        self._count = 0
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()


def killed_at_step(action: Callable[[ObjectStore], object], store: ObjectStore, *, step: int) -> bool:
    """Runs the action in a process of its own that is killed at the step. False when the action had ended before that."""
    child = os.fork()
    if child == 0:
        try:
            steps = Steps(step)
            _step_on_disk_changes(steps)
            action(Stepping(store, steps))  # type: ignore[arg-type]
            os._exit(0)
        except BaseException:  # noqa: BLE001 - told below, then the process ends
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the action failed by itself"
    return False


def _step_on_disk_changes(steps: Steps) -> None:
    """Counts every rename, removal and folder made from Python as steps, too."""
    for name in ("rename", "unlink", "rmdir", "mkdir"):
        original = getattr(os, name)

        def stepped(*args: Any, _original: Callable[..., Any] = original, **kwargs: Any) -> Any:
            steps.step()
            return _original(*args, **kwargs)

        setattr(os, name, stepped)


def every_kill(
    action: Callable[[ObjectStore], object], store: ObjectStore, *, reset: Callable[[], None], limit: int = 500
) -> Iterator[int]:
    """Runs the action once for each of its steps, killed there, on a world that `reset` makes anew; yields the step's number
    after the kill. Ends with the run that came through (not yielded)."""
    for step in range(1, limit):
        reset()
        if not killed_at_step(action, store, step=step):
            assert step > 1, "the action has no step at all"
            return
        yield step
    raise AssertionError(f"the action has more than {limit} steps")


__all__ = [
    "Bytes",
    "Head",
    "Host",
    "Object",
    "ObjectInfo",
    "Steps",
    "Tree",
    "World",
    "every_kill",
    "files",
    "killed_at_step",
    "read_tree",
    "write_tree",
]
