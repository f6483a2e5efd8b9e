"""What the hostile bots share: where they are, whom they see, and how they tell what they got."""

import ctypes
import json
import os
import time

CONFIG = json.loads(os.environ["BOT_CONFIG"])
STATE = os.path.dirname(os.environ["STATE_DIR"])
CODE = os.path.dirname(os.path.abspath(__file__))
SUPERVISOR = os.getppid()
LIBC = ctypes.CDLL(None, use_errno=True)
LOOT = os.path.join(STATE, "loot")
found = {}


def keep(data):
    """Whatever was got: the suite looks for secrets in it."""
    with open(LOOT, "ab") as file:
        file.write(data + b"\n")


def attempt(act, *arguments):
    """ "refused: why", or what was got."""
    try:
        got = act(*arguments)
    except OSError as refused:
        return f"refused: {type(refused).__name__}"
    return "allowed" if got is None else got


def call(result):
    """Of a libc function."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def tell():
    """Where the suite reads it."""
    with open(os.path.join(STATE, "findings.json"), "w") as file:
        json.dump(found, file)


def name_of(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def sync(but=(), within_s=20.0):
    """The pid of the sync process."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        for pid in children(SUPERVISOR):
            if pid not in but and name_of(pid) == "the0-sync":
                return pid
    raise SystemExit("there is no sync process")


def processes():
    """All that can be seen; where others of this user are on the machine that are none of the runtime's, ours only."""
    if CONFIG["everybody"]:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [SUPERVISOR, *children(SUPERVISOR)]


def eventually(condition, within_s=20.0):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return False


def stored():
    """Waits until what is in the state folder now has been noticed: the index has moved on."""
    index = os.path.join(STATE, ".the0", "index")
    before = os.stat(index).st_mtime_ns if os.path.exists(index) else 0
    eventually(lambda: os.path.exists(index) and os.stat(index).st_mtime_ns != before, 5.0)


def remember(value):
    """State as SDKs write it."""
    os.makedirs(os.environ["STATE_DIR"], exist_ok=True)
    path = os.path.join(os.environ["STATE_DIR"], "kept.json")
    with open(path + ".tmp", "w") as file:
        json.dump(value, file)
    os.replace(path + ".tmp", path)
