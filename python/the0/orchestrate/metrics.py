"""What bots measure themselves (`_metric` lines), and the platform's own numbers as Prometheus reads them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from the0 import files, names
from the0.orchestrate import processes
from the0.orchestrate.data import Data

LOOK_BACK_BYTES: Final = 256 << 10
"""How much of a log that was never looked at is read."""
PIECE_BYTES: Final = 4 << 20
"""How much is read at one time at most; of more, the newest."""
TYPES: Final = 100
"""Of metrics that are kept for a bot."""
_MARK: Final = b'"_metric"'


@dataclass(slots=True)
class _Seen:
    inode: int = 0
    offset: int = 0
    newest: dict[str, Any] = field(default_factory=dict)


class BotMetrics:
    """Reads only when asked, and only what is new since. From any thread."""

    def __init__(self, place: Data) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}

    def newest(self, bot_id: str) -> dict[str, Any]:
        """By type, the newest `_metric` line; what it holds besides `_metric`."""
        with self._lock:
            seen = self._seen.setdefault(bot_id, _Seen())
            try:
                with files.folder(self._place.bot(bot_id).logs) as folder_fd:
                    fd = files.open_beneath(folder_fd, names.BOT_LOG)
            except OSError:
                return dict(seen.newest)  # it has not printed yet
            try:
                _read(fd, seen)
            finally:
                os.close(fd)
            return dict(seen.newest)

    def keep_only(self, bot_ids: Iterable[str]) -> None:
        with self._lock:
            kept = set(bot_ids)
            self._seen = {bot_id: seen for bot_id, seen in self._seen.items() if bot_id in kept}


def _read(fd: int, seen: _Seen) -> None:
    told = os.fstat(fd)
    if told.st_ino != seen.inode or told.st_size < seen.offset:
        seen.inode, seen.offset = told.st_ino, max(told.st_size - LOOK_BACK_BYTES, 0)
    begin = max(seen.offset, told.st_size - PIECE_BYTES)
    data = os.pread(fd, told.st_size - begin, begin)
    end = data.rfind(b"\n") + 1  # the rest is not whole yet
    seen.offset = begin + end
    for line in data[:end].splitlines():
        if _MARK in line:
            _note(line, seen.newest)


def _note(line: bytes, newest: dict[str, Any]) -> None:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return  # a piece of a line, or no metric at all
    if not isinstance(told, dict) or not isinstance(told.get("_metric"), str):
        return
    kind = told.pop("_metric")
    newest.pop(kind, None)
    newest[kind] = told
    while len(newest) > TYPES:
        del newest[next(iter(newest))]


def prometheus(rows: Iterable[Mapping[str, Any]], *, not_ready: str | None, pid: int) -> str:
    """Text format 0.0.4. `rows`: see control_client.Row."""
    rows = list(rows)
    by_status: dict[str, int] = {}
    for each in rows:
        by_status[each["status"]] = by_status.get(each["status"], 0) + 1
    lines = ["# TYPE the0_ready gauge", f"the0_ready {0 if not_ready else 1}", "# TYPE the0_bots gauge"]
    lines += [f'the0_bots{{status="{status}"}} {count}' for status, count in sorted(by_status.items())]
    for name, kind, key in (
        ("the0_bot_up", "gauge", None),
        ("the0_bot_restarts_total", "counter", "restarts"),
        ("the0_bot_memory_bytes", "gauge", "memory_bytes"),
        ("the0_bot_cpu_seconds_total", "counter", "cpu_s"),
    ):
        lines.append(f"# TYPE {name} {kind}")
        for each in rows:
            value = int(each["status"] == "running") if key is None else each[key]
            if value is not None:
                lines.append(f'{name}{{bot="{_escaped(each["id"])}"}} {value}')
    lines.append("# TYPE the0_bot_metric gauge")
    for each in rows:
        for kind, told in each["metrics"].items():
            lines += [
                f'the0_bot_metric{{bot="{_escaped(each["id"])}",type="{_escaped(kind)}",field="{_escaped(name)}"}} {value}'
                for name, value in told.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            ]
    ours = processes.stat(pid)
    if ours is not None:
        lines += [
            "# TYPE process_cpu_seconds_total counter",
            f"process_cpu_seconds_total {ours.cpu_s}",
            "# TYPE process_resident_memory_bytes gauge",
            f"process_resident_memory_bytes {ours.memory_bytes}",
        ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
