"""State archives that somebody else wrote: what reading them may cost."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from the0.errors import ExitCode, Permanent
from the0.sync import archive

HUGE = 64 << 20


def block(name: str, kind: bytes, size: int) -> bytes:
    """A header alone."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT)


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return block(name, kind, len(data)) + data + b"\0" * (-len(data) % 512)


def pax(**fields: str) -> bytes:
    records = b""
    for name, value in fields.items():
        body = f" {name.replace('__', '.')}={value}\n".encode()
        size = len(body) + 1
        while len(str(size)) + len(body) != size:
            size = len(str(size)) + len(body)
        records += str(size).encode() + body
    return records


def extract(target: Path, raw: bytes) -> None:
    packed = gzip.compress(raw + b"\0" * 1024, compresslevel=1)
    source = target.parent / "archive"
    source.write_bytes(packed)
    fds = [os.open(source, os.O_RDONLY), os.open(target, os.O_RDONLY)]
    try:
        archive.extract(fds[0], fds[1], max_bytes=1 << 30, name="state.tar.gz")
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize(
    "kind",
    [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK],
)
def test_a_huge_header_is_not_read(tmp_path: Path, kind: bytes) -> None:
    (target := tmp_path / "target").mkdir()
    raw = member("huge", b"1" * HUGE, kind) + member("key.json", b"1")
    packed = gzip.compress(raw)
    (tmp_path / "archive").write_bytes(packed)
    del raw
    source, into = os.open(tmp_path / "archive", os.O_RDONLY), os.open(target, os.O_RDONLY)
    tracemalloc.start()
    try:
        with pytest.raises(Permanent, match="extended header") as caught:
            archive.extract(source, into, max_bytes=1 << 30, name="state.tar.gz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        os.close(source)
        os.close(into)
    assert caught.value.code is ExitCode.STATE_DAMAGED
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "raw",
    [
        b"".join(member("more", pax(**{f"field{n}": "x" * 60_000}), tarfile.XGLTYPE) for n in range(20)),
        b"".join(member("more", pax(field="x"), tarfile.XHDTYPE) for _ in range(5000)) + member("key.json", b"1"),
        member("sparse", pax(GNU__sparse__major="1", GNU__sparse__minor="0"), tarfile.XHDTYPE)
        + member("key.json", b"9" * 1024),
        block("sparse", tarfile.GNUTYPE_SPARSE, 512) + b"\0" * 512,
    ],
    ids=["many headers for all", "headers upon headers", "sparse by PAX", "sparse by GNU"],
)
def test_what_has_no_bound_is_refused(tmp_path: Path, raw: bytes) -> None:
    (target := tmp_path / "target").mkdir()
    with pytest.raises(Permanent) as caught:
        extract(target, raw)
    assert caught.value.code is ExitCode.STATE_DAMAGED


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_read(tmp_path: Path, form: int) -> None:
    (target := tmp_path / "target").mkdir()
    name = "/".join(["folder" * 10] * (2 if form == tarfile.USTAR_FORMAT else 20)) + "/key.json"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for path in (name, "other.json"):
            info = tarfile.TarInfo(path)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"123"))
    extract(target, raw.getvalue())
    assert (target / name).read_bytes() == (target / "other.json").read_bytes() == b"123"
