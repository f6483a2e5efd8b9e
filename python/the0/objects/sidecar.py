"""What the folder store knows of an object beside its bytes: ETag and user metadata, in a file of its own.

A record counts only for the very file that it names by inode, size and mtime, so it can be written before the file is
renamed into place (a rename keeps the inode): a crash at any moment leaves the old object with its old record or the
new one with its new record. A file that no record names was put there by a person: it has no metadata, and an ETag
made of what the file system says of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from the0.frozen import dataclass, field

FORMAT = 1
LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    inode: int
    size: int
    mtime_ns: int
    etag: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    def names(self, info: os.stat_result) -> bool:
        return (self.inode, self.size, self.mtime_ns) == (info.st_ino, info.st_size, info.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Sidecar:
    key: str
    records: tuple[Record, ...]
    """At most two: of the object as it is, and as the write under way will make it."""
    appending: bool = False
    """Bytes are being added to the file of the only record: until that is done, or undone, what lies beyond its size
    is no part of the object."""

    def find(self, info: os.stat_result) -> Record | None:
        """The record of the file that has this status; None for a file that a person put there."""
        if self.appending:
            record = self.records[0]
            return record if record.inode == info.st_ino and info.st_size >= record.size else None
        return next((record for record in reversed(self.records) if record.names(info)), None)


class UnknownFormatError(ValueError):
    """Written by a newer version of this program."""


def record_of(info: os.stat_result, *, etag: str, metadata: Mapping[str, str]) -> Record:
    return Record(inode=info.st_ino, size=info.st_size, mtime_ns=info.st_mtime_ns, etag=etag, metadata=metadata)


def dropped(info: os.stat_result) -> Record:
    """The record of a file that a person put there or changed. The ctime is in its ETag, so that none returns when a
    file is copied back with its old times."""
    etag = f'"f{info.st_ino:x}-{info.st_size:x}-{info.st_mtime_ns:x}-{info.st_ctime_ns:x}"'
    return record_of(info, etag=etag, metadata={})


def new_etag() -> str:
    """Random, since two writes of the same bytes must differ."""
    return f'"{os.urandom(16).hex()}"'


def encode(sidecar: Sidecar) -> bytes:
    return json.dumps(
        {
            "format": FORMAT,
            "key": sidecar.key,
            "appending": sidecar.appending,
            "records": [
                {
                    "inode": record.inode,
                    "size": record.size,
                    "mtime_ns": record.mtime_ns,
                    "etag": record.etag,
                    "metadata": dict(record.metadata),
                }
                for record in sidecar.records
            ],
        }
    ).encode()


def decode(data: bytes, *, key: str) -> Sidecar | None:
    """None for what is no sidecar of that key (truncated by a full disk, edited by a person): as if it were missing.
    Raises UnknownFormatError."""
    try:
        value: Any = json.loads(data)
        if value["format"] != FORMAT:
            raise UnknownFormatError(f"format {value['format']!r}")
        records = tuple(
            Record(
                inode=int(record["inode"]),
                size=int(record["size"]),
                mtime_ns=int(record["mtime_ns"]),
                etag=str(record["etag"]),
                metadata={str(name): str(text) for name, text in record["metadata"].items()},
            )
            for record in value["records"]
        )
        sidecar = Sidecar(key=str(value["key"]), records=records, appending=bool(value["appending"]))
    except UnknownFormatError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if sidecar.key != key or not records or (sidecar.appending and len(records) != 1):
        return None
    return sidecar
