from __future__ import annotations

import json
import threading
from typing import Any, ClassVar

import pytest

from sync.logs.station import BOT, DAY, MIDNIGHT_S, Station, Watched, line
from the0 import names
from the0.sync import day_log
from the0.sync.logs import write_orphan_line


def test_a_line_is_readable_within_five_seconds_and_once(any_station: Station) -> None:
    shipper = any_station.shipper()
    any_station.run(shipper, 3)
    any_station.print(1, 2, 3)
    any_station.run(shipper, 5)
    assert any_station.numbers() == [1, 2, 3]


def test_the_end_leaves_one_object_a_day_and_nothing_else(any_station: Station) -> None:
    shipper = any_station.shipper()
    for number in range(20):
        any_station.print(number)
        any_station.run(shipper, 3)
    any_station.writer.write(b"no newline at the end")
    assert shipper.finish(10)
    assert any_station.stored() == [f"logs/{BOT}/{DAY}.log"]
    found = any_station.day_object().splitlines(keepends=True)
    assert found[:-1] == [line(number) for number in range(20)]
    assert json.loads(found[-1])["message"] == "no newline at the end"
    assert any_station.lines() == found


def test_a_day_ends_at_midnight_utc(any_station: Station) -> None:
    any_station.now_s = MIDNIGHT_S + 86_400 - 7
    shipper = any_station.shipper()
    for number in range(14):
        any_station.print(number)
        any_station.run(shipper, 1)
    any_station.run(shipper, 40)
    assert any_station.numbers(days=["20231115"]) == list(range(7))
    assert any_station.numbers(days=["20231116"]) == list(range(7, 14))
    assert f"logs/{BOT}/20231115.log" in any_station.stored(), "the day that is over was not consolidated"
    assert shipper.finish(10)
    assert any_station.stored() == [f"logs/{BOT}/20231115.log", f"logs/{BOT}/20231116.log"]


def test_what_an_earlier_runtime_wrote_stays_in_front(any_station: Station) -> None:
    any_station.store.put(
        any_station.bucket, names.day_log_key(BOT, DAY), b'{"timestamp":"old","n":-2}\n{"timestamp":"o","n":-1}'
    )
    any_station.print(0)
    shipper = any_station.shipper()
    any_station.run(shipper, 4)
    assert any_station.numbers() == [-2, -1, 0]
    assert shipper.finish(10)
    any_station.print(1)
    assert any_station.shipper(epoch=2).finish(10)
    assert any_station.numbers() == [-2, -1, 0, 1]
    assert len(any_station.day_object().splitlines()) == 4


def test_a_large_foreign_object_stays_in_front(any_station: Station) -> None:
    foreign = b'{"timestamp":"o","x":"%s"}\n' % (b"x" * 999_974) * 6
    any_station.store.put(any_station.bucket, names.day_log_key(BOT, DAY), foreign + b'{"timestamp":"o","n":-1}')
    any_station.print(0)
    shipper = any_station.shipper()
    assert shipper.finish(10)
    assert any_station.day_object() == foreign + b'{"timestamp":"o","n":-1}\n' + line(0)
    assert any_station.stored() == [f"logs/{BOT}/{DAY}.log"]


def test_over_five_mebibytes_the_object_grows_by_what_is_new(any_station: Station) -> None:
    store = Watched(any_station.store)
    shipper = any_station.shipper(store=store)
    wide = b'{"timestamp":"t","x":"%s","n":' % (b"x" * 60_000)
    for number in range(100):
        any_station.writer.write(wide + b"%d}\n" % number)
    any_station.run(shipper, 20)
    assert len(any_station.day_object()) > 5 << 20
    before = store.day_bytes
    for number in range(100, 130):
        any_station.writer.write(wide + b"%d}\n" % number)
    any_station.run(shipper, 290)
    assert store.day_bytes == before, "it was consolidated before its time"
    assert any_station.numbers() == list(range(130))
    any_station.run(shipper, 20)
    assert 1_800_000 < store.day_bytes - before < 1_900_000
    assert any_station.numbers() == list(range(130))
    any_station.print(130)
    assert shipper.finish(10)
    assert any_station.numbers() == list(range(131))
    assert any_station.stored() == [f"logs/{BOT}/{DAY}.log"]


def test_lines_of_failed_starts_reach_the_day(any_station: Station) -> None:
    any_station.print(0)
    assert any_station.shipper(epoch=1).finish(10)
    for sentence in ("The archive is corrupt.", "The archive is still corrupt."):
        write_orphan_line(any_station.store, any_station.bucket, BOT, sentence, any_station.now_s)
        any_station.now_s += 1
    assert any_station.messages() == ["The archive is corrupt.", "The archive is still corrupt."]
    any_station.print(1)
    assert any_station.shipper(epoch=2).finish(10)
    assert any_station.messages() == ["The archive is corrupt.", "The archive is still corrupt."]
    assert any_station.numbers() == [0, 1]
    assert any_station.stored() == [f"logs/{BOT}/{DAY}.log"]


def test_a_late_piece_of_a_former_epoch_is_added_and_a_repeated_one_is_not(any_station: Station) -> None:
    any_station.print(1)
    former = any_station.shipper(epoch=1)
    any_station.run(former, 4)
    first = any_station.stored()[0]
    data = any_station.store.get(any_station.bucket, first, limit_bytes=1 << 20).data
    holder = any_station.shipper(epoch=2)
    any_station.print(2)
    any_station.run(holder, 20)
    assert any_station.numbers() == [1, 2]
    # The former holder was only paused: its last PUT arrives again, and then one that nobody has seen.
    any_station.store.put(any_station.bucket, first, data)
    seq = int(first[-19:-7]) + 1
    late = names.log_piece_key(BOT, DAY, epoch=1, seq=seq)
    any_station.store.put(any_station.bucket, late, line(3))
    assert any_station.numbers() == [1, 2, 3]
    any_station.run(holder, 100)
    assert any_station.numbers() == [1, 2, 3]
    assert any_station.stored() == [f"logs/{BOT}/{DAY}.log"]


def test_a_fenced_shipper_ships_and_leaves_the_day_alone(any_station: Station) -> None:
    any_station.print(1)
    shipper = any_station.shipper(epoch=1)
    shipper.fence()
    any_station.run(shipper, 40)
    assert shipper.finish(10)
    assert [key.endswith(".ndjson") for key in any_station.stored()] == [True]
    assert any_station.shipper(epoch=2).finish(10)
    assert any_station.stored() == [f"logs/{BOT}/{DAY}.log"]
    assert any_station.numbers() == [1]


def test_many_epochs_a_day_repeat_nothing(station: Station) -> None:
    for epoch in range(1, 60):
        station.print(epoch)
        assert station.shipper(epoch=epoch).finish(10)
    assert station.numbers() == list(range(1, 60))
    info = station.store.head(station.bucket, names.day_log_key(BOT, DAY))
    assert info is not None
    assert sum(len(k) + len(v) for k, v in info.metadata.items()) < 1500, "stores take 2 KB of metadata"


@pytest.mark.parametrize("spool_is_there", [True, False])
def test_a_successor_under_the_same_epoch_goes_on(station: Station, spool_is_there: bool) -> None:
    numbers = []
    for number in range(5):
        station.print(number)
        numbers.append(number)
        shipper = station.shipper(epoch=1)
        station.run(shipper, 4)
        if not spool_is_there:
            # The bot removed it: our own place in bot.log goes with it, the pieces in the store must not.
            station.writer.close()
            for path in [*station.spool.iterdir(), *station.logs.iterdir()]:
                path.unlink()
            station.writer = station.new_writer()
    assert station.shipper(epoch=1).finish(10)
    assert station.numbers() == numbers


def test_a_composition_that_was_lost_is_made_again(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a store composes unconditionally, a holder that was only paused may put the former object back."""
    monkeypatch.setattr(day_log, "REWRITE_BELOW_BYTES", 10)
    station.print(0)
    assert station.shipper().finish(10)
    former = station.store.get(station.bucket, names.day_log_key(BOT, DAY), limit_bytes=1 << 20)

    class Forgetful(Watched):
        def __getattr__(self, name: str) -> Any:
            act = super().__getattr__(name)
            if name != "append" or "append" in self.asked:
                return act

            def append(*args: Any, **kwargs: Any) -> Any:
                act(*args, **kwargs)
                metadata = former.info.metadata
                return station.store.put(station.bucket, names.day_log_key(BOT, DAY), former.data, metadata=metadata)

            return append

    store = Forgetful(station.store)
    shipper = station.shipper(store=store)
    station.print(1)
    station.run(shipper, 310)
    assert station.day_object() == line(0)
    assert station.numbers() == [0, 1]
    station.print(2)
    assert shipper.finish(10)
    assert station.numbers() == [0, 1, 2]
    assert station.stored() == [f"logs/{BOT}/{DAY}.log"]


def test_a_listing_with_gaps_loses_nothing(station: Station) -> None:
    """A former holder goes on writing while the next one lists: of two new pieces the listing may show the second only."""
    for seq in (1, 2, 3):
        station.store.put(station.bucket, names.log_piece_key(BOT, DAY, epoch=1, seq=seq), line(seq))

    class Gaps(Watched):
        shown: ClassVar = [["1.ndjson"], ["1.ndjson", "3.ndjson"]]

        def __getattr__(self, name: str) -> Any:
            act = super().__getattr__(name)
            if name != "list" or not self.shown:
                return act
            shown = self.shown.pop(0)
            return lambda *args, **kwargs: [info for info in act(*args, **kwargs) if info.key.endswith(tuple(shown))]

    shipper = station.shipper(epoch=2, store=Gaps(station.store))
    station.run(shipper, 50)
    assert station.day_object() == line(1)
    station.run(shipper, 100)
    assert shipper.finish(10)
    assert station.numbers() == [1, 2, 3]


def test_lines_that_go_over_the_end_of_a_file_survive_a_restart(station: Station) -> None:
    station.writer.close()
    station.limit_bytes = 1000
    station.writer = station.new_writer()
    whole = b"".join(b'{"timestamp":"t","n":%d,"x":"%s"}\n' % (n, b"x" * 30_000) for n in range(60))
    for cut in range(0, len(whole), 10_007):
        # Hardly ever at the end of a line: so the file turns over in the midst of one.
        station.writer.write(whole[cut : cut + 10_007])
        shipper = station.shipper()
        shipper.one_pass(station.now_s)
    assert (station.logs / "bot.log.1").exists()
    assert station.shipper().finish(10)
    assert station.day_object() == whole


def test_a_line_may_follow_the_end_and_another_end_that_line(any_station: Station) -> None:
    any_station.print(1)
    shipper = any_station.shipper()
    assert shipper.finish(10)
    shipper.say("The last state was not stored.")
    assert shipper.finish(10)
    assert any_station.messages() == ["The last state was not stored."]
    assert any_station.stored() == [f"logs/{BOT}/{DAY}.log"]


def test_lines_of_ours_come_from_any_thread_and_each_once(station: Station) -> None:
    shipper = station.shipper()
    stop = threading.Event()
    shipping = threading.Thread(target=shipper.run, args=(stop,))
    shipping.start()

    def talk(who: int) -> None:
        for number in range(50):
            shipper.say(f"{who}-{number}", level="info")
            station.now_s += 86_400 / 50 / 4

    talking = [threading.Thread(target=talk, args=(who,)) for who in range(4)]
    for thread in talking:
        thread.start()
    for thread in talking:
        thread.join()
    stop.set()
    shipping.join()
    assert shipper.finish(10)
    found = station.messages()
    assert sorted(found) == sorted(f"{who}-{number}" for who in range(4) for number in range(50))
    for who in range(4):
        mine = [message for message in found if message.startswith(f"{who}-")]
        assert mine == [f"{who}-{number}" for number in range(50)]


def test_a_step_that_takes_long_delays_no_line(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store copies a large object at every step; lines must not wait for that."""
    monkeypatch.setattr(day_log, "REWRITE_BELOW_BYTES", 10)
    monkeypatch.setattr(day_log, "LARGE_BYTES", 20)
    go_on = threading.Event()

    class Slow(Watched):
        def __getattr__(self, name: str) -> Any:
            act = super().__getattr__(name)
            if name == "append":
                return lambda *args, **kwargs: go_on.wait(30) and act(*args, **kwargs)
            return act

    shipper = station.shipper(store=Slow(station.store))
    station.print(0)
    station.run(shipper, 20)
    assert station.day_object() == line(0)
    station.print(1)
    station.run(shipper, 330)
    assert "logs-day" in {thread.name for thread in threading.enumerate()}
    for number in range(2, 8):
        station.print(number)
        station.run(shipper, 4)
        assert station.numbers() == list(range(number + 1))
    assert station.day_object() == line(0)
    assert not shipper.finish(0.01)
    assert station.numbers() == list(range(8))
    go_on.set()
    assert shipper.finish(10)
    assert station.day_object() == b"".join(line(number) for number in range(8))
    assert station.stored() == [f"logs/{BOT}/{DAY}.log"]
