"""The host's own disk fails: full, read-only, out of descriptors, unreadable, unwritable, or gone with the power."""

from __future__ import annotations

import random
import resource
import time
from pathlib import Path

import pytest
from bot_place import COMMAND, Place, Running

from faults.disk import BLOCK_BYTES
from faults.field import SLOW_S, SOAK, Field, read_work
from rig.waiting import eventually
from the0 import names
from the0.errors import ExitCode

FOR_S = 1.5
ROUNDS = 20 if SOAK else 2


def ours(run: Running) -> list[int]:
    """Supervisor and sync, not the bot."""
    return [run.process.pid, run.child("the0-sync")]


@pytest.mark.fault(
    "the disk of bot and runtime full to the last block, then the host is lost", "all but the last 2 s of work"
)
def test_full_and_the_host_is_lost(bot: Field, luck: random.Random) -> None:
    disk = bot.disk()
    place = bot.host()
    run = place.start()
    bot.works(run)
    disk.fill()
    time.sleep(luck.random())
    work = bot.loses_host(run, place)
    bot.starts_again(bot.host())
    assert bot.found() == work.number


@pytest.mark.fault(
    "the disk full to the last block, room again, kill -9 of supervisor, bot and sync; disk and boot stay", "all work"
)
def test_full_and_room_again(bot: Field, luck: random.Random) -> None:
    disk = bot.disk()
    place = bot.host()
    run = place.start()
    bot.works(run)
    for _ in range(ROUNDS):
        ballast = disk.fill()
        time.sleep(FOR_S * luck.random())
        if luck.random() < 0.5:
            # Killed on a full disk, and started there, too, where a start may say that it cannot.
            bot.kill_all(run)
            bot.known_ended(place)
            ended = place.start()
            time.sleep(FOR_S * luck.random())
            bot.kill_all(ended)
            ballast.unlink()
            run = bot.finds_all(place)
        else:
            ballast.unlink()
        bot.goes_on()
        bot.judge()
    bot.stops(run)


@pytest.mark.fault(
    "the disk goes read-only, as after an error of the file system; the host is lost", "all but the last 2 s of work"
)
def test_read_only(bot: Field, luck: random.Random) -> None:
    disk = bot.disk()
    place = bot.host()
    run = place.start()
    bot.works(run)
    time.sleep(luck.random())
    disk.read_only()
    time.sleep(FOR_S)
    bot.kill_all(run)
    stored = bot.lost().number
    # A start on it says so; repaired, it is as after a power loss.
    bot.known_ended(place)
    bot.is_refused(place, ExitCode.LOCAL_DISK)
    disk.repair()
    bot.starts_again(place)
    assert bot.found() >= stored


@pytest.mark.fault(
    "no descriptor left (EMFILE) for supervisor and sync for a while, then the host is lost",
    "all but the last 2 s of work",
)
def test_no_descriptors_for_a_while(bot: Field, luck: random.Random) -> None:
    place = bot.host()
    run = place.start()
    bot.works(run)
    for _ in range(ROUNDS):
        limits = {}
        for pid in ours(run):
            limits[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[pid][1]))
        time.sleep(FOR_S * luck.random())
        for pid, limit in limits.items():
            if Path(f"/proc/{pid}").exists():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        bot.goes_on()
    bot.loses_host(run, place)


@pytest.mark.fault(
    "a start with 8 to 40 descriptors at most (EMFILE), on a disk with work", "it says so, or works; all work"
)
def test_starts_with_few_descriptors(bot: Field, luck: random.Random) -> None:
    place = bot.host()
    run = place.start()
    bot.works(run)
    bot.kill_all(run)
    ends = {}
    # Too few for any start, or nearly, and now and then enough.
    for limits in [range(8, 12), range(12, 17), range(22, 40)] * ROUNDS:
        bot.known_ended(place)
        place.command = ["prlimit", f"--nofile={luck.choice(limits)}", *COMMAND]
        starts = bot.started()
        few = place.start()
        # A start that gets no connection tries for 20 s.
        eventually(
            lambda few=few, starts=starts: bot.started() > starts or few.process.poll() is not None,
            "an end or a start",
            within_s=SLOW_S,
        )
        if few.process.poll() is None:
            bot.kill_all(few)
        else:
            ended = few.end()
            ends[ended.code] = ended.err
        bot.judge()
    assert ends
    assert ends.keys() <= {int(code) for code in ExitCode}, ends
    place.command = list(COMMAND)
    bot.known_ended(place)
    bot.finds_all(place)


@pytest.mark.fault(
    "a changed file that cannot be read (EIO), a clean stop, another host",
    "its last stored version, listed as incomplete; all other work",
)
@pytest.mark.parametrize("size", [50_000, 3 << 20])
def test_a_file_that_cannot_be_read(bot: Field, luck: random.Random, size: int) -> None:
    disk = bot.disk(journal=False)
    place = bot.host()
    run = place.start()
    bot.works(run)
    big = place.state / "big"
    big.write_bytes(luck.randbytes(size))
    first = big.read_bytes()

    def kept() -> bool:
        with bot.as_stored() as tree:
            return (tree / "big").exists() and (tree / "big").read_bytes() == first

    eventually(kept, "the file in the store", within_s=SLOW_S)
    other = place.root / "other"
    other.write_bytes(luck.randbytes(size))
    disk.moved_last(other)
    disk.break_from(other)
    other.rename(big)
    eventually(lambda: bot.head.content.incomplete == ("big",), "it is listed", within_s=SLOW_S)
    bot.goes_on()
    bot.told("unreadable")
    bot.stops(run)
    assert kept()
    bot.is_refused(bot.host(), ExitCode.REFUSED)
    place = bot.host()
    place.env["BOT_CONFIG"] = bot.config(the0={"incomplete": "run"})
    bot.starts_again(place)
    assert (place.state / "big").read_bytes() == first


@pytest.mark.fault(
    "blocks of the disk that cannot be written (EIO) while the bot works, then the host is lost",
    "all but the last 2 s of work",
)
def test_a_disk_that_cannot_be_written(bot: Field, luck: random.Random) -> None:
    disk = bot.disk(journal=False)
    place = bot.host()
    run = place.start()
    bot.works(run)
    last = place.root / "last"
    last.write_bytes(luck.randbytes(BLOCK_BYTES))
    disk.sync()
    disk.break_from(last)
    time.sleep(FOR_S + luck.random())
    bot.loses_host(run, place)
    bot.starts_again(bot.host())


@pytest.mark.fault("the index cannot be read at a start (EIO)", "what was stored; the tree is set aside")
def test_an_index_that_cannot_be_read(bot: Field) -> None:
    disk = bot.disk(journal=False)
    place = bot.host()
    run = place.start()
    bot.works(run)
    bot.kill_all(run)
    work = bot.lost()
    bot.known_ended(place)
    index = place.state / names.RESERVED_DIR / names.INDEX
    disk.moved_last(index)
    disk.break_from(index)
    run = bot.starts_again(place)
    assert bot.found() == work.number
    bot.told("Input/output error")
    bot.goes_on()
    asides = list((place.state / names.RESERVED_DIR / names.ASIDE).iterdir())
    assert [read_work(aside / "work").number >= work.number for aside in asides] == [True]


@pytest.mark.fault(
    "a file that cannot be read (EIO) at the first start after a boot",
    "the start says so, and changes nothing; on another host all that was stored",
)
def test_a_tree_that_cannot_be_read(bot: Field) -> None:
    disk = bot.disk(journal=False)
    place = bot.host()
    run = place.start()
    bot.works(run)
    bot.stops(run)
    disk.moved_last(place.state / "work")
    disk.break_from(place.state / "work")
    booted(place, bot.root / "boot_id", number=1)
    before = bot.head
    ended = bot.is_refused(place, ExitCode.LOCAL_DISK)
    assert "Input/output error (work)" in ended.err
    assert bot.head == before
    bot.finds_all(bot.host())


def booted(place: Place, boot_id: Path, *, number: int) -> None:
    """From now on runs there see this boot."""
    boot_id.write_text(f"00000000-0000-4000-8000-{number:012}\n")
    mounted = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    place.command = ["unshare", "--mount", "sh", "-c", mounted, str(boot_id), *COMMAND]


@pytest.mark.fault(
    "power loss at random instants: the disk's blocks as they were then, nothing synced; another boot id",
    "all but the last 2 s of work",
)
def test_power_loss(bot: Field, luck: random.Random) -> None:
    disk = bot.disk()
    place = bot.host()
    stored = 0
    for number in range(ROUNDS + 1):
        booted(place, bot.root / "boot_id", number=number)
        run = bot.starts_again(place)
        assert bot.found() == stored, "exactly what was stored, whatever the disk held"
        bot.works(run)
        time.sleep(luck.random())
        if luck.random() < 0.7:
            disk.sync()  # as the kernel does it now and then
        time.sleep(luck.random())
        bot.kill_all(run)
        disk.power_off()
        stored = bot.lost().number
        bot.known_ended(place)
