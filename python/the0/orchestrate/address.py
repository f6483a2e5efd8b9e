"""Where a running `up` listens, told to other commands by a file in its data folder that only its owner can read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field

from the0 import files
from the0.orchestrate.data import Data


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    token: str = field(repr=False)
    """The bearer token that is wanted there."""


def write(place: Data, file: str, address: Address) -> None:
    """OSError of the disk."""
    told = {"address": [address.host, address.port], "token": address.token, "pid": os.getpid()}
    with files.folder(place.path) as fd:
        files.write_atomic(fd, file, json.dumps(told).encode(), mode=0o600, durable=False)


def read(place: Data, file: str) -> Address | None:
    """None where none was told, or the file was spoiled."""
    try:
        with files.folder(place.path) as fd:
            told = json.loads(files.read_beneath(fd, file, limit_bytes=4096))
        host, port = told["address"]
        return Address(str(host), int(port), str(told["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
