"""Much of everything: files, bytes, depth, strange names, lines."""

import errno
import json
import os
import sys
import time

from tools import STATE, eventually, found, remember, tell

TERMINAL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b5n"


def files(config):
    begun = time.monotonic()
    for number in range(config["files"]):
        folder = f"{STATE}/many/{number % config['folders']}"
        if number < config["folders"]:
            os.makedirs(folder)
        # The last round is written right before the end.
        with open(f"{folder}/{number}", "wb", buffering=0) as file:
            file.write(b"%d\n" % number)
    found["written_s"] = time.monotonic() - begun


def count(_):
    found["files"], found["wrong"] = 0, 0
    for above, _, inside in os.walk(f"{STATE}/many"):
        for name in inside:
            found["files"] += 1
            with open(f"{above}/{name}", "rb") as file:
                found["wrong"] += file.read() != name.encode() + b"\n"


def growing(_):
    end = time.monotonic() + 10
    with open(f"{STATE}/growing", "wb", buffering=0) as file:
        while time.monotonic() < end and file.tell() < 64 << 20:
            file.write(os.urandom(1 << 20))
            time.sleep(0.01)
    found["bytes"] = os.path.getsize(f"{STATE}/growing")


def deep(config):
    folder = os.open(STATE, os.O_RDONLY)
    for _ in range(64):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    with os.fdopen(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=folder), "w") as file:
        file.write("at the bottom")
    if not config["beyond"]:
        return
    folder = os.open(STATE, os.O_RDONLY)
    depth = 0
    while depth < 600:  # beyond PATH_MAX
        os.mkdir("e" * 200, dir_fd=folder)
        inner = os.open("e" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
        depth += 1
    found["depth"] = depth


def names(_):
    written = []
    for name in (
        "line\nbreak",
        "carriage\rreturn",
        "tab\t",
        f"terminal{TERMINAL}",
        "quote\"'`$(id)",
        " ",
        "-rf",
        "\xa0",
        "\u202egpj.exe",
        os.fsdecode(b"\xff\xfe no utf-8"),
        "x" * 255,
        "%s%n",
        "{0.__class__}",
        ".the0 ",
        ".the0-state\n",
        "CON",
        "a\\b",
    ):
        with open(f"{STATE}/{name}", "w") as file:
            file.write("x")
        written.append(name)
    os.makedirs(f"{STATE}/.the0/aside/20200101T000000Z-{TERMINAL}\n", exist_ok=True)
    found["names"] = len(written)


def escapes(_):
    print(f"plain {TERMINAL} text")
    print(json.dumps({"message": f"json {TERMINAL}", "timestamp": f"2024{TERMINAL}"}))
    print(json.dumps({"message": {"nested": TERMINAL}, "timestamp": "2024-01-01T00:00:00Z"}))
    print(json.dumps({"_metric": TERMINAL, "timestamp": "2024-01-01T00:00:00Z"}))


def imitate(_):
    """Lines as the runtime itself writes them."""
    for line in (
        '{"timestamp":"2024-01-01T00:00:00.000Z","level":"error","message":"The bot ran out of memory: raise the limit."}',
        "the0: Another instance took over this bot: look where it runs, and stop one of them.",
        '{"by": "runtime", "code": 210}',
    ):
        print(line, flush=True)
        print(line, file=sys.stderr, flush=True)


def endless(config):
    """One line that never ends."""
    piece = b"x" * (1 << 20)
    for _ in range(config["megabytes"]):
        os.write(1, piece)


def fill(_):
    """The whole disk that state, logs and records share."""
    with open(f"{STATE}/filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(os.urandom(1 << 16))
        except OSError as failure:
            found["full"] = errno.errorcode[failure.errno]
    for _ in range(200):
        print("y" * 1000, flush=True)
    time.sleep(1.0)
    os.unlink(f"{STATE}/filler")
    eventually(lambda: os.statvfs(STATE).f_bavail > 0)


def leave_full(_):
    tell()  # room for what is found
    os.makedirs(f"{STATE}/many")
    number = 0
    for size in (1 << 16, 1):
        with open(f"{STATE}/filler", "ab", buffering=0) as file:
            try:
                while True:
                    file.write(os.urandom(size))
            except OSError as failure:
                found["full"] = errno.errorcode[failure.errno]
    try:
        while True:
            os.mknod(f"{STATE}/many/{number}")
            number += 1
    except OSError:
        os.unlink(f"{STATE}/findings.json")
        tell()


def main(_, config):
    remember(1)
    globals()[config["act"]](config)
    if config["act"] != "leave_full":
        tell()
