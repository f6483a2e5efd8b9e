"""Files that others may tamper with: links, FIFOs, devices, swaps while we look, kill -9 while we write."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from the0 import files
from the0.errors import ExitCode


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    with files.folder(str(tmp_path)) as fd:
        yield fd


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(OSError) as refused:
        call()
    assert refused.value.errno is not None
    return refused.value.errno


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


def as_nobody(work: Callable[[], None]) -> None:
    """Runs `work` in a child without root's power over modes, if we have it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - the exit code tells the parent
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def open_to_nobody(path: Path) -> None:
    path.chmod(0o777)
    for folder in path.parents:
        if folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o001 == 0:
            folder.chmod(0o711)


# --- opening beneath -----------------------------------------------------------------------------


def test_a_regular_file_is_read(tmp_path: Path, root: int) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"content")
    assert files.read_beneath(root, "a/b/c", limit_bytes=7) == b"content"
    assert files.read_beneath(root, "a//b/c", limit_bytes=100) == b"content"


def test_reading_is_bounded(tmp_path: Path, root: int) -> None:
    (tmp_path / "large").write_bytes(b"x" * 3_000_000)
    assert refusal(lambda: files.read_beneath(root, "large", limit_bytes=2_999_999)) == errno.EFBIG
    assert len(files.read_beneath(root, "large", limit_bytes=3_000_000)) == 3_000_000
    (tmp_path / "empty").touch()
    assert files.read_beneath(root, "empty", limit_bytes=0) == b""


@pytest.mark.parametrize("path", ["", "/", "/etc/passwd", "..", "../x", "a/../b", ".", "./a", "a/.", "a/./b"])
def test_paths_that_leave_or_name_nothing_are_refused(tmp_path: Path, root: int, path: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("x")
    assert refusal(lambda: files.read_beneath(root, path, limit_bytes=9)) == errno.EINVAL


def test_no_link_is_followed_in_any_part(tmp_path: Path, root: int) -> None:
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "real/inner/file").write_text("secret")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "real/up").symlink_to("inner")
    (tmp_path / "file").symlink_to("real/inner/file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "proc").symlink_to("/proc/self/environ")
    for path in ("folder/inner/file", "real/up/file", "file", "dangling", "proc"):
        assert refusal(lambda path=path: files.read_beneath(root, path, limit_bytes=99)) in (errno.ELOOP, errno.ENOTDIR)
    for path in ("folder", "folder/inner", "real/up"):
        assert refusal(lambda path=path: files.open_folder_beneath(root, path)) in (errno.ELOOP, errno.ENOTDIR)
    created = os.O_WRONLY | os.O_CREAT
    assert refusal(lambda: files.open_beneath(root, "dangling", created)) == errno.ELOOP
    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_regular_file_is_refused_and_never_blocks(tmp_path: Path, root: int) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        # Bound by a short relative name: the folder's own may be too long for a socket.
        before = os.getcwd()
        os.chdir(tmp_path)
        listening.bind("socket")
        os.chdir(before)
        assert refusal(lambda: files.read_beneath(root, "fifo", limit_bytes=9)) == errno.EINVAL
        assert refusal(lambda: files.open_beneath(root, "fifo", os.O_WRONLY)) == errno.ENXIO
        assert refusal(lambda: files.open_beneath(root, "fifo", os.O_RDWR)) == errno.EINVAL
        assert refusal(lambda: files.read_beneath(root, "folder", limit_bytes=9)) == errno.EINVAL
        assert refusal(lambda: files.read_beneath(root, "socket", limit_bytes=9)) == errno.ENXIO


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
def test_devices_are_refused(tmp_path: Path, root: int) -> None:
    os.mknod(tmp_path / "zero", 0o666 | 0o020000, os.makedev(1, 5))
    assert refusal(lambda: files.read_beneath(root, "zero", limit_bytes=9)) in (errno.EINVAL, errno.EACCES)


def test_folders_are_made_beneath(tmp_path: Path, root: int) -> None:
    os.close(files.open_folder_beneath(root, "x/y/z", create=True, mode=0o750))
    os.close(files.open_folder_beneath(root, "x/y/z", create=True))
    assert (tmp_path / "x/y/z").is_dir()
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o750
    (tmp_path / "x/file").touch()
    assert refusal(lambda: files.open_folder_beneath(root, "x/file", create=True)) == errno.ENOTDIR
    (tmp_path / "x/link").symlink_to(tmp_path)
    assert refusal(lambda: files.open_folder_beneath(root, "x/link/q", create=True)) in (errno.ENOTDIR, errno.ELOOP)
    assert not (tmp_path / "q").exists()
    fd = files.open_folder_beneath(root, "")
    os.close(fd)


def test_a_part_that_is_swapped_while_we_look_never_leads_out(tmp_path: Path, root: int) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder, content in ((inside, "mine"), (outside, "secret")):
        folder.mkdir()
        (folder / "file").write_text(content)
    done = threading.Event()

    def swap() -> None:
        # A folder and a link to a foreign folder change places under one name, as fast as they can.
        real, link = tmp_path / "real", tmp_path / "link"
        inside.rename(real)
        link.symlink_to(outside)
        while not done.is_set():
            link.rename(inside)
            inside.rename(link)
            real.rename(inside)
            inside.rename(real)

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes: set[bytes | int | None] = set()
    for _ in range(3000):
        try:
            outcomes.add(files.read_beneath(root, "inside/file", limit_bytes=99))
        except OSError as reason:
            outcomes.add(reason.errno)
    done.set()
    swapper.join()
    assert b"secret" not in outcomes
    assert outcomes <= {b"mine", errno.ENOENT, errno.ELOOP, errno.ENOTDIR}


# --- writing whole -------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_whole(tmp_path: Path, root: int, durable: bool) -> None:
    files.write_atomic(root, "file", b"first", durable=durable)
    files.write_atomic(root, "file", b"second", mode=0o600, durable=durable)
    assert (tmp_path / "file").read_bytes() == b"second"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path, root: int) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "file").symlink_to("target")
    files.write_atomic(root, "file", b"new")
    assert (tmp_path / "target").read_text() == "kept"
    assert not (tmp_path / "file").is_symlink()


def test_a_name_of_255_bytes(tmp_path: Path, root: int) -> None:
    for name in ("x" * 255, "é" * 127):
        files.write_atomic(root, name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"


def test_a_folder_in_the_way_is_an_error_and_nothing_stays_behind(tmp_path: Path, root: int) -> None:
    (tmp_path / "file/inner").mkdir(parents=True)
    assert refusal(lambda: files.write_atomic(root, "file", b"new")) == errno.EISDIR
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small disk")
    try:
        with files.folder(str(small)) as fd:
            files.write_atomic(fd, "file", b"old")
            assert refusal(lambda: files.write_atomic(fd, "file", b"x" * 100_000)) == errno.ENOSPC
        assert os.listdir(small) == ["file"]
        assert (small / "file").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_kill_9_while_writing_leaves_the_old_or_the_new(tmp_path: Path, root: int) -> None:
    source = f"""
import itertools, os, sys
from the0 import files
from the0.errors import ExitCode
with files.folder({str(tmp_path)!r}) as fd:
    for n in itertools.count():
        files.write_atomic(fd, "file", b"%08d" % n * 50_000, durable=n % 2 == 0)
        os.write(1, b".")
"""
    dice = random.Random(1)
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.read(dice.randrange(1, 12))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        content = files.read_beneath(root, "file", limit_bytes=1_000_000)
        assert content == content[:8] * 50_000
    # What a killed writer leaves behind is a hidden temporary file at most.
    left = [name for name in os.listdir(tmp_path) if name != "file"]
    assert all(name.startswith(".file.") and name.endswith(".tmp") for name in left)


# --- removing ------------------------------------------------------------------------------------


def deep_tree(path: Path, *, depth: int, width: int = 1) -> None:
    fd = os.open(path, os.O_RDONLY)
    for level in range(depth):
        for n in range(width):
            os.close(os.open(f"file{n}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.mkdir(f"d{level}", dir_fd=fd)
        inner = os.open(f"d{level}", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def test_removing_follows_no_link(tmp_path: Path, root: int) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").touch()
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/out").symlink_to(tmp_path / "outside")
    (tmp_path / "tree/out").symlink_to("../outside")
    os.mkfifo(tmp_path / "tree/fifo")
    (tmp_path / "link").symlink_to("outside")
    for name in ("tree", "link", "missing"):
        files.remove_tree(root, name)
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert os.listdir(tmp_path / "outside") == ["kept"]


def test_a_tree_of_any_depth_is_removed(tmp_path: Path, root: int) -> None:
    (tmp_path / "tree").mkdir()
    deep_tree(tmp_path / "tree", depth=2000, width=2)
    files.remove_tree(root, "tree")
    assert os.listdir(tmp_path) == []


def test_a_tree_of_many_branches_is_removed(tmp_path: Path, root: int) -> None:
    for a in range(6):
        for b in range(6):
            (tmp_path / f"tree/{a}/{b}/x/y").mkdir(parents=True)
            (tmp_path / f"tree/{a}/{b}/x/file").touch()
    files.remove_tree(root, "tree")
    assert os.listdir(tmp_path) == []


def test_unreadable_folders_are_removed_without_root(tmp_path: Path) -> None:
    def work() -> None:
        (tmp_path / "tree").mkdir()
        deep_tree(tmp_path / "tree", depth=60)
        for n, mode in enumerate((0o000, 0o100, 0o300, 0o400, 0o500, 0o600)):
            (tmp_path / f"tree/m{n}/inner/most").mkdir(parents=True)
            (tmp_path / f"tree/m{n}/inner/most/file").touch()
            for path in (f"m{n}/inner/most", f"m{n}/inner", f"m{n}"):
                (tmp_path / "tree" / path).chmod(mode)
        (tmp_path / "tree").chmod(0o000)
        with files.folder(str(tmp_path)) as fd:
            files.remove_tree(fd, "tree")
        assert os.listdir(tmp_path) == []

    open_to_nobody(tmp_path)
    as_nobody(work)


def test_files_that_appear_while_a_tree_is_removed(tmp_path: Path, root: int) -> None:
    """A bot that still writes must not make the removal fail for good; it may be repeated."""
    (tmp_path / "tree").mkdir()
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            for n in range(20):
                try:
                    (tmp_path / f"tree/sub{n % 3}").mkdir(exist_ok=True)
                    (tmp_path / f"tree/sub{n % 3}/f{n}").touch()
                except OSError:
                    pass  # its folder was removed under it

    writer = threading.Thread(target=write)
    errors: set[int | None] = set()
    writer.start()
    try:
        for _ in range(20):
            try:
                files.remove_tree(root, "tree")
            except OSError as reason:
                errors.add(reason.errno)
    finally:
        done.set()
        writer.join()
    assert errors <= {errno.ENOTEMPTY}
    files.remove_tree(root, "tree")
    assert os.listdir(tmp_path) == []


def test_a_link_put_in_a_folders_place_is_not_made_readable(tmp_path: Path) -> None:
    """The window between `open` refused and the change of mode, by hand."""

    def work() -> None:
        ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE, as the runtime's own processes are
        outside = tmp_path / "outside"
        outside.mkdir(mode=0o500)
        (tmp_path / "tree").symlink_to("outside")
        (tmp_path / "real").mkdir(mode=0o000)
        with files.folder(str(tmp_path)) as fd:
            assert refusal(lambda: files._chmod(fd, "tree", 0o700)) == errno.ELOOP
            files._chmod(fd, "real", 0o711)
        assert outside.stat().st_mode & 0o777 == 0o500
        assert (tmp_path / "real").stat().st_mode & 0o777 == 0o711

    open_to_nobody(tmp_path)
    as_nobody(work)


# --- moving, and what a person reads when the disk fails ------------------------------------------


def test_a_read_only_folder_is_moved_and_keeps_its_mode(tmp_path: Path) -> None:
    def work() -> None:
        for name in ("from", "to"):
            (tmp_path / name).mkdir()
        (tmp_path / "from/locked").mkdir()
        (tmp_path / "from/locked/file").write_text("x")
        (tmp_path / "from/locked").chmod(0o500)
        with files.folder(str(tmp_path / "from")) as source, files.folder(str(tmp_path / "to")) as target:
            files.move("locked", source, target)
        assert (tmp_path / "to/locked").stat().st_mode & 0o777 == 0o500
        assert (tmp_path / "to/locked/file").read_text() == "x"

    open_to_nobody(tmp_path)
    as_nobody(work)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device; free some space, then start again.",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/x\n"), "Read-only file system (/x\\n); mount it writable, "),
        (OSError(errno.EIO, "Input/output error", b"/y\xff"), "Input/output error (/y\\udcff); look at the disk, "),
        (OSError("odd"), "odd; look at the disk, then start again."),
    ],
)
def test_a_disk_fault_says_what_to_do(reason: OSError, said: str) -> None:
    fault = files.disk_fault(reason, "restoring state")
    assert fault.sentence.startswith(f"While restoring state, the local disk failed: {said}")
    assert "\n" not in fault.sentence
    assert fault.code == ExitCode.LOCAL_DISK
