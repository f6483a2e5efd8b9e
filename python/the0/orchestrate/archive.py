"""A bot's code as one zip: packed from a folder, or taken as it comes, and checked as `execute` will check it.

The same content makes the same bytes, so the digest tells whether anything changed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, Final, cast

from the0 import files, statehash
from the0.errors import ExitCode, Fatal, clip

IGNORE_FILE: Final = ".the0ignore"
ENTRIES: Final = 200_000
CONTENT_BYTES: Final = 8 << 30
ARCHIVE_BYTES: Final = 4 << 30
"""As `execute` bounds them."""
_LEFT_OUT: Final = frozenset(
    (
        *(".git", ".hg", ".svn", ".idea", ".vscode", ".DS_Store", IGNORE_FILE),
        *("__pycache__", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache"),
    )
)
_PACKED: Final = (".jar", ".zip", ".whl", ".gz", ".xz", ".zst", ".png", ".jpg", ".woff2")
"""Packed already: packing them again saves little, and costs at each start (20 ms for a Scala bot's jar)."""
_WHEN: Final = (1980, 1, 1, 0, 0, 0)


@dataclass(slots=True, kw_only=True)
class Archive:
    """A zip in an unnamed file, and what is in it."""

    file: IO[bytes]
    size: int
    digest: str
    """Of its bytes."""
    names: list[str]
    """Files, `/` between parts."""
    folder: str
    """Where the content can be read until the archive is closed."""
    top: str = ""
    """`NAME/` where one folder of a zip holds everything: `execute` looks there, too."""
    content_bytes: int = 0
    warnings: list[str] = field(default_factory=list)


@contextmanager
def opened(source: str, *, scratch: str | None = None) -> Iterator[Archive]:
    """Of a folder or a zip; `scratch`: where temporary files go. Raises Fatal: USAGE for no such source, CODE for one that
    cannot be run from, LOCAL_DISK."""
    try:
        if os.path.isdir(source):
            with tempfile.TemporaryFile(dir=scratch) as file:
                yield _packed(source, cast("IO[bytes]", file))
            return
        with open(source, "rb") as file, tempfile.TemporaryDirectory(dir=scratch) as folder:
            yield _taken(source, file, folder)
    except FileNotFoundError as reason:
        if reason.filename == source:
            raise Fatal(f"There is no {clip(source)}: name a bot's folder or zip.", code=ExitCode.USAGE) from reason
        raise files.disk_fault(reason, "packing the bot") from reason
    except OSError as reason:
        raise files.disk_fault(reason, "packing the bot") from reason


def holds(archive: Archive, path: str) -> bool:
    """Whether this file or folder is in it."""
    wanted = "/".join(part for part in path.split("/") if part not in ("", "."))
    places = {wanted, archive.top + wanted}
    return any(name == place or name.startswith(f"{place}/") for name in archive.names for place in places)


# --- a folder -------------------------------------------------------------------------------------


def _packed(source: str, file: IO[bytes]) -> Archive:
    archive = Archive(file=file, size=0, digest="", names=[], folder=source)
    found = list(_walk(source, archive.warnings, _ignored(source)))
    # Before anything is read, which takes a while for as much as this.
    if sum(os.path.getsize(path) for _, path in found) > CONTENT_BYTES:
        raise _too_much(f"over {CONTENT_BYTES >> 30} GiB")
    if len(found) > ENTRIES:
        raise _too_much(f"over {ENTRIES} files")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as target:
        for name, path in found:
            _add(target, archive, name, path)
    if not archive.names:
        raise Fatal(f"The folder {clip(source)} has no files to deploy: name the bot's own.", code=ExitCode.CODE)
    return _measured(archive)


def _add(target: zipfile.ZipFile, archive: Archive, name: str, path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as reason:
        raise Fatal(
            f"The file {clip(name)} cannot be read ({os.strerror(reason.errno or 0)}): correct its mode, or leave it out "
            f"in {IGNORE_FILE}.",
            code=ExitCode.CODE,
        ) from reason
    with open(fd, "rb") as content:
        about = os.fstat(fd)
        info = zipfile.ZipInfo(name, _WHEN)
        # Only whether it can be executed: umasks differ between machines.
        info.external_attr = (stat.S_IFREG | (0o755 if about.st_mode & 0o100 else 0o644)) << 16
        info.create_system = 3
        info.compress_type = zipfile.ZIP_STORED if name.lower().endswith(_PACKED) else zipfile.ZIP_DEFLATED
        info.file_size = about.st_size
        with target.open(info, "w") as entry:
            while piece := content.read(1 << 20):
                entry.write(piece)
                archive.content_bytes += len(piece)
                if archive.content_bytes > CONTENT_BYTES:
                    raise _too_much(f"over {CONTENT_BYTES >> 30} GiB")
    archive.names.append(name)


def _walk(source: str, warnings: list[str], ignored: Any) -> Iterator[tuple[str, str]]:
    """(name in the archive, path), in byte order of the names. Links are followed, but never in a circle."""
    waiting: list[tuple[str, str, frozenset[str]]] = [("", source, frozenset((os.path.realpath(source),)))]
    found: list[tuple[str, str]] = []
    while waiting:
        prefix, folder, above = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if not _encodable(name):
                    warnings.append(
                        f"{clip(os.fsencode(name).decode('utf-8', 'replace'))} has no UTF-8 name and was left out."
                    )
                elif entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if ignored(name + "/"):
                        continue
                    if real in above:
                        warnings.append(f"{clip(name)} links back to a folder that it is in, and was left out.")
                        continue
                    waiting.append((name + "/", entry.path, above | {real}))
                elif ignored(name):
                    continue
                elif not entry.is_file():
                    what = "a link that leads nowhere" if not os.path.exists(entry.path) else "no regular file"
                    warnings.append(f"{clip(name)} is {what}, and was left out.")
                else:
                    found.append((name, entry.path))
    return iter(sorted(found, key=lambda item: item[0].encode()))


def _encodable(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _ignored(source: str) -> Any:
    """Tells of a path within the folder (folders end in `/`) whether it stays out."""
    try:
        with open(os.path.join(source, IGNORE_FILE), encoding="utf-8") as file:
            lines = file.read(1 << 20).splitlines()
    except FileNotFoundError:
        return _left_out
    except UnicodeDecodeError as reason:
        raise Fatal(f"The bot's {IGNORE_FILE} is no UTF-8: correct it.", code=ExitCode.USAGE) from reason
    import pathspec

    try:
        rules = pathspec.GitIgnoreSpec.from_lines(lines)
    except ValueError as reason:
        raise Fatal(
            f"The bot's {IGNORE_FILE} cannot be used: {clip(str(reason))}; correct it.", code=ExitCode.USAGE
        ) from reason

    def ignored(name: str) -> bool:
        said = rules.check_file(name).include
        return _left_out(name) if said is None else said

    return ignored


def _left_out(name: str) -> bool:
    last = name.rstrip("/").rsplit("/", 1)[-1]
    return last in _LEFT_OUT or last.endswith((".pyc", ".pyo"))


# --- a zip ----------------------------------------------------------------------------------------


def _taken(source: str, file: IO[bytes], folder: str) -> Archive:
    size = os.fstat(file.fileno()).st_size
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise Fatal(f"{clip(source)} is neither a folder nor a zip: name a bot's.", code=ExitCode.USAGE)
    if size > ARCHIVE_BYTES:
        raise _too_much(f"over {ARCHIVE_BYTES >> 30} GiB")
    try:
        with files.folder(folder) as folder_fd:
            done = statehash.unzip(file.fileno(), folder_fd, max_entries=ENTRIES, max_bytes=CONTENT_BYTES)
    except (statehash.FormatError, statehash.LimitError) as reason:
        raise Fatal(
            f"The archive {clip(source)} cannot be used: {clip(str(reason))}; pack it again.", code=ExitCode.CODE
        ) from reason
    names = [name for name, _ in _walk(folder, [], lambda _: False)]
    if not names:
        raise Fatal(f"The archive {clip(source)} is empty: pack it again.", code=ExitCode.CODE)
    return _measured(
        Archive(
            file=file,
            size=size,
            digest="",
            names=names,
            folder=folder,
            top=_top(names),
            content_bytes=done.bytes,
        )
    )


def _top(names: list[str]) -> str:
    found = {name.partition("/")[0] + "/" if "/" in name else name for name in names}
    found = {name for name in found if name != "__MACOSX/" and not name.startswith(".")}
    top = found.pop() if len(found) == 1 else ""
    return top if top.endswith("/") else ""


def _measured(archive: Archive) -> Archive:
    archive.file.flush()
    archive.file.seek(0)
    archive.digest = hashlib.file_digest(archive.file, "sha256").hexdigest()  # type: ignore[arg-type]
    archive.size = archive.file.tell()
    if archive.size > ARCHIVE_BYTES:
        raise _too_much(f"over {ARCHIVE_BYTES >> 30} GiB as an archive")
    return archive


def _too_much(said: str) -> Fatal:
    return Fatal(
        f"The bot's code is {said}, and at most {CONTENT_BYTES >> 30} GiB in {ENTRIES} files and {ARCHIVE_BYTES >> 30} GiB "
        f"as an archive are taken: leave something out in {IGNORE_FILE}.",
        code=ExitCode.CODE,
    )
