"""The bot's code: from the store into CODE_PATH, whole or not at all.

The archive is spooled to an unlinked file and extracted into a folder of ours below CODE_PATH (which may be a mount
point, so that it cannot be replaced itself); its children are renamed into place last. As long as that folder exists, what
lies in CODE_PATH is incomplete, and the next start begins anew.
"""

from __future__ import annotations

import errno
import os
import stat

from the0 import files, statehash
from the0.code_folder import NOT_OURS, STAGING
from the0.errors import ExitCode, Fatal, clip
from the0.execute import target
from the0.execute.target import Wanted
from the0.objects.store import LocalDisk, Missing, ObjectStore, TooLarge

ARCHIVE_BYTES = 4 << 30
EXTRACTED_BYTES = 8 << 30
ENTRIES = 200_000


def fetch(store: ObjectStore, wanted: Wanted) -> None:
    """Replaces what CODE_PATH holds by the archive. Fatal (CODE, ENTRYPOINT, LOCAL_DISK), Denied, Unavailable."""
    try:
        os.makedirs(wanted.folder, exist_ok=True)
        with files.folder(wanted.folder) as code_fd:
            _fetch(store, wanted, code_fd)
    except OSError as failure:
        raise _disk(wanted.folder, failure) from failure


def _fetch(store: ObjectStore, wanted: Wanted, code_fd: int) -> None:
    files.remove_tree(code_fd, STAGING)
    os.mkdir(STAGING, 0o700, dir_fd=code_fd)
    staging_fd = files.open_folder_beneath(code_fd, STAGING)
    try:
        # On the disk of CODE_PATH: memory stays bounded, and no crash leaves it behind.
        archive_fd = files.open_nameless(staging_fd)
        try:
            _download(store, wanted, archive_fd)
            _extract(wanted, archive_fd, staging_fd)
        finally:
            os.close(archive_fd)
        root_fd = _root_of(staging_fd, wanted)
        try:
            _replace(code_fd, root_fd)
        finally:
            os.close(root_fd)
    finally:
        os.close(staging_fd)
        files.remove_tree(code_fd, STAGING)


def _download(store: ObjectStore, wanted: Wanted, archive_fd: int) -> None:
    try:
        store.get_to_file(wanted.bucket, wanted.key, archive_fd, limit_bytes=ARCHIVE_BYTES)
    except Missing as missing:
        raise Fatal(
            f"The code archive {_name(wanted)} does not exist in {store.name}: deploy the bot again, or correct CODE_FILE.",
            code=ExitCode.CODE,
        ) from missing
    except TooLarge as large:
        raise Fatal(
            f"The code archive {_name(wanted)} is larger than {ARCHIVE_BYTES >> 30} GiB: deploy a smaller one.",
            code=ExitCode.CODE,
        ) from large

    except LocalDisk as failed:
        cause = failed.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise cause from None  # our side of the copy: nobody runs out of space by reading
        raise


def _extract(wanted: Wanted, archive_fd: int, staging_fd: int) -> None:
    try:
        extracted = statehash.unzip(archive_fd, staging_fd, max_entries=ENTRIES, max_bytes=EXTRACTED_BYTES)
    except (statehash.FormatError, statehash.LimitError) as reason:
        raise Fatal(
            f"The code archive {_name(wanted)} cannot be used: {clip(str(reason))}; deploy the bot again.",
            code=ExitCode.CODE,
        ) from reason
    if extracted.entries == 0:
        raise Fatal(f"The code archive {_name(wanted)} is empty: deploy the bot again.", code=ExitCode.CODE)


def _root_of(staging_fd: int, wanted: Wanted) -> int:
    """The folder whose children are the code: the archive's top level, or the one folder there that holds everything."""
    if wanted.file is None or target.exists(staging_fd, wanted.file):
        return os.dup(staging_fd)
    with os.scandir(staging_fd) as found:
        top = [entry.name for entry in found if entry.name != "__MACOSX" and not entry.name.startswith(".")]
    if len(top) == 1 and _is_folder(staging_fd, top[0]):
        root_fd = files.open_folder_beneath(staging_fd, top[0])
        if target.exists(root_fd, wanted.file):
            return root_fd
        os.close(root_fd)
    raise Fatal(
        f"The entrypoint {clip(wanted.file)!r} is not in the code archive {_name(wanted)}, which holds "
        f"{_some(top)} at its top level: correct the entrypoint"
        f"{target.suggestion(os.path.join(wanted.folder, STAGING), wanted.file)}, or deploy the bot again.",
        code=ExitCode.ENTRYPOINT,
    )


def _replace(code_fd: int, root_fd: int) -> None:
    for name in _children(code_fd):
        if name != STAGING:
            files.remove_tree(code_fd, name)
    for name in _children(root_fd):
        os.rename(name, name, src_dir_fd=root_fd, dst_dir_fd=code_fd)


def _children(folder_fd: int) -> list[str]:
    with os.scandir(folder_fd) as found:
        return [entry.name for entry in found if entry.name not in NOT_OURS]


def _is_folder(folder_fd: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode)


def _name(wanted: Wanted) -> str:
    return clip(f"{wanted.bucket}/{wanted.key}")


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    shown = ", ".join(clip(name, limit=40) for name in sorted(names)[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _disk(folder: str, failure: OSError) -> Fatal:
    reason = os.strerror(failure.errno) if failure.errno else str(failure)
    return Fatal(
        f"The code cannot be written to {folder}: {reason}; give CODE_PATH a writable folder with enough room.",
        code=ExitCode.LOCAL_DISK,
    )
