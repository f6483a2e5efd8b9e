"""The bot's code as it is named: the archive that is wanted, and the entrypoint, a file within it."""

from __future__ import annotations

import os
import stat

from the0 import files
from the0.errors import ExitCode, Fatal, clip
from the0.frozen import dataclass

STAGING = ".the0-code"
"""Below CODE_PATH while code is extracted: as long as it exists, what lies beside it is incomplete."""
NOT_OURS = frozenset({"lost+found"})
"""What a volume's root may hold from the beginning."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The archive and where it goes. `file` is the path within the code that must exist, see `target.entry_file`;
    None where it is not known, then the archive's top level is taken as it is."""

    bucket: str
    key: str
    folder: str
    file: str | None


def is_complete(folder: str) -> bool:
    """Whether CODE_PATH holds code already, wholly extracted."""
    try:
        with os.scandir(folder) as found:
            present = {entry.name for entry in found} - NOT_OURS
    except FileNotFoundError:
        return False
    return bool(present) and STAGING not in present


def divided(entrypoint: str) -> tuple[str, str]:
    """`FILE.jar:Main.Class` as its file and the class to run; any other entrypoint is a file, and ""."""
    jar, colon, part = entrypoint.partition(".jar:")
    return (f"{jar}.jar", part) if colon else (entrypoint, "")


def entry_file(entrypoint: str) -> str:
    """The path within the code that ENTRYPOINT names, normalised. Fatal (ENTRYPOINT) if it leaves the code."""
    entrypoint, _ = divided(entrypoint)
    parts = [part for part in entrypoint.split("/") if part not in ("", ".")]
    if entrypoint.startswith("/") or ".." in parts or not parts or "\0" in entrypoint:
        raise Fatal(
            f"ENTRYPOINT is {clip(entrypoint)!r}, which is no path within the code: write one such as main.py.",
            code=ExitCode.ENTRYPOINT,
        )
    return "/".join(parts)


def exists(folder_fd: int, file: str) -> bool:
    """Whether the regular file or folder is there, reached through no link."""
    for opened in (files.open_beneath, files.open_folder_beneath):
        try:
            os.close(opened(folder_fd, file))
        except OSError:
            continue  # it is the other kind, or not there
        return True
    return False


def check(folder: str, file: str, *, executable: bool, folders: bool = False) -> None:
    """That CODE_PATH holds the entrypoint, made executable if it is to be; `folders`: it may be one. Fatal (ENTRYPOINT)."""
    path = os.path.join(folder, file)
    try:
        mode = os.stat(path).st_mode  # a person's own code in CODE_PATH may be links
    except OSError as failure:
        raise Fatal(
            f"The entrypoint {clip(file)!r} is not in {folder} ({os.strerror(failure.errno or 0)}): correct the entrypoint, "
            "or deploy the bot again.",
            code=ExitCode.ENTRYPOINT,
        ) from failure
    if not stat.S_ISREG(mode) and not (folders and stat.S_ISDIR(mode)):
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
