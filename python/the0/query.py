"""Questions that a bot answers about itself, without changing its state.

    from the0 import query, state

    @query.handler("/position")
    def position(req):
        return state.get(req.get("symbol", "AAPL"))

    query.run()

`run` answers the one query in QUERY_PATH, or serves queries over HTTP beside a realtime bot.
"""

from __future__ import annotations

import contextvars
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl, unquote

from the0.bot import config_text, read_object
from the0.state import in_query, write_whole

TYPE_CHECKING = False  # importing `typing` would cost a bot several milliseconds
if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer
    from typing import Any, TypeVar

    _AnyHandler = TypeVar("_AnyHandler", bound="Handler")

RESULT_PATH = "/query/result.json"
DEFAULT_PORT = 9476
_POLL_S = 3600.0


class QueryRequest:
    """One question: `path` begins with `/`; `params` maps names to JSON values (text where they came in a URL)."""

    __slots__ = ("params", "path")

    def __init__(self, path: str, params: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.params: dict[str, Any] = dict(params or {})

    def get(self, name: str, default: Any = None) -> Any:
        return self.params.get(name, default)

    def __repr__(self) -> str:
        return f"QueryRequest({self.path!r}, {self.params!r})"


Handler = Callable[[QueryRequest], "Any"]

_handlers: dict[str, Handler] = {}
_current: contextvars.ContextVar[QueryRequest | None] = contextvars.ContextVar("the0_query", default=None)


def handler(path: str) -> Callable[[_AnyHandler], _AnyHandler]:
    """Decorates the function (or coroutine function) that answers `path`: it takes a QueryRequest and returns a
    JSON value."""

    def register(function: _AnyHandler) -> _AnyHandler:
        _handlers[_slashed(path)] = function
        return function

    return register


def run() -> None:
    """Answers the query in QUERY_PATH and returns (exit code 1 where the answer is an error); without one, serves for
    ever where BOT_TYPE is realtime, and else answers `/info`."""
    if "QUERY_PATH" in os.environ:
        _answer_once(os.environ["QUERY_PATH"])
    elif os.environ.get("BOT_TYPE") == "realtime":
        serve()
    else:
        _answer_once("/info")


def get_params() -> dict[str, Any]:
    """Params of the query that is being answered, else those in QUERY_PARAMS. ValueError where that is no
    JSON object."""
    request = _current.get()
    if request is not None:
        return request.params
    return read_object("QUERY_PARAMS", os.environ.get("QUERY_PARAMS") or "{}")


def get_config() -> dict[str, Any]:
    """The bot's configuration; empty outside the runtime. ValueError where BOT_CONFIG is no JSON object."""
    return read_object("BOT_CONFIG", config_text() or "{}")


def is_query_mode() -> bool:
    """Whether this process answers queries instead of being the bot."""
    return in_query()


def answer(request: QueryRequest) -> tuple[bool, str]:
    """Whether it went well, and the answer as JSON text: `{"status": "ok", "data": …}` or
    `{"status": "error", "error": …}`. Never raises; a handler's traceback goes to stderr."""
    function = _handlers.get(request.path) or _BUILT_IN.get(request.path)
    if function is None:
        known = ", ".join(_known())
        return False, _error(f"there is no query {request.path!r}; there are {known}")
    token = _current.set(request)
    try:
        value = function(request)
        if hasattr(value, "__await__"):
            value = _awaited(value)
        return True, json.dumps({"status": "ok", "data": value}, allow_nan=False)
    except (Exception, SystemExit) as reason:  # noqa: BLE001 - the asker is told, the traceback goes to the log
        import traceback

        traceback.print_exc(file=sys.stderr)
        return False, _error(f"the query {request.path!r} failed: {type(reason).__name__}: {reason}")
    finally:
        _current.reset(token)


def serve() -> None:
    """Listens on 0.0.0.0 at THE0_QUERY_PORT (9476) until the process is asked to stop; then it exits with 0 at once."""
    import signal

    server = make_server(_port())
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _leave)
    with server:
        server.serve_forever(poll_interval=_POLL_S)  # a signal wakes it by itself


def make_server(port: int, *, host: str = "0.0.0.0") -> ThreadingHTTPServer:
    """The server, listening but not yet serving. Port 0 takes a free one."""
    from the0 import query_server

    return query_server.listen(host, port, answer)


def merged_params(target: str, typed: Mapping[str, Any]) -> QueryRequest:
    """The question that a path with an optional `?name=value` asks; `typed` params win over those in the path."""
    path, _, queries = target.partition("?")
    return QueryRequest(_slashed(unquote(path)), {**dict(parse_qsl(queries, keep_blank_values=True)), **typed})


def _answer_once(target: str) -> None:
    try:
        good, text = answer(merged_params(target, get_params()))
    except ValueError as reason:
        good, text = False, _error(str(reason))
    try:
        os.makedirs(os.path.dirname(RESULT_PATH), exist_ok=True)
        write_whole(RESULT_PATH, text)
    except OSError as reason:
        sys.exit(f"the answer cannot be written to {RESULT_PATH}: {reason}")
    if not good:
        sys.exit(1)


def _error(message: str) -> str:
    return json.dumps({"status": "error", "error": message})


def _known() -> list[str]:
    return sorted({*_handlers, *_BUILT_IN})


def _health(_request: QueryRequest) -> dict[str, str]:
    return {"status": "healthy"}


def _info(_request: QueryRequest) -> dict[str, Any]:
    return {"bot_id": os.environ.get("BOT_ID", ""), "available_queries": _known()}


_BUILT_IN: dict[str, Handler] = {"/health": _health, "/info": _info}


def _awaited(value: Awaitable[Any]) -> Any:
    import asyncio

    async def outcome() -> Any:
        return await value

    return asyncio.run(outcome())


def _leave(number: int, _: object) -> None:
    import signal

    signal.signal(number, signal.SIG_IGN)  # asked twice, it would fail on its way out
    sys.exit(0)


def _port() -> int:
    text = os.environ.get("THE0_QUERY_PORT") or str(DEFAULT_PORT)
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise ValueError(f"THE0_QUERY_PORT is {text!r}: set it to a port number, 0 to 65535")
    return int(text)


def _slashed(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"
