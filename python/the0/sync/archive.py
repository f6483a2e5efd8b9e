"""The state archive: `.the0-state/` as one gzip tar that the platform's API lists, shows, edits and clears.

What somebody else changed in it is merged by key at the bot's next start, against the digests we wrote down beside it.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Final

from the0 import canonical, files, names, statehash
from the0.errors import ExitCode, Permanent, clip
from the0.frozen import dataclass
from the0.objects.store import Missing, ObjectStore, TooLarge
from the0.sync.head import Content
from the0.sync.table import ArchiveFact

LIMIT_BYTES = 100 * 1024 * 1024
"""What the API takes; a larger SDK state is kept in segments as ever, but not offered as an archive."""
MAX_MEMBERS = 1_000_000
_HEADER_LIMIT_BYTES = 1024 * 1024
"""Of one extended header (long names, PAX records), which is read into memory; those for the whole archive together."""
_BASE_LIMIT_BYTES = 256 * 1024 * 1024
_MAX_DEPTH = 64


class ArchiveFile:
    """The archive of one bot in the store, and the digests (`archive-base`) beside it."""

    def __init__(self, store: ObjectStore, *, bucket: str, bot_id: str) -> None:
        self._store = store
        self._bucket = bucket
        self._bot_id = bot_id
        self._key = names.archive_key(bot_id)
        self._base_key = names.archive_base_key(bot_id)

    def look(self) -> tuple[str | None, bool]:
        """(ETag or None, whether it carries our metadata)."""
        info = self._store.head(self._bucket, self._key)
        return (None, False) if info is None else (info.etag, names.ARCHIVE_GENERATION in info.metadata)

    def fetch(self, fd: int, *, limit_bytes: int) -> str:
        """The archive into an open file; returns its ETag."""
        try:
            return self._store.get_to_file(self._bucket, self._key, fd, limit_bytes=limit_bytes).etag
        except TooLarge as reason:
            raise Permanent(
                f"The state archive {self._key} is over MAX_STATE_SIZE_MB: make it smaller, or raise the limit.",
                code=ExitCode.STATE_LIMIT,
            ) from reason

    def put(self, data: bytes, *, former_etag: str | None, generation: int) -> str:
        """Raises PreconditionFailed where somebody else wrote it since."""
        return self._store.put_if(
            self._bucket, self._key, data, etag=former_etag, metadata={names.ARCHIVE_GENERATION: str(generation)}
        )

    def read_base(self) -> tuple[str, dict[str, str]]:
        """(ETag of the archive it belongs to, digest by key); empty where there is none."""
        try:
            found = self._store.get(self._bucket, self._base_key, limit_bytes=_BASE_LIMIT_BYTES)
        except Missing:
            return "", {}
        try:
            body = canonical.loads_object(found.data)
            return str(body["etag"]), {str(key): str(value) for key, value in body["keys"].items()}
        except (ValueError, KeyError, AttributeError) as reason:
            raise Permanent(
                f"{self._base_key} cannot be read ({clip(str(reason))}): delete it to let the bot's own keys win over the archive's.",
                code=ExitCode.STATE_DAMAGED,
            ) from reason

    def write_base(self, *, etag: str, keys: Mapping[str, str]) -> None:
        self._store.put(self._bucket, self._base_key, canonical.dumps({"etag": etag, "keys": dict(keys)}).encode())


def fact(etag: str | None, *, ours: bool, content: Content | None) -> ArchiveFact:
    recorded = content.archive if content is not None else None
    if etag is None:
        return ArchiveFact.CLEARED if recorded is not None else ArchiveFact.NONE
    if ours or (recorded is not None and recorded.etag == etag):
        return ArchiveFact.OURS
    return ArchiveFact.FOREIGN


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """What a foreign archive changes in the SDK state: keys to take from it, keys to delete, and keys that both sides changed,
    where the bot's value stays."""

    take: tuple[str, ...]
    delete: tuple[str, ...]
    kept: tuple[str, ...]


def merge(*, base: Mapping[str, str], theirs: Mapping[str, str], ours: Mapping[str, str]) -> Merge:
    """All three are digests by key. Pure."""
    take: list[str] = []
    delete: list[str] = []
    kept: list[str] = []
    for key in sorted(base.keys() | theirs.keys()):
        wanted, known, present = theirs.get(key), base.get(key), ours.get(key)
        if wanted in (known, present):
            continue
        if present != known:
            kept.append(key)
        elif wanted is None:
            delete.append(key)
        else:
            take.append(key)
    return Merge(take=tuple(take), delete=tuple(delete), kept=tuple(kept))


def build(root_fd: int) -> tuple[bytes, dict[str, str]] | None:
    """(the archive of the SDK state, digest by key); None where it is over what the API takes."""
    import gzip
    import tarfile

    contents = read_keys(root_fd)
    if contents is None:
        return None
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key, data in contents.items():
            member = tarfile.TarInfo(f"{names.SDK_STATE_DIR}/{key}")
            member.size = len(data)
            member.mode = 0o644
            tar.addfile(member, io.BytesIO(data))
    packed = gzip.compress(raw.getvalue(), compresslevel=6, mtime=0)
    return packed, {key: statehash.digest(data) for key, data in contents.items()}


def read_keys(root_fd: int) -> dict[str, bytes] | None:
    """Every regular file below `.the0-state/`, by its path there; None where they are over LIMIT_BYTES together."""
    contents: dict[str, bytes] = {}
    left = LIMIT_BYTES
    for key, folder_fd in _keys(root_fd):
        data = _read_key(folder_fd, key, limit_bytes=left + 1)
        if data is None:
            continue
        left -= len(data)
        if left < 0:
            return None
        contents[key] = data
    return dict(sorted(contents.items()))


def digest_keys(root_fd: int) -> dict[str, str]:
    """The digest of each of them, however large they are together; one at a time is in memory."""
    digests: dict[str, str] = {}
    for key, folder_fd in _keys(root_fd):
        data = _read_key(folder_fd, key, limit_bytes=None)
        if data is not None:
            digests[key] = statehash.digest(data)
    return digests


def _keys(root_fd: int) -> Iterator[tuple[str, int]]:
    """(path below `.the0-state/`, descriptor of the folder it is in) of all that is no folder."""
    pending = [""]
    while pending:
        path = pending.pop()
        try:
            fd = files.open_folder_beneath(root_fd, f"{names.SDK_STATE_DIR}/{path}")
        except OSError as reason:
            if reason.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
                continue  # gone, or no folder of keys: then there is nothing in it for the API
            raise
        try:
            with os.scandir(fd) as found:
                entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
            for name, is_folder in entries:
                key = f"{path}{name}"
                if not is_folder:
                    yield key, fd
                elif key.count("/") < _MAX_DEPTH:
                    pending.append(f"{key}/")
        finally:
            os.close(fd)


def _read_key(folder_fd: int, key: str, *, limit_bytes: int | None) -> bytes | None:
    """None for what vanished meanwhile, or is nothing that could be a key. At most `limit_bytes` are read, the rest is left out."""
    try:
        fd = files.open_beneath(folder_fd, key.rpartition("/")[2])
    except OSError as reason:
        if reason.errno in (errno.ENOENT, errno.EINVAL, errno.ELOOP, errno.EACCES, errno.ENXIO):
            return None
        raise
    with open(fd, "rb", buffering=0) as file:
        pieces: list[bytes] = []
        have = 0
        while limit_bytes is None or have < limit_bytes:
            piece = file.read(1 << 20 if limit_bytes is None else min(1 << 20, limit_bytes - have))
            if not piece:
                break
            pieces.append(piece)
            have += len(piece)
    return b"".join(pieces)


_EXTENDED: Final = (b"x", b"g", b"X", b"L", b"K")
"""PAX for one member and for all, Solaris' own, GNU's long names and links."""


def extract(archive_fd: int, target_fd: int, *, max_bytes: int, name: str) -> None:
    """Extracts a foreign archive below target_fd, an empty folder. Untrusted: regular files and folders only, names beneath the
    target only, bounded. Raises Permanent (STATE_DAMAGED, STATE_LIMIT); what was written so far is the caller's to drop."""
    import gzip
    import tarfile
    import zlib

    global_bytes = 0

    class BoundedMember(tarfile.TarInfo):
        """Looks at a header's size before it is read; sparse files, whose maps have no bound, are not for archives of state."""

        def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
            nonlocal global_bytes
            if self.type in _EXTENDED:
                global_bytes += self.size if self.type == tarfile.XGLTYPE else 0
                if max(self.size, global_bytes) > _HEADER_LIMIT_BYTES:
                    raise ValueError(f"it has an extended header over {_HEADER_LIMIT_BYTES >> 20} MiB")
            elif self.type == tarfile.GNUTYPE_SPARSE:
                raise ValueError("it holds a sparse file")
            return super()._proc_member(tar)  # type: ignore[misc, no-any-return]

        def _proc_gnusparse_10(self, *_: object) -> None:
            raise ValueError("it holds a sparse file")

    os.lseek(archive_fd, 0, os.SEEK_SET)
    left = max_bytes
    try:
        with open(archive_fd, "rb", closefd=False) as packed, gzip.GzipFile(fileobj=packed) as raw:
            with tarfile.open(fileobj=raw, mode="r|", tarinfo=BoundedMember) as tar:
                for count, member in enumerate(tar):
                    tar.members.clear()  # type: ignore[attr-defined]  # it would remember a million of them
                    if count >= MAX_MEMBERS:
                        raise Permanent(
                            f"The state archive {name} has over {MAX_MEMBERS} members: it is not imported.",
                            code=ExitCode.STATE_LIMIT,
                        )
                    left -= _extract_member(tar, member, target_fd, left=left, name=name)
            while raw.read(1 << 20):
                pass  # to the end, so that gzip checks its digest and length
    except OSError as reason:
        if isinstance(reason, gzip.BadGzipFile):
            raise _damaged(name, reason) from reason
        if reason.errno not in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST):
            raise
        raise Permanent(
            f"The state archive {name} holds names that contradict each other or are too long ({clip(str(reason))}): it is not imported.",
            code=ExitCode.STATE_DAMAGED,
        ) from reason
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as reason:
        raise _damaged(name, reason) from reason


def _damaged(name: str, reason: Exception) -> Permanent:
    return Permanent(
        f"The state archive {name} is truncated or damaged ({clip(str(reason))}): nothing was started or changed; "
        "write it again, or delete it.",
        code=ExitCode.STATE_DAMAGED,
    )


def _extract_member(tar: object, member: object, target_fd: int, *, left: int, name: str) -> int:
    import tarfile

    assert isinstance(tar, tarfile.TarFile)
    assert isinstance(member, tarfile.TarInfo)
    path = _member_path(member.name, name)
    if not path:
        return 0
    if member.isdir():
        os.close(files.open_folder_beneath(target_fd, path, create=True))
        return 0
    if not member.isreg():
        raise Permanent(
            f"The state archive {name} holds {clip(path)}, which is neither a file nor a folder: it is not imported.",
            code=ExitCode.STATE_DAMAGED,
        )
    if member.size > left:
        raise Permanent(
            f"The state archive {name} is over MAX_STATE_SIZE_MB: make it smaller, or raise the limit.",
            code=ExitCode.STATE_LIMIT,
        )
    parent, _, leaf = path.rpartition("/")
    folder = files.open_folder_beneath(target_fd, parent, create=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(leaf, flags, 0o644, dir_fd=folder)
        try:
            source = tar.extractfile(member)
            written = 0
            while source is not None and (piece := source.read(1 << 20)):
                files.write_all(fd, piece)
                written += len(piece)
            if written != member.size:
                raise EOFError(f"{path} ends early")
            os.fchmod(fd, 0o600 | stat.S_IMODE(member.mode) & 0o777)
            if member.mtime >= 0:
                os.utime(fd, (member.mtime, member.mtime))
        finally:
            os.close(fd)
    finally:
        os.close(folder)
    return member.size


def _member_path(path: str, name: str) -> str:
    """The member's path beneath the target, `""` for the root itself."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise Permanent(
            f"The state archive {name} holds {clip(path)}, which leads out of the state folder: it is not imported.",
            code=ExitCode.STATE_DAMAGED,
        )
    if parts and parts[0] == names.RESERVED_DIR:
        raise Permanent(
            f"The state archive {name} holds {clip(path)}, which is the runtime's own: it is not imported.",
            code=ExitCode.STATE_DAMAGED,
        )
    return "/".join(parts)
