"""The border: errors, buffers, interruption, the order of calls, memory, and users who are not root."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from statehash import machine
from the0 import statehash as sh


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_errors_of_the_system_keep_errno_and_path(root: Path) -> None:
    with machine.folder(root) as fd:
        with pytest.raises(FileNotFoundError) as missing:
            sh.Index.open(fd, "index")
        assert (missing.value.errno, missing.value.filename, missing.value.strerror) == (
            errno.ENOENT,
            b"index",
            "No such file or directory",
        )
        (root / "f").write_bytes(b"x")
        with pytest.raises(NotADirectoryError), (root / "f").open("rb") as file:
            sh.scan(file.fileno(), sh.Index())
        restoring = sh.Restore(fd)
        [(key, digest, data)] = machine.commit(root, sh.Index())
        with pytest.raises(FileExistsError) as there:
            restoring.apply(data, key=key, digest=digest)
        assert there.value.filename == b"f"
    for closed in (fd, -1, 1 << 30):
        with pytest.raises(OSError) as bad:
            sh.scan(closed, sh.Index())
        assert bad.value.errno == errno.EBADF


def test_a_wrong_digest_and_foreign_bytes(root: Path) -> None:
    (root / "f").write_bytes(b"x")
    [(key, digest, data)] = machine.commit(root, sh.Index())
    for make in (sh.Listing, lambda: sh.Restore(os.open(root, os.O_RDONLY))):
        for bad in ("0" * 64, digest[:-1], digest.upper(), ""):
            with pytest.raises(sh.DigestError, match=key):
                make().apply(data, key=key, digest=bad)
        with pytest.raises(sh.FormatError, match="no state segment"):
            make().apply(b"", key=key, digest=sh.digest(b""))
        newer = data[:8] + b"\x02" + data[9:]
        with pytest.raises(sh.FormatError, match="newer format 2"):
            make().apply(newer, key=key, digest=sh.digest(newer))
    assert issubclass(sh.FormatError, ValueError)
    assert issubclass(sh.DigestError, ValueError)
    assert issubclass(sh.LimitError, ValueError)


def test_any_buffer_will_do(tmp_path: Path, root: Path) -> None:
    (root / "f").write_bytes(Random(1).randbytes(100_000))
    with machine.folder(root) as fd:
        packing = sh.Pack(fd, index := sh.Index(), sh.scan(fd, index))
        segment = packing.next()
        assert segment is not None
        assert packing.next() is None
    view = memoryview(segment)
    assert (view.readonly, view.nbytes, view.format, view.c_contiguous) == (True, segment.size, "B", True)
    with pytest.raises(TypeError):
        view[0] = 1
    data = bytes(view)
    del segment, packing
    assert bytes(view) == data
    for n, buffer in enumerate(
        [data, bytearray(data), view, memoryview(bytearray(data)), memoryview(data + data)[: len(data)]]
    ):
        dest = tmp_path / f"restored-{n}"
        dest.mkdir()
        with machine.folder(dest) as fd:
            restoring = sh.Restore(fd)
            restoring.apply(buffer, key="k", digest=sh.digest(buffer))
            restoring.finish()
        assert (dest / "f").read_bytes() == (root / "f").read_bytes()
    every_other = memoryview(b"a-b-c-")[::2]
    assert sh.digest(every_other) == sh.digest(b"abc")
    with pytest.raises((TypeError, BufferError)):
        sh.digest("text")


def test_the_order_of_calls(root: Path) -> None:
    (root / "f").write_bytes(b"1")
    index = sh.Index()
    with pytest.raises(ValueError, match="nothing is staged"):
        index.confirm(b"")
    with pytest.raises(ValueError, match="nothing is staged"):
        index.abandon()
    with machine.folder(root) as fd:
        packing = sh.Pack(fd, index, sh.scan(fd, index))
        with pytest.raises(ValueError, match="not at its end"):
            index.stage(packing, [], b"")
        while packing.next():
            pass
        with pytest.raises(ValueError, match="0 keys for 1 segments"):
            index.stage(packing, [], b"")
        with pytest.raises(ValueError, match="another index"):
            sh.Index().stage(packing, ["k"], b"")
        index.stage(packing, ["k"], b"next")
        assert (index.pending_meta, index.meta, index.files) == (b"next", b"", 0)
        with pytest.raises(ValueError, match="staged already"):
            index.stage(packing, ["k"], b"next")
        index.abandon()
        index.stage(packing, ["k"], b"next")
        index.confirm(b"done")
        assert (index.pending_meta, index.meta, index.files) == (None, b"done", 1)
        with pytest.raises(ValueError, match="former state"):
            index.stage(packing, ["k"], b"")
        stale = sh.scan(fd, index)
        (root / "f").write_bytes(b"2")
        machine.commit(root, index)
        with pytest.raises(ValueError, match="changed since the scan"):
            sh.Pack(fd, index, stale).next()
        walking = index.entries()
        next(walking)
        (root / "g").write_bytes(b"3")
        machine.commit(root, index)
        with pytest.raises(ValueError, match="changed while"):
            next(walking)
        restoring = sh.Restore(fd)
        with pytest.raises(ValueError, match="not finished"):
            restoring.index(fd)
        restoring.finish()
        with pytest.raises(ValueError, match="after an error or the end"):
            restoring.finish()


def test_an_index_of_what_was_not_restored_is_refused(tmp_path: Path, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d/f").write_bytes(b"1")
    segments = machine.commit(root, sh.Index())

    def disturb(what: str, dest: Path) -> None:
        if what == "missing":
            (dest / "d/f").unlink()
        elif what == "more":
            (dest / "d/g").write_bytes(b"")
        elif what == "longer":
            (dest / "d/f").write_bytes(b"12")
        elif what == "kind":
            (dest / "d/f").unlink()
            (dest / "d/f").mkdir()
        elif what == "fifo":
            os.mkfifo(dest / "d/g")

    for what in ("missing", "more", "longer", "kind", "fifo"):
        dest = tmp_path / what
        dest.mkdir()
        with machine.folder(dest) as fd:
            restoring = sh.Restore(fd)
            for key, digest, data in segments:
                restoring.apply(data, key=key, digest=digest)
            restoring.finish()
            disturb(what, dest)
            with pytest.raises(sh.FormatError, match="not what was restored"):
                restoring.index(fd)


def test_differences_are_named(root: Path) -> None:
    rng = Random(1)
    for name, size in {"a": 10, "b": 300_000, "c": 3_000_000, "gone": 5, "mode": 5}.items():
        (root / name).write_bytes(rng.randbytes(size))
    (root / "link").symlink_to("a")
    index = sh.Index()
    machine.commit(root, index)
    for name in ("a", "b", "c"):
        stats = os.stat(root / name)
        with (root / name).open("r+b") as file:
            file.seek(stats.st_size - 1)
            file.write(b"\0")
        os.utime(root / name, ns=(0, stats.st_mtime_ns))
    (root / "gone").unlink()
    (root / "mode").chmod(0o700)
    (root / "link").unlink()
    (root / "link").symlink_to("b")
    (root / "new").write_bytes(b"")
    with machine.folder(root) as fd:
        found = sh.differences(fd, index)
        assert found == [b"a", b"b", b"c", b"gone", b"link", b"mode", b"new"]
        assert len(sh.differences(fd, index, limit=3)) == 3
        machine.commit(root, index)
        os.utime(root / "a", ns=(0, 1))
        assert sh.differences(fd, index, threads=1) == []


class Alarm(Exception):
    pass


@pytest.fixture
def alarm() -> Callable[[float], None]:
    """Raises Alarm in the main thread so many seconds from now, as Ctrl-C would raise KeyboardInterrupt."""

    def ring(number: int, frame: object) -> None:
        del number, frame
        raise Alarm

    signal.signal(signal.SIGALRM, ring)

    def start(after_s: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, after_s)

    return start


def test_long_work_can_be_interrupted(root: Path, alarm: Callable[[float], None]) -> None:
    for name in "abcd":
        with (root / name).open("wb") as file:
            file.truncate(200 << 30)
    begun = time.monotonic()
    alarm(0.2)
    with pytest.raises(Alarm):
        machine.commit(root, sh.Index())
    assert time.monotonic() - begun < 3


FOLDERS, LINKS = 250, 1000
"""Of `many`: a scan of them takes several times the 0.1 s after which signals are looked for."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quarter of a million names, made quickly as they are of 25 files."""
    root = tmp_path_factory.mktemp("many")
    for number in range(FOLDERS):
        folder = root / f"{number}"
        folder.mkdir(parents=True)
        if number % 10 == 0:
            first = folder / "first"
            first.write_bytes(b"%d" % number)
        for name in range(LINKS):
            os.link(first, folder / f"{name}")
    yield root
    shutil.rmtree(root)


def test_a_scan_is_interrupted_on_its_way(many: Path, alarm: Callable[[float], None]) -> None:
    with machine.folder(many) as fd:
        watch = sh.Watch(fd)
        begun = time.monotonic()
        alarm(0.02)
        with pytest.raises(Alarm):
            sh.scan(fd, sh.Index(), watch=watch)
        assert time.monotonic() - begun < 1.2
        assert watch.folders < FOLDERS, "the scan went on to its end"


def test_unpacking_is_interrupted_on_its_way(many: Path, tmp_path: Path, alarm: Callable[[float], None]) -> None:
    ((key, digest, data),) = machine.commit(many, sh.Index())
    dest = tmp_path / "dest"
    dest.mkdir()
    with machine.folder(dest) as fd:
        unpacking = sh.Restore(fd)
        begun = time.monotonic()
        alarm(0.2)
        with pytest.raises(Alarm):
            unpacking.apply(data, key=key, digest=digest)
        assert time.monotonic() - begun < 1.2
        with pytest.raises(ValueError, match="after an error"):
            unpacking.finish()
    assert sum(len(files) for _, _, files in os.walk(dest)) < FOLDERS * LINKS


def test_other_threads_run_meanwhile(root: Path) -> None:
    with (root / "huge").open("wb") as file:
        file.truncate(32 << 30)
    index, done, ticks = sh.Index(), threading.Event(), 0

    def work() -> None:
        machine.commit(root, index)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.wait(0.002):
        ticks += 1
    thread.join()
    assert (index.bytes, ticks > 20) == (32 << 30, True)


def test_memory_stays_bounded(tmp_path: Path, root: Path) -> None:
    rng = Random(1)
    for n in range(4):
        (root / f"large-{n}").write_bytes(rng.randbytes(50 << 20))
    script = """
import os, re, sys
from the0 import statehash as sh
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
before = peak()
fd, index = os.open(sys.argv[1], os.O_RDONLY), sh.Index()
pack = sh.Pack(fd, index, sh.scan(fd, index))
os.mkdir(sys.argv[2])
restore = sh.Restore(os.open(sys.argv[2], os.O_RDONLY))
while segment := pack.next():
    restore.apply(segment, key="k", digest=segment.digest)
restore.finish()
print(peak() - before)
sh.trim()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, root, tmp_path / "restored"], capture_output=True, text=True, check=True
    )
    assert 30 < int(done.stdout) < 110


NOBODY = """
import os, sys
from pathlib import Path
from the0 import statehash as sh
from statehash import machine, oracle
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(1000)
    os.setuid(1000)
os.umask(0o027)
base = Path(sys.argv[1])
root = base / "root"
for path in ("closed/f", "readonly/sub/f", "f", "secret"):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(path.encode())
(root / "large").write_bytes(b"l" * 3_000_000)
index = sh.Index()
segments = machine.commit(root, index)
first = oracle.read(root)
(root / "secret").write_bytes(b"changed and then closed")
(root / "f").chmod(0o444)
(root / "large").chmod(0o400)
(root / "suid").write_bytes(b"")
(root / "suid").chmod(0o6755)
for path, mode in {"secret": 0, "closed": 0, "readonly/sub": 0o555, "readonly": 0o555}.items():
    (root / path).chmod(mode)
packing, new = machine.pack(root, index)
assert sorted(packing.incomplete) == [b"closed", b"secret"], packing.incomplete
index.stage(packing, [key for key, _, _ in new], b"")
index.confirm(b"")
segments += new
assert index.get(b"closed/f").size == 8 and index.get(b"secret").size == 6
building, place = base / "building", base / "place"
building.mkdir()
place.mkdir()
with machine.folder(building) as fd:
    restoring = sh.Restore(fd)
    for key, digest, data in segments:
        restoring.apply(data, key=key, digest=digest)
    restoring.finish()
for name in os.listdir(building):
    os.rename(building / name, place / name)
with machine.folder(place) as fd:
    restored = restoring.index(fd)
    assert machine.entries(restored) == machine.entries(index)
(place / "closed").chmod(0o700)
modes = {path.decode(): oct(seen[1]) for path, seen in oracle.read(place).items()}
assert modes["readonly"] == modes["readonly/sub"] == "0o555", modes
assert (modes["f"], modes["large"], modes["secret"]) == ("0o444", "0o400", "0o640"), modes
assert (place / "secret").read_bytes() == b"secret"
print("well")
"""


def test_users_who_are_not_root() -> None:
    # Not below tmp_path, which only its owner may enter.
    base = Path(tempfile.mkdtemp())
    try:
        if os.getuid() == 0:
            os.chown(base, 1000, 1000)
        here = Path(__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent / "python")])}
        done = subprocess.run(
            [sys.executable, "-c", NOBODY, base], capture_output=True, text=True, env=environment, check=False
        )
        assert (done.stdout, done.stderr) == ("well\n", "")
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", base], check=True)
        subprocess.run(["rm", "-rf", base], check=True)
