"""`runtime execute --query PATH`: one question to a bot that need not run, answered from its newest stored state.

Never claims, imports or writes state. The answer goes to stdout as one JSON object and, with QUERY_RESULT_KEY, into the
store. Exit codes: 0 for an answer, 1 where the answer's status is `error`, and ours where there is none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from the0 import child, files, memory, names, privacy, settings
from the0.answers import Answer, NoAnswer
from the0.errors import ExitCode, Fatal, Fault
from the0.execute import configuration, query_result
from the0.execute.asked_state import AskedState, bug
from the0.execute.environment import question, typed
from the0.execute.shown import Shown

if TYPE_CHECKING:
    from the0.settings import ExecuteSettings

ERROR = 1
"""The exit code for an answer that says `error`."""


def query(environ: Mapping[str, str]) -> int:
    """Answers QUERY_PATH. Only for a process of its own, with one thread."""
    child.fill_standard_descriptors()
    privacy.set_non_dumpable()
    memory.keep_little()
    begun = time.monotonic()
    key = environ.get(names.QUERY_RESULT_KEY, "")
    try:
        environ = configuration.resolved(environ)
        ours = settings.read_execute(environ)
        with AskedState(ours, environ) as asked:
            answer, generation = _Query(ours, asked, deadline=begun + ours.query_timeout_s).run()
        text = query_result.named(answer, generation=generation)
        code = ERROR if answer.value.get("status") == "error" else 0
    except Exception as reason:  # noqa: BLE001 - whoever asks gets a sentence, whatever went wrong
        fault = reason if isinstance(reason, Fault) else bug(reason)
        print(f"the0: {fault.sentence}", file=sys.stderr, flush=True)
        text, code = query_result.failure(fault), int(fault.code)
    _print(text)
    return _store(environ, key, text) or code


class _Query:
    def __init__(self, ours: ExecuteSettings, asked: AskedState, *, deadline: float) -> None:
        self._ours = ours
        self._asked = asked
        self._loop = asked.loop
        self._deadline = deadline
        self._question = question(ours.bot)
        self._end: child.End | None = None

    def run(self) -> tuple[Answer, int]:
        """The answer and the generation that it is about. Raises Fault."""
        generation = self._asked.prepare(until=self._deadline)
        shown = Shown(self._loop)
        try:
            with query_result.result_folder() as folder_fd:
                if folder_fd is not None:
                    return self._run_once(folder_fd, shown), generation
            return self._serve_once(shown), generation
        finally:
            self._asked.end_all()
            shown.close()

    # --- a process that answers one question and ends ------------------------------------------------

    def _run_once(self, folder_fd: int, shown: Shown) -> Answer:
        self._spawn(self._question, shown)
        in_time = self._wait(lambda: self._end is not None)
        self._asked.end_all()
        try:
            return query_result.read_result(folder_fd)
        except NoAnswer as reason:
            if not in_time:
                raise self._too_late() from reason
            raise NoAnswer(
                f"{reason.sentence.rstrip('.')}; it ended with {self._end}, and its output says why."
            ) from reason

    # --- the same process as a server, where there is no folder for its result -----------------------

    def _serve_once(self, shown: Shown) -> Answer:
        from the0.execute.query_asker import Asker  # rarely needed
        from the0.ports import free_port

        bot = self._ours.bot
        assert bot.query_path is not None
        port = free_port()
        self._spawn({names.BOT_TYPE: "realtime", names.THE0_QUERY_PORT: str(port)}, shown)
        params = typed(bot.query_params, runtime=bot.runtime)
        asker = Asker(self._loop, port, path=bot.query_path, params=params, deadline=self._deadline)
        in_time = self._wait(lambda: asker.ended or self._end is not None)
        answer = asker.answer()
        if answer is not None:
            return answer
        if not in_time:
            raise self._too_late()
        raise NoAnswer(f"The query process ended with {self._end} before it answered: its output says why.")

    # --- both ---------------------------------------------------------------------------------------

    def _spawn(self, more: Mapping[str, str], shown: Shown) -> None:
        self._asked.spawn(more, output_fd=shown.write_fd, ended=self._note_end)

    def _note_end(self, end: child.End) -> None:
        self._end = end

    def _wait(self, done: Callable[[], bool]) -> bool:
        in_time = self._loop.run_until(lambda: done() or self._loop.stop_asked, deadline=self._deadline)
        if self._loop.stop_asked:
            raise Fatal("A stop was asked for before the query was answered.", code=ExitCode.STOPPED_EARLY)
        return in_time

    def _too_late(self) -> Fatal:
        return Fatal(
            f"The query was not answered within {self._ours.query_timeout_s:g} s: make it quicker, or raise {names.QUERY_TIMEOUT_S}.",
            code=ExitCode.TIMED_OUT,
        )


def _print(text: str) -> None:
    try:
        files.write_all(1, text.encode() + b"\n")
    except OSError:
        pass  # nobody reads; the store may have it


def _store(environ: Mapping[str, str], key: str, text: str) -> int:
    """Puts the answer where QUERY_RESULT_KEY says; 0, or the exit code that says why it is not there."""
    if not key:
        return 0
    try:
        store, bucket = settings.read_store(environ), settings.read_buckets(environ).query_results
    except Fault as fault:
        return int(fault.code)  # said already: that is why there was no answer

    def put() -> str:
        from the0.objects.open import open_store

        return open_store(store, deadline_s=10.0).put(bucket, key, text.encode())

    from the0.objects.in_child import in_child

    try:
        in_child(put, doing="storing the answer", timeout_s=20.0)
    except Fault as fault:
        print(f"the0: {fault.sentence}", file=sys.stderr, flush=True)
        return int(fault.code)
    return 0
