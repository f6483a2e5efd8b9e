"""What a bot can see of the processes beside it, which hold credentials and run under its uid."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bot_place import Place

from rig import unprivileged

UID = 1000
SECRETS = {
    "MINIO_ACCESS_KEY": "secret-access-key",
    "MINIO_SECRET_KEY": "secret-secret-key",
    "MONGO_URI": "mongodb://secret-mongo",
    "NATS_URL": "nats://secret-nats",
    "GATEWAY_TOKEN": "secret-gateway",
    "THE0_RUN_TOKEN": "secret-run-token",
    "AWS_SECRET_ACCESS_KEY": "secret-aws",
    "SOMETHING_ELSE": "secret-something",
}


@pytest.fixture
def shared_uid() -> Iterator[Place]:
    """A place whose runtime and bot run under one uid that is not root's."""
    root = Path(tempfile.mkdtemp(prefix="the0-privacy-"))
    place = Place(root)
    if os.geteuid() == 0:
        place.command = unprivileged.command(UID, "execute")
        subprocess.run(["chown", "-R", f"{UID}:{UID}", root], check=True)
        place.popen = unprivileged.identity(UID)
    place.env |= SECRETS
    yield place
    place.close()
    shutil.rmtree(root)


LOOK = """
import ctypes, json, os, resource, time

libc = ctypes.CDLL(None, use_errno=True)

def outcome(act):
    try:
        return act() or "allowed"
    except OSError as refused:
        return type(refused).__name__

def attach(pid):
    if libc.ptrace(16, pid, None, None) != 0:
        raise PermissionError
    os.waitpid(pid, 0)
    libc.ptrace(17, pid, None, None)

def look(pid):
    return {
        "environ": outcome(lambda: open(f"/proc/{pid}/environ", "rb").read() and "allowed"),
        "mem": outcome(lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))),
        "maps": outcome(lambda: open(f"/proc/{pid}/maps").read(1) and "allowed"),
        "fd": outcome(lambda: os.listdir(f"/proc/{pid}/fd") and "allowed"),
        "cwd": outcome(lambda: os.readlink(f"/proc/{pid}/cwd") and "allowed"),
        "ptrace": outcome(lambda: attach(pid)),
    }

def siblings():
    found = {}
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}/task/{name}").st_uid is not None:
                parent = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[1]
                if int(parent) == os.getppid():
                    found[int(name)] = open(f"/proc/{name}/comm").read().strip()
        except OSError:
            pass
    return found

def sync(but=None):
    while True:
        for pid, name in siblings().items():
            if name == "the0-sync" and pid != but:
                return pid
        time.sleep(0.01)
"""


def test_no_bot_can_look_into_the_processes_beside_it(shared_uid: Place) -> None:
    place = shared_uid
    place.put_bot(
        LOOK
        + """
def main(bot_id, config):
    first = sync()
    told = {"uid": os.getuid(), "supervisor": look(os.getppid()), "sync": look(first), "itself": look(os.getpid())["environ"]}
    os.kill(first, 9)
    told["sync again"] = look(sync(but=first))
    print(json.dumps(told))
"""
    )
    ended = place.run()
    assert ended.code == 0, ended.err + ended.out
    told: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
    assert told["uid"] != 0
    assert told["itself"] == "allowed", "the check itself works"
    for who in ("supervisor", "sync", "sync again"):
        assert set(told[who].values()) == {"PermissionError"}, (who, told[who])


def test_the_bots_environment_is_an_allow_list(shared_uid: Place) -> None:
    place = shared_uid
    place.env |= {"LC_TIME": "C", "TZ": "Europe/Rome", "SSL_CERT_FILE": "/etc/ssl/cert.pem", "QUERY_PARAMS": "{}"}
    place.env |= {"BOT_TYPE": "scheduled", "BOT_CONFIG": '{"b": 1.0, "a": "é"}'}
    place.put_bot("import json, os; print(json.dumps([dict(os.environ), open('/proc/self/environ').read()]))")
    ended = place.run()
    environ, raw = json.loads(ended.out)
    assert "secret" not in ended.out
    code = str(place.code)
    python_path = environ.pop("PYTHONPATH")
    assert environ.pop("PATH") == os.environ["PATH"]
    assert environ.pop("LC_CTYPE", "") in ("", "C.UTF-8"), "Python's own doing"
    assert environ == {
        "BOT_ID": "bot-1",
        "BOT_CONFIG": '{"a":"\\u00e9","b":1}',
        "BOT_TYPE": "scheduled",
        "STATE_DIR": f"{place.state}/.the0-state",
        "CODE_MOUNT_DIR": code.lstrip("/"),
        "SCRIPT_PATH": "main.py",
        "ENTRYPOINT_TYPE": "bot",
        "HOME": code,
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_TIME": "C",
        "TZ": "Europe/Rome",
        "SSL_CERT_FILE": "/etc/ssl/cert.pem",
    }
    assert python_path.startswith(f"{code}/vendor:{code}")
    assert "PYTHONPATH" not in raw


def test_the_bot_inherits_no_descriptors(shared_uid: Place) -> None:
    place = shared_uid
    place.put_bot("""
        import json, os, resource
        here = "/proc/self/fd/"
        open_now = {fd: os.readlink(here + fd) for fd in os.listdir(here) if os.path.lexists(here + fd)}
        print(json.dumps([open_now, resource.getrlimit(resource.RLIMIT_CORE), os.getsid(0) == os.getpid()]))
    """)
    read, write = os.pipe()
    running = place.start(pass_fds=(read, write))
    ended = running.end()
    os.close(read)
    os.close(write)
    fds, core, leads = json.loads(ended.out)
    assert set(fds) == {"0", "1", "2"}
    assert fds["0"] == "/dev/null"
    assert fds["1"] == fds["2"]
    assert core == [0, 0]
    assert leads is True
