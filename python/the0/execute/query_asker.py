"""Asks a query process that was started to serve one question, in a forked child: the supervisor goes on reading what it prints."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from the0 import answers, asking, child, files
from the0.answers import Answer, NoAnswer
from the0.errors import Fault
from the0.execute.loop import Loop

AGAIN_S = 0.01
LAST_BREATH_S = 0.2
"""How long an answer may still be on its way when the process that gave it has ended."""
_NONE = 1
_LATE = 2


class Asker:
    """One question, asked as soon as somebody listens on the port."""

    def __init__(self, loop: Loop, port: int, *, path: str, params: Mapping[str, Any], deadline: float) -> None:
        self._loop = loop
        self._end: child.End | None = None
        self._answer_fd = os.memfd_create("answer", os.MFD_CLOEXEC)

        def ask(_: object) -> int:
            return _ask(self._answer_fd, port, path=path, params=params, deadline=deadline)

        self._forked = child.fork_child("ask", ask, keep=(self._answer_fd,))
        loop.on_end(self._forked.pid, self._note_end)

    @property
    def ended(self) -> bool:
        return self._end is not None

    def _note_end(self, end: child.End) -> None:
        self._end = end

    def answer(self) -> Answer | None:
        """The answer; None where there is none so far. Once. Raises NoAnswer, AnswerTooLarge."""
        self._loop.run_until(lambda: self.ended, deadline=time.monotonic() + LAST_BREATH_S)
        if self._end is None:
            child.send(self._forked.pid, signal.SIGKILL)
            self._loop.run_until(lambda: self.ended)
        self._forked.drop()
        try:
            os.lseek(self._answer_fd, 0, os.SEEK_SET)
            told = files.read_fd(self._answer_fd, limit_bytes=answers.ANSWER_BYTES + 4096)
        finally:
            os.close(self._answer_fd)
        assert self._end is not None
        if self._end.code == 0:
            return answers.parsed(told)
        if self._end.code == _NONE and told:
            raise NoAnswer(told.decode())
        return None


def _ask(answer_fd: int, port: int, *, path: str, params: Mapping[str, Any], deadline: float) -> int:
    while True:
        try:
            answer = asking.ask("127.0.0.1", port, path=path, params=params, deadline=deadline)
        except asking.NotListening:
            time.sleep(AGAIN_S)  # it is on its way
        except asking.TooLate:
            return _LATE
        except Fault as fault:
            os.write(answer_fd, fault.sentence.encode())
            return _NONE
        else:
            files.write_all(answer_fd, answer.text.encode())
            return 0
