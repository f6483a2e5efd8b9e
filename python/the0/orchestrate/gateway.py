"""The query gateway: `POST /query` for any bot, from its running query process or from its stored state.

One question at a time for a bot, since earlier SDKs' servers bear no more. A question is asked of what runs; a bot that does not
run, and every scheduled one, is answered by a query of its own from the newest stored generation, and the answer says so.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from the0 import answers, asking, canonical, names
from the0.documents import BadBot, Bot, read
from the0.errors import ExitCode, Fault, clip
from the0.orchestrate.bots import BotStore
from the0.orchestrate.engine import Engine
from the0.orchestrate.query_lines import QueryLines
from the0.orchestrate.service import Reply, Request, Service, bears

DEFAULT_TIMEOUT_S: Final = 30.0
LONGEST_TIMEOUT_S: Final = 3600.0
STORED_AT_A_TIME: Final = 4
"""Queries from stored state, each of which starts a process."""
SETTLING_S: Final = 5.0
"""How long a running bot's query process may take to listen (again) before that is a failure."""
RETRY_S: Final = 0.05


class _Refused(Exception):
    """An answer of the gateway's own."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    bot_id: str
    path: str
    params: Mapping[str, Any]
    timeout_s: float


@dataclass(slots=True)
class Counts:
    """Since the start, by status; for `/metrics`."""

    answers: dict[int, int] = field(default_factory=dict)
    stored: int = 0
    seconds: float = 0.0


class Gateway:
    """Answers from any thread."""

    def __init__(
        self, *, bots: BotStore, engine: Engine, token: str | None = None, metrics: Callable[[], str] | None = None
    ) -> None:
        """With a token, everything but `/health` wants it as a bearer. `metrics`: more lines for `/metrics`."""
        self._bots = bots
        self._engine = engine
        self._token = token
        self._metrics = metrics
        self._lines = QueryLines()
        self._stored = threading.BoundedSemaphore(STORED_AT_A_TIME)
        self._lock = threading.Lock()
        self._counts = Counts()
        self._read: dict[str, Bot | BadBot | None] = {}
        self._revision: int | None = None

    def serve(self, *, host: str, port: int) -> Service:
        """A service that is bound and not started. OSError where the address is taken."""
        return Service(
            name="gateway",
            host=host,
            port=port,
            answer=self.answer,
            failed=lambda status, sentence: _error(status, sentence, time.monotonic()),
            quick=frozenset(("/health", "/metrics")),
        )

    def answer(self, request: Request) -> Reply:
        began = time.monotonic()
        try:
            reply = self._routed(request, began)
        except _Refused as refused:
            reply = _error(refused.status, refused.sentence, began)
        except Fault as fault:  # the bot store or the engine fails
            reply = _error(HTTPStatus.SERVICE_UNAVAILABLE, fault.sentence, began)
        if request.path.startswith("/query"):
            with self._lock:
                self._counts.answers[reply.status] = self._counts.answers.get(reply.status, 0) + 1
                self._counts.seconds += time.monotonic() - began
        return reply

    def _routed(self, request: Request, began: float) -> Reply:
        path = request.path.split("?", 1)[0]
        if path == "/health":
            _only(request, "GET", "HEAD")
            return Reply(HTTPStatus.OK, b'{"status": "ok"}')
        if self._token is not None and not bears(request, self._token):
            reply = _error(HTTPStatus.UNAUTHORIZED, "Send the gateway's token: `Authorization: Bearer …`.", began)
            return Reply(reply.status, reply.body, headers={"WWW-Authenticate": "Bearer"})
        if path == "/metrics":
            _only(request, "GET", "HEAD")
            return Reply(HTTPStatus.OK, self.metrics().encode(), content_type="text/plain; version=0.0.4")
        if path != "/query":
            raise _Refused(HTTPStatus.NOT_FOUND, f"There is no {clip(path)} here: ask POST /query.")
        _only(request, "POST")
        return self._asked(question(request.body), began)

    def _asked(self, asked: Question, began: float) -> Reply:
        bot = self._bot(asked.bot_id)
        if bot is None:
            raise _Refused(HTTPStatus.NOT_FOUND, f"Bot not found: there is no bot {clip(asked.bot_id)}.")
        if isinstance(bot, BadBot):
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, bot.reason)
        if bot.query_entrypoint is None:
            raise _Refused(HTTPStatus.NOT_FOUND, f"Bot not found: bot {clip(bot.id)} has no query entrypoint.")
        deadline = began + asked.timeout_s
        try:
            with self._lines.turn(bot.id, deadline=deadline, begin=lambda: self._begun(bot, asked)) as begun:
                answer = self._live(bot, asked, deadline, begun)
                if answer is None:
                    return self._from_store(bot, asked, deadline, began)
        except asking.TooLate as reason:
            raise _Refused(HTTPStatus.GATEWAY_TIMEOUT, reason.sentence) from reason
        return _spliced(answer, began, source="live", generation=None)

    def _begun(self, bot: Bot, asked: Question) -> asking.Asked | None:
        """None: it is to be asked another way, or again, by whoever wants to know."""
        try:
            address = self._engine.query_address(bot.id) if bot.kind == "realtime" else None
            return asking.begin(*address, path=asked.path, params=asked.params) if address is not None else None
        except Fault:
            return None

    def _live(self, bot: Bot, asked: Question, deadline: float, begun: asking.Asked | None) -> asking.Answer | None:
        """None: nothing of it runs."""
        settled = min(deadline, time.monotonic() + SETTLING_S)
        while True:
            try:
                if begun is not None:
                    return begun.answer(deadline=deadline)
                address = self._engine.query_address(bot.id) if bot.kind == "realtime" else None
                if address is None:
                    return None
                return asking.ask(*address, path=asked.path, params=asked.params, deadline=deadline)
            except asking.NotListening as reason:
                begun = None
                if time.monotonic() >= settled:
                    raise _Refused(HTTPStatus.BAD_GATEWAY, reason.sentence) from reason
                time.sleep(RETRY_S)
            except (asking.NoAnswer, asking.TooLate) as reason:
                raise _Refused(_status_of(reason), reason.sentence) from reason

    def _from_store(self, bot: Bot, asked: Question, deadline: float, began: float) -> Reply:
        if not self._stored.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise _Refused(HTTPStatus.GATEWAY_TIMEOUT, "Other queries from stored state took all the time there was.")
        try:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise _Refused(HTTPStatus.GATEWAY_TIMEOUT, "There was no time left to ask the bot.")
            told = self._engine.query(bot, path=asked.path, params=asked.params, timeout_s=left_s)
        except Fault as fault:
            raise _Refused(_status_of(fault), fault.sentence) from fault
        finally:
            self._stored.release()
        with self._lock:
            self._counts.stored += 1
        answer = asking.Answer(HTTPStatus.OK, json.dumps(told.answer, ensure_ascii=False), dict(told.answer))
        return _spliced(answer, began, source="stored", generation=told.generation)

    def _bot(self, bot_id: str) -> Bot | BadBot | None:
        revision = self._bots.revision()
        with self._lock:
            if revision != self._revision:
                self._revision = revision
                self._read.clear()
            elif bot_id in self._read:
                return self._read[bot_id]
        document = self._bots.get(bot_id)
        bot = read(document.body, kind=document.kind) if document is not None else None
        if bot is not None:  # made-up ids would fill the memory
            with self._lock:
                if revision == self._revision:
                    self._read[bot_id] = bot
        return bot

    def metrics(self) -> str:
        with self._lock:
            answers = sorted(self._counts.answers.items())
            stored, seconds = self._counts.stored, self._counts.seconds
        lines = [
            "# TYPE the0_queries_total counter",
            *(f'the0_queries_total{{status="{status}"}} {count}' for status, count in answers),
            "# TYPE the0_queries_stored_total counter",
            f"the0_queries_stored_total {stored}",
            "# TYPE the0_query_seconds_total counter",
            f"the0_query_seconds_total {seconds:.6f}",
        ]
        more = self._metrics() if self._metrics is not None else ""
        return "\n".join(lines) + "\n" + more


def _status_of(fault: Fault) -> HTTPStatus:
    """Every reason but these means that nothing can answer."""
    if isinstance(fault, asking.AnswerTooLarge):
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if fault.code == ExitCode.TIMED_OUT:
        return HTTPStatus.GATEWAY_TIMEOUT
    return HTTPStatus.BAD_GATEWAY if fault.code == ExitCode.QUERY_FAILED else HTTPStatus.SERVICE_UNAVAILABLE


def question(body: bytes) -> Question:
    """What a `POST /query` asks. Raises _Refused with 400."""
    try:
        asked = canonical.DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as reason:
        raise _Refused(HTTPStatus.BAD_REQUEST, f"The body is no JSON: {clip(str(reason))}.") from reason
    if not isinstance(asked, dict):
        raise _Refused(HTTPStatus.BAD_REQUEST, 'The body is no JSON object: send {"bot_id": …, "query_path": …}.')
    bot_id, path, params = asked.get("bot_id"), asked.get("query_path"), asked.get("params")
    if not isinstance(bot_id, str) or not bot_id:
        raise _Refused(HTTPStatus.BAD_REQUEST, "bot_id is missing: give the bot's id as a string.")
    if not isinstance(path, str) or not path:
        raise _Refused(HTTPStatus.BAD_REQUEST, "query_path is missing: give the path to ask, such as /status.")
    if params is not None and not isinstance(params, dict):
        raise _Refused(HTTPStatus.BAD_REQUEST, "params is no JSON object: leave it out or give one.")
    try:
        canonical.dumps(params)
    except ValueError as reason:
        raise _Refused(HTTPStatus.BAD_REQUEST, f"params cannot be handed to a bot: {clip(str(reason))}.") from reason
    timeout = asked.get("timeout_sec")
    if timeout is None:
        timeout = DEFAULT_TIMEOUT_S
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or math.isnan(timeout):
        raise _Refused(HTTPStatus.BAD_REQUEST, "timeout_sec is no number: give seconds or leave it out.")
    timeout_s = min(float(min(timeout, LONGEST_TIMEOUT_S)), LONGEST_TIMEOUT_S) if timeout > 0 else DEFAULT_TIMEOUT_S
    return Question(bot_id=bot_id, path=names.query_path(path), params=params or {}, timeout_s=timeout_s)


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        said = f"{clip(request.method)} is not for this path: use {methods[0]}."
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, said)


def _spliced(answer: asking.Answer, began: float, *, source: str, generation: int | None) -> Reply:
    """The bot's own JSON object, byte for byte, with our fields before its end."""
    status = answer.value.get("status")
    if status not in ("ok", "error"):
        said = 'The query process answered JSON without "status": "ok" or "error".'
        raise _Refused(HTTPStatus.BAD_GATEWAY, said)
    ours: dict[str, Any] = {"duration": _nanoseconds(began), "timestamp": _now(), "source": source}
    if generation is not None:
        ours["generation"] = generation
    body = answers.extended(answer.text, ours).encode()
    if len(body) > asking.ANSWER_BYTES:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The bot answered more than 32 MiB: ask for less.")
    return Reply(HTTPStatus.OK if status == "ok" else HTTPStatus.INTERNAL_SERVER_ERROR, body)


def _error(status: int, sentence: str, began: float) -> Reply:
    told = {"status": "error", "error": sentence, "duration": _nanoseconds(began), "timestamp": _now()}
    return Reply(status, json.dumps(told).encode())


def _nanoseconds(began: float) -> int:
    return int((time.monotonic() - began) * 1e9)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
