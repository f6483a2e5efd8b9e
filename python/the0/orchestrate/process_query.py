"""A query from stored state as a process of this machine: `runtime execute --query`, asked once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from typing import Any, Final

from the0 import canonical, names
from the0.documents import Bot
from the0.errors import ExitCode, Fatal, clip
from the0.orchestrate import process_start
from the0.orchestrate.engine import QueryAnswer
from the0.orchestrate.place import Place
from the0.orchestrate.query_place import QueryPlaces

CLEANING_S: Final = 15.0
"""What a query process may take beyond its time to end what it started."""
_OURS: Final = "the0: "
"""Begins what `execute` itself says on stderr."""
Started = Callable[[subprocess.Popen[bytes]], None]


def ask(
    bot: Bot, *, places: QueryPlaces, path: str, params: Mapping[str, Any], timeout_s: float, started: Started
) -> QueryAnswer:
    """`started` is told of the process. Raises Fault."""
    asked = {
        names.QUERY_PATH: path,
        names.QUERY_PARAMS: canonical.dumps(dict(params)),
        names.QUERY_TIMEOUT_S: f"{max(timeout_s, 0.001):.3f}",
    }
    place = places.make(bot, asked)
    try:
        out, said, code = _run(place, timeout_s=timeout_s + CLEANING_S, started=started)
    finally:
        places.clear(place)
    return _answer(out, said=said, code=code)


def begin(
    *, stdout: int, stderr: int, stdin: int = subprocess.DEVNULL, flags: tuple[str, ...] = ()
) -> process_start.Begun:
    """A process for a query; see `process_start.begin`. Raises Fault."""
    try:
        return process_start.begin(stdout=stdout, stderr=stderr, stdin=stdin, flags=flags)
    except OSError as reason:
        raise Fatal(
            f"No process can be started for the query: {reason.strerror}; raise this user's limits.",
            code=ExitCode.INTERNAL,
        ) from reason


def _run(place: Place, *, timeout_s: float, started: Started) -> tuple[bytes, bytes, int]:
    begun = begin(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child = begun.child
    started(child)
    begun.tell(place)
    try:
        out, said = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as reason:
        child.kill()
        child.communicate()
        raise Fatal("The query took too long, and its process did not end.", code=ExitCode.TIMED_OUT) from reason
    return out, said, child.returncode


def _answer(out: bytes, *, said: bytes, code: int) -> QueryAnswer:
    try:
        answer = json.loads(out)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and answer.get("source") == "stored":
        generation = answer.pop("generation", None)
        del answer["source"]
        return QueryAnswer(answer=answer, generation=generation if isinstance(generation, int) else None)
    if isinstance(answer, dict) and answer.get("exit_code") in set(ExitCode):
        sentence, failed = str(answer.get("error")), ExitCode(answer["exit_code"])
        raise Fatal(_with_last_line(sentence, said) if failed == ExitCode.QUERY_FAILED else sentence, code=failed)
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.startswith(_OURS)]
    reason = clip(lines[-1].removeprefix(_OURS), limit=500) if lines else f"it ended with exit code {code}."
    raise Fatal(f"The query process gave no answer: {reason}", code=ExitCode.QUERY_FAILED)


def _with_last_line(sentence: str, said: bytes) -> str:
    """With what the bot's own process printed last, which nobody else gets to see: the end of a traceback, mostly."""
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if not line.startswith(_OURS)]
    last = next((line for line in reversed(lines) if line), None)
    return f"{sentence.rstrip('.')} (last: {clip(last, limit=300)})." if last is not None else sentence
