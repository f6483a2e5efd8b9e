"""The folder of a platform on one machine (`--data DIR`): what lies where in it, its format, and the lock of its `up`."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from the0 import files, names
from the0.errors import ExitCode, Fatal, clip
from the0.settings import Buckets

FORMAT: Final = 1
CONTROL_FILE: Final = "control.json"
"""Address and token of the running `up`, for commands."""
GATEWAY_FILE: Final = "gateway.json"
"""Address and token of its query gateway."""
_FORMAT_FILE: Final = "format"
_LOCK_FILE: Final = "lock"
_LOCK_TRIES_S: Final = 0.5
"""Who only asks whether the folder is in use holds the lock for a moment."""


@dataclass(frozen=True, slots=True)
class BotFolders:
    """One bot's folders on this machine."""

    path: str

    @property
    def code(self) -> str:
        return os.path.join(self.path, "bot")

    @property
    def state(self) -> str:
        return os.path.join(self.path, "state")

    @property
    def query(self) -> str:
        return os.path.join(self.path, "query")

    @property
    def temporary(self) -> str:
        return os.path.join(self.path, "tmp")

    @property
    def run(self) -> str:
        return os.path.join(self.path, "run")

    @property
    def logs(self) -> str:
        return os.path.join(self.path, "logs")

    @property
    def process(self) -> str:
        """The record of the process that runs, or ran last."""
        return os.path.join(self.path, "process.json")

    @property
    def said(self) -> str:
        """What `execute` itself said on stderr, newest run only."""
        return os.path.join(self.path, "stderr")

    def make(self) -> None:
        """OSError where the disk does not let us."""
        for folder in (self.path, self.code, self.state, self.query, self.temporary, self.run, self.logs):
            os.makedirs(folder, mode=0o700, exist_ok=True)


@dataclass(frozen=True, slots=True)
class Data:
    """Absolute path of the folder; made by `open_data`."""

    path: str

    @property
    def bots_db(self) -> str:
        return os.path.join(self.path, "bots.db")

    @property
    def objects(self) -> str:
        """OBJECT_STORE_DIR: buckets are its subfolders."""
        return os.path.join(self.path, "objects")

    @property
    def bots(self) -> str:
        return os.path.join(self.path, "bots")

    @property
    def control(self) -> str:
        return os.path.join(self.path, CONTROL_FILE)

    def bot(self, bot_id: str) -> BotFolders:
        return BotFolders(os.path.join(self.bots, names.encode_id(bot_id)))


def data_path(environ: Mapping[str, str], flag: str | None = None) -> str:
    """Which folder is meant: --data, else THE0_DATA, else `the0` in the user's data folder."""
    home = environ.get("XDG_DATA_HOME") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".local", "share"
    )
    return os.path.abspath(flag or environ.get(names.THE0_DATA) or os.path.join(home, "the0"))


def open_data(path: str, *, create: bool) -> Data:
    """The folder, made with its buckets if it is missing. Safe to call beside a running `up`.

    Raises Fatal: USAGE where there is none and none is to be made, or where it is somebody else's folder, STATE_DAMAGED
    for a newer format, LOCAL_DISK.
    """
    data = Data(os.path.abspath(path))
    try:
        known = _format(data)
        if known is None:
            if not create:
                raise Fatal(
                    f"There is no platform in {clip(path)}: `runtime up` or `runtime deploy` makes one, and --data or "
                    "THE0_DATA names another folder.",
                    code=ExitCode.USAGE,
                )
            _make(data)
        elif known != FORMAT:
            raise Fatal(
                f"The data folder {clip(path)} has format {known}, and this version knows {FORMAT}: update the runtime.",
                code=ExitCode.STATE_DAMAGED,
            )
        buckets = Buckets()
        for bucket in (buckets.code, buckets.state, buckets.logs, buckets.query_results):
            os.makedirs(os.path.join(data.objects, bucket), mode=0o700, exist_ok=True)
        os.makedirs(data.bots, mode=0o700, exist_ok=True)
    except OSError as reason:
        raise files.disk_fault(reason, f"opening the data folder {clip(path)}") from reason
    return data


def hold(data: Data) -> int:
    """Takes the lock of the one `up` for this folder; the descriptor is the lock, and it dies with this process.
    Raises Fatal: RUNNING_HERE where another one has it, LOCAL_DISK."""
    try:
        fd = os.open(os.path.join(data.path, _LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as reason:
        raise files.disk_fault(reason, f"opening the data folder {clip(data.path)}") from reason
    deadline = time.monotonic() + _LOCK_TRIES_S
    while not _locked(fd, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            os.close(fd)
            raise Fatal(
                f"The data folder {clip(data.path)} is in use by another `runtime up`: stop that one, or name another "
                "folder with --data.",
                code=ExitCode.RUNNING_HERE,
            )
        time.sleep(0.02)
    return fd


def is_held(data: Data) -> bool:
    """Whether an `up` runs on this folder."""
    try:
        fd = os.open(os.path.join(data.path, _LOCK_FILE), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as reason:
        raise files.disk_fault(reason, f"opening the data folder {clip(data.path)}") from reason
    try:
        return not _locked(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as reason:
        if reason.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise files.disk_fault(reason, "locking the data folder") from reason
    return True


def _format(data: Data) -> int | None:
    """None where there is nothing yet."""
    try:
        with files.folder(data.path) as fd:
            text = files.read_beneath(fd, _FORMAT_FILE, limit_bytes=64).strip()
    except FileNotFoundError:
        return None
    if not text.isdigit():
        raise Fatal(
            f"The data folder {clip(data.path)} has a file `format` that is not ours: name another folder with --data.",
            code=ExitCode.USAGE,
        )
    return int(text)


def _make(data: Data) -> None:
    os.makedirs(data.path, mode=0o700, exist_ok=True)
    strangers = set(os.listdir(data.path)) - {_LOCK_FILE, "objects", "bots", "bots.db"}
    strangers = {name for name in strangers if not name.startswith((f".{_FORMAT_FILE}.", "bots.db-"))}
    if strangers:
        raise Fatal(
            f"The folder {clip(data.path)} holds {clip(sorted(strangers)[0])!r}, which is not ours: name an empty folder, or "
            "one that does not exist yet, with --data.",
            code=ExitCode.USAGE,
        )
    os.chmod(data.path, 0o700)
    with files.folder(data.path) as fd:
        files.write_atomic(fd, _FORMAT_FILE, b"%d\n" % FORMAT)
