"""What the scheduler does beside its passes: work in threads, whose outcomes a pass uses, and what is to be done later."""

from __future__ import annotations

import heapq
import queue
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Final, Literal, TypeVar

from the0.errors import ExitCode, Fault, Permanent

AGAIN_S: Final = 5.0
T = TypeVar("T")
Pool = Literal["start", "other", "look"]
"""Starts of runs; what stores and engine are told; looks at what former schedulers left."""


class Tasks:
    """`do` and `at` are for passes, which one thread at a time makes."""

    def __init__(
        self, *, starts: int, wake: Callable[[], None], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`starts`: so many threads start runs. `wake`: there is an outcome for a pass to use."""
        self._wake = wake
        self._monotonic = monotonic
        self._pools: dict[Pool, ThreadPoolExecutor] = {
            "start": ThreadPoolExecutor(starts, thread_name_prefix="scheduler-start"),
            "other": ThreadPoolExecutor(2, thread_name_prefix="scheduler"),
            "look": ThreadPoolExecutor(1, thread_name_prefix="scheduler-look"),
        }
        self._outcomes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        """Heap: moment (monotonic), order, what to do in a pass then."""
        self._order = count()
        self._closed: set[Pool] = set()

    def do(self, pool: Pool, work: Callable[[], T], then: Callable[[T | Fault], None]) -> None:
        """`work` in a thread; `then` with its outcome in a pass. Nothing where that is over."""

        def act() -> None:
            outcome: T | Fault
            try:
                outcome = work()
            except Fault as fault:
                outcome = fault
            except Exception as reason:  # noqa: BLE001 - one bot's trouble is its own; the traceback goes to stderr
                sys.excepthook(type(reason), reason, reason.__traceback__)
                outcome = Permanent(f"{type(reason).__name__}, which is a bug of the runtime.", code=ExitCode.INTERNAL)
            self._outcomes.put(partial(then, outcome))
            self._wake()

        if pool not in self._closed:
            self._pools[pool].submit(act)

    def at(self, wait_s: float, act: Callable[[], None]) -> None:
        """`act` in the first pass after so long."""
        heapq.heappush(self._later, (self._monotonic() + wait_s, next(self._order), act))

    def again(self, act: Callable[[], None]) -> None:
        """After a store or engine that failed."""
        self.at(AGAIN_S, act)

    def use_outcomes(self) -> None:
        while not self._outcomes.empty():
            self._outcomes.get()()

    def do_due(self, ticks: float) -> None:
        """`ticks`: monotonic, now."""
        while self._later and self._later[0][0] <= ticks:
            heapq.heappop(self._later)[2]()

    def due_in_s(self, ticks: float) -> float | None:
        return self._later[0][0] - ticks if self._later else None

    def stop(self, pool: Pool) -> None:
        """Begins nothing more of these; waits for what has begun."""
        self._closed.add(pool)
        self._pools[pool].shutdown(cancel_futures=True)

    def end(self) -> None:
        """Waits for all that is to be done still; then there is no more."""
        self._pools["other"].shutdown()
        self._closed.update(self._pools)
