"""A file system of a host's own, on a loop device over memory: it can fill up, go read-only, lose blocks, or be had as it was at one
instant, as after a power loss. All of it happens in the kernel; nothing is imitated above it."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

MIB = 48
BLOCK_BYTES = 4096


class Disk:
    """ext4, mounted at `at` until `close`. Skips the test where nobody may mount one; in CI that is a failure."""

    def __init__(self, at: Path, *, journal: bool = True) -> None:
        self.at = at
        self.device: str | None = None
        at.mkdir(exist_ok=True)
        self._image = _memory()
        features = [] if journal else ["-O", "^has_journal"]
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(BLOCK_BYTES), *features, self._path)
        try:
            self.mount()
        except OSError as reason:
            self.close()
            lacking = f"no file system can be mounted here, which takes root and loop devices: {reason}"
            if os.environ.get("CI"):
                pytest.fail(lacking)
            pytest.skip(lacking)

    @property
    def _path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._image}"

    def mount(self) -> None:
        # Direct, so that a block that is gone is a read error, and what was not written back is not in the image.
        self.device = _run("losetup", "--direct-io=on", "--show", "-f", self._path).strip()
        _run("mount", "-o", "errors=remount-ro", self.device, str(self.at))

    def unmount(self) -> None:
        """What the page cache holds goes to the image, or is lost where that fails."""
        assert self.device is not None
        _run("umount", str(self.at))
        _run("losetup", "-d", self.device)
        self.device = None

    def remount(self) -> None:
        """Nothing of it is in memory any more."""
        assert self.device is not None
        _run("umount", str(self.at))
        _run("mount", "-o", "errors=remount-ro", self.device, str(self.at))

    def close(self) -> None:
        if self.device is not None:
            # Where a step of these fails, there was nothing to do for it.
            subprocess.run(["umount", "--lazy", str(self.at)], check=False, capture_output=True)
            subprocess.run(["losetup", "-d", self.device], check=False, capture_output=True)
            self.device = None
        os.close(self._image)

    def fill(self) -> Path:
        """To the last block; the file to remove."""
        ballast = self.at / "ballast"
        fd = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        try:
            size = 1 << 20
            while size >= 512:
                try:
                    os.write(fd, b"x" * size)
                except OSError:
                    size //= 2
        finally:
            os.close(fd)
        return ballast

    def sync(self) -> None:
        """All of it is on the device."""
        _run("sync", "-f", str(self.at))

    def read_only(self) -> None:
        """As the kernel makes it after an error in the file system; open files stay open."""
        assert self.device is not None
        Path(f"/sys/fs/ext4/{Path(self.device).name}/trigger_fs_error").write_text("1")

    def repair(self) -> None:
        assert self.device is not None
        _run("umount", str(self.at))
        # Its exit code is 1 when it repaired something; what it could not repair is not mounted.
        subprocess.run(["e2fsck", "-fy", self.device], check=False, capture_output=True)
        _run("mount", "-o", "errors=remount-ro", self.device, str(self.at))

    def power_off(self) -> None:
        """The device as it is at this instant, without what is not written back; mounted anew, as after a start of the machine."""
        copy = _memory()
        end = 0
        while (begin := _next(self._image, end, os.SEEK_DATA)) is not None:
            end = _next(self._image, begin, os.SEEK_HOLE) or MIB << 20
            os.pwrite(copy, os.pread(self._image, end - begin, begin), begin)
        self.unmount()
        os.close(self._image)
        self._image = copy
        self.mount()

    def forget(self, path: Path) -> None:
        """What is read of this file from now on comes from the device."""
        self.sync()
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def moved_last(self, path: Path) -> None:
        """That file, as it is, in blocks at the device's end, and none of it in memory."""
        found, content = path.stat(), path.read_bytes()
        ballast, copy = self.at / "ballast", path.with_name(path.name + ".moved")
        room = os.statvfs(self.at)
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - len(content) - (1 << 20))
        copy.write_bytes(content)
        os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
        os.chmod(copy, found.st_mode & 0o7777)
        copy.rename(path)
        self.forget(path)
        ballast.unlink()
        self.sync()

    def break_from(self, path: Path) -> None:
        """The device's blocks from this file's first one on are gone: reading and writing them is EIO."""
        rows = [line.split() for line in _run("filefrag", "-v", f"-b{BLOCK_BYTES}", str(path)).splitlines()]
        first = min(int(row[3].rstrip(".:")) for row in rows if row and row[0].rstrip(":").isdigit())
        assert first > 0
        os.ftruncate(self._image, first * BLOCK_BYTES)
        fcntl.fcntl(self._image, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)


def _memory() -> int:
    fd = os.memfd_create("disk", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, MIB << 20)
    return fd


def _next(fd: int, offset: int, what: int) -> int | None:
    try:
        return os.lseek(fd, offset, what)
    except OSError:
        return None  # nothing more of it up to the end


def _run(*argv: str) -> str:
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as reason:
        raise OSError(f"{' '.join(argv)}: {reason.stderr.strip()}") from reason
