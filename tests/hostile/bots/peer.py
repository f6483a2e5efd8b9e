"""Looks into whoever else starts under its user, from the first moment on: the environment of `runtime execute` holds credentials."""

import os
import time

from tools import found, keep, processes, remember, tell


def main(_, config):
    remember(1)
    known = set(processes())
    seen, opened, tries = set(), 0, 0
    print("watching", flush=True)
    end = time.monotonic() + 60
    while not os.path.exists(config["stop"]) and time.monotonic() < end:
        # New processes have new numbers, mostly the highest.
        for pid in sorted(set(processes()) - known, reverse=True)[:20]:
            for name in ("environ", "mem", "fd/0"):
                tries += 1
                try:
                    fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_NONBLOCK)
                except OSError:
                    continue
                try:
                    data = os.read(fd, 1 << 20) if name == "environ" else b""
                except OSError:
                    data = b""
                os.close(fd)
                if name != "environ" or data:
                    opened += 1
                keep(data)
            seen.add(pid)
    found.update(seen=len(seen), opened=opened, tries=tries)
    tell()
