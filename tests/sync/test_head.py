"""HEAD's format: what is written is read again, and nothing else is accepted."""

from __future__ import annotations

import json
import random

import pytest

from rig.fault_table import Row
from the0 import canonical, statehash
from the0.errors import ExitCode, Permanent
from the0.sync.head import ArchiveRef, Claim, Content, Head, SegmentRef, decode, with_nonce

DAMAGED = pytest.mark.fault(
    "HEAD truncated, bit-flipped, garbage, malformed, of another bot, of a future format",
    "it is refused, and said which it is",
)
HEAD = with_nonce(
    Head(
        content=Content(
            lineage="0123456789abcdef",
            generation=7,
            segments=(SegmentRef("bot/segments/0123456789abcdef/000000000001-aa", "aa", 10),),
            cut=False,
            stale=("db\udcff.sqlite",),
            incomplete=("big file\n",),
            archive=ArchiveRef('"etag"', 6),
            tombstone="fedc",
        ),
        claim=Claim(epoch=3, holder="host:1", instance="abc", released=False, import_etag='"x"'),
    )
)


def test_what_is_written_is_read_again() -> None:
    assert decode(HEAD.encode(), bot_id="bot") == HEAD


def test_each_swap_has_a_nonce_of_its_own() -> None:
    assert with_nonce(HEAD).nonce != HEAD.nonce
    assert with_nonce(HEAD).encode() != HEAD.encode()


@DAMAGED
def test_every_flipped_bit_is_refused(fault: Row) -> None:
    data = HEAD.encode()
    chosen = random.Random(7)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        with pytest.raises(Permanent) as caught:
            decode(bytes(damaged), bot_id="bot")
        assert caught.value.code is ExitCode.STATE_DAMAGED
        fault.judged()


@DAMAGED
def test_every_truncation_is_refused(fault: Row) -> None:
    data = HEAD.encode()
    for length in range(len(data)):
        with pytest.raises(Permanent):
            decode(data[:length], bot_id="bot")
        fault.judged()


def _signed(body: dict[str, object]) -> bytes:
    body.pop("self_digest", None)
    return canonical.dumps({**body, "self_digest": statehash.digest(canonical.dumps(body).encode())}).encode()


@DAMAGED
def test_a_newer_format_is_named(fault: Row) -> None:
    body = json.loads(HEAD.encode())
    with pytest.raises(Permanent, match="format 2"):
        decode(_signed({**body, "format": 2}), bot_id="bot")
    fault.judged()


@DAMAGED
@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body["content"].update(generation="7"),
        lambda body: body["content"].update(generation=-1),
        lambda body: body["content"].update(segments=[{"key": 1}]),
        lambda body: body["claim"].update(epoch=True),
        lambda body: body["claim"].pop("instance"),
        lambda body: body.update(claim=None),
        lambda body: body.update(content=[]),
    ],
)
def test_a_well_signed_but_wrong_body_is_refused(damage: object, fault: Row) -> None:
    body = json.loads(HEAD.encode())
    damage(body)  # type: ignore[operator]
    with pytest.raises(Permanent):
        decode(_signed(body), bot_id="bot")
    fault.judged()


@DAMAGED
def test_the_head_of_another_bot_is_refused(fault: Row) -> None:
    with pytest.raises(Permanent, match="another bot"):
        decode(HEAD.encode(), bot_id="bot2")
    fault.judged()


@DAMAGED
@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format": 1}', b'{"format": "1"}']
)
def test_garbage_is_refused(data: bytes, fault: Row) -> None:
    with pytest.raises(Permanent) as caught:
        decode(data, bot_id="bot")
    assert "bot" in caught.value.sentence
    fault.judged()
