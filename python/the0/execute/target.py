"""The entrypoint: a file within the code, found without leaving it."""

from __future__ import annotations

import os
import stat

from the0 import files
from the0.errors import ExitCode, Fatal, clip


def entry_file(entrypoint: str) -> str:
    """The path within the code that ENTRYPOINT names, normalised. Fatal (ENTRYPOINT) if it leaves the code."""
    parts = [part for part in entrypoint.split("/") if part not in ("", ".")]
    if entrypoint.startswith("/") or ".." in parts or not parts or "\0" in entrypoint:
        raise Fatal(
            f"ENTRYPOINT is {clip(entrypoint)!r}, which is no path within the code: write one such as main.py.",
            code=ExitCode.ENTRYPOINT,
        )
    return "/".join(parts)


def exists(folder_fd: int, file: str) -> bool:
    """Whether the regular file is there, reached through no link."""
    try:
        os.close(files.open_beneath(folder_fd, file))
    except OSError:
        return False
    return True


def check(folder: str, file: str, *, executable: bool) -> None:
    """That CODE_PATH holds the entrypoint, made executable if it is to be. Fatal (ENTRYPOINT)."""
    path = os.path.join(folder, file)
    try:
        mode = os.stat(path).st_mode  # a person's own code in CODE_PATH may be links
    except OSError as failure:
        raise Fatal(
            f"The entrypoint {clip(file)!r} is not in {folder} ({os.strerror(failure.errno or 0)}): correct the entrypoint, "
            "or deploy the bot again.",
            code=ExitCode.ENTRYPOINT,
        ) from failure
    if not stat.S_ISREG(mode):
        raise Fatal(
            f"The entrypoint {clip(file)!r} in {folder} is no file: correct the entrypoint.", code=ExitCode.ENTRYPOINT
        )
    if executable and not os.access(path, os.X_OK):
        _make_executable(folder, file)


def _make_executable(folder: str, file: str) -> None:
    try:
        with files.folder(folder) as folder_fd:
            fd = files.open_beneath(folder_fd, file)
            try:
                os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | 0o755)
            finally:
                os.close(fd)
    except OSError as failure:
        raise Fatal(
            f"The entrypoint {clip(file)!r} in {folder} cannot be made executable ({os.strerror(failure.errno or 0)}): "
            "make it executable in the archive.",
            code=ExitCode.ENTRYPOINT,
        ) from failure
