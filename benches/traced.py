"""`traced.py FILE execute …`: the runtime, with the times of its steps in a file.

Nothing in the runtime knows of it: functions are wrapped as their modules are imported, and the file is a shared
mapping, which forked children inherit and a program that is exec'd (the bot) does not. Times are CLOCK_MONOTONIC (ns).
"""

import time

BEGAN = time.monotonic_ns()

import functools  # noqa: E402
import importlib.machinery  # noqa: E402
import itertools  # noqa: E402
import mmap  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

SLOT = 128
SLOTS = 500
PROCESSES = 6

WRAPPED = {
    "the0.execute.run": ["_job"],
    "the0.execute.supervise": ["_Run.__init__", "_Run._get_ready", "_Run._say_go", "_Run._end_rest", "_Run._end_sync"],
    "the0.execute.preparing": ["Preparing.__init__", "Preparing.wait"],
    "the0.execute.prepare": ["prepare"],
    "the0.execute.code": ["fetch", "_extract", "_replace"],
    "the0.execute.target": ["check"],
    "the0.child": ["spawn", "fork_child", "exec_failure"],
    "the0.objects.s3": [
        "S3._connect",
        "S3.get",
        "S3.get_to_file",
        "S3.head",
        "S3.put",
        "S3.put_if",
        "S3.check_conditional_put",
        "S3.list",
        "S3.delete",
    ],
    "the0.sync.start": ["start", "restore", "_Start._look", "_Start._open", "_Start._claim", "_Start._carry_out"],
    "the0.sync.local": ["StateFolder.move_in", "StateFolder.save_index"],
    "the0.sync.daemon": ["_begin", "_end", "Keeper.one_pass", "Keeper.finish", "Keeper.release"],
    "the0.sync.logs": ["LogShipper.one_pass", "LogShipper.finish"],
    "the0.sync.commit": ["Committer.scan", "Committer.commit"],
}
IMPORTS = (
    "obstore",
    "the0.execute.run",
    "the0.execute.prepare",
    "the0.objects.s3",
    "the0.sync.start",
    "the0.sync.daemon",
)


class Trace:
    def __init__(self, path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, SLOT * SLOTS * PROCESSES)
        self.memory = mmap.mmap(fd, SLOT * SLOTS * PROCESSES)
        os.close(fd)
        self.process = 0
        self.forks = 0
        self.slots = itertools.count()
        os.register_at_fork(before=self.before, after_in_child=self.in_child)

    def before(self):
        self.forks += 1

    def in_child(self):
        self.process = self.forks
        self.slots = itertools.count()

    def stamp(self, what, now=None):
        slot = next(self.slots)
        if slot < SLOTS and self.process < PROCESSES:
            told = f"{now or time.monotonic_ns()} {self.process} {what}\n".encode()[:SLOT]
            at = (self.process * SLOTS + slot) * SLOT
            self.memory[at : at + len(told)] = told


TRACE = None


def wrap(function, name):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        # Requests are told apart by the end of their key.
        keys = [arg for arg in args[2:3] if isinstance(arg, str)]
        label = f"{name} {keys[0].rpartition('/')[2][:24]}" if keys else name
        TRACE.stamp(f"> {label}")
        try:
            return function(*args, **kwargs)
        finally:
            TRACE.stamp(f"< {label}")

    return wrapped


class Loader:
    def __init__(self, loader, name):
        self.loader = loader
        self.name = name

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        TRACE.stamp(f"> import {self.name}")
        self.loader.exec_module(module)
        TRACE.stamp(f"< import {self.name}")
        short = self.name.removeprefix("the0.")
        for path in WRAPPED.get(self.name, ()):
            *owners, last = path.split(".")
            owner = functools.reduce(getattr, owners, module)
            setattr(owner, last, wrap(getattr(owner, last), f"{short}.{path}"))


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in WRAPPED and name not in IMPORTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader, name)
        return spec


if __name__ == "__main__":
    TRACE = Trace(sys.argv[1])
    TRACE.stamp("interpreter is up", BEGAN)
    sys.argv[:] = [sys.argv[0], *sys.argv[2:]]
    sys.meta_path.insert(0, Finder)
    from the0.cli import main

    TRACE.stamp("the0.cli imported")
    sys.exit(main())
