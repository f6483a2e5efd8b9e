"""Stored documents: every spelling that occurs, and a sentence for each that cannot be run."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from the0 import documents, quantities
from the0.documents import BadBot, Bot, Kind
from the0.execute.languages import LANGUAGES
from the0.plain import plain


class ObjectId:
    """As databases have them."""

    def __str__(self) -> str:
        return "65f0c0ffee65f0c0ffee65f0"


class Decimal128:
    def to_decimal(self) -> Decimal:
        return Decimal("5.0")


class Regex:
    pass


def document(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": "bot-1",
        "enabled": True,
        "segment_id": 1,
        "config": {"symbol": "AAPL", "schedule": "*/5 * * * *", "customBotId": "c-1", "size": 5.0},
        "custom": {
            "version": "1.0.0",
            "filePath": "u1/sma/1.0.0",
            "config": {
                "name": "sma",
                "type": "realtime",
                "runtime": "python3.11",
                "version": "1.0.0",
                "entrypoints": {"bot": "main.py", "query": "query.py"},
            },
        },
    }
    for path, value in changes.items():
        at: Any = body
        *way, last = path.split("__")
        for part in way:
            at = at[part]
        if value is ...:
            del at[last]
        else:
            at[last] = value
    return body


def good(body: dict[str, Any], kind: Kind = "realtime") -> Bot:
    bot = documents.read(body, kind=kind)
    assert isinstance(bot, Bot), bot
    return bot


def bad(body: Any, kind: Kind = "realtime") -> str:
    bot = documents.read(body, kind=kind)
    assert isinstance(bot, BadBot), bot
    assert bot.reason.endswith(".")
    assert bot.reason.count("\n") == 0
    return bot.reason


def test_a_document_as_the_contract_shows_it() -> None:
    bot = good(document())
    assert (bot.id, bot.kind, bot.enabled, bot.runtime, bot.version) == (
        "bot-1",
        "realtime",
        True,
        "python3.11",
        "1.0.0",
    )
    assert (bot.file_path, bot.entrypoint, bot.query_entrypoint) == ("u1/sma/1.0.0", "main.py", "query.py")
    assert bot.config_json == '{"customBotId":"c-1","schedule":"*/5 * * * *","size":5,"symbol":"AAPL"}'
    assert bot.schedule is None, "a realtime bot's own key"
    assert good(document(), "scheduled").schedule == "*/5 * * * *"
    assert bot.custom_bot_id == "c-1"
    assert bot.limits == documents.Resources()
    assert bot.policies == documents.Policies()


def test_the_languages_are_those_that_run() -> None:
    assert set(LANGUAGES) == documents.RUNTIMES


@pytest.mark.parametrize(
    ("value", "enabled"),
    [
        (True, True),
        (1, True),
        (1.0, True),
        ("true", True),
        ("", True),
        (None, True),
        (..., True),
        (False, False),
        (0, False),
        (0.0, False),
        ("false", False),
        ("False", False),
        ("0", False),
    ],
)
def test_enabled_unless_one_of_both_says_false(value: Any, enabled: bool) -> None:
    assert good(document(enabled=value)).enabled is enabled
    changed = document()
    if value is not ...:
        changed["config"]["enabled"] = value
    assert good(changed).enabled is enabled


@pytest.mark.parametrize(
    ("changes", "bot_id"),
    [
        ({"_id": ObjectId()}, "bot-1"),
        ({"id": ..., "_id": ObjectId()}, "65f0c0ffee65f0c0ffee65f0"),
        ({"id": None, "_id": "b"}, "b"),
        ({"id": "", "_id": "b"}, "b"),
        ({"id": 7.0}, "7"),
        ({"id": "../../etc"}, "../../etc"),
        ({"id": "a b/ü"}, "a b/ü"),
    ],
)
def test_ids(changes: dict[str, Any], bot_id: str) -> None:
    assert good(document(**changes)).id == bot_id


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": ...}, "id"),
        ({"id": {"$oid": 1}}, "id"),
        ({"id": True}, "id"),
        ({"id": float("nan")}, "id"),
        ({"id": "a\0b"}, "id"),
        ({"id": "\ud800"}, "id"),
        ({"config": []}, "config"),
        ({"config": "{}"}, "config"),
        ({"config__x": float("nan")}, "nan"),
        ({"config__x": float("inf")}, "inf"),
        ({"config__x": b"12"}, "bytes"),
        ({"config__x": Regex()}, "Regex"),
        ({"config__x": {1: 2}}, "key 1"),
        ({"custom": ...}, "no custom"),
        ({"custom": None}, "no custom"),
        ({"custom": "x"}, "custom"),
        ({"custom__filePath": ...}, "filePath"),
        ({"custom__filePath": " "}, "filePath"),
        ({"custom__filePath": 5}, "filePath"),
        ({"custom__config": ...}, "custom.config"),
        ({"custom__config": []}, "custom.config"),
        ({"custom__config__runtime": "python2"}, "python2"),
        ({"custom__config__runtime": ...}, "runtime"),
        ({"custom__config__runtime": 3.11}, "runtime"),
        ({"custom__config__entrypoints": ...}, "entrypoints"),
        ({"custom__config__entrypoints": {}}, "entrypoints.bot"),
        ({"custom__config__entrypoints": {"bot": ""}}, "entrypoints.bot"),
        ({"custom__config__entrypoints": {"bot": "/etc/passwd"}}, "/etc/passwd"),
        ({"custom__config__entrypoints": {"bot": "../main.py"}}, "../main.py"),
        ({"custom__config__entrypoints": {"bot": "./"}}, "./"),
        ({"custom__config__entrypoints": {"bot": "main.py", "query": 1}}, "query"),
        ({"custom__config__entrypoints": {"bot": "main.py", "query": "a/../../b"}}, "a/../../b"),
        ({"custom__config__entrypoints": {"bot": "main\0.py"}}, "bot"),
        ({"config__memory_limit": "lots"}, "512Mi"),
        ({"config__memory_limit": "512"}, "512Mi"),
        ({"config__memory_limit": -5}, "memory_limit"),
        ({"config__memory_limit": "0"}, "memory_limit"),
        ({"config__memory_limit": True}, "memory_limit"),
        ({"config__memory_limit": float("1e40")}, "memory_limit"),
        ({"config__cpu_limit": "fast"}, "500m"),
        ({"config__cpu_limit": []}, "cpu_limit"),
        ({"config__cpu_request": "-1"}, "cpu_request"),
        ({"config__the0": "x"}, "config.the0"),
        ({"config__the0": {"catch_up": "all"}}, "none or one"),
        ({"config__the0": {"overlap": 1}}, "skip or queue"),
        ({"config__the0": {"overlap": ["skip"]}}, "skip or queue"),
        ({"config__the0": {"timeout_s": "soon"}}, "timeout_s"),
        ({"config__the0": {"timeout_s": True}}, "timeout_s"),
        ({"config__the0": {"timeout_s": -1}}, "timeout_s"),
        ({"config__the0": {"timeout_s": 0}}, "timeout_s"),
        ({"config__the0": {"start_deadline_s": {}}}, "start_deadline_s"),
        ({"config__the0": {"timezone": 2}}, "timezone"),
        ({"config__the0": {"timezone": " "}}, "timezone"),
        ({"config__the0": {"store_down": "panic"}}, "store_down"),
        ({"config__the0": {"incomplete": "maybe"}}, "incomplete"),
        ({"config__the0": {"query_warm_s": "x"}}, "query_warm_s"),
    ],
)
def test_a_bad_document_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    assert words in bad(document(**changes))


@pytest.mark.parametrize("schedule", [..., None, "", " ", 5, ["* * * * *"]])
def test_a_scheduled_bot_needs_a_schedule(schedule: Any) -> None:
    assert "schedule" in bad(document(config__schedule=schedule), "scheduled")
    good(document(config__schedule=schedule))


@pytest.mark.parametrize("body", [None, [], "x", 5])
def test_what_is_no_document_at_all(body: Any) -> None:
    assert documents.read(body, kind="realtime") == BadBot(
        id=documents.NO_ID, kind="realtime", enabled=False, reason=bad(body)
    )


def test_nesting_without_end_is_a_bad_document() -> None:
    body = document()
    inner: dict[str, Any] = body["config"]
    for _ in range(5000):
        inner["x"] = {}
        inner = inner["x"]
    assert "nested" in bad(body)


def test_a_bad_document_still_tells_whether_it_is_enabled() -> None:
    bot = documents.read(document(custom=..., enabled="false"), kind="scheduled")
    assert isinstance(bot, BadBot)
    assert (bot.id, bot.kind, bot.enabled) == ("bot-1", "scheduled", False)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512Mi", 512 << 20),
        ("2Gi", 2 << 30),
        ("1.5Gi", 3 << 29),
        ("1e9", 10**9),
        ("1E3M", None),
        ("64M", 64 * 10**6),
        ("123456789", 123456789),
        (134217728.0, 128 << 20),
        ("12345678900m", 12345679),
        (" 512Mi ", 512 << 20),
        ("512MB", None),
        ("512 Mi", None),
        ("Mi", None),
        ("9" * 100, None),
        ("1e99", None),
    ],
)
def test_memory(text: Any, size: int | None) -> None:
    if size is None:
        with pytest.raises(ValueError, match="512Mi"):
            quantities.whole_bytes(text)
    else:
        assert quantities.whole_bytes(text) == size
        assert good(document(config__memory_limit=text)).limits.memory_bytes == size


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("500m", 0.5),
        ("1", 1.0),
        (1, 1.0),
        (1.0, 1.0),
        (0.5, 0.5),
        ("0.1", 0.1),
        ("2.", 2.0),
        (".25", 0.25),
        ("1u", 0.001),
    ],
)
def test_cores(text: Any, cores: float) -> None:
    assert good(document(config__cpu_limit=text)).limits.cpu_cores == cores


def test_empty_limits_are_none() -> None:
    bot = good(document(config__memory_limit="", config__cpu_limit=None))
    assert bot.limits == documents.Resources()


def test_policies() -> None:
    the0 = {
        "timezone": "Europe/Berlin",
        "catch_up": "one",
        "start_deadline_s": 60.0,
        "overlap": "queue",
        "timeout_s": "5m",
        "store_down": "stop",
        "incomplete": "run",
        "query_warm_s": 0.5,
        "something_new": {"x": 1},
    }
    assert good(document(config__the0=the0)).policies == documents.Policies(
        timezone="Europe/Berlin",
        catch_up="one",
        start_deadline_s=60.0,
        overlap="queue",
        timeout_s=300.0,
        store_down="stop",
        incomplete="run",
        query_warm_s=0.5,
    )


def test_values_of_databases_become_json() -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    value = {"id": ObjectId(), "n": Decimal128(), "d": Decimal("0.5"), "at": when, "naive": when.replace(tzinfo=None)}
    assert plain(value) == {
        "id": "65f0c0ffee65f0c0ffee65f0",
        "n": 5,
        "d": 0.5,
        "at": "2026-01-02T03:04:05Z",
        "naive": "2026-01-02T03:04:05Z",
    }
    assert type(plain(5.0)) is int


@pytest.mark.parametrize(
    ("stored", "read"),
    [(1700000000, 1700000000), (1700000000.0, 1700000000), (0, None), (-1, None), ("soon", None), (True, None)],
)
def test_the_next_time(stored: Any, read: int | None) -> None:
    assert good(document(next_execution_time=stored), "scheduled").next_s == read


def test_the_version_has_two_places() -> None:
    assert good(document(custom__version=...)).version == "1.0.0"
    assert good(document(custom__version=2.0, custom__config__version=...)).version == "2"
    assert good(document(custom__version=..., custom__config__version=...)).version == ""


def test_paused_is_of_scheduled_bots() -> None:
    assert good(document(paused=True), "scheduled").paused
    assert not good(document(paused=True)).paused
    assert not good(document(paused="yes"), "scheduled").paused


def test_an_id_stored_twice_runs_nowhere() -> None:
    found = documents.read_all([("realtime", document()), ("realtime", document(id="b")), ("scheduled", document())])
    assert isinstance(found["b"], Bot)
    twice = found["bot-1"]
    assert isinstance(twice, BadBot)
    assert "more than once" in twice.reason


# --- the configuration hash -------------------------------------------------------------------------


def shuffled(value: Any, chance: random.Random) -> Any:
    """The same value with its keys in another order and its numbers in another spelling."""
    if isinstance(value, dict):
        items = list(value.items())
        chance.shuffle(items)
        return {key: shuffled(item, chance) for key, item in items}
    if isinstance(value, list):
        return [shuffled(item, chance) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return float(value) if chance.random() < 0.5 else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def any_json(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(8 if depth < 4 else 6)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind == 1:
        return chance.randrange(-(2**53), 2**53)
    if kind == 2:
        return float(chance.randrange(-1000, 1000))
    if kind == 3:
        return chance.uniform(-1e9, 1e9)
    if kind in (4, 5):
        return "".join(chance.choice('aäß\n"\\€😀 09') for _ in range(chance.randrange(8)))
    if kind == 6:
        return [any_json(chance, depth + 1) for _ in range(chance.randrange(5))]
    return {f"k{chance.randrange(20)}": any_json(chance, depth + 1) for _ in range(chance.randrange(5))}


@pytest.mark.parametrize("seed", range(100))
def test_order_spelling_and_unknown_fields_change_no_hash(seed: int) -> None:
    chance = random.Random(seed)
    body = document()
    body["config"]["more"] = any_json(chance)
    body["config"]["memory_limit"] = chance.choice([None, 134217728, "512Mi"])
    first = good(body)
    for _ in range(5):
        again = shuffled(json.loads(json.dumps(body)), chance)
        again[f"unknown{chance.randrange(100)}"] = any_json(chance)
        again["segment_id"] = chance.randrange(100)
        again["next_execution_time"] = chance.randrange(2**31)
        again["custom"]["updatedAt"] = any_json(chance)
        again["custom"]["config"]["description"] = any_json(chance)
        again["custom"]["config"]["schema"] = any_json(chance)
        again["enabled"] = chance.choice([True, False])
        assert good(again).config_hash == first.config_hash
        assert good(again).config_json == first.config_json


CHANGES: list[Callable[[dict[str, Any]], Any]] = [
    lambda body: body["config"].update(symbol="MSFT"),
    lambda body: body["config"].update(size=6),
    lambda body: body["config"].update(size="5"),
    lambda body: body["config"].update(size=True),
    lambda body: body["config"].update(new=None),
    lambda body: body["config"].update(memory_limit="1Gi"),
    lambda body: body["custom"].update(filePath="u1/sma/1.0.1"),
    lambda body: body["custom"].update(version="1.0.1"),
    lambda body: body["custom"]["config"].update(runtime="nodejs20"),
    lambda body: body["custom"]["config"]["entrypoints"].update(bot="other.py"),
    lambda body: body["custom"]["config"]["entrypoints"].update(query=None),
]


def test_each_part_of_the_hash_changes_it() -> None:
    hashes = {good(document()).config_hash}
    for change in CHANGES:
        body = copy.deepcopy(document())
        change(body)
        hashes.add(good(body).config_hash)
    assert len(hashes) == len(CHANGES) + 1


@pytest.mark.parametrize("seed", range(200))
def test_documents_of_any_shape_never_raise(seed: int) -> None:
    """Parts of a good document replaced by anything."""
    chance = random.Random(seed)
    body = document(config__the0={"timezone": "UTC", "timeout_s": 5}, config__memory_limit="1Gi")
    at: Any = body
    while True:
        name = chance.choice(list(at))
        if not isinstance(at[name], dict) or not at[name] or chance.random() < 0.4:
            at[name] = any_json(chance)
            break
        at = at[name]
    kind: Kind = chance.choice(documents.KINDS)
    read = documents.read(body, kind=kind)
    assert isinstance(read, Bot | BadBot)
    assert read.kind == kind
