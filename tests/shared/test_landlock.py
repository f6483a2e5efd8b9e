"""Landlock: what a confined process can still do, tried by a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from the0 import landlock

TRIES = """
import json, os, sys, shutil
from the0 import landlock

root = sys.argv[1]
state = f"{root}/state"
landlock.forbid_writes(state, but=[f"{state}/copy"])
told = {}
for name, act in {
    "read": lambda: open(f"{state}/kept").read(),
    "write": lambda: open(f"{state}/kept", "r+").write("x"),
    "empty": lambda: open(f"{state}/kept", "w"),
    "truncate": lambda: os.truncate(f"{state}/kept", 0),
    "make": lambda: open(f"{state}/new", "x"),
    "mkdir": lambda: os.mkdir(f"{state}/folder"),
    "remove": lambda: os.unlink(f"{state}/kept"),
    "rename": lambda: os.rename(f"{state}/kept", f"{state}/other"),
    "carry off": lambda: os.rename(f"{state}/kept", f"{root}/beside/kept"),
    "link away": lambda: os.link(f"{state}/kept", f"{root}/beside/link"),
    "link in": lambda: os.symlink("/etc", f"{state}/link"),
    "by a link": lambda: open(f"{root}/way/kept", "w"),
    "the folder": lambda: os.rename(state, f"{root}/gone"),
    "by a child": lambda: os.system(f"sh -c 'echo x > {state}/kept' 2>/dev/null") and (_ for _ in ()).throw(OSError(13, "")),
    "beside": lambda: open(f"{root}/beside/new", "w").write("x"),
    "copy": lambda: open(f"{state}/copy/new", "w").write("x"),
    "null": lambda: open("/dev/null", "w").write("x"),
}.items():
    try:
        act()
        told[name] = "done"
    except OSError:
        told[name] = "refused"
print(json.dumps(told))
"""


def test_nothing_below_the_folder_changes(tmp_path: Path) -> None:
    if not landlock.available():
        pytest.skip("this kernel has no Landlock of version 3")
    for name in ("state/copy", "beside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "state/kept").write_text("kept")
    (tmp_path / "way").symlink_to("state")
    done = subprocess.run(
        [sys.executable, "-c", TRIES, str(tmp_path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {name for name, outcome in told.items() if outcome == "done"} == {"read", "beside", "copy", "null"}
    assert (tmp_path / "state/kept").read_text() == "kept"
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["copy", "kept"]


LOOKS = """
import json, os, subprocess, sys, tempfile, time
from the0 import landlock

uid, root = 54321, tempfile.mkdtemp()
for name in ("a", "b"):
    os.mkdir(f"{root}/{name}")
if os.geteuid() == 0:  # root may look into everybody's
    for name in ("", "a", "b"):
        os.chown(f"{root}/{name}", uid, uid)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
another = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
other = another.pid

def look(pid):
    # A program that has just been started is closed for a moment still.
    end = time.monotonic() + 10
    while True:
        try:
            return open(f"/proc/{pid}/environ").read()
        except PermissionError:
            if time.monotonic() > end:
                raise

look(other)  # who is not confined can
assert landlock.look_into_nobody()
child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
told = {}
for name, act in {
    "another": lambda: open(f"/proc/{other}/environ").read(),
    "its memory": lambda: open(f"/proc/{other}/mem"),
    "its descriptors": lambda: os.readlink(f"/proc/{other}/fd/1"),
    "a child": lambda: look(child.pid),
    "write": lambda: open(f"{root}/a/new", "x").write("x"),
    "move": lambda: os.rename(f"{root}/a/new", f"{root}/b/moved"),
    "link": lambda: os.link(f"{root}/b/moved", f"{root}/a/linked"),
    "move a folder": lambda: os.rename(f"{root}/a", f"{root}/b/a"),
    "remove": lambda: os.unlink(f"{root}/b/moved"),
    "fifo": lambda: os.mkfifo(f"{root}/b/fifo"),
    "shared memory": lambda: (open("/dev/shm/the0-landlock", "w").write("x"), os.unlink("/dev/shm/the0-landlock")),
}.items():
    try:
        act()
        told[name] = "done"
    except OSError as refused:
        told[name] = type(refused).__name__
for process in (child, another):
    process.kill()
print(json.dumps(told))
"""


def test_it_looks_into_nobody_else() -> None:
    if landlock._abi() < 2:
        pytest.skip("this kernel has no Landlock of version 2")
    done = subprocess.run([sys.executable, "-c", LOOKS], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {name for name, outcome in told.items() if outcome != "done"} == {
        "another",
        "its memory",
        "its descriptors",
    }, told
