"""The lock on a state folder, whatever a bot does to the files in it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest

from the0 import names
from the0.errors import ExitCode, Fatal
from the0.sync.local import StateFolder
from the0.sync.lock import hold_lock, is_free


def test_one_at_a_time_and_free_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert is_free(str(state))
    assert not state.exists(), "asking makes nothing"
    held = hold_lock(str(state))
    assert not is_free(str(state))
    with pytest.raises(Fatal) as caught:
        hold_lock(str(state))
    assert caught.value.code is ExitCode.RUNNING_HERE
    os.close(held)
    assert is_free(str(state))


@pytest.mark.parametrize("planted", ["nothing", "file", "folder", "fifo", "link"])
def test_what_stands_in_the_reserved_folder_changes_nothing(tmp_path: Path, planted: str) -> None:
    held = hold_lock(str(tmp_path))
    reserved = tmp_path / names.RESERVED_DIR
    shutil.rmtree(reserved, ignore_errors=True)
    if planted != "nothing":
        reserved.mkdir()
    target = reserved / names.LOCK
    if planted == "file":
        target.touch()
    elif planted == "folder":
        target.mkdir()
    elif planted == "fifo":
        os.mkfifo(target)
    elif planted == "link":
        target.symlink_to("/dev/zero")
    assert not is_free(str(tmp_path))
    os.close(held)
    os.close(hold_lock(str(tmp_path)))


def test_a_file_system_that_locks_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS does; none can be mounted here."""
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    held = hold_lock(str(tmp_path))
    assert not is_free(str(tmp_path))
    os.close(held)
    assert is_free(str(tmp_path))
    (tmp_path / names.RESERVED_DIR / names.LOCK).unlink()
    (tmp_path / names.RESERVED_DIR / names.LOCK).mkdir()
    with pytest.raises(Fatal, match=r"\.the0/lock cannot be opened .*: it is the runtime's own; remove") as caught:
        hold_lock(str(tmp_path))
    assert caught.value.code is ExitCode.LOCAL_DISK


@pytest.mark.parametrize("act", ["list", "set aside"])
def test_no_folder_where_set_aside_trees_belong(tmp_path: Path, act: str) -> None:
    (tmp_path / "tree").touch()
    with StateFolder(str(tmp_path)) as folder:
        (tmp_path / names.RESERVED_DIR / names.ASIDE).symlink_to("/etc")
        with pytest.raises(Fatal, match=r"\.the0/aside is no folder.*: remove it") as caught:
            folder.asides() if act == "list" else folder.set_aside("why")
    assert caught.value.code is ExitCode.LOCAL_DISK
    assert (tmp_path / "tree").exists()


def test_a_start_waits_for_a_holder_that_is_just_dying(tmp_path: Path) -> None:
    held = hold_lock(str(tmp_path))
    leaving = threading.Timer(0.1, os.close, [held])
    leaving.start()
    os.close(hold_lock(str(tmp_path), wait_s=60))
    leaving.join()
