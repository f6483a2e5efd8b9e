"""Swaps files and folders for links to what it must not see, as fast as it can, while the runtime reads them."""

import os
import time

from tools import LIBC, STATE, found, remember, tell

EXCHANGE = 2
AT_FDCWD = -100


def exchange(one, other):
    return LIBC.syscall(316, AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), EXCHANGE) == 0


def swapper(pairs, seconds):
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for one, other in pairs:
            count += exchange(one, other)
    return count


def main(_, config):
    remember(1)
    pairs = []
    for number, target in enumerate(
        ("/proc/self/environ", "/proc/self/mem", config["neighbour"] + "/state/.the0-state/cash.json")
    ):
        file, link = f"{STATE}/file{number}", f"{STATE}/link{number}"
        with open(file, "w") as made:
            made.write("harmless")
        os.symlink(target, link)
        pairs.append((file, link))
    for number, target in enumerate(("/proc/self", "/proc/self/task", config["neighbour"] + "/state")):
        folder, link = f"{STATE}/folder{number}", f"{STATE}/folder-link{number}"
        os.mkdir(folder)
        for name in ("environ", "mem", "maps", ".the0-state", "status"):
            with open(f"{folder}/{name}", "w") as made:
                made.write("harmless")
        os.symlink(target, link)
        pairs.append((folder, link))
    for path, target in (
        (f"{config['logs']}/bot.log", "/proc/self/environ"),
        (f"{STATE}/.the0/spool", "/proc/self"),
        (f"{STATE}/.the0-state", "/proc/self"),
    ):
        link = path + "-link"
        os.symlink(target, link)
        pairs.append((path, link))
    child = os.fork()
    if child == 0:
        swapper(pairs, config["seconds"])
        os._exit(0)
    swaps, end = 0, time.monotonic() + config["seconds"]
    while time.monotonic() < end:
        swaps += 1
        print(f"line {swaps} while paths are swapped", flush=True)
        with open(f"{STATE}/tick", "w") as file:
            file.write(str(swaps))
        time.sleep(0.01)
    os.waitpid(child, 0)
    for one, other in pairs:
        for path in (one, other):
            if os.path.islink(path):
                os.unlink(path)
    found["swaps"] = swaps
    remember(1)
    tell()
