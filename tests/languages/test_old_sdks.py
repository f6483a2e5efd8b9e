"""Archives that bring an SDK of their own, in every language: their queries, their logs, and their state, which they write in place."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bot_place import Place, eventually

from languages.bots import BOTS, EACH, Bot, lose_the_machine, prepare, stored_log
from languages.conftest import Mark
from rig.server import free_ports
from the0 import asking
from the0.execute.environment import TEXT_ONLY

QUERY_FOLDER = Path("/query")
DECODING = frozenset({"python3.11", "nodejs20", "dotnet8"})
"""Whose servers undo the escapes of a URL; the others take it as it comes."""
READING_ONCE = frozenset({"rust-stable", "gcc13", "cpp-gcc13", "ghc96"})
"""Whose servers take 4,096 bytes for the whole question."""
PARAMS: Mapping[str, Any] = {"symbol": "BTC/USD:x,y@z", "depth": 5, "words": "a b"}


def as_served(runtime: str) -> dict[str, str]:
    """PARAMS as a server finds them in the URL: text, and escaped where it decodes nothing."""
    return {"symbol": "BTC/USD:x,y@z", "depth": "5", "words": "a b" if runtime in DECODING else "a%20b"}


def as_given(runtime: str) -> dict[str, Any]:
    """PARAMS as a process finds them in QUERY_PARAMS."""
    return {**PARAMS, "depth": "5"} if runtime in TEXT_ONLY else dict(PARAMS)


def ask(port: int, path: str, params: Mapping[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while True:
        try:
            return asking.ask("127.0.0.1", port, path=path, params=params, deadline=deadline).value
        except asking.NotListening:
            time.sleep(0.01)


def stored(place: Place) -> bytes:
    return (place.store / "bot-state/bot-1/HEAD").read_bytes()


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """As it is where another query has it, or none can be made."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@EACH
def test_served_beside_the_bot(place: Place, bot: Bot, mark: Mark) -> None:
    (port,) = free_ports(1)
    prepare(place, bot, mode="wait")
    place.env |= {"BOT_TYPE": "realtime", "QUERY_ENTRYPOINT": bot.query, "THE0_QUERY_PORT": str(port)}
    running = place.start()
    running.wait_for("ready")
    for _ in range(2):  # it takes one connection after another
        answer = ask(port, "/status", PARAMS)
        assert answer == {
            "status": "ok",
            "data": {"count": 1, "params": as_served(bot.runtime), "note": "grün €"},
        }
    large = {"large": "x" * 5000}  # with it the question is too long for one read, and goes without a body
    if bot.runtime in READING_ONCE:
        with pytest.raises(asking.NoAnswer, match="read only a part of the question, which has 5,"):
            ask(port, "/status", large)
    else:
        answer = ask(port, "/status", large)
        assert (answer["status"], answer["data"]["params"]) == ("ok", large)
    answer = ask(port, "/boom", {})
    assert answer["status"] == "error"
    assert "boom" in answer["error"]
    assert ask(port, "/nothing", {})["status"] == "error"
    ended = running.stop(signal.SIGTERM)
    assert ended.code == bot.terminated, ended.out + ended.err
    assert ended.record is not None
    assert ended.record["by"] == "bot"
    mark(bot.name, "served")


@EACH
@pytest.mark.parametrize("way", ["by a process that ends", "by one that serves"])
def test_once_from_the_stored_state(place: Place, bot: Bot, mark: Mark, way: str) -> None:
    if not QUERY_FOLDER.exists():
        if not os.access("/", os.W_OK):
            pytest.skip("/query cannot be made here")
        QUERY_FOLDER.mkdir()
    prepare(place, bot, mode="end")
    assert place.run().code == 0
    head = stored(place)
    lose_the_machine(place)
    place.env |= {"QUERY_ENTRYPOINT": bot.query, "QUERY_PARAMS": json.dumps(PARAMS), "BOT_TYPE": "scheduled"}

    def once(path: str) -> tuple[int, dict[str, Any]]:
        if way == "by one that serves":
            with taken(QUERY_FOLDER):
                ended = place.run("--query", path)
        else:
            ended = place.run("--query", path)
        assert ended.out.count("\n") == 1, ended.out + ended.err
        return ended.code, json.loads(ended.out)

    params = as_served(bot.runtime) if way == "by one that serves" else as_given(bot.runtime)
    data = {"count": 1, "params": params, "note": "grün €"}
    code, answer = once("/status")
    assert answer == {"status": "ok", "data": data, "source": "stored", "generation": 1}
    assert code == 0, "whatever the process's own was"
    code, answer = once("/boom")
    assert (code, answer["status"]) == (1, "error")
    assert "boom" in answer["error"]
    once("/write")
    assert stored(place) == head
    mark(bot.name, "ephemeral")


@EACH
def test_its_lines_pass_as_they_are(place: Place, bot: Bot) -> None:
    prepare(place, bot, mode="end")
    ended = place.run()
    printed = [line for line in ended.out.splitlines() if line.startswith("{")]
    assert [json.loads(line).get("_metric") for line in printed] == [None, "count"]
    assert all(type(json.loads(line)["timestamp"]) is int for line in printed)
    assert [line for line in stored_log(place) if line in printed] == printed, "byte for byte"


@EACH
def test_its_state_is_what_the_platform_reads(place: Place, bot: Bot) -> None:
    prepare(place, bot, mode="end")
    assert place.run().code == 0
    packed = (place.store / "bot-state/bot-1/state.tar.gz").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
        member = opened.extractfile(".the0-state/k.json")
        assert member is not None
        assert json.load(member) == {"count": 1}


def test_state_that_is_written_in_place_is_stored_whole(place: Place) -> None:
    """Each write truncates the file and takes a while: what is stored once it is quiet is what a reader would find."""
    bot = next(each for each in BOTS if each.runtime == "python3.11")
    prepare(place, bot, mode="end")
    place.put_bot("""
        import json, os, time
        def main(bot_id, config):
            path = os.path.join(os.environ["STATE_DIR"], "k.json")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            for number in range(60):
                text = json.dumps({"number": number, "filler": "x" * 300_000})
                with open(path, "w") as file:
                    file.write(text[:150_000])
                    file.flush()
                    time.sleep(0.02)
                    file.write(text[150_000:])
                time.sleep(0.01)
            print("written", flush=True)
            time.sleep(60)
        """)
    running = place.start()
    running.wait_for("written")
    before = stored(place)
    eventually(lambda: stored(place) != before, "another commit")
    eventually(lambda: quiet(place), "no more commits")
    for process in place.started:
        process.kill()
        process.communicate()
    lose_the_machine(place)
    place.put_bot("""
        import json, os
        def main(bot_id, config):
            with open(os.path.join(os.environ["STATE_DIR"], "k.json")) as file:
                print("number", json.load(file)["number"])
        """)
    place.env["THE0_ENDED"] = json.loads(before)["claim"]["instance"]
    assert "number 59\n" in place.run().out


def quiet(place: Place, *, for_s: float = 1.5) -> bool:
    """Whether nothing was stored for so long."""
    before, since = stored(place), time.monotonic()
    while time.monotonic() - since < for_s:
        if stored(place) != before:
            return False
        time.sleep(0.05)
    return True
