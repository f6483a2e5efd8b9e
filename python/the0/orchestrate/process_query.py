"""A query from stored state as a process of this machine: `runtime execute --query`, asked once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import Any, Final

from the0 import canonical, files, names
from the0.documents import Bot
from the0.errors import ExitCode, Fatal, clip
from the0.orchestrate import process_start
from the0.orchestrate.data import BotFolders
from the0.orchestrate.engine import QueryAnswer
from the0.orchestrate.place import Place
from the0.orchestrate.process_place import Places

CLEANING_S: Final = 15.0
"""What a query process may take beyond its time to end what it started."""
Started = Callable[[subprocess.Popen[bytes]], None]


def ask(
    bot: Bot,
    *,
    folder: str,
    places: Places,
    path: str,
    params: Mapping[str, Any],
    timeout_s: float,
    started: Started,
) -> QueryAnswer:
    """`folder` is for this bot's queries alone: its code stays there for the next one. `started` is told of the process.
    Raises Fault."""
    told = {
        names.BOT_ID: bot.id,
        names.RUNTIME: bot.runtime,
        names.ENTRYPOINT: bot.entrypoint,
        names.QUERY_ENTRYPOINT: bot.query_entrypoint or "",
        names.CODE_FILE: bot.file_path,
        names.BOT_CONFIG: bot.config_json,
        names.BOT_TYPE: bot.kind,
        names.QUERY_PATH: path,
        names.QUERY_PARAMS: canonical.dumps(dict(params)),
        names.QUERY_TIMEOUT_S: f"{timeout_s:.3f}",
    }
    try:
        place = places.place(_folders(folder, keep=bot.config_hash), told)
    except OSError as reason:
        raise files.disk_fault(reason, f"preparing a query of bot {clip(bot.id)}") from reason
    out, said, code = _run(place, timeout_s=timeout_s + CLEANING_S, started=started)
    return _answer(out, said=said, code=code)


def _folders(folder: str, *, keep: str) -> BotFolders:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name in os.listdir(folder):
        if name != keep:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)  # of another version; harms nobody
    return BotFolders(os.path.join(folder, keep))


def _run(place: Place, *, timeout_s: float, started: Started) -> tuple[bytes, bytes, int]:
    try:
        begun = process_start.begin(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as reason:
        raise Fatal(
            f"No process can be started for the query: {reason.strerror}; raise this user's limits.",
            code=ExitCode.INTERNAL,
        ) from reason
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
        raise Fatal(str(answer.get("error")), code=ExitCode(answer["exit_code"]))
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.startswith("the0: ")]
    reason = clip(lines[-1].removeprefix("the0: "), limit=500) if lines else f"it ended with exit code {code}."
    raise Fatal(f"The query process gave no answer: {reason}", code=ExitCode.QUERY_FAILED)
