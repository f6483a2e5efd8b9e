"""A bot on a machine of its own, run against a store as a user would run it: whole processes, timed from outside."""

from __future__ import annotations

import fcntl
import io
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from report import ROOT
from the0.objects.store import ObjectStore
from the0.sync.head import HeadFile, Stored

RUNTIME = [sys.executable, "-I", "-m", "the0.cli"]
TRACED = [sys.executable, "-I", str(Path(__file__).with_name("traced.py"))]
BARE = [sys.executable, "-I", "-c", "import time; print('first', time.monotonic_ns(), flush=True)"]
BUCKETS = {"MINIO_CODE_BUCKET": "bench-code", "MINIO_STATE_BUCKET": "bench-state", "MINIO_LOGS_BUCKET": "bench-logs"}
DEADLINE_S = 60.0

FIRST = """\
import time


def main(bot_id, config):
    now = time.monotonic_ns()
    print("first", now, flush=True)
"""
STAYS = FIRST + "    while True:\n        time.sleep(3600)\n"
FILLS = (
    FIRST
    + """\
    import os
    folder = os.path.join(os.path.dirname(os.environ["STATE_DIR"]), "files")
    for number in range(config["files"]):
        path = os.path.join(folder, f"{number // 100:03d}", f"{number % 100:02d}")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(os.urandom(4096))
    print("filled", flush=True)
    while config.get("stays"):
        time.sleep(3600)
"""
)


class BenchError(RuntimeError):
    """A run did not do what is measured; the sentence says what it did instead."""


def archive(main: str, *, total_bytes: int = 1024, files: int = 0, text: bool = False) -> bytes:
    """A zip with `main.py`, filled up to about `total_bytes` of archive (of content, where it is text) by `files` others."""
    made = io.BytesIO()
    chance = random.Random(1)
    words = [f"{chance.choice(('self', 'return', 'value', 'index', 'for', 'def', 'state'))}_{n}" for n in range(400)]
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("main.py", main)
        size = total_bytes // files if files else 0
        for number in range(files):
            name = f"vendor/package{number // 100}/module{number}.{'py' if text else 'bin'}"
            lines = "\n".join(" ".join(chance.choices(words, k=8)) for _ in range(size // 60)) if text else ""
            target.writestr(name, lines[:size].encode() if text else chance.randbytes(size))
        if not files:
            target.writestr("filler", chance.randbytes(max(0, total_bytes - made.tell() - 260)))
    return made.getvalue()


@dataclass
class Process:
    """A started program whose stdout we read; times are CLOCK_MONOTONIC, which all processes share."""

    pid: int
    began_ns: int
    out_fd: int
    err_path: Path
    read: bytes = b""
    code: int | None = None

    def line(self, word: str) -> list[str]:
        """The words of the first line that begins with `word`, waited for."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for line in self.read.decode(errors="replace").splitlines(keepends=True):
                if line.endswith("\n") and line.split()[:1] == [word]:
                    return line.split()
            ready, _, _ = select.select([self.out_fd], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.out_fd, 65536) if ready else b""
            if not piece:
                raise BenchError(f"no line {word!r} came: {self.read!r}, {self.err_path.read_text()!r}")
            self.read += piece

    def first_ms(self) -> float:
        """From exec to the first line of `main`."""
        return (int(self.line("first")[1]) - self.began_ns) / 1e6

    def stop(self) -> float:
        """SIGTERM to exit, in ms."""
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        self.end()
        return (time.monotonic() - began) * 1e3

    def end(self, *, code: int = 0) -> None:
        """Waits for its end, which must be this exit code."""
        handle = os.pidfd_open(self.pid)
        try:
            if not select.select([handle], [], [], DEADLINE_S)[0]:
                raise BenchError(f"the process {self.pid} did not end within {DEADLINE_S} s")
        finally:
            os.close(handle)
        _, status = os.waitpid(self.pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        os.close(self.out_fd)
        if self.code != code:
            raise BenchError(f"it ended with {self.code}, not {code}: {self.read!r}, {self.err_path.read_text()!r}")

    def kill(self) -> None:
        """At the bench's own end, whatever happened."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.out_fd)
            self.code = -9


def launch(argv: list[str], *, env: Mapping[str, str], err_path: Path) -> Process:
    """Started by posix_spawn, whose cost does not grow with ours."""
    read_fd, write_fd = os.pipe()
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, write_fd, 1),
        (os.POSIX_SPAWN_OPEN, 2, str(err_path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    began_ns = time.monotonic_ns()
    pid = os.posix_spawn(argv[0], argv, dict(env), file_actions=actions)
    os.close(write_fd)
    return Process(pid=pid, began_ns=began_ns, out_fd=read_fd, err_path=err_path)


_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x00020000


def base() -> Path:
    """Where this bench's folders are. They stay until `clean`: ext4 without a journal passes over each inode that was freed
    within the last minutes, one by one, so that a folder full of files takes seconds where another was just removed."""
    folder = Path(os.environ.get("THE0_CACHE") or ROOT / ".cache") / "bench" / f"run-{os.getpid()}"
    if not folder.exists():
        folder.mkdir(parents=True)
        spread(folder)
    return folder


def clean() -> None:
    """Removes this bench's folders, and those of benches that were killed."""
    for folder in base().parent.glob("run-*"):
        if folder == base() or not Path(f"/proc/{folder.name.removeprefix('run-')}").exists():
            _remove(folder)


def _remove(folder: Path) -> None:
    """On many threads: where each file that goes is told to the disk at once, one thread does nothing but wait for that."""
    below = [folder]
    for _ in range(3):
        below = [Path(entry) for one in below for entry in os.scandir(one) if entry.is_dir(follow_symlinks=False)]
    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(shutil.rmtree, one, ignore_errors=True) for one in below]:
            done.result()
    shutil.rmtree(folder, ignore_errors=True)


def spread(folder: Path) -> None:
    """Asks ext4 to put folders in this one far apart: away from where inodes were just freed."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (flags,) = struct.unpack("i", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, struct.pack("i", 0)))
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("i", flags | _FS_TOPDIR_FL))
    except OSError:
        pass  # another file system, which has no such trouble
    finally:
        os.close(fd)


def write_files(folder: Path, files: int, *, size: int = 4096) -> float:
    """Writes so many files, 100 in each folder, and nothing else; the ms it took."""
    data = memoryview(os.urandom(size * files))
    began = time.monotonic()
    for number in range(files):
        if number % 100 == 0:
            inner = folder / f"{number // 100:03d}"
            inner.mkdir(parents=True)
        fd = os.open(inner / f"{number % 100:02d}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data[number * size : (number + 1) * size])
        os.close(fd)
    return (time.monotonic() - began) * 1e3


def _folder() -> Path:
    return Path(tempfile.mkdtemp(dir=base()))


@dataclass
class Place:
    """A machine: the folders of one bot, and the environment that leads to the store."""

    store: ObjectStore
    environ: Mapping[str, str]
    """Of the store."""
    bot_id: str
    root: Path = field(default_factory=_folder)
    config: str = "{}"
    code_file: str = "bench/first/1"
    started: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        # As a container has them: empty folders that are there.
        for name in ("bot", "state", "logs", "run"):
            (self.root / name).mkdir(exist_ok=True)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        for process in self.started:
            process.kill()

    @property
    def state(self) -> Path:
        return self.root / "state"

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", ""),
            "BOT_ID": self.bot_id,
            "RUNTIME": "python3.11",
            "ENTRYPOINT": "main.py",
            "CODE_FILE": self.code_file,
            "BOT_CONFIG": self.config,
            "CODE_PATH": str(self.root / "bot"),
            "STATE_PATH": str(self.state),
            "LOGS_PATH": str(self.root / "logs"),
            "THE0_RUN_DIR": str(self.root / "run"),
            **BUCKETS,
            **self.environ,
        }

    def execute(self, *, trace: Path | None = None) -> Process:
        argv = [*RUNTIME, "execute"] if trace is None else [*TRACED, str(trace), "execute"]
        process = launch(argv, env=self.environment(), err_path=self.root / "stderr")
        self.started.append(process)
        return process

    def head(self) -> Stored | None:
        return HeadFile(self.store, bucket=BUCKETS["MINIO_STATE_BUCKET"], bot_id=self.bot_id).read()

    def verify(self) -> None:
        """That the store's state is whole, by the product's own check."""
        argv = [*RUNTIME, "state", "verify", self.bot_id]
        done = subprocess.run(argv, env=self.environment(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"the stored state is not whole: {done.stdout}{done.stderr}")


def until(condition: Callable[[], bool], what: str, *, every_s: float = 0.05, within_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} did not happen within {within_s:g} s")
        time.sleep(every_s)
