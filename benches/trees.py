"""State trees that are measured, made the same way each time."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from report import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    name: str
    files: int
    file_bytes: int
    folders: int
    large_bytes: int = 0
    """Of one more file at the top, `large`."""

    @property
    def told(self) -> str:
        many = f"{self.files:,} x {self.file_bytes:,} B in {self.folders:,} folders" if self.files else ""
        large = f"one file of {self.large_bytes >> 20} MiB" if self.large_bytes else ""
        return " and ".join(part for part in (large, many) if part)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="a", files=1_000, file_bytes=4096, folders=10),
        Shape(name="b", files=10_000, file_bytes=4096, folders=100),
        Shape(name="c", files=100_000, file_bytes=1024, folders=1000),
        Shape(name="d", files=0, file_bytes=0, folders=0, large_bytes=1 << 30),
        Shape(name="e", files=500, file_bytes=4096, folders=5, large_bytes=200 << 20),
    )
}


def make(shape: Shape, root: Path) -> None:
    """Half of each content compresses. `changing` is a small file for what is changed later."""
    chance = random.Random(7)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(shape.files):
        folder = root / f"folder-{number % shape.folders:04d}"
        if number < shape.folders:
            folder.mkdir()
        noise = chance.randbytes(shape.file_bytes // 2)
        (folder / f"file-{number:06d}").write_bytes(noise.ljust(shape.file_bytes, b"s"))
    if shape.large_bytes:
        with open(root / "large", "wb") as file:
            for _ in range(shape.large_bytes >> 20):
                file.write(chance.randbytes(1 << 19).ljust(1 << 20, b"s"))
    (root / "changing").write_bytes(b"at first")


def change_page(root: Path, number: int) -> None:
    """One page in the middle of `large`, another content each time."""
    path = root / "large"
    with open(path, "r+b") as file:
        file.seek((path.stat().st_size // 2) & ~4095)
        file.write(random.Random(number).randbytes(4096))


class Plain:
    """The plain work of `examples/plain.rs` in a process that stays: milliseconds of a walk, a read, a packing."""

    def __init__(self) -> None:
        environ = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / ".cache" / "target")}
        build = ["cargo", "build", "--quiet", "--release", "--locked", "--example", "plain"]
        subprocess.run(build, cwd=ROOT, env=environ, check=True)
        program = ROOT / ".cache" / "target" / "release" / "examples" / "plain"
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def walk_ms(self, root: Path) -> float:
        return self._ask("walk", root)

    def read_ms(self, root: Path) -> float:
        return self._ask("read", root)

    def pack_ms(self, root: Path) -> float:
        return self._ask("pack", root)

    def _ask(self, word: str, root: Path) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word} {root}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline().split()[0])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
