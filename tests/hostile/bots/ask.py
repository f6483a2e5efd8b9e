"""A query's process that leaves something else than an answer, looks around, and does not go."""

import json
import os
import signal
import time

RESULT = "/query/result.json"
CONFIG = json.loads(os.environ["BOT_CONFIG"])


def link(target):
    os.symlink(target, RESULT)


def opened(path):
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20).decode(errors="replace")
    except OSError as refused:
        return type(refused).__name__


def answer(data):
    with open(RESULT, "w") as file:
        json.dump({"status": "ok", "data": data}, file)


def look():
    above = os.getppid()
    return {
        name: opened(f"/proc/{above}/{name}") for name in ("environ", "mem", "maps", "fd/0", f"task/{above}/environ")
    }


def write_state():
    told = []
    state = os.path.dirname(os.environ["STATE_DIR"])
    for path in (
        CONFIG["state"] + "/.the0-state/kept.json",
        CONFIG["state"] + "/new",
        CONFIG["state"] + "/.the0/index",
        state + "/.the0-state/kept.json",
    ):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write("999")
            told.append("written")
        except OSError as refused:
            told.append(type(refused).__name__)
    return told


def swap():
    """The answer exchanged with a link, for ever, by a process that stays."""
    answer("mine")
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.symlink("/proc/self/environ", RESULT + ".link")
        import ctypes

        libc = ctypes.CDLL(None)
        while True:
            libc.syscall(316, -100, RESULT.encode(), -100, (RESULT + ".link").encode(), 2)
    time.sleep(0.05)


act = os.environ["QUERY_PATH"].lstrip("/")
if act == "environ":
    link("/proc/self/environ")
elif act == "neighbour":
    link(CONFIG["neighbour"] + "/state/.the0-state/cash.json")
elif act == "endless":
    link("/dev/zero")
elif act == "fifo":
    os.mkfifo(RESULT)
elif act == "folder":
    os.makedirs(RESULT + "/within")
elif act == "large":
    with open(RESULT, "wb") as file:
        file.truncate(1 << 40)
elif act == "look":
    answer(look())
elif act == "state":
    answer(write_state())
elif act == "swap":
    swap()
