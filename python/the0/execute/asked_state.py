"""What every query of stored state begins with: its program, its bot's code, and the newest stored state for it alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from the0 import child, files, names, privacy
from the0.errors import ExitCode, Fatal
from the0.execute import preparing
from the0.execute.languages import language
from the0.execute.loop import Loop
from the0.execute.preparing import Prepared, Preparing, stopped_early
from the0.execute.programs import make_code_folder, query_program, wanted_code
from the0.execute.query_state import QueryState
from the0.execute.strays import end_strays
from the0.frozen import replace

if TYPE_CHECKING:
    from threading import Event

    from the0.settings import ExecuteSettings


class AskedState:
    """The state of one query process, thrown away at the end. Only for a process of its own, with one thread."""

    def __init__(self, ours: ExecuteSettings, environ: Mapping[str, str]) -> None:
        """Raises Fatal (USAGE, LANGUAGE, ENTRYPOINT, LOCAL_DISK)."""
        self._ours = ours
        self._not_ours = frozenset(child.children())
        self._program = query_program(ours, environ, language(ours.bot.runtime))
        privacy.become_subreaper()
        self.loop = Loop()
        self._state = QueryState(ours.paths.state, elsewhere=environ.get("TMPDIR") or "/tmp")

    def __enter__(self) -> AskedState:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._state.close()
        except OSError as reason:
            fault = files.disk_fault(reason, "removing the state that the query was given")
            print(f"the0: {fault.sentence}", file=sys.stderr, flush=True)

    @property
    def path(self) -> str:
        """The folder that holds the state, for this process alone: see `QueryState.safe_path`."""
        return self._state.safe_path

    def prepare(self, *, until: float = float("inf")) -> int:
        """Brings code and state; the generation that this is. Raises Fault."""
        ours = self._ours
        make_code_folder(ours)
        wanted = wanted_code(ours, self._program.file, replace=False)
        sync = ours.sync
        assert sync is not None, "read so"

        def prepare(stop: Event) -> Prepared:
            from the0.execute.prepare_query import prepare_query

            return prepare_query(sync, wanted=wanted, state=self._state.safe_path, stop=stop)

        begun = preparing.begin(prepare, keep_fds=(self._state.lock_fd,))
        prepared = Preparing(self.loop, begun).wait(grace_s=1.0, until=until)
        if self.loop.stop_asked:
            raise stopped_early()
        if prepared.fault is not None:
            raise prepared.fault
        self._state.mark()
        return prepared.generation

    def spawn(self, more: Mapping[str, str], *, output_fd: int, ended: Callable[[child.End], None]) -> None:
        """Starts the program, with more variables. Raises Fatal (ENTRYPOINT, INTERNAL)."""
        program, paths = self._program, self._ours.paths
        environment = {**program.environment, **more}
        if self._state.copy is not None:
            below = os.path.relpath(paths.sdk_state, paths.state)
            environment[names.STATE_DIR] = os.path.normpath(os.path.join(self._state.copy, below))
        program = replace(program, environment=environment, writable=self._state.path)
        self.loop.on_end(program.spawn(output_fd).pid, ended)

    def end_all(self) -> None:
        """Whatever was started."""
        end_strays(self.loop, spared=lambda: self._not_ours, grace_s=0.0)


def bug(reason: Exception) -> Fatal:
    sys.excepthook(type(reason), reason, reason.__traceback__)
    return Fatal(
        f"{type(reason).__name__} in the supervisor, which is a bug of the runtime; its traceback is on stderr.",
        code=ExitCode.INTERNAL,
    )
