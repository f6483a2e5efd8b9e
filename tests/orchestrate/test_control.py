"""The control address of `up`: calls, refusals, and when there is none."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from the0.errors import ExitCode, Fatal, Permanent
from the0.orchestrate import control, control_client, data


def refuse(_: Mapping[str, Any]) -> None:
    raise Permanent("Bot x is not there: deploy it.", code=ExitCode.USAGE)


@pytest.fixture
def place(tmp_path: Path) -> data.Data:
    return data.open_data(str(tmp_path / "data"), create=True)


@pytest.fixture
def server(place: data.Data) -> Iterator[control.ControlServer]:
    held = data.hold(place)
    made = control.ControlServer(place, {"echo": dict, "refuse": refuse, "break": lambda _: 1 / 0})
    yield made
    made.close()
    made.close()
    assert not Path(place.control).exists()
    os.close(held)


@pytest.fixture
def client(place: data.Data, server: control.ControlServer) -> control_client.Control:
    assert server
    found = control_client.connect(place)
    assert found is not None
    return found


def test_a_call_is_answered(client: control_client.Control) -> None:
    assert client.call("echo", a=[1, "ü"], b=None) == {"a": [1, "ü"], "b": None}


def test_a_refusal_keeps_its_sentence_and_code(client: control_client.Control) -> None:
    with pytest.raises(Fatal) as caught:
        client.call("refuse")
    assert (caught.value.sentence, caught.value.code) == ("Bot x is not there: deploy it.", ExitCode.USAGE)


def test_a_bug_becomes_a_sentence(client: control_client.Control, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Fatal, match="ZeroDivisionError"):
        client.call("break")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_an_unknown_verb_and_a_wrong_token_are_refused(client: control_client.Control) -> None:
    with pytest.raises(Fatal, match="another version"):
        client.call("nonsense")
    with pytest.raises(Fatal, match="token"):
        control_client.Control(client.address, "wrong").call("echo")


def test_rubbish_gets_no_answer_and_harms_nobody(client: control_client.Control) -> None:
    for rubbish in (b"\0\0\r\n\r\n", b"POST /echo HTTP/1.0\r\nContent-Length: 99999999999\r\n\r\n", b""):
        with socket.create_connection(client.address, timeout=5) as connection:
            connection.sendall(rubbish)
            connection.shutdown(socket.SHUT_WR)
            assert b" 200 " not in connection.recv(65536)
    assert client.call("echo") == {}


def test_the_token_is_its_owners_only(place: data.Data, client: control_client.Control) -> None:
    assert stat.S_IMODE(Path(place.control).stat().st_mode) == 0o600
    assert json.loads(Path(place.control).read_text())["token"] == client.token


def test_without_an_up_there_is_nobody_to_ask(place: data.Data) -> None:
    assert control_client.connect(place) is None
    # What a killed one left behind is not believed.
    Path(place.control).write_text('{"address": ["127.0.0.1", 1], "token": "t"}')
    assert control_client.connect(place) is None


@pytest.mark.usefixtures("server")
def test_one_up_for_a_folder(place: data.Data) -> None:
    with pytest.raises(Fatal) as caught:
        data.hold(place)
    assert caught.value.code == ExitCode.RUNNING_HERE


def test_folders_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(Fatal) as caught:
        data.open_data(str(tmp_path), create=True)
    assert caught.value.code == ExitCode.USAGE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letter.txt"]
    with pytest.raises(Fatal, match="no platform"):
        data.open_data(str(tmp_path / "none"), create=False)


def test_a_newer_format_is_refused(place: data.Data) -> None:
    Path(place.path, "format").write_text("2\n")
    with pytest.raises(Fatal) as caught:
        data.open_data(place.path, create=True)
    assert caught.value.code == ExitCode.STATE_DAMAGED
