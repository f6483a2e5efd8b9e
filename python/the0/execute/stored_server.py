"""`runtime execute --serve-stored`: the bot's query process over its newest stored state, for more than one question.

Whoever started it holds the other end of descriptor 0, a socket, and asks the process itself, at THE0_QUERY_PORT. On the socket
it is told once, in a line of JSON, `{"generation": n}` or `{"error": …, "exit_code": n}`. Then each byte that it sends is answered
by one: QUERY_GOOD as long as the process is the one that was started and its state is as restored, QUERY_CHANGED where the process wrote
there, so that it must not be asked again. The end of the socket is the end of this: nothing stays behind when whoever asks is killed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from the0 import canonical, child, files, memory, names, privacy, settings, statehash
from the0.errors import Fault
from the0.execute import configuration
from the0.execute.asked_state import AskedState, bug
from the0.execute.shown import Shown

if TYPE_CHECKING:
    from the0.settings import ExecuteSettings


def serve(environ: Mapping[str, str]) -> int:
    """Until the other end of descriptor 0 is closed, the process ends or a stop is asked for. Only for a process of its own, with
    one thread."""
    child.fill_standard_descriptors()
    privacy.set_non_dumpable()
    memory.keep_little()
    control_fd = _taken_away(0)
    try:
        ours = settings.read_execute(configuration.resolved(environ))
        with AskedState(ours, environ) as asked:
            _Served(ours, asked, control_fd).run()
    except Exception as reason:  # noqa: BLE001 - whoever asks gets a sentence, whatever went wrong
        fault = reason if isinstance(reason, Fault) else bug(reason)
        print(f"the0: {fault.sentence}", file=sys.stderr, flush=True)
        _write(control_fd, canonical.dumps({"error": fault.sentence, "exit_code": int(fault.code)}).encode() + b"\n")
        return int(fault.code)
    return 0


class _Served:
    def __init__(self, ours: ExecuteSettings, asked: AskedState, control_fd: int) -> None:
        self._port = ours.bot.query_port
        self._asked = asked
        self._loop = asked.loop
        self._control_fd = control_fd
        self._tree: _Tree | None = None
        self._ended = False
        self._loop.watch(control_fd, self._heard)

    def run(self) -> None:
        """Raises Fault where it cannot begin."""
        generation = self._asked.prepare()
        shown = Shown(self._loop)
        try:
            self._tree = _Tree(self._asked.path)
            more = {names.BOT_TYPE: "realtime", names.THE0_QUERY_PORT: str(self._port)}
            self._asked.spawn(more, output_fd=shown.write_fd, ended=self._note_end)
            _write(self._control_fd, b'{"generation": %d}\n' % generation)
            self._loop.run_until(lambda: self._ended or self._loop.stop_asked)
        finally:
            self._asked.end_all()
            shown.close()

    def _note_end(self, _: child.End) -> None:
        self._ended = True

    def _heard(self) -> None:
        try:
            told = os.read(self._control_fd, 1)
        except BlockingIOError:
            return
        except ConnectionError:
            told = b""
        if not told:
            self._loop.watch(self._control_fd, None)
            self._loop.stop_asked = True  # nobody is there any more; also while state is still on its way
        elif self._tree is not None:
            _write(self._control_fd, names.QUERY_CHANGED if self._tree.has_changed() else names.QUERY_GOOD)


class _Tree:
    """Whether anything was written below a folder since. Where that cannot be known, something was."""

    def __init__(self, path: str) -> None:
        self._fd = files.open_root(path)
        try:
            self._watch: statehash.Watch | None = statehash.Watch(self._fd)
            self._scan = statehash.scan(self._fd, statehash.Index(), watch=self._watch)
        except OSError:
            self._watch = None  # no inotify is to be had: then one question is all that it is asked

    def has_changed(self) -> bool:
        return self._watch is None or self._watch.blind is not None or self._watch.moved_since(self._scan)


def _taken_away(fd: int) -> int:
    """Another descriptor for the same; `fd` itself leads nowhere from now on."""
    moved = os.dup(fd)
    os.set_blocking(moved, False)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, fd)
    os.close(nowhere)
    return moved


def _write(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except (BrokenPipeError, ConnectionError, BlockingIOError):
        pass  # nobody is there any more, which is seen when the other end is read
