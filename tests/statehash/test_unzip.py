"""Code archives: what well-meaning tools write is extracted, what would harm is refused by name and reason."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zipfile
from pathlib import Path
from random import Random

import pytest

from statehash.machine import folder
from the0 import statehash as sh

ROOT_NAMES = ["archive.zip", "dest", "outside"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "dest").mkdir()
    (tmp_path / "outside").mkdir()
    return tmp_path


def unzip(place: Path, archive: bytes, **limits: int) -> sh.Unzipped:
    path = place / "archive.zip"
    path.write_bytes(archive)
    with folder(place / "dest") as dest, path.open("rb") as file:
        return sh.unzip(file.fileno(), dest, **limits)


def untouched(place: Path) -> None:
    assert sorted(os.listdir(place)) == ROOT_NAMES
    assert os.listdir(place / "outside") == []


def made(*entries: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", compression) as archive:
        warnings.simplefilter("ignore")
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def info(name: str, mode: int, compression: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr, entry.compress_type = 3, mode << 16, compression
    return entry


def renamed(archive: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert archive.count(old) == 2
    return archive.replace(old, new)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_what_tools_write(place: Path) -> None:
    data = Random(1).randbytes(300_000)
    archive = made(
        (info("main.py", 0o100644), b"print()"),
        (info("bin/run", 0o100755), data),
        (info("odd/", 0o40500), b""),
        (info("odd/none", 0o100000), b"x"),
        (info("odd/suid", 0o104755), b"x"),
        (info("link", 0o120777), b"../outside"),
        ("./dotted/./name", b"y"),
        ("plain.txt", b"z" * 100_000),
        (info("stored", 0o100644, zipfile.ZIP_STORED), data),
        ("a\\b", b"a backslash is a character"),
        ("caf\u00e9/\u20ac", b""),
    )
    done = unzip(place, archive)
    dest = place / "dest"
    assert (done.entries, done.bytes) == (11, 7 + 2 * 300_000 + 2 + 10 + 1 + 100_000 + 26)
    assert (dest / "bin/run").read_bytes() == (dest / "stored").read_bytes() == data
    assert (dest / "link").read_bytes() == b"../outside"
    assert not (dest / "link").is_symlink()
    assert (dest / "dotted/name").read_bytes() == b"y"
    assert (dest / "a\\b").is_file()
    assert (dest / "caf\u00e9/\u20ac").is_file()
    assert [mode_of(dest / name) for name in ["main.py", "bin/run", "odd", "odd/none", "odd/suid"]] == [
        0o644,
        0o755,
        0o700,
        0o600,
        0o755,
    ]
    untouched(place)


def test_an_empty_archive_is_empty(place: Path) -> None:
    done = unzip(place, made())
    assert (done.entries, done.bytes) == (0, 0)


def test_bytes_before_the_archive_do_no_harm(place: Path) -> None:
    assert unzip(place, b"#!/bin/sh\n" * 50 + made(("f", b"content"))).entries == 1
    assert (place / "dest/f").read_bytes() == b"content"


def zip64(archive: bytes, count: int | None = None) -> bytes:
    """The same archive with a zip64 end, as large ones have it."""
    at = archive.rindex(b"PK\x05\x06")
    _, _, _, here, entries, size, offset, _ = struct.unpack("<4s4H2IH", archive[at : at + 22])
    entries = entries if count is None else count
    end64 = struct.pack(
        "<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, here if count is None else count, entries, size, offset
    )
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return archive[:at] + end64 + locator + end


def test_zip64(place: Path) -> None:
    assert unzip(place, zip64(made(("a/b", b"1"), ("c", b"2")))).entries == 2
    assert (place / "dest/a/b").read_bytes() == b"1"
    with pytest.raises(sh.FormatError, match="directory does not fit"):
        unzip(place, zip64(made(("d", b"1")), count=1 << 60))


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../../x", "..\\x", "a\\..\\..\\x", "\\x", "C:\\x", "..", "a/..", "n" * 256, "a/" * 9000 + "x"],
)
def test_names_that_lead_elsewhere(place: Path, name: str) -> None:
    with pytest.raises(sh.FormatError, match="entry"):
        unzip(place, made(("good", b"x"), (name, b"evil")))
    untouched(place)
    assert os.listdir(place / "dest") == []


BOTH = "a file and a folder"


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (made(("a", b"1"), ("a", b"2")), "twice"),
        (made(("a", b"1"), ("./a", b"2")), "twice"),
        (made(("a", b"1"), ("a/b", b"2")), BOTH),
        (made(("a/b", b"1"), ("a", b"2")), BOTH),
        (made(("a", b"1"), ("a/", b"")), BOTH),
        (made(("a/b/c", b"1"), ("a/b", b"2")), BOTH),
        (renamed(made(("aXb", b"1")), b"aXb", b"a\0b"), "impossible name"),
        (made(("a", b"1" * 999), compression=zipfile.ZIP_BZIP2), "a"),
        (b"", "no zip"),
        (b"PK\x05\x06", "no zip"),
        (Random(3).randbytes(5000), "no zip"),
        (made(("a", b"1"))[:-1], "no zip"),
        (made(("a", b"1")) + b"more", "no zip"),
        (made(("a", b"1"))[30:], "refused"),
        (made(("PK\x05\x06", b"1")), "more than one end"),
    ],
)
def test_refused(place: Path, archive: bytes, reason: str) -> None:
    with pytest.raises(sh.FormatError, match=reason):
        unzip(place, archive)
    untouched(place)


def field(archive: bytes, at: int, value: bytes) -> bytes:
    """The archive with a field of its only entry's central header changed, and the same in the local header."""
    central, local = archive.index(b"PK\x01\x02") + at, archive.index(b"PK\x03\x04") + at - 2
    archive = archive[:central] + value + archive[central + len(value) :]
    return archive[:local] + value + archive[local + len(value) :]


def test_encrypted_and_corrupt_content(place: Path) -> None:
    archive = made(("secret", b"content " * 100))
    with pytest.raises(sh.FormatError, match=r"secret.*encrypted"):
        unzip(place, field(archive, 8, b"\x01\x00"))
    with pytest.raises(sh.FormatError, match=r"secret.*[Cc]hecksum"):
        unzip(place, field(archive, 16, b"\0\0\0\0"))


def test_a_lie_about_the_size_changes_nothing(place: Path) -> None:
    archive = made(("f", b"content " * 100))
    for size in (1, 799, 801, 1 << 30):
        (place / "dest/f").unlink(missing_ok=True)
        try:
            assert unzip(place, field(archive, 24, struct.pack("<I", size))).bytes == 800
        except sh.FormatError:
            pass
        found = place / "dest/f"
        assert not found.exists() or found.stat().st_size <= 800


def test_counts_that_lie(place: Path) -> None:
    archive = made(("a", b"1"), ("b", b"2"))
    at = archive.rindex(b"PK\x05\x06")
    for count in (0, 1, 3, 0xFFFF):
        lying = archive[: at + 8] + struct.pack("<2H", count, count) + archive[at + 12 :]
        with pytest.raises((sh.FormatError, sh.LimitError)):
            unzip(place, lying)


def test_limits_are_counted_while_streaming(place: Path) -> None:
    with pytest.raises(sh.LimitError, match="3 entries"):
        unzip(place, made(("a", b""), ("b", b""), ("c", b"")), max_entries=2)
    data = Random(2).randbytes(100_000)
    with pytest.raises(sh.LimitError, match="150000 bytes"):
        unzip(place, made(("d", data), ("e", data)), max_bytes=150_000)
    bomb = made(("f", bytes(200 << 20)))
    with pytest.raises(sh.LimitError, match="200 times"):
        unzip(place, bomb)
    assert (place / "dest/f").stat().st_size <= 65 << 20
    untouched(place)


def test_what_compresses_well_is_no_bomb_below_64_mib(place: Path) -> None:
    assert unzip(place, made(("f", bytes(60 << 20)))).bytes == 60 << 20


def test_nothing_goes_through_a_link_in_the_destination(place: Path) -> None:
    (place / "dest/vendor").symlink_to("../outside")
    with pytest.raises(FileExistsError):
        unzip(place, made(("vendor/x", b"1")))
    (place / "dest/f").symlink_to("../outside/f")
    with pytest.raises(FileExistsError) as raised:
        unzip(place, made(("f", b"1")))
    assert raised.value.filename == b"f"
    untouched(place)


def test_truncated_anywhere(place: Path) -> None:
    archive = made(("a/b", b"content " * 50), ("c", b""))
    for cut in range(len(archive)):
        with pytest.raises(sh.FormatError):
            unzip(place, archive[:cut])


def test_random_damage(place: Path) -> None:
    rng = Random(4)
    archive = made(("a/b", rng.randbytes(500)), (info("run", 0o100755), b"echo " * 99), ("d/", b""))
    outcomes = {"whole": 0, "refused": 0}
    for n in range(600):
        damaged = bytearray(archive)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (place / "dest").rename(place / f"was-{n}")
        (place / "dest").mkdir()
        try:
            unzip(place, bytes(damaged))
            outcomes["whole"] += 1
        except (sh.FormatError, sh.LimitError):
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10
    assert os.listdir(place / "outside") == []
