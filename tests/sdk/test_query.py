"""`the0.query`: handlers, ephemeral answers, served answers."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sdk.bots import BotFolder

HANDLERS = """
    import asyncio, os, sys, time, threading
    from the0 import query, state

    @query.handler("/echo")
    def echo(req):
        return {"path": req.path, "params": req.params, "got": query.get_params(), "x": req.get("x", "none")}

    @query.handler("config")
    async def config(req):
        await asyncio.sleep(0)
        return [query.get_config(), query.is_query_mode()]

    @query.handler("/write")
    def write(req):
        state.set("key", 1)

    @query.handler("/read")
    def read(req):
        return state.get("key", "nothing")

    @query.handler("/boom")
    def boom(req):
        raise KeyError("gone")

    @query.handler("/leave")
    def leave(req):
        sys.exit(3)

    @query.handler("/nan")
    def nan(req):
        return float("nan")

    busy = []

    @query.handler("/slow")
    def slow(req):
        assert not busy, "two at a time"
        busy.append(1)
        time.sleep(0.05)
        busy.pop()

    @query.handler("/large")
    def large(req):
        return "x" * 5_000_000

    query.run()
    print("ran")
    """


@contextmanager
def served(bot: BotFolder, **more: str | None) -> Iterator[int]:
    """The port of a bot that serves HANDLERS."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = bot.start(HANDLERS, ENTRYPOINT_TYPE="query", THE0_QUERY_PORT=str(port), **more)
    for _ in range(1000):
        with socket.socket() as probe:
            probe.settimeout(5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, process.communicate()
        threading.Event().wait(0.01)
    yield port
    assert process.poll() is None
    process.terminate()
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "")


def ask(
    port: int, target: str, body: bytes = b"", *, method: str = "POST", headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, target, body, headers or {})
    response = connection.getresponse()
    assert response.getheader("Connection") == "close"
    content = json.loads(response.read())
    connection.close()
    return response.status, content


def exchange(port: int, sent: bytes) -> bytes:
    """What comes back to the end of the stream for raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        pieces = []
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def test_served_queries(bot: BotFolder) -> None:
    with served(bot) as port:
        assert ask(port, "/echo?x=1&y=a%20b%2Bc", b'{"x": 2, "z": [null]}') == (
            200,
            {
                "status": "ok",
                "data": {
                    "path": "/echo",
                    "params": {"x": 2, "y": "a b+c", "z": [None]},
                    "got": {"x": 2, "y": "a b+c", "z": [None]},
                    "x": 2,
                },
            },
        )
        assert ask(port, "/config", b"null") == (200, {"status": "ok", "data": [{"symbol": "AAPL", "size": 5}, True]})
        assert ask(port, "/health", method="GET") == (200, {"status": "ok", "data": {"status": "healthy"}})
        info = ask(port, "/info")[1]["data"]
        assert info["bot_id"] == "bot-1"
        assert {"/echo", "/config", "/health", "/info"} <= set(info["available_queries"])
        status, answer = ask(port, "/large")
        assert (status, len(answer["data"])) == (200, 5_000_000)
        assert ask(port, "/read") == (200, {"status": "ok", "data": "nothing"})


def test_served_errors(bot: BotFolder) -> None:
    with served(bot) as port:
        for target, said in {
            "/nowhere": "there is no query '/nowhere'; there are /boom, ",
            "/boom": "the query '/boom' failed: KeyError: 'gone'",
            "/leave": "the query '/leave' failed: SystemExit: 3",
            "/nan": "the query '/nan' failed: ValueError",
            "/write": "the query '/write' failed: ReadOnlyStateError: state is read-only in a query",
        }.items():
            status, answer = ask(port, target)
            assert status == 500
            assert answer["status"] == "error"
            assert answer["error"].startswith(said)
        for body in (b"{", b"[1]", b"5", b"[" * 100_000, b"\xff"):
            assert ask(port, "/echo", body)[0] == 400
        assert ask(port, "/echo", headers={"Content-Length": "1x"})[0] == 400
        assert ask(port, "/echo", headers={"Content-Length": str(2 << 20)})[0] == 413
        assert ask(port, "/echo", headers={"Transfer-Encoding": "chunked"})[0] == 411
        assert ask(port, "/echo", method="DELETE")[0] == 501
        assert ask(port, "/health")[0] == 200


def test_one_query_at_a_time_and_idle_connections_hold_up_nobody(bot: BotFolder) -> None:
    with served(bot) as port, socket.create_connection(("127.0.0.1", port)):
        outcomes: list[int] = []
        askers = [threading.Thread(target=lambda: outcomes.append(ask(port, "/slow")[0])) for _ in range(5)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        assert outcomes == [200] * 5


def test_bare_line_feeds_and_the_oldest_http_are_understood(bot: BotFolder) -> None:
    with served(bot) as port:
        for sent in (
            b"POST /echo?x=1 HTTP/1.1\nHost: a\nContent-Length: 2\n\n{}",
            b"POST /echo?x=1 HTTP/1.0\r\n\r\n",
            b"GET /echo?x=1 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        ):
            head, _, body = exchange(port, sent).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert json.loads(body)["data"]["params"] == {"x": "1"}


def test_a_port_that_is_taken_or_nonsense_ends_the_process(bot: BotFolder) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        run = bot.run(HANDLERS, THE0_QUERY_PORT=str(taken.getsockname()[1]))
        assert run.returncode == 1
        assert "Address already in use" in run.stderr
    for port in ("x", "65536", "-1"):
        assert "ValueError: THE0_QUERY_PORT is" in bot.run(HANDLERS, THE0_QUERY_PORT=port).stderr


class Ephemeral:
    """Runs HANDLERS as an ephemeral query; its result goes to /query, in a mount namespace of its own where we may make one."""

    def __init__(self, bot: BotFolder) -> None:
        self.bot = bot
        private = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
        self.prefix = (
            ["unshare", "-m", "sh", "-c", 'mkdir -p /query && mount -t tmpfs none /query && "$@"; code=$?; '
             "cat /query/result.json >&9; ls -A /query >&9; exit $code", "sh"]
            if private
            else ["sh", "-c", '"$@"; code=$?; cat /query/result.json >&9; ls -A /query >&9; exit $code', "sh"]
        )  # fmt: skip

    def answer(self, **environ: str | None) -> tuple[int, Any, str]:
        read_end, write_end = os.pipe()
        with open(read_end, "rb") as told:
            run = subprocess.run(
                [*self.prefix, sys.executable, "-S", self.bot.script(HANDLERS)],
                env=self.bot.environ(ENTRYPOINT_TYPE="query", **environ),
                preexec_fn=lambda: os.dup2(write_end, 9),
                pass_fds=(9,),
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            os.close(write_end)
            result, _, names = told.read().rpartition(b"}")
        assert names.split() == [b"result.json"]
        return run.returncode, json.loads(result + b"}"), run.stdout


@pytest.fixture
def ephemeral(bot: BotFolder) -> Ephemeral:
    if os.geteuid() != 0 and not os.access("/query", os.W_OK):
        run = bot.run(HANDLERS, QUERY_PATH="/echo")
        assert run.returncode == 1
        assert "the answer cannot be written to /query/result.json" in run.stderr
        pytest.skip(
            "only root, or whoever owns /query, can make an ephemeral query's /query here; the refusal was tested"
        )
    return Ephemeral(bot)


def test_ephemeral_queries(ephemeral: Ephemeral) -> None:
    code, answer, out = ephemeral.answer(QUERY_PATH="/echo?y=b&x=a", QUERY_PARAMS='{"x":[1,2.5]}', BOT_TYPE="scheduled")
    params = {"y": "b", "x": [1, 2.5]}
    assert answer == {"status": "ok", "data": {"path": "/echo", "params": params, "got": params, "x": [1, 2.5]}}
    assert (code, out) == (0, "ran\n")


@pytest.mark.parametrize("path", ["config", "/config"])
def test_an_ephemeral_query_wins_over_serving(ephemeral: Ephemeral, path: str) -> None:
    code, answer, _ = ephemeral.answer(QUERY_PATH=path, BOT_TYPE="realtime")
    assert (code, answer["status"]) == (0, "ok")


def test_ephemeral_errors_are_answers_too(ephemeral: Ephemeral) -> None:
    for environ, said in (
        ({"QUERY_PATH": "/nowhere"}, "there is no query '/nowhere'"),
        ({"QUERY_PATH": ""}, "there is no query '/'"),
        ({"QUERY_PATH": "/boom"}, "the query '/boom' failed: KeyError"),
        ({"QUERY_PATH": "/write"}, "the query '/write' failed: ReadOnlyStateError"),
        ({"QUERY_PATH": "/echo", "QUERY_PARAMS": "[]"}, "QUERY_PARAMS is JSON, but no object"),
    ):
        code, answer, out = ephemeral.answer(**environ)
        assert (code, out) == (1, "")
        assert answer["status"] == "error"
        assert answer["error"].startswith(said)


def test_a_scheduled_bot_without_a_query_answers_info(ephemeral: Ephemeral) -> None:
    code, answer, _ = ephemeral.answer(BOT_TYPE="scheduled")
    assert code == 0
    assert answer["data"]["available_queries"][:2] == ["/boom", "/config"]


def test_requests_outside_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from the0 import query

    for name in ("QUERY_PATH", "QUERY_PARAMS", "BOT_CONFIG", "ENTRYPOINT_TYPE"):
        monkeypatch.delenv(name, raising=False)
    assert query.get_params() == {}
    assert query.get_config() == {}
    assert not query.is_query_mode()
    monkeypatch.setenv("QUERY_PATH", "")
    assert query.is_query_mode()
    request = query.QueryRequest("/a", {"b": None})
    assert (request.path, request.params, request.get("b", 1), request.get("c", 1)) == ("/a", {"b": None}, None, 1)
    monkeypatch.setenv("BOT_CONFIG", "5")
    with pytest.raises(ValueError, match="BOT_CONFIG"):
        query.get_config()
