"""The bot's code as it is named: the archive that is wanted, and the entrypoint, a file within it."""

from __future__ import annotations

import errno
import os
import stat
from itertools import islice

from the0 import files
from the0.errors import ExitCode, Fatal, clip
from the0.frozen import dataclass

SEARCHED = 2000
"""How many files are looked at for a name like the one that is not there."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The archive and where it goes. `file` is the path within the code that must exist, see `target.entry_file`;
    None where it is not known, then the archive's top level is taken as it is."""

    bucket: str
    key: str
    folder: str
    file: str | None


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
            f"The entrypoint {clip(file)!r} is not in {folder} ({os.strerror(failure.errno or 0)}): correct the entrypoint"
            f"{suggestion(folder, file)}, or deploy the bot again.",
            code=ExitCode.ENTRYPOINT,
        ) from failure
    if not stat.S_ISREG(mode) and not (folders and stat.S_ISDIR(mode)):
        raise Fatal(
            f"The entrypoint {clip(file)!r} in {folder} is no file: correct the entrypoint.", code=ExitCode.ENTRYPOINT
        )
    if executable and not os.access(path, os.X_OK):
        _make_executable(folder, file)


def suggestion(folder: str, file: str) -> str:
    """` (is it 'main.py'?)`: what the code holds that is called nearly so, or is in another of its folders; else ""."""
    from difflib import get_close_matches  # only where something is wrong

    there = _some_files(folder)
    same = [path for path in there if os.path.basename(path).lower() == os.path.basename(file).lower()]
    near = same or get_close_matches(file, there, n=1, cutoff=0.7)
    return f" (is it {clip(min(near, key=len))!r}?)" if near else ""


def _some_files(folder: str) -> list[str]:
    """Paths of files below, of the upper folders first; a bot may have made any number of them."""
    found: list[str] = []
    pending = [""]
    while pending and len(found) < SEARCHED:
        above = pending.pop(0)
        try:
            with os.scandir(os.path.join(folder, above)) as entries:
                for entry in islice(entries, SEARCHED):
                    path = os.path.join(above, entry.name)
                    (pending if entry.is_dir(follow_symlinks=False) else found).append(path)
        except OSError:
            continue  # it is gone, or not ours to look at
    return found


def not_started(path: str, failure: OSError) -> str:
    """Why a program that is there cannot be executed, and what to do: two clauses."""
    first = _first_line(path)
    if first.startswith(b"#!"):
        named = clip(first[2:].strip().decode("utf-8", "replace"))
        if first.endswith(b"\r"):
            return "its first line ends with a carriage return; save it with the line ends of Unix (LF)"
        return f"{failure.strerror}; its first line names {named}, which this machine has to have"
    if failure.errno == errno.ENOEXEC:
        what = "built for another kind of machine" if first.startswith(b"\x7fELF") else "no program, but a text or data"
        return f"{failure.strerror}, it is {what}; name the program that was built of it, for this machine"
    if failure.errno == errno.EACCES:
        return f"{failure.strerror}; mount CODE_PATH so that programs may be executed there"
    if failure.errno == errno.ENOENT:
        return "it was linked to a loader that this machine lacks; link it statically, or to glibc"
    return f"{failure.strerror}; deploy a program that runs on this machine"


def _first_line(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a bot may put a FIFO in its place
    except OSError:
        return b""  # then the kernel's own word has to do
    try:
        return os.read(fd, 256).partition(b"\n")[0] if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


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
