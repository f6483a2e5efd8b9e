"""`the0.state`: one file a key, written whole, read-only in queries."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from sdk.bots import BotFolder, eventually
from the0 import state


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "deep" / ".the0-state"
    monkeypatch.setenv("STATE_DIR", str(path))
    monkeypatch.delenv("QUERY_PATH", raising=False)
    monkeypatch.delenv("ENTRYPOINT_TYPE", raising=False)
    return path


def test_set_get_exists_list_delete_clear(folder: Path) -> None:
    assert state.list() == []
    assert state.get("a") is None
    assert state.get("a", 5) == 5
    assert not state.exists("a")
    assert not state.delete("a")
    state.clear()
    assert not folder.exists()
    for key, value in {"b": {"x": [1, 2.5, None, "é"]}, "a": None, ".hidden": False, "ключ": "😀"}.items():
        state.set(key, value)
        assert state.get(key, "default") == value
        assert state.exists(key)
    assert state.list() == [".hidden", "a", "b", "ключ"]
    assert json.loads((folder / "b.json").read_text()) == {"x": [1, 2.5, None, "é"]}
    assert state.delete("a")
    assert not state.delete("a")
    (folder / "note.txt").write_text("kept")
    (folder / ".left-by-a-killed-bot.tmp").write_text("half")
    state.clear()
    assert state.list() == []
    assert os.listdir(folder) == ["note.txt"]


@pytest.mark.parametrize("key", ["", "a/b", "..", "a\\b", "x..y", "/etc/passwd", "a\0b", "k" * 251, None, 5])
def test_keys_that_leave_the_folder_are_refused_by_every_call(folder: Path, key: str) -> None:
    for call in (state.get, state.delete, state.exists, lambda k: state.set(k, 1)):
        with pytest.raises(ValueError, match="state key"):
            call(key)
    assert not folder.exists()


@pytest.mark.usefixtures("folder")
def test_the_longest_key() -> None:
    state.set("k" * 250, 1)
    assert state.list() == ["k" * 250]


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), ValueError), ({1, 2}, TypeError), (object(), TypeError)])
def test_a_value_that_is_not_json_keeps_the_old_one(folder: Path, value: object, kind: type[Exception]) -> None:
    state.set("key", "old")
    with pytest.raises(kind, match="'key' is not JSON"):
        state.set("key", value)
    assert state.get("key") == "old"
    assert os.listdir(folder) == ["key.json"]


@pytest.mark.parametrize("damage", [b"", b'{"half', b"\xff\xfe\x00"])
def test_a_damaged_value_is_not_taken_for_a_missing_one(folder: Path, damage: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "key.json").write_bytes(damage)
    with pytest.raises(ValueError, match="the state key 'key' holds no JSON"):
        state.get("key", "default")


def test_without_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIR", raising=False)
    for call in (lambda: state.get("a"), lambda: state.set("a", 1), state.list, state.clear):
        with pytest.raises(ValueError, match="STATE_DIR is missing"):
            call()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("mark", [{"QUERY_PATH": "/x"}, {"QUERY_PATH": ""}, {"ENTRYPOINT_TYPE": "query"}])
def test_queries_read_only(monkeypatch: pytest.MonkeyPatch, mark: dict[str, str]) -> None:
    state.set("key", 1)
    for name, value in mark.items():
        monkeypatch.setenv(name, value)
    for call in (lambda: state.set("key", 2), lambda: state.delete("key"), state.clear):
        with pytest.raises(state.ReadOnlyStateError, match="read-only in a query"):
            call()
    assert state.get("key") == 1
    assert state.list() == ["key"]


def test_a_reader_never_sees_half_a_value(bot: BotFolder) -> None:
    process = bot.start(
        """
        import itertools
        from the0 import state
        for n in itertools.count():
            state.set("key", [n] * (20_000 if n % 2 else 1))
        """
    )
    path = bot.state / "key.json"
    eventually(path.exists)
    seen: set[int] = set()
    deadline = time.monotonic() + 20
    while len(seen) < 20 and time.monotonic() < deadline:
        value = json.loads(path.read_bytes())
        assert value == [value[0]] * (20_000 if value[0] % 2 else 1)
        seen.add(value[0])
    process.send_signal(signal.SIGKILL)
    process.wait()
    value = json.loads(path.read_bytes())
    assert value == [value[0]] * (20_000 if value[0] % 2 else 1)
    assert len(seen) == 20


def test_many_writers_of_one_key(bot: BotFolder) -> None:
    source = """
        from the0 import state
        for n in range(200):
            state.set("key", {"writer": WRITER, "n": n})
            assert set(state.get("key")) == {"writer", "n"}
        """
    writers = [bot.start(source.replace("WRITER", str(n))) for n in range(3)]
    for writer in writers:
        assert writer.communicate(timeout=30) == ("", "")
        assert writer.returncode == 0
    assert json.loads((bot.state / "key.json").read_text())["n"] == 199
    assert os.listdir(bot.state) == ["key.json"]
