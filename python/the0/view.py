"""A private view of this machine's files for one bot: `/bot`, `/state`, `/query`, `/tmp` and `/var/the0` are its own
folders, as in a container, so that the absolute paths of earlier SDKs work; the platform's data folder is not there.

Made of mount namespaces, as root or, where the kernel allows it to everybody, within a user namespace. Two steps:
`enter` is for the supervisor, who still needs the store; `confine` for the bot's own process, last before its program.
This keeps bots from writing to each other and to the machine by mistake or by simple means; it is no border against an attacker.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Final

STORE: Final = "/.the0"
"""Where the supervisor finds the object store; not there for the bot."""
TEMPORARY: Final = "/var/the0/tmp"
"""In place of `/tmp` where that is the machine's."""
OWN: Final = ("/bot", "/state", "/query", "/tmp", "/var/the0", TEMPORARY)
CONFINED: Final = "the0-view"
"""Name of the file system at `/` of such a view."""

_NEWNS, _NEWUSER = 0x20000, 0x10000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_DETACH = 2
_PIVOT_ROOT: Final[Mapping[str, int]] = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "armv7l": 218, "s390x": 217}
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_CAPBSET_DROP = 24
_CAPABILITY_3 = 0x20080522
_PROBE_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def enter(folders: Mapping[str, str], *, store: str, hidden: str, root: str) -> None:
    """This process, which has one thread, and all it starts get a view of their own. `folders`: which folder is to be found at which
    path of OWN (`/tmp` may be left out); `store` is found at STORE; `hidden` is not there. `root`: any empty folder; it stays
    empty. OSError where this machine does not let us."""
    _unshare()
    _mount(None, "/", None, _REC | _PRIVATE)
    sources = {target: _handle(source) for target, source in {**folders, STORE: store}.items()}
    _mount(CONFINED, root, "tmpfs", _NOSUID | _NODEV, "mode=0755,size=1m")
    try:
        _fill(root, above="/", left_out=sources)
        for target, handle in sorted(sources.items()):
            os.makedirs(root + target, exist_ok=True)
            _mount(f"/proc/self/fd/{handle}", root + target, None, _BIND)
    finally:
        for handle in sources.values():
            os.close(handle)
    if os.path.isdir(root + hidden):
        _mount("none", root + hidden, "tmpfs", _RDONLY | _NOSUID | _NODEV, "mode=0555,size=4k")
    former = root + "/.former"
    os.mkdir(former)
    _pivot_root(root, former)
    os.chdir("/")
    _checked(_libc.umount2(b"/.former", _DETACH), "/.former")
    os.rmdir("/.former")


def _fill(root: str, *, above: str, left_out: Iterable[str]) -> None:
    """What lies in the machine's folder `above` appears in the new root, but for the paths left out."""
    for name in os.listdir(above):
        path = os.path.join(above, name)
        if path in left_out:
            continue
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif not os.path.isdir(path):
            os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            _mount(path, root + path, None, _BIND)
        else:
            os.mkdir(root + path)
            if any(each.startswith(path + "/") for each in left_out):
                _fill(root, above=path, left_out=left_out)
            else:
                _mount(path, root + path, None, _BIND | _REC)


def is_private() -> bool:
    """Whether this process is in such a view, and may still change it."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split()
                if fields[4] == "/":
                    return CONFINED in fields[fields.index("-") :]
    except OSError:
        pass  # no /proc: then it was not us who made this view
    return False


def confine() -> None:
    """For a process of the bot's, last before its program: the store goes out of sight, everything but OWN is read-only, and
    no capability is left. OSError where that fails: then the program must not start."""
    _checked(_libc.unshare(_NEWNS), "unshare")
    _checked(_libc.umount2(STORE.encode(), _DETACH), STORE)
    _mount("none", "/dev/shm", "tmpfs", _NOSUID | _NODEV, "mode=1777")
    if _set_read_only("/", recursive=True, read_only=True):
        for path in (*OWN, "/dev/shm"):
            try:
                _set_read_only(path, recursive=False, read_only=False)
            except OSError as reason:
                if reason.errno not in (errno.EINVAL, errno.ENOENT):  # nothing is mounted there
                    raise
    drop_capabilities()


def drop_capabilities() -> None:
    """All of them, for this process and what it executes."""
    number = 0
    while _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0) == 0:
        number += 1
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _checked(_libc.capset(header, nothing), "capset")


def why_not(folder: str) -> str | None:
    """None where this machine gives views; else why not. Tries it, in a process of its own, below `folder`."""
    import subprocess  # not at every start of a bot
    import tempfile

    with tempfile.TemporaryDirectory(dir=folder, prefix=".view-") as place:
        for name in ("own", "hidden", "store", "root"):
            os.mkdir(os.path.join(place, name))
        try:
            tried = subprocess.run(
                [
                    sys.executable,
                    "-I",
                    "-c",
                    "import sys; from the0 import view; sys.exit(view.probe(sys.stdin.read()))",
                ],
                input=place,
                capture_output=True,
                text=True,
                timeout=_PROBE_S,
                check=False,
                cwd="/",
            )
        except (OSError, subprocess.TimeoutExpired) as reason:
            return str(reason)
    if tried.returncode == 0:
        return None
    return (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]


def probe(place: str) -> int:
    """Tries it for this process, in a folder prepared by `why_not`; an exit code."""
    try:
        own = os.path.join(place, "own")
        enter(
            {path: own for path in OWN if path not in ("/tmp", TEMPORARY)},
            store=os.path.join(place, "store"),
            hidden=os.path.join(place, "hidden"),
            root=os.path.join(place, "root"),
        )
        if not is_private():
            raise OSError(errno.EINVAL, "the new root is not ours")
        confine()
        os.mkdir("/state/written")
        os.rmdir("/state/written")
    except OSError as reason:
        print(f"{reason.strerror} ({reason.filename})", file=sys.stderr)
        return 1
    return 0


def _handle(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _unshare() -> None:
    if _libc.unshare(_NEWNS) == 0:
        return
    uid, gid = os.getuid(), os.getgid()
    _checked(_libc.unshare(_NEWNS | _NEWUSER), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    told = [os.fsencode(each) if each is not None else None for each in (source, target, kind, options)]
    _checked(_libc.mount(told[0], told[1], told[2], ctypes.c_ulong(flags), told[3]), target)


def _pivot_root(root: str, former: str) -> None:
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "pivot_root")
    _checked(_libc.syscall(number, os.fsencode(root), os.fsencode(former)), "pivot_root")


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _set_read_only(path: str, *, recursive: bool, read_only: bool) -> bool:
    """False where the kernel is too old to know (before 5.12)."""
    told = _MountAttributes(set=_RDONLY if read_only else 0, clear=0 if read_only else _RDONLY)
    done = _libc.syscall(
        _MOUNT_SETATTR,
        _AT_FDCWD,
        os.fsencode(path),
        ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
        ctypes.byref(told),
        ctypes.c_size_t(ctypes.sizeof(told)),
    )
    if done != 0 and ctypes.get_errno() == errno.ENOSYS:
        return False
    _checked(done, path)
    return True


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
