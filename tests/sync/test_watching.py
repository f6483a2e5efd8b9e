"""When the daemon wakes, what it looks at then, and what it does where inotify cannot tell."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_keeper import keeping
from world import Host, World, write_tree

from rig.fault_table import Row
from the0 import statehash
from the0.sync import daemon, rehash, watching
from the0.sync.daemon import Keeper
from the0.sync.watching import Bell, Watching

IN_TIME_S = 10.0


@contextmanager
def running(world: World, host: Host) -> Iterator[threading.Event]:
    """The daemon in a thread; stops it at the end."""
    epoch = world.start(host, instance="one").epoch
    ready, stop, codes = threading.Event(), threading.Event(), []

    def run() -> None:
        codes.append(
            daemon.run(host.settings, world.store, instance="one", epoch=epoch, stop=stop, notify=lambda _: ready.set())
        )

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(IN_TIME_S)
        yield stop
    finally:
        stop.set()
        thread.join(IN_TIME_S)
    assert codes == [0]


def eventually(happened: Callable[[], bool]) -> float:
    """Seconds until it did."""
    begun_s = time.monotonic()
    while not happened():
        assert time.monotonic() < begun_s + IN_TIME_S
        time.sleep(0.01)
    return time.monotonic() - begun_s


def test_a_change_wakes_the_daemon_and_nothing_else_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[float] = []
    one_pass = Keeper.one_pass

    def counted(keeper: Keeper, now_s: float) -> float:
        passes.append(now_s)
        return one_pass(keeper, now_s)

    monkeypatch.setattr(Keeper, "one_pass", counted)
    host = world.host()
    with running(world, host) as stop:
        eventually(lambda: len(passes) >= 1)
        assert not stop.wait(1.5)
        assert len(passes) == 1, "idle"
        write_tree(host.state, {"new/folder/f": b"1"})
        took_s = eventually(lambda: world.head.content.generation == 1)
        assert took_s < 1.5, took_s
        assert len(passes) == 2
        stopping_s = time.monotonic()
    assert time.monotonic() - stopping_s < 2.0, "a stop need not wait for anything"
    assert world.stored_tree() == host.tree
    world.check()


def test_a_bot_that_never_rests_is_stored_every_second_or_so(world: World) -> None:
    host = world.host()
    with running(world, host) as stop:
        begun_s, number = time.monotonic(), 0
        while world.head.content.generation < 3:
            assert time.monotonic() - begun_s < IN_TIME_S
            write_tree(host.state, {"f": str(number).encode()})
            number += 1
            stop.wait(0.02)
        assert time.monotonic() - begun_s > 2 * watching.QUIET_S
    assert world.stored_tree() == host.tree
    world.check()


def test_rest_ends_with_the_bell_the_time_or_news(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    event = threading.Event()
    bell = Bell(event)
    quiet = Watching(fd, say=lambda _: None)
    assert not quiet.sees(0.0), "a new watch asks for a whole scan"
    assert quiet.watch is not None
    index = statehash.Index()
    statehash.scan(fd, index, watch=quiet.watch)
    assert quiet.sees(1.0)

    def rested(until_s: float, not_before_s: float = 0.0) -> float:
        begun_s = time.monotonic()
        quiet.rest(bell, until_s=begun_s + until_s, not_before_s=begun_s + not_before_s)
        return time.monotonic() - begun_s

    assert 0.1 <= rested(0.1) < 0.5
    (tmp_path / "f").write_bytes(b"x")
    assert watching.QUIET_S <= rested(30.0) < 1.0
    assert quiet.watch.dirty == [b""]
    assert 0.5 <= rested(30.0, not_before_s=0.5) < 1.5, "news that are not settled wake it again, not before their time"
    threading.Timer(0.1, event.set).start()
    quiet.watch.settle(statehash.scan(fd, index, watch=quiet.watch))
    assert rested(30.0) < 1.0
    assert bell.rung
    bell.close()
    os.close(fd)


@pytest.mark.fault(
    "more changes than the queue of inotify holds (fs.inotify.max_queued_events)",
    "all of them: the whole tree is looked at",
)
def test_news_that_were_lost_are_found_by_a_look_at_everything(world: World, fault: Row) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    host = world.host()
    world.start(host)
    with keeping(world, host) as kept:
        write_tree(host.state, {"a/f": b"1", "b/f": b"1"})
        kept.keeper.one_pass(1.0)
        files = [os.open(host.state / name, os.O_WRONLY) for name in ("a/f", "b/f")]
        for second in (2.0, 3.0):
            for number in range(limit // 2 + 10):
                for file in files:
                    os.pwrite(file, b"%d" % (number % 10), 0)
            write_tree(host.state, {f"c/{second}": b"lost"})
            kept.keeper.one_pass(second)
            assert world.stored_tree() == host.tree
            fault.judged()
        for file in files:
            os.close(file)
        write_tree(host.state, {"c/d": b"seen"})
        kept.keeper.one_pass(4.0)
        assert [said for said in kept.said if "at once" in said] == kept.said
        assert len(kept.said) == 1, "said once"
    assert world.stored_tree() == host.tree
    world.check()


def test_without_inotify_everything_is_looked_at(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(statehash, "Watch", refused)
    host = world.host()
    with running(world, host):
        for number in range(3):
            write_tree(host.state, {"f": str(number).encode()})
            eventually(lambda number=number: world.head.content.generation > number)
    assert world.stored_tree() == host.tree
    world.check()


@contextmanager
def mapped(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Writes the file's first byte through a mapping, so that at most the first time leaves a trace."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:

        def write(byte: bytes) -> None:
            view[0:1] = byte

        yield write


def times(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ctime_ns


def past_the_clock() -> None:
    time.sleep(0.05)


@pytest.mark.parametrize("size", [5000, 3 << 20])
def test_writes_without_a_trace_are_found_when_a_file_has_rested(world: World, size: int) -> None:
    host = world.host()
    world.start(host)
    path = host.state / "mapped"
    write_tree(host.state, {"mapped": bytes(size), "other": bytes(size)})
    with keeping(world, host) as kept, mapped(path) as write:
        write(b"1")
        past_the_clock()
        kept.keeper.one_pass(1.0)
        kept.keeper.one_pass(2.0 + kept.keeper._settings.interval_s)
        before = times(path)
        write(b"2")
        assert times(path) == before, "this system leaves a trace of such writes"
        assert not statehash.scan(kept.keeper._folder.root_fd, kept.keeper._committer.index), "no scan can tell"
        with pytest.MonkeyPatch.context() as clock:
            clock.setattr(daemon.time, "time", lambda: path.stat().st_mtime + rehash.RESTED_S + 1.0)
            kept.keeper.one_pass(5.0 + 3 * kept.keeper._settings.interval_s)
        assert world.stored_tree() == host.tree
        assert times(path) == before
    world.check()


def test_writes_without_a_trace_are_found_at_the_end(world: World) -> None:
    host = world.host()
    world.start(host)
    path = host.state / "mapped"
    write_tree(host.state, {"mapped": bytes(100_000)})
    with keeping(world, host) as kept:
        with mapped(path) as write:
            write(b"1")
            past_the_clock()
            kept.keeper.one_pass(1.0)
            kept.keeper.one_pass(2.0 + kept.keeper._settings.interval_s)
            before = times(path)
            write(b"2")
        assert times(path) == before
        kept.keeper.finish(deadline_s=0.0)
    assert world.stored_tree() == host.tree
    world.check()


def test_all_is_read_again_within_the_promised_time(world: World) -> None:
    """However old the file and whatever its times say."""
    host = world.host()
    world.start(host)
    write_tree(host.state, {f"d{number}/f": os.urandom(100_000) for number in range(40)})
    with keeping(world, host) as kept, mapped(host.state / "d33/f") as write:
        write(b"1")
        past_the_clock()
        kept.keeper.one_pass(1.0)
        write(b"2")
        fd, index = kept.keeper._folder.root_fd, kept.keeper._committer.index
        slow = rehash.Rehash(now_s=0.0, clock_s=time.time() + 1e6)  # nothing is young any more
        found, now_s, most = [], 0.0, 0
        while slow.rounds == 0:
            now_s += 30.0
            assert now_s <= rehash.ROUND_S + 60.0
            before = slow._recheck.bytes
            found += slow.step(fd, index, now_s=now_s, clock_s=0.0)
            most = max(most, slow._recheck.bytes - before)
        assert found == [b"d33/f"]
        assert most <= 30 * rehash.LEAST_BYTES_S + 100_000
        kept.keeper.one_pass(2.0 + kept.keeper._settings.interval_s)
    assert world.stored_tree() == host.tree
    world.check()
