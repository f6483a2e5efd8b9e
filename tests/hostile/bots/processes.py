"""Processes that are hard to end, and signals to those of the runtime."""

import os
import resource
import signal
import time

from tools import CONFIG, STATE, SUPERVISOR, attempt, eventually, found, remember, stored, sync, tell


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
