"""1,000 scheduled bots due within one minute, run by a real `runtime up`: how long, how much CPU a run, how much memory.

The bots are trivial Python programs, each with a state, a log and a run record of its own. It counts only if all ran, once each, in
the order of their slots, never more at the same time than may, and if `ps` was answered all the while.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from orchestrate.due import Crowd, most_at_once, overtaken
from orchestrate.platform_place import Platform
from report import Figure

BOTS = 1000
SPREAD_S = 60
AT_ONCE, STARTS = 32, 4
WITHIN_S = 1800.0
UP_MB = 60.0
ANSWER_MS = 500.0
RUN_MS = 500.0
_TICKS_S = os.sysconf("SC_CLK_TCK")


def due(place: Platform, *, count: int = BOTS) -> list[Figure]:
    """Raises AssertionError where a run was lost, doubled or overtaken."""
    up = place.up()
    crowd = Crowd(place, count, int(time.time()) + 5 + count // 100, SPREAD_S)
    crowd.put()
    own_before, runs_before = _cpu_s(up.process.pid)
    pss_mb, answers_ms = [], []
    deadline = time.monotonic() + WITHIN_S
    while len(up.news("ended")) < count:
        assert time.monotonic() < deadline, f"{len(up.news('ended'))} of {count} had run after {WITHIN_S:g} s"
        began = time.monotonic()
        place.control.ps(["model"])
        answers_ms.append((time.monotonic() - began) * 1e3)
        pss_mb.append(_pss_mb(up.process.pid))
        time.sleep(0.5)
    while any(run.is_open for run in crowd.records()):
        assert time.monotonic() < deadline, "a record without an end"
        time.sleep(0.5)
    own, runs_cpu = _cpu_s(up.process.pid)
    runs = crowd.records()
    assert sorted(run.bot_id for run in runs) == crowd.ids, "not each of them once"
    assert {run.result for run in runs} == {"ok"}, {run.result for run in runs}
    assert crowd.lines() == count, f"{crowd.lines()} lines"
    assert not overtaken(runs, starts=STARTS), "a later slot came first"
    assert most_at_once(runs) <= AT_ONCE
    took_s = max(run.end_s or 0.0 for run in runs) - crowd.begin_s
    notes = {"at once": most_at_once(runs), "spread_s": SPREAD_S}
    return [
        Figure(name=f"{count} due in one minute: the last has ended after", unit="s", runs=[took_s], notes=notes),
        Figure(
            name="a run's CPU, supervisor, sync and bot",
            unit="ms",
            runs=[(runs_cpu - runs_before) / count * 1e3],
            target=RUN_MS,
        ),
        Figure(name="a run's CPU within up", unit="ms", runs=[(own - own_before) / count * 1e3]),
        Figure(name="PSS of up meanwhile, at most", unit="MB", runs=[max(pss_mb)], target=UP_MB),
        Figure(name="ps meanwhile, at most", unit="ms", runs=[max(answers_ms)], target=ANSWER_MS),
    ]


def _cpu_s(pid: int) -> tuple[float, float]:
    """Its own, and that of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, ended = (sum(int(each) for each in fields[first : first + 2]) / _TICKS_S for first in (11, 13))
    return own, ended


def _pss_mb(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024
