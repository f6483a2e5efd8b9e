"""The object store as the rest of the runtime sees it.

`ObjectStore` has two implementations (`s3.py`, `folder.py`); `Retrying` wraps either with the same protocol.
Keys are opaque text without a leading slash. ETags are opaque: only compared, and given back as they came.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from the0.errors import ExitCode, Permanent, Transient
from the0.frozen import dataclass, field

Bytes = Any
"""bytes, memoryview, or anything else with the buffer protocol."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    size: int
    etag: str
    modified_s: float
    """Unix seconds by the store's clock."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """User metadata, keys in lower case; empty in listings."""


@dataclass(frozen=True, slots=True)
class Object:
    info: ObjectInfo
    data: bytes


class Missing(Permanent):
    """No such object."""


class PreconditionFailed(Permanent):
    """The object is not (or: is) there in the version the caller named. After a retried PUT the caller's own
    former attempt may be the reason: read and compare before believing it."""


class NotModified(Permanent):
    """The object still has the ETag that the caller knows. Never has a message for people."""


class Denied(Permanent):
    """Credentials refused, or a bucket is missing."""


class TooLarge(Permanent):
    """The object is larger than the caller allows."""


class Unsuitable(Permanent):
    """The store cannot do what the runtime needs (conditional PUT)."""


class Refused(Permanent):
    """The request itself is wrong for this store: a key, bucket name or metadata that it cannot express, or an
    operation that it does not know."""


class LocalDisk(Permanent):
    """The local disk is full, read-only or failing: of the folder store, or below the descriptor of get_to_file."""


class Unavailable(Transient):
    """Timeout, refused connection, 5xx, throttling: may pass. A PUT that ended so may still have been applied."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, code=ExitCode.STORE_UNREACHABLE)


class ObjectStore(Protocol):
    """Every method may be called from any thread and may raise `Unavailable` and `Denied`, and `Refused` for what not
    every store can hold (see `keys.py`). Errors name operation, bucket, key and remedy; never a credential.
    No key may be the beginning, up to a `/`, of another: the folder store refuses that, MinIO hides the longer one."""

    @property
    def name(self) -> str:
        """What to call this store before a person: its kind and endpoint or folder."""
        ...

    def get(self, bucket: str, key: str, *, limit_bytes: int, if_none_match: str | None = None) -> Object:
        """The whole object with its metadata. Raises Missing, TooLarge (before reading it all), NotModified. Idempotent."""
        ...

    def get_to_file(self, bucket: str, key: str, fd: int, *, limit_bytes: int) -> ObjectInfo:
        """Streams the object to an open descriptor from its current offset on, in bounded memory. Raises Missing,
        TooLarge. After an error the file holds an unknown part: the caller truncates and repeats, or drops it."""
        ...

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        """With metadata; None if missing. Idempotent."""
        ...

    def put(self, bucket: str, key: str, data: Bytes, *, metadata: Mapping[str, str] | None = None) -> str:
        """Writes the object whole, whatever was there; returns its ETag. Idempotent for the same bytes."""
        ...

    def put_file(self, bucket: str, key: str, fd: int, *, metadata: Mapping[str, str] | None = None) -> str:
        """Like `put`, from offset 0 of a regular file, in bounded memory (multipart where large)."""
        ...

    def put_if(
        self,
        bucket: str,
        key: str,
        data: Bytes,
        *,
        etag: str | None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Writes only if the object's ETag is `etag` (None: only if there is no object); returns the new ETag.
        Raises PreconditionFailed, also where an `etag` is named and the object is gone. Not idempotent: see there."""
        ...

    def list(self, bucket: str, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Objects whose key begins with prefix, in byte order of the keys, beginning after `after`. Pages by itself."""
        ...

    def list_folders(self, bucket: str, prefix: str) -> builtins.list[str]:
        """The distinct next parts (each with its `/`) below a prefix that ends in `/` or is empty; full keys, sorted.
        SeaweedFS also names some whose last object is deleted."""
        ...

    def delete(self, bucket: str, key: str) -> None:
        """Idempotent: a missing object is no error."""
        ...

    def append(self, bucket: str, key: str, data: Bytes, *, etag: str | None, metadata: Mapping[str, str]) -> str:
        """Makes the object its former content plus `data`, replacing its metadata, without moving the former content through
        this process where the store allows. Conditional on `etag` as far as the store can (S3 composes server-side and
        checks the copied source's ETag). Raises Missing, PreconditionFailed."""
        ...

    def check_conditional_put(self, bucket: str, key: str) -> None:
        """One cheap probe: an `If-None-Match: *` on a key that exists (it is made if missing) must fail with a precondition error.
        A store that ignores the condition overwrites the key, so it must be one made for this.
        Raises Unsuitable, naming the store and the remedy. Remembered for the life of the store object."""
        ...

    def ensure_bucket(self, bucket: str) -> None:
        """Creates the bucket if it is missing; services call this at their start, `execute` never does."""
        ...

    def close(self) -> None: ...
