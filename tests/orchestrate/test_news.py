"""What `up` says: nobody who says something waits for whoever reads it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from orchestrate.platform_place import COMMAND, Platform, eventually
from the0.orchestrate import news
from the0.orchestrate.news import News


def test_what_is_said_is_written_in_order(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w") as out:
        say = News(out)
        for number in range(1000):
            say("event", f"line {number}", bot="b" if number % 2 else None, number=number)
        say.close()
        say.close()
    told = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [each["number"] for each in told] == list(range(1000))
    assert told[1]["bot"] == "b"
    assert "bot" not in told[0]


def test_a_reader_that_sleeps_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "LINES", 1000)
    monkeypatch.setattr(news, "CLOSE_S", 0.2)
    read_fd, write_fd = os.pipe()
    with open(write_fd, "w") as out:
        say = News(out)
        began_s = time.monotonic()
        for number in range(20_000):
            say("event", "x" * 100, number=number)
        say.close()
        assert time.monotonic() - began_s < 30
        heard: list[bytes] = []

        def read() -> None:
            with open(read_fd, "rb") as lines:
                heard.extend(lines)

        reader = threading.Thread(target=read)
        reader.start()
        monkeypatch.setattr(news, "CLOSE_S", 60.0)
        say.close()
    reader.join()
    told = [json.loads(line) for line in heard]
    dropped = sum(each["count"] for each in told if each["event"] == "dropped")
    assert dropped + sum(each["event"] == "event" for each in told) == 20_000, "each is written, or counted"
    assert dropped > 10_000


def test_a_reader_that_is_gone_is_no_trouble() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with open(write_fd, "w") as out:
        say = News(out)
        say("event", "heard by nobody")
        say.close()


def test_bots_are_kept_while_nobody_reads(platform: Platform) -> None:
    platform.put("b")
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    with open(write_fd, "wb", closefd=False, buffering=0) as out:
        while out.write(b"x" * 4096):
            pass  # until it is full
    os.set_blocking(write_fd, True)
    up = subprocess.Popen(
        [*COMMAND, "--data", platform.data.path, "--port", "0"],
        stdout=write_fd,
        env={"PATH": os.environ["PATH"], "STOP_GRACE_S": "5"},
    )
    os.close(write_fd)
    try:
        platform.until_printed("b", "is here")
        os.kill(platform.bot_pid("b"), 9)
        eventually(lambda: platform.row("b")["restarts"] == 1, "its restart", within_s=60)
    finally:
        up.terminate()
        assert up.wait(60) == 0
        os.close(read_fd)
