from __future__ import annotations

import json
import tracemalloc

import pytest

from sync.logs.station import BOT, DAY, MIDNIGHT_S, NOON_S, Station, Watched, line
from the0 import names
from the0.sync import log_follow, log_reader
from the0.sync.day_log import Included, piece_of
from the0.sync.lines import stamp


def test_no_lines_are_no_lines(any_station: Station) -> None:
    assert any_station.lines() == []
    assert any_station.lines(tail=5, since_s=0.0) == []


@pytest.mark.parametrize("tail", [0, 1, 3, 5, 8, 100])
def test_the_tail_goes_over_days_and_pieces(any_station: Station, tail: int) -> None:
    any_station.now_s = MIDNIGHT_S - 30
    for number in range(4):
        any_station.print(number)
        assert any_station.shipper(epoch=number + 1).finish(10)
        any_station.now_s += 10
    any_station.print(4, 5)
    any_station.run(any_station.shipper(epoch=9), 4)
    assert any_station.numbers(tail=tail) == [0, 1, 2, 3, 4, 5][6 - min(tail, 6) :]


def test_since_reads_every_kind_of_timestamp(station: Station) -> None:
    since_s = NOON_S
    old, new = since_s - 60, since_s + 60

    told = [
        (stamp(old), False), (stamp(new), True), (int(old * 1000), False), (int(new * 1000), True), (old, False), (new, True),
        (None, True), ("yesterday", True), (stamp(old).replace("Z", "+00:00"), False), (True, False),
        ("2023-11-15T14:01:00+02:00", True), ("2023-11-15T11:00:00", False), ("2023-11-15T12:01:00.123456789Z", True),
    ]  # fmt: skip
    station.writer.write(
        b"".join(json.dumps({"timestamp": t, "n": n}).encode() + b"\n" for n, (t, _) in enumerate(told))
    )
    assert station.shipper().finish(10)
    assert station.numbers(since_s=since_s) == [n for n, (_, recent) in enumerate(told) if recent]
    assert station.numbers(since_s=since_s + 86_400) == []
    assert station.numbers(since_s=since_s, tail=2) == [10, 12]


@pytest.mark.parametrize("moment", ["list", "get_to_file", "get"])
def test_lines_that_are_consolidated_while_we_read_come_once(station: Station, moment: str) -> None:
    shipper = station.shipper()
    for number in range(4):
        station.print(number)
        station.run(shipper, 3)
    assert len(station.stored()) >= 3

    class Hasty(Watched):
        """Before the reader's next request the shipper does its work."""

        def __getattr__(self, name: str) -> object:
            if name == moment:
                station.run(shipper, 20)
            return super().__getattr__(name)

    hasty = Hasty(station.store)
    found = log_reader.read(hasty, station.bucket, BOT)
    assert [json.loads(each)["n"] for each in found] == list(range(4))
    assert moment == "get" or moment in hasty.asked
    assert station.stored() == [f"logs/{BOT}/{DAY}.log"]


def test_memory_does_not_hold_a_day(station: Station) -> None:
    big = b"".join(b'{"timestamp":"t","n":%d,"x":"%s"}\n' % (n, b"x" * 1000) for n in range(20_000))
    station.store.put(station.bucket, names.day_log_key(BOT, DAY), big)
    del big
    tracemalloc.start()
    assert sum(1 for _ in log_reader.read(station.store, station.bucket, BOT, since_s=None)) == 20_000
    assert len(list(log_reader.read(station.store, station.bucket, BOT, tail=10))) == 10
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_what_a_person_is_shown(station: Station) -> None:
    station.writer.write(
        b'{"timestamp":"T1","level":"info","message":"hello"}\n'
        b'{"_metric":"price","value":5,"timestamp":"T2"}\n'
        b'{"timestamp":"T3","message":"red \\u001b[31m and\\nsecond line\\tend"}\n'
        b'{"timestamp":"T4","message":{"not":"text"}}\n'
    )
    assert station.shipper().finish(10)
    stored = list(log_reader.read(station.store, station.bucket, BOT))
    assert b"".join(log_reader.shown(line) for line in stored).decode() == (
        "T1 hello\n"
        'T2 {"_metric": "price", "value": 5}\n'
        "T3 red \\x1b[31m and\n    second line end\n"
        'T4 {"message": {"not": "text"}}\n'
    )
    assert [log_reader.shown(line, as_json=True) for line in stored] == stored
    assert list(log_reader.read(station.store, station.bucket, BOT, tail=1)) == stored[-1:]


def test_only_lines_that_an_expression_finds(station: Station) -> None:
    station.writer.write(
        b'{"timestamp":"T1","message":"sold \\u00e9clair"}\n{"timestamp":"T2","message":"bought"}\nplain sold\n'
    )
    assert station.shipper().finish(10)

    def found(pattern: str, *, tail: int | None = None) -> list[bytes]:
        keep = log_reader.matcher(pattern)
        return list(log_reader.read(station.store, station.bucket, BOT, keep=keep, tail=tail))

    assert [json.loads(line)["message"] for line in found("sold")] == ["sold éclair", "plain sold"]
    assert [json.loads(line)["message"] for line in found("éc")] == ["sold éclair"], "as people see it"
    assert [json.loads(line)["message"] for line in found("^T2 bo+")] == ["bought"]
    assert [json.loads(line)["message"] for line in found("sold", tail=1)] == ["plain sold"], "the last one found"
    with pytest.raises(ValueError, match="no regular expression"):
        log_reader.matcher("(")


def test_following_tells_each_line_once(station: Station) -> None:
    """Whether it comes in pieces or in the day's object."""
    station.print(1, 2, 3, 4, 5)
    shipper = station.shipper()
    station.run(shipper, 6)
    follower = log_follow.Follower(station.store, station.bucket, BOT)
    told = list(follower.begin(tail=3))
    assert told == [line(number) for number in (3, 4, 5)]
    assert list(follower.poll()) == []
    for number in range(6, 18, 3):
        station.print(number, number + 1, number + 2)
        station.run(shipper, 6)
        told += follower.poll()
        assert list(follower.poll()) == []
    station.print(18, 19)
    assert shipper.finish(10), "all in the day's object"
    told += follower.poll()
    assert told == [line(number) for number in range(3, 20)]
    assert list(follower.poll()) == []


def test_following_begins_before_there_is_anything(station: Station) -> None:
    follower = log_follow.Follower(station.store, station.bucket, BOT)
    assert list(follower.begin()) == []
    assert list(follower.poll()) == []
    station.print(1, 2)
    assert station.shipper().finish(10)
    assert list(follower.poll()) == [line(1), line(2)]


def test_objects_of_others_beside_ours_are_left_alone(station: Station) -> None:
    for key in (f"logs/{BOT}/notes.txt", f"logs/{BOT}/{DAY}/notes.txt", f"logs/{BOT}/{DAY}/1-2.ndjson"):
        station.store.put(station.bucket, key, b"not ours\n")
    station.print(1)
    shipper = station.shipper()
    station.run(shipper, 4)
    assert station.numbers() == [1]
    assert shipper.finish(10)
    assert len(station.stored()) == 4
    assert station.lines() == [line(1)]


def test_the_marks_of_a_day_are_read_as_written() -> None:
    included = Included().plus([(0, 17), (3, 5), (3, 6), (4, 1), (0, 18)])
    assert included.encode() == {names.LOG_LAST_PIECE: "0-18 4-1 3-6 0-17"}
    assert Included.decode(included.encode()) == included
    for piece, there in [
        ((3, 6), True),
        ((3, 7), False),
        ((4, 1), True),
        ((0, 17), True),
        ((0, 16), False),
        ((5, 0), False),
    ]:
        assert included.covers(piece) is there
    assert Included.decode({}) == Included.decode({names.LOG_LAST_PIECE: "what is this"}) == Included()
    assert piece_of(names.log_piece_key(BOT, DAY, epoch=3, seq=12)) == (DAY, (3, 12))
    assert piece_of(names.log_piece_key(BOT, DAY, epoch=0, seq=1_700_000_000_123_456)) == (
        DAY,
        (0, 1_700_000_000_123_456),
    )
    assert piece_of(names.day_log_key(BOT, DAY)) is None
