"""Turns: one at a time for a bot, in the order of coming, each question asked by whoever has just had its turn."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from rig.waiting import eventually
from the0 import asking
from the0.orchestrate.query_lines import WAITING_FOR_ONE_BOT, LineTooLong, QueryLines


def in_line(lines: QueryLines) -> int:
    return sum(len(line) for line in lines._lines.values())


def are_in_line(lines: QueryLines, count: int) -> bool:
    return in_line(lines) == count


def test_one_at_a_time_and_in_order() -> None:
    lines = QueryLines()
    done: list[int] = []
    begun_by: dict[int, str] = {}

    def come(number: int) -> None:
        def begin() -> None:
            begun_by[number] = threading.current_thread().name

        with lines.turn("b", deadline=time.monotonic() + 60, begin=begin):
            done.append(number)

    threads = [threading.Thread(target=come, args=(n,), name=str(n)) for n in range(10)]
    with lines.turn("b", deadline=time.monotonic() + 60, begin=lambda: None):
        for n, thread in enumerate(threads):
            thread.start()
            eventually(partial(are_in_line, lines, n + 2), "it stands in line", within_s=60)
        with lines.turn("other", deadline=time.monotonic(), begin=lambda: None):
            assert done == []
    for thread in threads:
        thread.join(60)
    assert done == list(range(10))
    assert begun_by == {n: str(n - 1) if n else "MainThread" for n in range(10)}
    assert in_line(lines) == 0


def test_one_whose_time_is_up_leaves_the_line() -> None:
    lines = QueryLines()
    with lines.turn("b", deadline=time.monotonic() + 60, begin=lambda: None):
        with (
            pytest.raises(asking.TooLate),
            lines.turn("b", deadline=time.monotonic() + 0.001, begin=lambda: None),
        ):
            raise AssertionError("its turn has not come")
        assert in_line(lines) == 1
    with lines.turn("b", deadline=time.monotonic(), begin=lambda: None):
        assert in_line(lines) == 1
    assert in_line(lines) == 0


def test_a_line_has_an_end() -> None:
    lines = QueryLines()
    told: list[str] = []

    def come() -> None:
        try:
            with lines.turn("b", deadline=time.monotonic() + 60, begin=lambda: None):
                told.append("turn")
        except LineTooLong:
            told.append("refused")

    with lines.turn("b", deadline=time.monotonic() + 60, begin=lambda: None):
        threads = [threading.Thread(target=come) for _ in range(WAITING_FOR_ONE_BOT + 3)]
        for thread in threads:
            thread.start()
        eventually(lambda: told.count("refused") == 4, "those beyond its end are refused", within_s=60)
        assert "turn" not in told
    for thread in threads:
        thread.join(60)
    assert told.count("turn") == WAITING_FOR_ONE_BOT - 1


def test_turns_that_end_as_they_come_are_neither_lost_nor_doubled() -> None:
    """Many whose time is up at about the moment of their turn."""
    lines = QueryLines()
    most = 0
    now = 0
    lock = threading.Lock()

    def come() -> None:
        nonlocal most, now
        for n in range(200):
            try:
                with lines.turn("b", deadline=time.monotonic() + n % 5 / 2000, begin=lambda: None):
                    with lock:
                        now += 1
                        most = max(most, now)
                    time.sleep(0.0005)
                    with lock:
                        now -= 1
            except asking.TooLate:
                pass

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, now, in_line(lines)) == (1, 0, 0)
