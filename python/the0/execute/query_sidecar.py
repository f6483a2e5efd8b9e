"""`runtime execute --query-server-only`: the bot's query process alone, as the third container of a Pod has it.

Neither claims nor syncs, touches no state, no log and no run record: those are the other containers'.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from the0 import child, memory, privacy, settings
from the0.errors import Fault
from the0.execute import configuration, preparing
from the0.execute.languages import language
from the0.execute.loop import Loop
from the0.execute.output import Echo
from the0.execute.preparing import Prepared, Preparing
from the0.execute.programs import make_code_folder, query_program, wanted_code
from the0.execute.serving import Serving
from the0.execute.strays import end_strays

if TYPE_CHECKING:
    from threading import Event

    from the0.settings import ExecuteSettings

GRACE_S = 0.5
"""A query process keeps nothing: it is ended nearly at once."""
ECHO_S = 1.0


def serve(environ: Mapping[str, str]) -> int:
    """Serves until a stop is asked for, then 0. Otherwise our own exit code. Only for a process of its own, with one thread."""
    child.fill_standard_descriptors()
    privacy.set_non_dumpable()
    memory.keep_little()
    try:
        return _serve(configuration.resolved(environ))
    except Fault as fault:
        _tell(fault.sentence)
        return int(fault.code)


def _serve(environ: Mapping[str, str]) -> int:
    ours = settings.read_execute(environ, skip_sync=True)
    program = query_program(ours, environ, language(ours.bot.runtime))
    not_ours = frozenset(child.children())
    privacy.become_subreaper()
    loop = Loop()
    _fetch(ours, program.file, loop)
    echo = Echo(loop, 1)
    if not loop.stop_asked:
        serving = Serving(loop, program, heard=echo.write, say=_say)
        serving.start()
        loop.run_until(lambda: loop.stop_asked or serving.failure is not None)
        serving.stop()
        end_strays(loop, spared=lambda: not_ours, grace_s=GRACE_S)
        serving.close()
        if serving.failure is not None:
            return int(serving.failure.code)
    loop.run_until(lambda: echo.idle, deadline=time.monotonic() + ECHO_S)
    return 0


def _fetch(ours: ExecuteSettings, file: str, loop: Loop) -> None:
    make_code_folder(ours)
    wanted = wanted_code(ours, file, replace=False)
    if wanted is None:
        return

    def prepare(stop: Event) -> Prepared:
        from the0.execute.prepare import prepare

        return prepare(ours, wanted=wanted, instance="", stop=stop)

    preparing_it = Preparing(loop, preparing.begin(prepare, keep_fds=()))
    try:
        fault = preparing_it.wait(grace_s=GRACE_S).fault
    except Fault as reason:
        fault = reason
    if fault is not None and not loop.stop_asked:
        raise fault


def _say(message: str, *, level: str) -> None:
    _tell(f"{level}: {message}")


def _tell(sentence: str) -> None:
    print(f"the0: {sentence}", file=sys.stderr, flush=True)
