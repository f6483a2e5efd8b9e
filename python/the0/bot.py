"""What a bot says and asks: its configuration, its result, metrics, log lines, and a sleep that a stop ends.

from the0 import log, parse, sleep, success

bot_id, config = parse()
log("started", {"symbol": config["symbol"]})
while not sleep(60):
    ...
success("done")
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping

from the0 import stops
from the0.state import write_whole

TYPE_CHECKING = False  # importing `typing` would cost a bot several milliseconds
if TYPE_CHECKING:
    from typing import Any, NoReturn

_LEVELS = {"info": "info", "warn": "warn", "warning": "warn", "error": "error", "critical": "error", "fatal": "error"}
_DEEPEST = 50


def parse() -> tuple[str, dict[str, Any]]:
    """The bot's id and its configuration (BOT_ID, BOT_CONFIG or the file BOT_CONFIG_FILE). ValueError where one is missing or
    is no JSON object."""
    bot_id = os.environ.get("BOT_ID", "")
    if not bot_id:
        raise ValueError("BOT_ID is missing: the runtime sets it; to run the bot by hand, set it to any name")
    text = config_text()
    if not text:
        raise ValueError("BOT_CONFIG is missing: the runtime sets it; to run the bot by hand, set it to '{}'")
    return bot_id, read_object("BOT_CONFIG", text)


def config_text() -> str:
    """The configuration as it was handed over: in BOT_CONFIG, or in the file BOT_CONFIG_FILE where it is too large for a
    variable; "" without one. ValueError where that file cannot be read."""
    text, path = os.environ.get("BOT_CONFIG", ""), os.environ.get("BOT_CONFIG_FILE", "")
    if text or not path:
        return text
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as reason:
        raise ValueError(f"BOT_CONFIG_FILE cannot be read: {reason}") from reason


def read_object(variable: str, text: str) -> dict[str, Any]:
    """The JSON object that a variable holds; ValueError names the variable."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise ValueError(f"{variable} is no JSON: {reason}") from reason
    if not isinstance(value, dict):
        raise ValueError(f"{variable} is JSON, but no object: it must look like {{...}}")
    return value


def success(message: str, data: Any = None) -> None:
    """Writes the bot's result: `{"status": "success", "message": …, "data": …}`, `data` only where given."""
    result(_outcome("success", message, data))


def error(message: str, data: Any = None) -> NoReturn:
    """Writes the result `{"status": "error", …}` and ends the bot with exit code 1."""
    result(_outcome("error", message, data))
    sys.exit(1)


def result(data: Mapping[str, Any]) -> None:
    """Writes `data` as the bot's result, replacing a former one whole. TypeError or ValueError where it is not JSON;
    ValueError outside the runtime, which says in CODE_MOUNT_DIR where results go."""
    folder = os.environ.get("CODE_MOUNT_DIR", "")
    if not folder:
        raise ValueError(
            "CODE_MOUNT_DIR is missing: the runtime sets it; to run the bot by hand, "
            "set it to the bot's folder without the leading slash"
        )
    write_whole(os.path.join("/", folder, "result.json"), json.dumps(dict(data), allow_nan=False))


def metric(type: str, data: Mapping[str, Any]) -> None:  # noqa: A002 - callers may name it
    """Prints one metric on stdout: `{"_metric": type, …data, "timestamp": …}`. What JSON lacks is
    printed as text, NaN as null."""
    _print_line(sys.stdout, {"_metric": type, **data, "timestamp": _now()})


def log(message: str, data_or_level: Mapping[str, Any] | str | None = None, level: str | None = None) -> None:
    """Prints one log line on stderr: `{"level": …, "message": …, …data, "timestamp": …}`.

    The second argument is data (a dict) or the level; levels are "info" (default), "warn" and "error".
    """
    data: Mapping[str, Any] = {}
    if isinstance(data_or_level, Mapping):
        data = data_or_level
    elif data_or_level is not None and level is None:
        level = data_or_level
    known = _LEVELS.get(str(level).lower(), "info")
    line = {"level": known, "message": message, **data, "timestamp": _now()}
    # Whoever shows the line needs text here, whatever `data` brought.
    line["message"] = str(line["message"])
    line["level"] = line["level"] if isinstance(line["level"], str) else known
    _print_line(sys.stderr, line)


def sleep(seconds: float) -> bool:
    """Sleeps, and wakes when the bot is asked to stop. True if that is why it woke, so that a bot can say
    `while not sleep(60)`. A bot without a SIGTERM handler of its own is ended by the runtime instead."""
    try:
        senseless = math.isnan(seconds) or seconds < 0
    except TypeError:
        raise TypeError(f"sleep takes a number of seconds, unlike {seconds!r}") from None
    if senseless:
        raise ValueError(f"cannot sleep for {seconds} seconds: give 0 or more")
    return stops.WATCH.wait(seconds)


def _outcome(status: str, message: str, data: Any) -> dict[str, Any]:
    outcome = {"status": status, "message": str(message)}
    return outcome if data is None else {**outcome, "data": data}


def _now() -> str:
    """RFC 3339, UTC, milliseconds."""
    now_ns = time.time_ns()
    return (
        f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now_ns // 1_000_000_000))}.{now_ns // 1_000_000 % 1000:03d}Z"
    )


def _print_line(stream: Any, line: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(line, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(_shown(line))
    # One write: lines of several threads must not mix. A bot must not die of a line that cannot be told.
    if stream is not None:
        stream.write(text + "\n")
        stream.flush()


def _shown(value: Any, depth: int = 0) -> Any:
    """A line must be printable whatever the bot put in: what JSON lacks becomes text, NaN and infinity null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {str(key): _shown(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [_shown(item, depth + 1) for item in value]
    return str(value)
