"""Looks into every process that it can see, in every way there is."""

import ctypes
import http.client
import os
import resource
import signal
import time

from tools import CONFIG, LIBC, STATE, SUPERVISOR, attempt, call, found, keep, processes, remember, sync, tell

READABLE = (
    "environ",
    "cmdline",
    "maps",
    "smaps",
    "auxv",
    "stack",
    "syscall",
    "io",
    "status",
    "stat",
    "cgroup",
    "mountinfo",
    "numa_maps",
    "pagemap",
    "timers",
    "limits",
    "wchan",
    "net/tcp",
    "net/unix",
)
CLOSED = (
    "environ",
    "maps",
    "smaps",
    "auxv",
    "mem",
    "fd",
    "fdinfo",
    "map_files",
    "root",
    "cwd",
    "exe",
    "pagemap",
    "ptrace",
    "seize",
    "process_vm_readv",
    "pidfd_getfd",
)
PTRACE_ATTACH, PTRACE_DETACH, PTRACE_SEIZE = 16, 17, 0x4206
SYS = {"process_vm_readv": 310, "pidfd_open": 434, "pidfd_getfd": 438}


class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


def read(pid, name):
    with open(f"/proc/{pid}/{name}", "rb") as file:
        data = file.read(1 << 16)
    keep(f"{pid} {name}\n".encode() + data)
    return None if data else "empty"


def listed(pid, name):
    for entry in os.listdir(f"/proc/{pid}/{name}"):
        keep(f"{pid} {name} {entry} {attempt(os.readlink, f'/proc/{pid}/{name}/{entry}')}".encode())
        attempt(reopen, f"/proc/{pid}/{name}/{entry}")


def reopen(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        keep(os.read(fd, 65536))
    finally:
        os.close(fd)


def reach(path):
    os.stat(path)


def memory(pid):
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            span, rights, *_ = line.split()
            if rights.startswith("rw"):
                begin, end = (int(part, 16) for part in span.split("-"))
                try:
                    keep(os.pread(fd, min(end - begin, 1 << 16 if pid == os.getpid() else 1 << 24), begin))
                except OSError:
                    continue


def attach(pid, request):
    call(LIBC.ptrace(request, pid, None, None))
    try:
        memory(pid)
    finally:
        LIBC.ptrace(PTRACE_DETACH, pid, None, None)


def vm_read(pid):
    buffer = ctypes.create_string_buffer(4096)
    here = Piece(ctypes.addressof(buffer), 4096)
    with open("/proc/self/maps") as maps:  # the same program without address randomisation, or a guess
        begin = int(maps.readline().split("-")[0], 16)
    there = Piece(begin, 4096)
    call(LIBC.syscall(SYS["process_vm_readv"], pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))
    keep(buffer.raw)


def steal_descriptor(pid):
    pidfd = call(LIBC.syscall(SYS["pidfd_open"], pid, 0))
    for fd in range(32):
        got = LIBC.syscall(SYS["pidfd_getfd"], pidfd, fd, 0)
        if got >= 0:
            keep(f"descriptor {fd} of {pid}: {os.readlink(f'/proc/self/fd/{got}')}".encode())
            return "allowed"
    return call(-1)


def look(pid):
    got = {name: attempt(read, pid, name) for name in READABLE}
    for name in ("fd", "fdinfo", "map_files", "task"):
        got[name] = attempt(listed, pid, name) if name != "task" else attempt(read, pid, f"task/{pid}/environ")
    for name in ("root", "cwd", "exe"):
        got[name] = attempt(reach, f"/proc/{pid}/{name}/")
    got["mem"] = attempt(memory, pid)
    got["ptrace"] = attempt(attach, pid, PTRACE_ATTACH)
    got["seize"] = attempt(attach, pid, PTRACE_SEIZE)
    got["process_vm_readv"] = attempt(vm_read, pid)
    got["pidfd_getfd"] = attempt(steal_descriptor, pid)
    return got


def closed(pid):
    """What of the ways that must be closed was open."""
    got = look(pid)
    return {name: got[name] for name in CLOSED if not str(got[name]).startswith("refused: PermissionError")}


def in_a_user_namespace(pid):
    """With all capabilities, but in a namespace of its own."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            told = attempt(lambda: call(LIBC.unshare(0x10000000 | 0x00020000)))
            os.write(write_fd, repr((told, closed(pid))).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    os.waitpid(child, 0)
    return os.read(read_fd, 65536).decode()


def argv(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().decode()


def dump(pid):
    """Asks for a core file and makes the process crash."""
    got = attempt(lambda: resource.prlimit(pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2) and None)
    os.kill(pid, signal.SIGABRT)
    return got


def ask(path):
    """The store, without credentials."""
    connection = http.client.HTTPConnection(CONFIG["endpoint"], timeout=5)
    connection.request("GET", path)
    reply = connection.getresponse()
    keep(reply.read(1 << 20))
    return reply.status


def everybody():
    for pid in processes():
        if pid != os.getpid():
            for name in ("environ", "cmdline"):
                attempt(read, pid, name)
            attempt(memory, pid)
            attempt(listed, pid, "fd")


def descriptors():
    """Those that were there before it opened any."""
    with os.scandir("/proc/self/fd") as entries:
        open_now = {entry.name: os.readlink(entry.path) for entry in entries}
    return {fd: target for fd, target in open_now.items() if not target.endswith(f"/{os.getpid()}/fd")}


def main(bot_id, _):
    found["descriptors"] = descriptors()
    remember(1)
    first = sync()
    found["uid"] = os.getuid()
    found["itself"] = {name: look(os.getpid())[name] for name in ("environ", "maps", "mem", "fd")}
    found["supervisor"], found["sync"] = closed(SUPERVISOR), closed(first)
    found["in a user namespace"] = in_a_user_namespace(first)
    found["argv"] = [argv(pid) for pid in (SUPERVISOR, first)]
    everybody()
    buckets = CONFIG["buckets"]
    found["store"] = [
        ask(path)
        for path in (
            "/",
            f"/{buckets['state']}?list-type=2",
            f"/{buckets['state']}/{CONFIG['neighbour_id']}/HEAD",
            f"/{buckets['code']}/{bot_id}",
        )
    ]
    found["core"] = dump(first)
    second = sync(but=(first,))
    found["sync again"] = closed(second)
    time.sleep(0.1)
    found["core files"] = [
        name for folder in ("/", "/tmp", os.getcwd(), STATE) for name in os.listdir(folder) if name.startswith("core")
    ]
    tell()
