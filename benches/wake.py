"""A wake by inotify, as the daemon's loop has it: one file changed, only its folder is looked at, two PUTs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from counting import Counting
from the0 import statehash
from the0.settings import SyncSettings
from the0.sync.commit import Committer
from the0.sync.daemon import Keeper
from the0.sync.local import StateFolder
from the0.sync.watching import Bell

WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Wake:
    local_ms: float
    """The pass less what was spent waiting for the store."""
    store_ms: float
    cpu_ms: float
    """Of this process and the kernel for it, the waiting for quiet included."""


def wakes(
    settings: SyncSettings,
    store: Counting,
    folder: StateFolder,
    committer: Committer,
    *,
    runs: int,
    change: Callable[[int], None],
) -> list[Wake]:
    """Raises AssertionError where a pass looked at more than folders with news, or did not store the change."""
    whole: list[bool] = []
    scan = committer.scan

    def noted(**how: Any) -> statehash.Scan:
        found = scan(**how)
        whole.append(found.whole)
        return found

    committer.scan = noted  # type: ignore[method-assign]
    told: list[str] = []
    keeper = Keeper(
        settings,
        store,
        folder=folder,
        committer=committer,
        say=told.append,
        now_s=time.monotonic(),
    )
    stop = threading.Event()
    bell = Bell(stop)
    found = []
    try:
        keeper.one_pass(time.monotonic())
        assert keeper.watching.watch is not None, told
        for number in range(runs):
            generation = committer.content.generation
            whole.clear()
            cpu_s = time.process_time()
            change(number)
            keeper.watching.rest(bell, until_s=time.monotonic() + WITHIN_S, not_before_s=keeper.not_before_s)
            store.reset()
            began_s = time.perf_counter()
            keeper.one_pass(time.monotonic())
            took_ms = (time.perf_counter() - began_s) * 1000
            cpu_ms = (time.process_time() - cpu_s) * 1000
            assert whole, told
            assert not any(whole), "the whole tree was walked"
            assert committer.content.generation == generation + 1, told
            found.append(Wake(took_ms - store.waited_ms, store.waited_ms, cpu_ms))
    finally:
        stop.set()
        bell.close()
        committer.scan = scan  # type: ignore[method-assign]
        committer.live, committer.watch = False, None
    return found
