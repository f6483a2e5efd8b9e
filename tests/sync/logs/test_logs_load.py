"""Floods, outages, full disks and long quiet days: bounded, counted, and cheap."""

from __future__ import annotations

import json
import random
import re
import resource
import threading
import time
from pathlib import Path

import pytest

from sync.logs.station import BOT, DAY, Station, Watched, line, numbers
from the0 import names
from the0.sync import day_log


def hundred(number: int) -> bytes:
    """A line of 100 bytes."""
    return b'{"timestamp":"t","n":1%08d,"x":"%s"}\n' % (number, b"x" * 61)


def numbered(text: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb'"n":1(\d{8}),', text)]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_thousand_lines_a_second_cost_less_than_four_times_their_bytes(any_station: Station) -> None:
    store = Watched(any_station.store)
    shipper = any_station.shipper(store=store)
    printed = 0
    for second in range(60):
        any_station.writer.write(b'{"timestamp":"t","n":%d,"x":"%s"}\n' % (second, b"x" * 68))
        any_station.writer.write(b"".join(b"%099d\n" % n for n in range(999)))
        printed += 100_000
        any_station.run(shipper, 1)
        if second % 12 == 11:
            assert max(any_station.numbers()) >= second - 4
    assert shipper.finish(10)
    stored = len(any_station.day_object())
    assert any_station.numbers() == list(range(60))
    assert len(any_station.lines()) == 60_000
    assert stored >= printed
    assert store.sent_bytes < 4 * stored, f"{store.sent_bytes / stored:.2f} times"
    # A request each second or so, not one for each line.
    assert store.requests < 400


@pytest.mark.parametrize("former_bytes", [0, 300_000, 4_800_000])
def test_a_line_every_five_seconds_costs_at_most_16_kib_a_second(station: Station, former_bytes: int) -> None:
    if former_bytes:
        station.store.put(station.bucket, names.day_log_key(BOT, DAY), line(-1) * (former_bytes // len(line(-1))))
    store = Watched(station.store)
    shipper = station.shipper(store=store)
    hour_s = 1200
    for number in range(hour_s // 5):
        station.print(number)
        station.run(shipper, 5)
    assert store.day_bytes > 0
    assert store.day_bytes <= hour_s * day_log.BYTES_PER_S + former_bytes
    newest = numbers(station.day_object().splitlines())[-1]
    assert hour_s - 5 * newest <= 340, "the object that others read is over 5 min behind"
    assert numbers(station.lines())[-1] >= hour_s // 5 - 1


def test_a_store_that_is_down_loses_and_repeats_nothing(any_station: Station) -> None:
    store = Watched(any_station.store)
    shipper = any_station.shipper(store=store)
    number = 0
    rng = random.Random(5)
    for round_ in range(12):
        store.down = round_ % 3 == 1
        for _ in range(rng.randrange(5, 40)):
            any_station.print(number)
            number += 1
            any_station.run(shipper, 1)
        if store.down:
            assert shipper.trouble == "The store does not answer."
            assert not shipper.finish(0.01)
        if round_ % 4 == 2:
            shipper = any_station.shipper(store=store, epoch=1 + round_ // 4)
    store.down = False
    any_station.run(shipper, 35)
    assert any_station.numbers() == list(range(number))
    assert shipper.trouble is None
    assert shipper.finish(10)
    assert any_station.numbers() == list(range(number))
    assert any("could not be stored for" in message for message in any_station.messages())


def test_an_outage_beyond_every_bound_is_counted_to_the_byte(station: Station) -> None:
    station.writer.close()
    station.limit_bytes, station.spool_limit_bytes = 300_000, 2_000_000
    station.writer = station.new_writer()
    store = Watched(station.store)
    store.down = True
    shipper = station.shipper(store=store)
    printed = 0
    for second in range(300):
        station.writer.write(b"".join(hundred(n) for n in range(printed, printed + 200)))
        printed += 200
        station.run(shipper, 1)
        if second == 150:
            shipper.say("said in the midst of it")
        used = sum(path.stat().st_size for path in [*station.spool.iterdir(), *station.logs.iterdir()])
        assert used < 2_000_000 + 2 * 300_000 + 400_000
    store.down = False
    station.run(shipper, 60)
    assert shipper.finish(10)
    found = numbered(station.day_object())
    assert found == sorted(set(found))
    assert found[-1] == printed - 1
    lost = [re.match(r"(\d+) bytes of the bot's output were lost", message) for message in station.messages()]
    assert sum(int(match[1]) for match in lost if match) == (printed - len(found)) * 100
    assert "said in the midst of it" in station.messages()


def test_a_flood_of_100_000_lines_a_second_is_bounded(station: Station) -> None:
    stop = threading.Event()
    shipper = station.shipper()
    shipping = threading.Thread(target=shipper.run, args=(stop,))
    before = peak_bytes()
    shipping.start()
    block, printed, slowest_s = b"".join(hundred(n) for n in range(1000)), 0, 0.0
    begun = time.monotonic()
    while time.monotonic() - begun < 2.5:
        at = time.monotonic()
        station.writer.write(block)
        slowest_s = max(slowest_s, time.monotonic() - at)
        printed += 1000
        time.sleep(max(0.0, begun + printed / 100_000 - time.monotonic()))
    rate = printed / (time.monotonic() - begun)
    stop.set()
    shipping.join()
    assert rate > 50_000, "the machine is too busy for a flood"
    assert slowest_s < 1.0, "the bot was blocked"
    assert sum(path.stat().st_size for path in station.logs.iterdir()) < 34 << 20
    assert shipper.finish(20)
    grown = peak_bytes() - before
    assert grown < 64 << 20, f"{grown >> 20} MiB more"
    lost = [re.match(r"(\d+) bytes of the bot's output were lost", message) for message in station.messages()]
    stored = sum(len(found) for found in station.lines() if b'"level"' not in found)
    assert stored + sum(int(match[1]) for match in lost if match) == printed * 100


@pytest.mark.parametrize("content", ["one line of 10 MB", "binary", "blank", "carriage returns", "endless"])
def test_odd_output_is_bounded_and_stays_json(station: Station, content: str) -> None:
    shipper = station.shipper()
    blocks = {
        "one line of 10 MB": [b"x" * 100_000] * 100 + [b"\n"],
        "binary": [random.Random(1).randbytes(100_000)] * 30,
        "blank": [b"\n" * 100_000] * 30,
        "carriage returns": [b"50%\r" * 25_000] * 30,
        "endless": [b"x" * 100_000] * 200,
    }[content]
    for block in blocks:
        station.writer.write(block)
        station.run(shipper, 0.1, tick_s=0.1)
    station.writer.write(b"\nlast\n")
    assert shipper.finish(10)
    found = station.lines()
    assert all(len(each) < 3 << 20 for each in found)
    assert json.loads(found[-1])["message"] == "last"
    assert all(set(value) >= {"timestamp", "message"} for value in map(json.loads, found))
    if content in ("one line of 10 MB", "endless"):
        assert len(found) == 3
        assert (
            f"a line of {sum(map(len, blocks)) - (content != 'endless')} bytes was cut"
            in json.loads(found[1])["message"]
        )


def test_a_full_local_disk_is_trouble_and_then_passes(station: Station) -> None:
    shipper = station.shipper()
    station.print(1)
    station.run(shipper, 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        shipper.say("it waits in memory")
        station.run(shipper, 4)
        assert shipper.trouble is not None
        assert "The log's files fail" in shipper.trouble
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    station.print(2)
    station.run(shipper, 40)
    assert shipper.finish(10)
    assert shipper.trouble is None
    assert station.numbers() == [1, 2]
    assert station.messages() == ["it waits in memory"]


def test_a_folder_that_is_not_there_yet_is_no_trouble(station: Station) -> None:
    station.writer.close()
    for path in station.logs.iterdir():
        path.unlink()
    station.logs.rmdir()
    shipper = station.shipper()
    station.run(shipper, 3)
    assert shipper.trouble is None
    station.writer = station.new_writer()
    station.print(1)
    assert shipper.finish(10)
    assert station.numbers() == [1]


def test_a_bot_that_ruins_the_spool_loses_that_and_no_more(station: Station, tmp_path: Path) -> None:
    store = Watched(station.store)
    shipper = station.shipper(store=store)
    station.print(1)
    station.run(shipper, 4)
    store.down = True
    station.print(2)
    station.run(shipper, 1)
    for path in station.spool.iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere")
    station.print(3)
    station.run(shipper, 30)
    store.down = False
    station.run(shipper, 40)
    station.print(4)
    assert shipper.finish(10)
    found = station.numbers()
    assert found[0] == 1
    assert found[-1] == 4
    assert found == sorted(set(found))
    assert not (tmp_path / "elsewhere").exists()
