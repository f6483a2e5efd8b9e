"""Child processes: forked with our memory, or started anew without any of it; ended, reaped, and their strays found.

Only for a single-threaded parent: what runs between fork and exec here is Python.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from the0 import privacy, seccomp
from the0.errors import ExitCode, Fault
from the0.frozen import dataclass

if TYPE_CHECKING:
    from threading import Event

_RESET = tuple(number for number in range(1, 32) if number not in (signal.SIGKILL, signal.SIGSTOP))
_STOP = b"stop\n"
SILENT_S = 150.0
"""How long a child that outlives us may do nothing at all: more than any request to a store waits for its answer."""
REAPED_AT_ONCE = 256
"""A child that makes us its tracer again and again must not keep us from everything else."""
_LOOK_S = 1.0
_WORK_S = 0.01
"""So much CPU time is more than looking takes within SILENT_S."""
_LEFT_ALONE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended: by an exit code, or by a signal."""

    code: int | None
    signal: int | None

    @property
    def exit_code(self) -> int:
        """As a shell has it: 128+N for signal N."""
        return self.code if self.code is not None else 128 + (self.signal or 0)

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            return f"signal {self.signal} ({signal.Signals(self.signal).name})"
        except ValueError:
            return f"signal {self.signal}"


@dataclass(frozen=True, slots=True)
class Forked:
    """A forked child of ours."""

    pid: int
    control_fd: int

    def ask_to_stop(self) -> None:
        """Once. Our own death asks for it, too."""
        self._write(_STOP)
        os.close(self.control_fd)

    def leave_behind(self, pid: int) -> None:
        """When we die unasked, it first kills the process group of this child of ours, so that the bot does not go on
        with nobody to keep its state."""
        self._write(b"%d\n" % pid)

    def drop(self) -> None:
        """It has ended."""
        os.close(self.control_fd)

    def _write(self, line: bytes) -> None:
        try:
            os.write(self.control_fd, line)
        except BrokenPipeError:
            pass  # it has ended, or is about to


def fill_standard_descriptors() -> None:
    """Makes 0, 1 and 2 exist: what is opened next would take the place of a closed one, and get what is printed."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def fork_child(name: str, work: Callable[[Event], int], *, keep: Iterable[int]) -> Forked:
    """Forks without exec: the child has our memory (and stays non-dumpable), of our descriptors only `keep`,
    a session of its own, and ends with `work(stop)` as its exit code. Faults become a sentence on stderr and their code.

    Signals that a terminal, a service manager or a bot may send to it are ignored: `stop` is set when we ask it to stop
    or die. OSError where no process can be had.
    """
    control_read, control_write = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(control_read)
        os.close(control_write)
        raise
    if pid != 0:
        os.close(control_read)
        return Forked(pid=pid, control_fd=control_write)
    code = int(ExitCode.INTERNAL)
    try:
        signal.set_wakeup_fd(-1)
        for number in _LEFT_ALONE:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        privacy.close_others((*keep, control_read))
        privacy.set_name(f"the0-{name}")
        from threading import Event, Thread  # not in the parent: it needs no threads

        stop = Event()
        Thread(target=_watch_control, args=(control_read, stop), name="control", daemon=True).start()
        code = work(stop)
    except Fault as fault:
        print(f"the0: {fault.sentence}", file=sys.stderr, flush=True)
        code = int(fault.code)
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code; the traceback says it all
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _watch_control(fd: int, stop: Event) -> None:
    told = b""
    while piece := os.read(fd, 512):
        told += piece
    orphaned = not told.endswith(_STOP)
    if orphaned:
        for left_behind in told.split():
            send_group(int(left_behind), signal.SIGKILL)
    stop.set()
    if orphaned:
        _end_when_silent()


def _end_when_silent() -> None:
    """Nobody watches over us any more. Whoever had the power to kill our parent may have taken our memory as well, and a thread
    that could not be started is waited for without end: so when nothing moves, we end, and with us what we hold."""
    try:
        worked_s, since_s = time.process_time(), time.monotonic()
        while time.monotonic() - since_s < SILENT_S:
            time.sleep(_LOOK_S)
            if time.process_time() - worked_s > _WORK_S:
                worked_s, since_s = time.process_time(), time.monotonic()
    finally:
        os._exit(int(ExitCode.INTERNAL))  # a MemoryError as well


@dataclass(frozen=True, slots=True)
class Spawned:
    """A program that was started. `failure_fd` says whether exec worked, see `exec_failure`."""

    pid: int
    failure_fd: int


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    folder: str,
    output_fd: int,
    word_fd: int | None = None,
    confine: Callable[[], None] | None = None,
) -> Spawned:
    """Starts a program in its own session and process group: stdin is empty, stdout and stderr are `output_fd`,
    descriptor 3 is `word_fd` if given, there are no others; signals are as after login. `argv[0]` is an absolute path.
    It is killed when we die: nobody would keep its state any more; and it cannot set our limits. `confine` is called in it
    last before the program; an OSError of its is as one of exec."""
    parent = os.getpid()
    failure_read, failure_write = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(failure_read)
        os.close(failure_write)
        raise
    if pid != 0:
        os.close(failure_write)
        return Spawned(pid=pid, failure_fd=failure_read)
    number = 0
    try:
        signal.set_wakeup_fd(-1)
        for each in _RESET:
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        privacy.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(127)
        privacy.gain_no_privileges()
        seccomp.keep_to_own_limits()  # where that cannot be, a bot can end its run by it, see SILENT_S
        # Out of the way of 0 to 3 first, so that no dup2 below overwrites a descriptor that is needed still.
        failure_write, output_fd = _above(failure_write), _above(output_fd)
        word_fd = _above(word_fd) if word_fd is not None else None
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        if word_fd is not None:
            os.dup2(word_fd, 3)
        privacy.close_others((failure_write, *((3,) if word_fd is not None else ())))
        os.chdir(folder)
        if confine is not None:
            confine()
        os.execve(argv[0], list(argv), dict(env))
    except OSError as failure:
        number = failure.errno or 0
    except BaseException:  # noqa: BLE001, S110 - as in fork_child; the parent sees an exec that failed
        pass
    finally:
        os.write(failure_write, number.to_bytes(4, "little"))
        os._exit(127)


def _above(fd: int) -> int:
    while fd <= 3:
        fd = os.dup(fd)
    return fd


def exec_failure(started: Spawned) -> OSError | None:
    """Waits until the program's exec has happened, and says why it failed if it did. Once."""
    try:
        told = os.read(started.failure_fd, 4)
    finally:
        os.close(started.failure_fd)
    if not told:
        return None
    number = int.from_bytes(told, "little")
    return OSError(number, os.strerror(number) if number else "the program could not be started")


def reap() -> tuple[list[tuple[int, End]], bool]:
    """The children that have ended since the last call, orphans that became ours included; and whether there may be more."""
    ended: list[tuple[int, End]] = []
    for _ in range(REAPED_AT_ONCE):
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, False
        if pid == 0:
            return ended, False
        if os.WIFSTOPPED(status):
            _let_go(pid, os.WSTOPSIG(status))
            continue
        code = os.waitstatus_to_exitcode(status)
        ended.append((pid, End(code=code, signal=None) if code >= 0 else End(code=None, signal=-code)))
    return ended, True


def _let_go(pid: int, number: int) -> None:
    """A child that made us its tracer (PTRACE_TRACEME) was stopped by a signal: it is traced no longer, and gets that signal."""
    number = 0 if number == signal.SIGTRAP else number  # that one tells of an exec, and would kill
    # Fails only where it was killed meanwhile.
    privacy.ptrace_detach(pid, number)


def continue_stopped(pid: int) -> bool:
    """Whether somebody had stopped this child of ours (SIGSTOP and the like); it goes on."""
    try:
        stopped = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
    except ChildProcessError:
        return False  # it has ended
    if stopped is None:
        return False
    send(pid, signal.SIGCONT)
    return True


def send(pid: int, number: int) -> None:
    """Signals a child that was not reaped yet; one that ended already is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # a zombie, or nearly: its end is on its way to us


def send_group(pid: int, number: int) -> None:
    """Signals the group of a child that was not reaped yet."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        send(pid, number)  # its session is not set up yet, or a member is another user's


def kill_descendants(spared: Set[int], *, within_s: float) -> set[int]:
    """Kills all that descends from us but `spared` and what these started; returns whom it killed.

    All are stopped first, so that none forks another while we kill; and nothing is reaped meanwhile, so that those that
    fork and exit faster than we look fill the limit of processes that they run under. Where there is none, it leaves off
    after `within_s`.
    """
    deadline = time.monotonic() + within_s
    stopped: set[int] = set()
    while (fresh := _descendants(spared) - stopped) and time.monotonic() < deadline:
        for pid in fresh:
            send(pid, signal.SIGSTOP)
        stopped |= fresh
    for pid in stopped:
        send(pid, signal.SIGKILL)
    return stopped


def _descendants(spared: Set[int]) -> set[int]:
    below: dict[int, list[int]] = {}
    for pid in _processes():
        below.setdefault(_parent(pid), []).append(pid)
    found: set[int] = set()
    pending = [os.getpid()]
    while pending:
        fresh = set(below.get(pending.pop(), ())) - spared - found
        found |= fresh
        pending += fresh
    return found


def children() -> list[int]:
    """Our direct children now, zombies included."""
    me = os.getpid()
    try:
        with open(f"/proc/self/task/{me}/children", "rb") as listed:
            return [int(pid) for pid in listed.read().split()]
    except OSError:
        return [pid for pid in _processes() if _parent(pid) == me]


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as told:
            return int(told.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0  # it has ended
