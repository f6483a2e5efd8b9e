"""A tree as plain Python sees it, random trees and random edits: what the Rust core is held against."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from random import Random

Tree = dict[bytes, tuple[str, int, int, bytes]]
"""Path: (kind, mode, mtime_ns, content or target)."""

NAMES = [
    b"a",
    b"a-b",
    b"a.txt",
    b"a0",
    b"b",
    b"sub",
    b"caf\xc3\xa9",
    b"\xff\xfe",
    b"new\nline",
    b"x" * 255,
    b" ",
    b"-rf",
]


def read(root: Path) -> Tree:
    tree: Tree = {}

    def walk(folder: bytes, prefix: bytes) -> None:
        for entry in os.scandir(folder):
            path, info = prefix + entry.name, entry.stat(follow_symlinks=False)
            mode, mtime = stat.S_IMODE(info.st_mode), info.st_mtime_ns
            if stat.S_ISLNK(info.st_mode):
                tree[path] = ("link", 0o777, mtime, os.readlink(entry.path))
            elif stat.S_ISDIR(info.st_mode):
                tree[path] = ("dir", mode, mtime, b"")
                walk(entry.path, path + b"/")
            elif stat.S_ISREG(info.st_mode):
                tree[path] = ("file", mode, mtime, Path(os.fsdecode(entry.path)).read_bytes())

    walk(os.fsencode(root), b"")
    tree = {path: seen for path, seen in tree.items() if path.split(b"/")[0] != b".the0"}
    return tree


def content(rng: Random) -> bytes:
    size = rng.choice([0, 1, 100, 4096, 65535, 65536, 65537, 200_000, 1 << 20, (1 << 20) + 1, 3_000_000])
    if size > 100_000 and rng.random() < 0.6:
        size = 5000
    data = rng.randbytes(size) if rng.random() < 0.7 else bytes(size)
    if size > 70_000 and rng.random() < 0.5:
        data = data[:65536] + bytes(min(size, 400_000))[65536:] + data[400_000:]
    return data


def remove(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            remove(path + b"/" + name)
        os.rmdir(path)
    else:
        os.unlink(path)


def edit(root: Path, rng: Random) -> None:
    """One random change, of any kind, at any place."""
    folders = [os.fsencode(root)] + [os.fsencode(root) + b"/" + p for p, seen in read(root).items() if seen[0] == "dir"]
    path = rng.choice(folders) + b"/" + rng.choice(NAMES)
    there = os.path.lexists(path)
    kind = rng.choice(
        [
            "file",
            "file",
            "file",
            "dir",
            "dir",
            "link",
            "remove",
            "patch",
            "patch",
            "mode",
            "times",
            "truncate",
            "rename",
            "hardlink",
        ]
    )
    if kind in ("file", "dir", "link", "hardlink") and there:
        remove(path)
    regular = there and os.path.isfile(path) and not os.path.islink(path)
    if kind == "file":
        with open(path, "wb") as file:
            file.write(content(rng))
    elif kind == "dir":
        os.mkdir(path)
    elif kind == "link":
        os.symlink(rng.choice([b"a", b"/etc/passwd", b"../..", b"\xff" * 300]), path)
    elif kind == "remove" and there:
        remove(path)
    elif kind == "patch" and regular:
        with open(path, "r+b") as file:
            file.seek(rng.randrange(os.path.getsize(path) + 1))
            file.write(rng.randbytes(rng.choice([1, 10, 70_000])))
    elif kind == "truncate" and regular:
        os.truncate(path, rng.choice([0, 10, 65536, 100_000, 2_000_000]))
    elif kind == "mode" and there and not os.path.islink(path):
        os.chmod(path, rng.choice([0o600, 0o644, 0o755, 0o400, 0o4755, 0o1777]))
    elif kind == "times" and there:
        os.utime(path, ns=(0, rng.choice([0, 1, -1, 10**18, 1_700_000_000_123_456_789])), follow_symlinks=False)
    elif kind == "rename" and there:
        target = rng.choice(folders) + b"/" + rng.choice(NAMES)
        if not os.path.lexists(target) and not target.startswith(path + b"/"):
            os.rename(path, target)
    elif kind == "hardlink":
        files = [p for p, seen in read(root).items() if seen[0] == "file"]
        if files:
            os.link(os.fsencode(root) + b"/" + rng.choice(files), path)
