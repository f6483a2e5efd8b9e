"""Extraction of a code archive, beside `unzip -q` of the same one: 30 MB packed in 2,000 files, and 30 MB of text unpacked."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from place import FIRST, BenchError, archive, base, clean
from report import ROOT, keep, table, wait_for_quiet
from the0 import statehash

AT_MOST = 1.2
"""Of what `unzip -q` takes."""


def run(*, runs: int = 9) -> bool:
    """Measures in turns, prints and keeps. Whether both archives are within the target."""
    program = shutil.which("unzip")
    if program is None:
        raise BenchError("unzip is missing: install Debian's unzip.")
    try:
        return _run(program, runs)
    finally:
        clean()


def _run(program: str, runs: int) -> bool:
    rows: list[tuple[str, ...]] = []
    raw: dict[str, dict[str, list[float]]] = {}
    good = True
    for text, what in ((False, "30 MB of random bytes, 2,000 files"), (True, "2,000 files of text, 30 MB unpacked")):
        packed = base() / f"{'text' if text else 'bytes'}.zip"
        packed.write_bytes(archive(FIRST, total_bytes=30_000_000, files=2000, text=text))
        measured: dict[str, list[float]] = {"unzip": [], "ours": []}
        for number in range(-1, runs):  # the first pair warms up
            wait_for_quiet()
            took = {
                "unzip": _theirs(program, packed, _folder(packed, number, "unzip")),
                "ours": _ours(packed, _folder(packed, number, "ours")),
            }
            if number >= 0:
                for name, ms in took.items():
                    measured[name].append(ms)
        raw[what] = measured
        theirs, ours = (statistics.median(measured[name]) for name in ("unzip", "ours"))
        share = statistics.median(b / a for a, b in zip(measured["unzip"], measured["ours"], strict=True))
        good &= share <= AT_MOST
        rows.append(
            (what, f"{theirs:.0f} ms", f"{ours:.0f} ms", f"{share:.2f}x", "ok" if share <= AT_MOST else "MISSED")
        )
    print("\nExtraction of a code archive; medians, and of the ratio in each pair\n")
    print(table(rows, ("archive", "unzip -q", "ours", "ratio", f"<= {AT_MOST}x")))
    path = keep("unzip", [], more={"runs": raw})
    print(f"\nRaw results: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    return good


def _folder(packed: Path, number: int, name: str) -> Path:
    made = base() / f"{packed.stem}-{number}-{name}"
    made.mkdir()
    return made


def _theirs(program: str, packed: Path, into: Path) -> float:
    began = time.monotonic()
    subprocess.run([program, "-q", str(packed), "-d", str(into)], check=True)
    return (time.monotonic() - began) * 1e3


def _ours(packed: Path, into: Path) -> float:
    archive_fd = os.open(packed, os.O_RDONLY)
    folder_fd = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    try:
        began = time.monotonic()
        statehash.unzip(archive_fd, folder_fd, max_entries=10_000, max_bytes=1 << 30)
        return (time.monotonic() - began) * 1e3
    finally:
        os.close(folder_fd)
        os.close(archive_fd)
