"""Ids and keys: no two ids meet, none leaves its folder, and stored data keeps its spelling."""

from __future__ import annotations

import random
import re

import pytest

from the0 import names


@pytest.mark.parametrize("bot_id", ["bot-1", "A", "0", "...", ".a", "a..b", "_", "x" * 128, "664f1c2e9b1e8a0012345678"])
def test_plain_ids_stay_as_they_are(bot_id: str) -> None:
    assert names.encode_id(bot_id) == bot_id


@pytest.mark.parametrize(
    "bot_id",
    [".", "..", "a/b", "../x", "x" * 129, "é", "a b", "a\n", "a\0", "~" + "0" * 32, "\ud800", "٣", "A:b", "-\u0130"],
)
def test_other_ids_become_a_hash(bot_id: str) -> None:
    assert re.fullmatch(r"~[0-9a-f]{32}", names.encode_id(bot_id))


def test_an_empty_id_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        names.encode_id("")


def test_the_hash_is_blake3_of_utf_8() -> None:
    """Stored data depends on it: the first half of BLAKE3("a/b")."""
    from the0 import statehash

    assert names.encode_id("a/b") == "~" + statehash.digest(b"a/b")[:32]
    assert names.encode_id("é") == "~" + statehash.digest("é".encode())[:32]


def test_no_two_random_ids_meet() -> None:
    dice = random.Random(7)
    ids = {"".join(dice.choices("ab./~é\n", k=dice.randrange(1, 6))) for _ in range(20_000)}
    encoded = {names.encode_id(bot_id) for bot_id in ids}
    assert len(encoded) == len(ids)
    assert all(re.fullmatch(r"~?[A-Za-z0-9._-]{1,128}", name) and name not in (".", "..") for name in encoded)


def test_keys_of_a_bot() -> None:
    assert names.head_key("b") == "b/HEAD"
    assert names.segment_key("b", lineage="l", generation=7, digest="d") == "b/segments/l/000000000007-d"
    assert names.history_key("b", lineage="l", generation=7) == "b/history/l/000000000007"
    assert names.run_key("b", "20260102T030405Z") == "b/runs/20260102T030405Z.json"
    assert names.archive_key("b") == "b/state.tar.gz"
    assert names.archive_base_key("b") == "b/archive-base"
    assert names.day_log_key("b", "20260102") == "logs/b/20260102.log"
    assert names.log_piece_key("b", "20260102", epoch=3, seq=4) == "logs/b/20260102/0000000003-000000000004.ndjson"


def test_every_key_lies_below_its_bots_prefix() -> None:
    for bot_id in ("b", "../other", "a/b"):
        prefix = names.state_prefix(bot_id)
        assert prefix.count("/") == 1
        for key in (
            names.head_key(bot_id),
            names.segments_prefix(bot_id),
            names.archive_key(bot_id),
            names.archive_base_key(bot_id),
            names.grant_key(bot_id),
            names.run_key(bot_id, "s"),
        ):
            assert key.startswith(prefix)
        logs = names.logs_prefix(bot_id)
        assert names.day_log_key(bot_id, "20260102").startswith(logs)
        assert names.log_pieces_prefix(bot_id, "20260102").startswith(logs)


def test_pieces_and_segments_sort_in_their_order() -> None:
    keys = [
        names.log_piece_key("b", "20260102", epoch=e, seq=s) for e in (1, 9, 10, 1234567890) for s in (0, 9, 10, 10**11)
    ]
    assert keys == sorted(keys)
    generations = [names.segment_key("b", lineage="l", generation=g, digest="d") for g in (1, 9, 10, 99, 10**11)]
    assert generations == sorted(generations)
