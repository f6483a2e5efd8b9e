"""Objects as plain files, `<folder>/<bucket>/<key>`: a person can look inside, or drop a file there.

What is known of an object beside its bytes is below `<bucket>/.the0-meta/`, which is never listed. Keys that can't be
files are refused by name: a part over 255 bytes, a first part `.the0-meta`, a key that is the beginning (up to a `/`)
of another key. Links are never followed, and what is no regular file is no object. A person's file counts from the
moment it is there, so a large one is best renamed into place.
"""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from the0 import files
from the0.errors import ExitCode, Fault, clip
from the0.objects import replies
from the0.objects.keys import check_bucket, check_key, check_prefix, folded
from the0.objects.place import (
    RACES,
    RESERVED,
    InTheWayError,
    LockedError,
    Look,
    Place,
    RestlessError,
    pieces,
    sweep,
)
from the0.objects.sidecar import Record, UnknownFormatError, new_etag
from the0.objects.store import (
    Bytes,
    Denied,
    LocalDisk,
    Missing,
    NotModified,
    Object,
    ObjectInfo,
    PreconditionFailed,
    Refused,
    TooLarge,
    Unavailable,
)
from the0.objects.walk import folders, walk

_STALE_TEMPORARY_S = 3600.0


class Folder:
    """An `ObjectStore`. Every write is on the disk when it returns (fsync of file and folder)."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._swept: set[str] = set()

    @property
    def name(self) -> str:
        return f"folder store at {self._path}"

    def get(self, bucket: str, key: str, *, limit_bytes: int, if_none_match: str | None = None) -> Object:
        with self._at("Reading", bucket, key) as (place, request):
            for _ in range(RACES):
                with _reading(place, request, limit_bytes=limit_bytes) as found:
                    if found.record.etag == if_none_match:
                        raise NotModified("not modified", code=ExitCode.INTERNAL)
                    data = b"".join(pieces(found.fd, found.record.size))
                    if len(data) == found.record.size and place.unchanged(found):
                        return Object(_info(key, found.record), data)
            raise RestlessError

    def get_to_file(self, bucket: str, key: str, fd: int, *, limit_bytes: int) -> ObjectInfo:
        with self._at("Reading", bucket, key) as (place, request):
            with _reading(place, request, limit_bytes=limit_bytes) as found:
                size = 0
                for piece in pieces(found.fd, found.record.size):
                    size += len(piece)
                    files.write_all(fd, piece)
                if size != found.record.size or not place.unchanged(found):
                    raise RestlessError
                return _info(key, found.record)

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        with self._at("Looking at", bucket, key) as (place, _):
            return _look(place)

    def put(self, bucket: str, key: str, data: Bytes, *, metadata: Mapping[str, str] | None = None) -> str:
        view = memoryview(data).cast("B")
        return self._write(bucket, key, lambda fd: files.write_all(fd, view), metadata=folded(metadata))

    def put_file(self, bucket: str, key: str, fd: int, *, metadata: Mapping[str, str] | None = None) -> str:
        def fill(temporary: int) -> None:
            size = os.fstat(fd).st_size
            for piece in pieces(fd, size):
                files.write_all(temporary, piece)
                size -= len(piece)
            if size:
                raise OSError(errno.EIO, "the file shrank while it was read")

        return self._write(bucket, key, fill, metadata=folded(metadata))

    def put_if(
        self,
        bucket: str,
        key: str,
        data: Bytes,
        *,
        etag: str | None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        view = memoryview(data).cast("B")
        attributes = folded(metadata)
        with self._at("Writing", bucket, key) as (place, request):
            _expect(place, request, etag)  # spares the work where it is lost anyway
        return self._write(
            bucket,
            key,
            lambda fd: files.write_all(fd, view),
            metadata=attributes,
            expect=lambda place, request: _expect(place, request, etag),
        )

    def list(self, bucket: str, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._at("Listing", bucket, prefix, checked=True) as (place, _):
            for key in walk(place.bucket_fd, prefix, after=after, reserved=RESERVED):
                info = _look(Place(place.bucket_fd, key))
                if info is not None:  # else gone meanwhile
                    yield ObjectInfo(key, info.size, info.etag, info.modified_s)

    def list_folders(self, bucket: str, prefix: str) -> builtins.list[str]:
        check_prefix(prefix, folder=True)
        with self._at("Listing", bucket, prefix, checked=True) as (place, _):
            return folders(place.bucket_fd, prefix, reserved=RESERVED)

    def delete(self, bucket: str, key: str) -> None:
        with self._at("Deleting", bucket, key) as (place, _), place.lock():
            place.remove()

    def append(self, bucket: str, key: str, data: Bytes, *, etag: str | None, metadata: Mapping[str, str]) -> str:
        view = memoryview(data).cast("B")
        attributes = folded(metadata)
        with self._at("Appending to", bucket, key) as (place, request), place.lock():
            found = place.look(os.O_RDWR)
            if found is None:
                raise _missing(request)
            try:
                if etag is not None and found.record.etag != etag:
                    raise _changed(request)
                made = new_etag()
                place.append(found, view, etag=made, metadata=attributes)
                return made
            finally:
                os.close(found.fd)

    def check_conditional_put(self, bucket: str, key: str) -> None:
        for _ in range(2):
            try:
                self.put_if(bucket, key, b"Asks whether this store has conditional PUT.\n", etag=None)
            except PreconditionFailed:
                return

    def ensure_bucket(self, bucket: str) -> None:
        check_bucket(bucket)
        path = os.path.join(self._path, bucket)
        try:
            os.makedirs(path, exist_ok=True)
            for folder in (path, self._path):
                with files.folder(folder) as fd:
                    os.fsync(fd)
        except OSError as reason:
            raise self._fault(self._request("Creating bucket", bucket, ""), reason) from reason

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def _write(
        self,
        bucket: str,
        key: str,
        fill: Callable[[int], None],
        *,
        metadata: dict[str, str],
        expect: Callable[[Place, replies.Request], None] | None = None,
    ) -> str:
        with self._at("Writing", bucket, key) as (place, request):
            if bucket not in self._swept:
                self._swept.add(bucket)
                sweep(place.bucket_fd, older_than_s=_STALE_TEMPORARY_S)
            made = new_etag()
            with place.temporary() as (fd, name):
                fill(fd)
                os.fsync(fd)
                with place.lock():
                    if expect is not None:
                        expect(place, request)
                    place.replace(fd, name, etag=made, metadata=metadata)
            return made

    @contextmanager
    def _at(
        self, operation: str, bucket: str, key: str, *, checked: bool = False
    ) -> Iterator[tuple[Place, replies.Request]]:
        """The key's place in the opened bucket, and every failure there as one of ours."""
        check_bucket(bucket)
        if not checked:
            check_key(key)
        request = self._request(operation, bucket, key)
        parts = key.split("/")
        if parts[0] == RESERVED or any(len(part.encode()) > 255 for part in parts):
            raise Refused(
                request.failed(
                    f"a part of the key is over 255 bytes, or its first one is {RESERVED}", "choose another key"
                ),
                code=ExitCode.STORE_DENIED,
            )
        try:
            with files.folder(self._path) as root:
                bucket_fd = files.open_folder_beneath(root, bucket)
                try:
                    yield Place(bucket_fd, key), request
                finally:
                    os.close(bucket_fd)
        except OSError as reason:
            raise self._fault(request, reason) from reason
        except InTheWayError:
            raise Refused(
                request.failed("a part of the key is itself a key, or keys below it exist", "choose a key beside it"),
                code=ExitCode.STORE_DENIED,
            ) from None
        except LockedError:
            raise Unavailable(
                request.failed("another process holds its lock for too long", "look for one that is stopped")
            ) from None
        except RestlessError:
            raise Unavailable(request.failed("it changed at every look", "it may pass")) from None
        except UnknownFormatError as reason:
            raise Refused(
                request.failed(f"its record below {RESERVED} is of a newer version ({reason})", "update this program"),
                code=ExitCode.STORE_DENIED,
            ) from reason

    def _fault(self, request: replies.Request, reason: OSError) -> Fault:
        said = clip(reason.strerror or str(reason))
        path = os.path.join(self._path, request.bucket)
        if reason.errno in (errno.ENOENT, errno.ENOTDIR) and not os.path.isdir(path):
            return Denied(
                request.failed(
                    f"there is no bucket {request.bucket}", f"create the folder {path}, or correct OBJECT_STORE_DIR"
                ),
                code=ExitCode.STORE_DENIED,
            )
        if reason.errno in (errno.EACCES, errno.EPERM):
            return Denied(
                request.failed(f"access is denied ({said})", "give this user the right to it"),
                code=ExitCode.STORE_DENIED,
            )
        if reason.errno in (errno.ELOOP, errno.EINVAL, errno.ENOTDIR):
            return Denied(
                request.failed("a link or special file is in its place", "put a regular file or folder there"),
                code=ExitCode.STORE_DENIED,
            )
        if reason.errno == errno.ENAMETOOLONG:
            return Refused(
                request.failed("the key is too long for this disk", "choose a shorter one"), code=ExitCode.STORE_DENIED
            )
        if reason.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return replies.unsuitable(request)
        return LocalDisk(request.failed(f"the disk says: {said}", "free or repair it"), code=ExitCode.LOCAL_DISK)

    def _request(self, operation: str, bucket: str, key: str) -> replies.Request:
        return replies.Request(operation=operation, bucket=bucket, key=key, store=self.name)


@contextmanager
def _reading(place: Place, request: replies.Request, *, limit_bytes: int) -> Iterator[Look]:
    found = place.look()
    if found is None:
        raise _missing(request)
    try:
        if found.record.size > limit_bytes:
            raise TooLarge(
                request.failed(
                    f"it has {found.record.size} bytes, more than the {limit_bytes} allowed", "store a smaller one"
                ),
                code=ExitCode.STORE_DENIED,
            )
        yield found
    finally:
        os.close(found.fd)


def _look(place: Place) -> ObjectInfo | None:
    found = place.look()
    if found is None:
        return None
    os.close(found.fd)
    return _info(place.key, found.record)


def _expect(place: Place, request: replies.Request, etag: str | None) -> None:
    info = _look(place)
    if (info.etag if info else None) != etag:
        raise _changed(request)


def _info(key: str, record: Record) -> ObjectInfo:
    return ObjectInfo(key, record.size, record.etag, record.mtime_ns / 1e9, dict(record.metadata))


def _missing(request: replies.Request) -> Missing:
    return Missing(request.failed("there is no such object", "check the key"), code=ExitCode.STORE_DENIED)


def _changed(request: replies.Request) -> PreconditionFailed:
    return PreconditionFailed(
        request.failed("it is not in the version expected", "read it again"), code=ExitCode.STORE_DENIED
    )
