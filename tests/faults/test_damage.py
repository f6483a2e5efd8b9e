"""What is stored, or the index beside the tree, is damaged: the start says so and starts nothing, or the store's state counts."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass

import pytest

from faults.field import SOAK, Field
from the0 import canonical, names, statehash
from the0.errors import ExitCode

ROUNDS = 5 if SOAK else 1
INDEX = f"{names.RESERVED_DIR}/{names.INDEX}"


def truncated(data: bytes, luck: random.Random) -> bytes:
    return data[: luck.randrange(len(data))]


def flipped(data: bytes, luck: random.Random) -> bytes:
    at = luck.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << luck.randrange(8)]) + data[at + 1 :]


@dataclass
class Other:
    """Another bot's state in the same bucket, and its folder."""

    segment: bytes
    head: bytes
    index: bytes


def another_bot(bot: Field) -> Other:
    place = bot.host()
    config = json.dumps({"ledger": str(place.root / "ledger")})
    place.env |= {"BOT_ID": "bot-2", "THE0_ENDED": None, "BOT_CONFIG": config}
    run = place.start()
    bot.until(lambda: bool(bot.keys(bot_id="bot-2")))
    run.stop()
    bot.places.remove(place)
    return Other(
        segment=bot.read(bot.keys(bot_id="bot-2")[-1]),
        head=bot.read(names.head_key("bot-2")),
        index=place.state.joinpath(INDEX).read_bytes(),
    )


@pytest.mark.fault(
    "segments, and HEAD, truncated, bit-flipped, missing, of another bot; HEAD garbage and of a future format",
    "the start is refused and says why, never empty; `state verify` names it; once it is put back, all that was stored",
)
def test_what_is_stored_is_damaged(bot: Field, luck: random.Random) -> None:
    place = bot.host()
    run = place.start()
    bot.works(run)
    work = bot.loses_host(run, place)
    other = another_bot(bot)
    segments = [ref.key for ref in bot.head_there().content.segments]
    head = names.head_key(bot.bot_id)
    damages: list[tuple[str, bytes | None, set[int]]] = []
    damaged = {int(ExitCode.STATE_DAMAGED)}
    for _ in range(ROUNDS):
        for how in (truncated, flipped):
            key = luck.choice(segments)
            damages.append((key, how(bot.read(key), luck), damaged))
            damages.append((head, how(bot.read(head), luck), damaged))
    damages += [
        (luck.choice(segments), other.segment, damaged),
        (luck.choice(segments), None, damaged),
        (head, other.head, damaged),
        (head, luck.randbytes(300), damaged),
        (head, future(bot.read(head)), damaged),
        (head, None, {int(ExitCode.REFUSED), int(ExitCode.STATE_DAMAGED)}),
    ]
    for key, data, codes in damages:
        good = bot.read(key)
        empty = bot.host()
        bot.write(key, data)
        ended = bot.is_refused(empty, *codes)
        assert bot.bot_id in ended.err
        assert not list(empty.state.glob("ring-*")), "nothing half restored"
        code, told = bot.verify()
        assert code != 0, told
        bot.write(key, good)
        assert bot.judge().number == work.number
    run = bot.starts_again(bot.host())
    assert bot.found() == work.number
    bot.works(run)
    bot.stops(run)


def future(head: bytes) -> bytes:
    body = json.loads(head)
    body.pop("self_digest")
    body["format"] += 1
    return canonical.dumps({**body, "self_digest": statehash.digest(canonical.dumps(body).encode())}).encode()


@pytest.mark.fault(
    "the index truncated, bit-flipped, missing, another bot's, after kill -9 of supervisor, bot and sync",
    "the tree where the index is whole to what counts, else what was stored and the tree aside, or a refusal (211); never empty",
)
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "another bot's"])
def test_the_index_is_damaged(bot: Field, luck: random.Random, how: str) -> None:
    place = bot.host()
    for _ in range(ROUNDS):
        run = place.start()
        bot.works(run)
        bot.kill_all(run)
        stored, done = bot.judge().number, bot.done()
        bot.known_ended(place)
        path = place.state / INDEX
        good = path.read_bytes()
        if how == "missing":
            path.unlink()
        elif how == "another bot's":
            path.write_bytes(another_bot(bot).index)
        else:
            path.write_bytes((truncated if how == "truncated" else flipped)(good, luck))
        if how == "another bot's":
            bot.is_refused(place, ExitCode.REFUSED)
            path.write_bytes(good)
            run = bot.finds_all(place)
        else:
            run = bot.starts_again(place)
            assert bot.found() in (stored, done, done + 1), "exactly what was stored, or all that stood on the disk"
            if bot.found() == stored < done:
                aside = place.state / names.RESERVED_DIR / names.ASIDE
                assert list(aside.iterdir()), "the tree is kept aside"
        bot.works(run)
        bot.stops(run)
        shutil.rmtree(place.state / names.RESERVED_DIR / names.ASIDE, ignore_errors=True)
