"""One server process: started, waited for, its log kept, stopped with whoever started it.

The kernel kills it when its starter dies, however that dies. Its folder is below the cache, named by the starter's
pid, and swept by the next start where nobody could remove it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class ServerError(RuntimeError):
    """The server is missing or did not come up; the sentence says what to do."""


def cache() -> Path:
    """Downloads and builds, keyed by version. THE0_CACHE puts it elsewhere."""
    folder = Path(os.environ.get("THE0_CACHE") or ROOT / ".cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody held a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]


def wait_until(condition: Callable[[], object], *, deadline_s: float, what: str, every_s: float = 0.02) -> None:
    """Polls until the condition is true; fails with `what` after deadline_s."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(f"{what}: not within {deadline_s} s")
        time.sleep(every_s)


class Server:
    def __init__(self, name: str) -> None:
        self.name = name
        runs = cache() / "run"
        runs.mkdir(exist_ok=True)
        _sweep(runs)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-{os.getpid()}-", dir=runs))
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        ready: Callable[[], bool],
        environ: Mapping[str, str] | None = None,
        deadline_s: float = 30.0,
    ) -> None:
        starter = os.getpid()
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **(environ or {})},
                start_new_session=True,  # a Ctrl-C is for the tests, which then stop it in order
                preexec_fn=lambda: _die_with(starter),  # noqa: PLW1509  (one prctl, nothing that takes a lock)
            )
        try:
            wait_until(lambda: self._alive() and ready(), deadline_s=deadline_s, what=f"{self.name} is ready")
        except BaseException as reason:
            tail = self.log.read_text(errors="replace")[-2000:]
            self.stop()
            if isinstance(reason, ServerError):
                raise ServerError(f"{reason}; the end of its log:\n{tail}") from reason
            raise

    def stop(self) -> None:
        """Stopping twice is fine."""
        self.kill()  # its data goes with it: there is nothing to end in order
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """Its folder stays, for another start."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _alive(self) -> bool:
        assert self._process is not None
        if self._process.poll() is None:
            return True
        raise ServerError(f"{self.name} ended at once with status {self._process.returncode}")


def _die_with(starter: int) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != starter:
        os._exit(1)


def _sweep(runs: Path) -> None:
    for folder in runs.iterdir():
        pid = folder.name.split("-")[1:2]
        if pid and pid[0].isdigit() and not Path(f"/proc/{pid[0]}").exists():
            shutil.rmtree(folder, ignore_errors=True)
