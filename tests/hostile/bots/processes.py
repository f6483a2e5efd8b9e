"""Processes that are hard to end, and signals to those of the runtime."""

import ctypes
import fcntl
import os
import resource
import signal
import time

from tools import CONFIG, LIBC, STATE, SUPERVISOR, attempt, call, eventually, found, remember, stored, sync, tell


def daemonise(*, forging):
    """Double fork, a session of its own, deaf to SIGTERM; the innermost one writes for ever."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for fd in (0, 1, 2):
        os.close(fd)
    number = 0
    while True:
        number += 1
        with open(f"{STATE}/daemon", "w") as file:
            file.write(str(number))
        for record in ("exit.json", "done") if forging else ():
            with open(os.path.join(CONFIG["run_dir"], record), "w") as file:
                file.write("forged")
        time.sleep(0.002)


def state_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def daemons(_):
    for _ in range(5):
        daemonise(forging=True)
    eventually(lambda: os.path.exists(f"{STATE}/daemon"))


def deaf(_):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    print("deaf", flush=True)
    while True:
        time.sleep(1)


def stop_sync(_):
    """SIGSTOP, then state that has to be stored all the same."""
    pid = sync()
    stored()
    for _ in range(20):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.01)
    remember(2)
    found["went on"] = eventually(lambda: state_of(pid) not in "Tt")


def stop_sync_for_ever(_):
    pid = sync()
    print("stopping", flush=True)
    while True:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            pid = sync(but=(pid,))
        time.sleep(0.005)


def signal_sync(_):
    """Each signal there is, to the sync process; those that end it are another's business."""
    pid = sync()
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGPIPE,
        signal.SIGWINCH,
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGURG,
    ):
        os.kill(pid, number)
    time.sleep(0.2)
    found["same"] = sync() == pid


def kill_supervisor(_):
    daemonise(forging=False)
    eventually(lambda: os.path.exists(f"{STATE}/daemon"))
    with open(f"{STATE}/ready", "w"):
        pass
    stored()
    os.kill(SUPERVISOR, signal.SIGKILL)
    while True:
        time.sleep(1)


def stop_supervisor(_):
    print("stopping it", flush=True)
    os.kill(SUPERVISOR, signal.SIGSTOP)
    while True:
        time.sleep(0.1)


def close_output(_):
    for fd in (0, 1, 2):
        os.close(fd)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    time.sleep(0.3)
    remember(2)


def bomb(config):
    """Forks until nothing more goes, each child as well; the sync process is killed meanwhile."""
    begin = time.monotonic()
    pid = sync()
    forks = 0
    killed = False
    main = os.getpid()
    while time.monotonic() - begin < config["seconds"]:
        try:
            child = os.fork()
        except OSError:
            found["limited"] = True
            if not killed and os.getpid() == main:
                killed = True
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
            continue
        forks += 1
        if child == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.getpid() != main:
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
    found["forks"] = forks


def limits(config):
    """Of the runtime's processes: the kernel lets a user set those of all that are its own."""
    for process, pid in (("supervisor", SUPERVISOR), ("sync", sync())):
        for name in config["names"]:
            found[f"{process} {name}"] = attempt(resource.prlimit, pid, getattr(resource, name), (0, 0))
    stored()


PTRACE_TRACEME, PTRACE_SEIZE = 0, 0x4206


def traced_by_us(_):
    """The supervisor is made this process's tracer again after each signal: whoever traces is told of all of them."""
    found["traced"] = attempt(call, LIBC.ptrace(PTRACE_TRACEME, 0, None, None))
    for number in (signal.SIGCHLD, signal.SIGURG, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP):
        os.kill(os.getpid(), number)
        if number not in (signal.SIGSTOP, signal.SIGTSTP):
            LIBC.ptrace(PTRACE_TRACEME, 0, None, None)
            continue
        break
    found["went on"] = True


def traced_for_ever(config):
    """The same again and again, by many: the supervisor has nothing else to do, if it lets itself be kept."""
    for _ in range(8):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                LIBC.ptrace(PTRACE_TRACEME, 0, None, None)
                os.kill(os.getpid(), signal.SIGURG)
    if os.fork() == 0:
        LIBC.ptrace(PTRACE_TRACEME, 0, None, None)
        os.execv("/bin/true", ["true"])
    print("traced", flush=True)
    end = time.monotonic() + config["seconds"]
    while time.monotonic() < end:
        LIBC.ptrace(PTRACE_TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGURG)
    found["went on"] = True


def held_back(_):
    """A process in a session of its own traces this one: whoever is its parent learns of its death only when that one looks."""
    LIBC.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, any
    main = os.getpid()
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(theirs, str(attempt(call, LIBC.ptrace(PTRACE_SEIZE, main, None, None))).encode())
        while True:
            time.sleep(60)
    found["held"] = os.read(ours, 100).decode()
    tell()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("held", flush=True)
    while True:
        time.sleep(60)


def take_all(config):
    """What the kernel counts for a user as a whole: inotify instances and watches, memory of pipes, signals that wait."""
    taken = {"inotify": 0, "watches": 0, "pipes": 0, "signals": 0}
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    while (fd := LIBC.inotify_init1(0)) != -1 and taken["inotify"] < 10_000:
        taken["inotify"] += 1
        last = fd
    os.mkdir(f"{STATE}/watched")
    while taken["watches"] < config["watches"]:
        path = f"{STATE}/watched/{taken['watches']}"
        os.mkdir(path)
        if LIBC.inotify_add_watch(last, path.encode(), 0x100) == -1:
            break
        taken["watches"] += 1
    for _ in range(400):
        try:
            _, end = os.pipe()
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 1 << 20)
            taken["pipes"] += 1
        except OSError:
            break
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    while taken["signals"] < 200_000 and LIBC.sigqueue(os.getpid(), int(signal.SIGRTMIN), None) == 0:
        taken["signals"] += 1
    found["taken"] = taken
    pid = sync()
    os.kill(pid, signal.SIGKILL)
    sync(but=(pid,))
    print("taken", flush=True)
    remember(2)
    stored()
    print("x" * 100_000, flush=True)


def lease(_):
    """Whoever opens a leased file waits for whoever holds the lease, up to 45 s (fs.lease-break-time), for each anew."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    os.makedirs(os.environ["STATE_DIR"], exist_ok=True)
    for path in (f"{STATE}/leased", f"{os.environ['STATE_DIR']}/leased.json"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.write(fd, b"1")
        found[path] = attempt(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    tell()
    print("leased", flush=True)
    remember(2)
    while True:
        time.sleep(60)


def stay(_):
    stored()
    print("here", flush=True)
    while True:
        time.sleep(60)


def main(_, config):
    remember(1)
    found["started"] = True
    tell()
    globals()[config["act"]](config)
    tell()
