"""Puts links, FIFOs or folders in the place of every file that the runtime reads or writes beside the bot."""

import os
import shutil
import time

from tools import CODE, STATE, found, remember, stored, tell


def places(config):
    reserved = f"{STATE}/.the0"
    return [
        f"{CODE}/result.json",
        f"{config['logs']}/bot.log",
        f"{config['logs']}/bot.log.1",
        f"{config['logs']}/bot.log.starts",
        f"{config['run_dir']}/done",
        f"{config['run_dir']}/exit.json",
        f"{config['run_dir']}/fenced",
        f"{reserved}/index",
        f"{reserved}/index.restoring",
        f"{reserved}/spool",
        f"{reserved}/spool/open",
        f"{reserved}/lock",
        f"{reserved}/aside",
        f"{reserved}/restore",
        f"{reserved}/claim.json",
        f"{STATE}/plain",
        f"{STATE}/.the0-state/key.json",
    ]


def clear(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


def put(kind, path, number, config):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    clear(path)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        os.makedirs(f"{path}/within/more")
    elif kind == "environ":
        os.symlink("/proc/self/environ", path)
    elif kind == "memory":
        os.symlink(("/proc/self/mem", "/proc/self/fd/7", "/proc/self/maps", "/proc/self/cwd")[number % 4], path)
    elif kind == "neighbour":
        targets = (
            "state/.the0-state/cash.json",
            "logs/bot.log",
            "run/exit.json",
            "state/.the0/index",
            "state",
            "state/.the0/spool",
        )
        os.symlink(os.path.join(config["neighbour"], targets[number % len(targets)]), path)
    elif kind == "endless":
        os.symlink("/dev/zero", path)
    elif kind == "garbage":
        with open(path, "wb") as file:
            file.write(os.urandom(4096))
            file.truncate(1 << 42)


def main(_, config):
    remember(1)
    stored()
    if config["kind"] == "reserved":
        os.rename(f"{STATE}/.the0", f"{STATE}/was-the0")
        os.symlink(f"{config['neighbour']}/state/.the0", f"{STATE}/.the0")
        remember(2)
        tell()
        raise SystemExit(3)
    kind, done = config["kind"], 0
    for number, path in enumerate(places(config)):
        if kind == "garbage" and not path.startswith((f"{STATE}/.the0/", config["logs"], config["run_dir"])):
            continue
        try:
            put(kind, path, number, config)
            done += 1
        except OSError:
            pass  # the folder above it has become something else
    os.makedirs(f"{STATE}/below", exist_ok=True)
    for number in range(5):
        print(f"after {kind} {number}", flush=True)
        with open(f"{STATE}/below/{number}", "w") as file:
            file.write("x" * 100)
        time.sleep(0.05)
    found["done"] = done
    tell()
    raise SystemExit(3)
