"""Control groups: what is written to them, and that the kernel keeps it, on whichever versions this machine has."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrate.platform_place import Platform
from rig import unprivileged
from rig.waiting import eventually
from the0.documents import Resources
from the0.orchestrate import groups, processes
from the0.orchestrate.process_place import groups_key

LIMITED = Resources(memory_bytes=96 << 20, cpu_cores=0.5)
FREE = Resources()

FOREST = """
import os, sys, time
for group in sys.argv[2:]:
    with open(group + "/cgroup.procs", "w") as procs:
        procs.write("0")
made = 0
try:
    for _ in range(int(sys.argv[1])):
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        made += 1
except OSError as reason:
    print(made, reason.errno, flush=True)
else:
    print(made, 0, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("version", "limits", "told"),
    [
        (1, FREE, {"pids.max": "1024"}),
        (
            1,
            LIMITED,
            {
                "pids.max": "1024",
                "memory.limit_in_bytes": str(96 << 20),
                "cpu.cfs_period_us": "100000",
                "cpu.cfs_quota_us": "50000",
            },
        ),
        (2, FREE, {"pids.max": "1024", "memory.max": "max", "memory.swap.max": "max", "cpu.max": "max 100000"}),
        (
            2,
            LIMITED,
            {"pids.max": "1024", "memory.max": str(96 << 20), "memory.swap.max": "0", "cpu.max": "50000 100000"},
        ),
    ],
)
def test_what_is_written(version: int, limits: Resources, told: dict[str, str]) -> None:
    assert dict(groups.settings(version, limits)) == told


def test_only_what_a_kernel_knows_is_written(tmp_path: Path) -> None:
    for file in (
        "memory.max",
        "pids.max",
    ):  # as of a kernel without swap accounting, and a parent without the CPU's controller
        (tmp_path / file).touch()
    found = groups.Groups(2, (str(tmp_path),))
    assert found.keeps() == {"memory", "pids"}
    (made,) = found.make("b", LIMITED)
    assert {path.name: path.read_text() for path in Path(made).iterdir()} == {
        "memory.max": str(96 << 20),
        "pids.max": "1024",
    }
    found.make("b", FREE)
    assert Path(made, "memory.max").read_text() == "max", "a group that was left over has the new limits"


def test_version_1_makes_no_group_that_limits_nothing(tmp_path: Path) -> None:
    for controller, file in (("memory", "memory.limit_in_bytes"), ("cpu", "cpu.cfs_quota_us"), ("pids", "pids.max")):
        (tmp_path / controller).mkdir()
        (tmp_path / controller / file).touch()
    found = groups.Groups(1, tuple(str(tmp_path / name) for name in ("memory", "cpu", "pids")))
    assert found.keeps() == {"memory", "cpu", "pids"}
    assert found.make("b", FREE) == (str(tmp_path / "pids/b"),)
    assert len(found.make("c", LIMITED)) == 3


@pytest.fixture(params=["/sys/fs/cgroup", "/sys/fs/cgroup/unified"])
def found(request: pytest.FixtureRequest) -> Iterator[groups.Groups]:
    """By a process of its own, which may have to move."""
    code = (
        "import json, sys; from the0.orchestrate import groups; found = groups.find(*sys.argv[1:2], root=sys.argv[2]); "
        "print(json.dumps([found.version, found.parents, found.reason, found.made()]))"
    )
    key = f"test-{os.getpid()}"
    told = subprocess.run(
        [sys.executable, "-c", code, key, request.param], capture_output=True, text=True, check=True, timeout=60
    )
    version, parents, reason, made = json.loads(told.stdout)
    if version == 0:
        pytest.skip(f"no groups below {request.param}: {reason}")
    yield groups.Groups(version, tuple(parents))
    groups.remove(made)
    assert not any(os.path.exists(each) for each in made)


def test_a_group_is_cleared_of_whatever_moved_to_sessions_of_its_own(found: groups.Groups) -> None:
    made = found.make("b", FREE)
    if not made:
        pytest.skip("nothing is limited here, so that no group is made")
    with subprocess.Popen(
        [sys.executable, "-c", FOREST, "40", *made], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as forest:
        assert forest.stdout is not None
        assert forest.stdout.readline() == "40 0\n"
        assert len(Path(made[0], "cgroup.procs").read_text().split()) == 41
        assert not groups.clear(made), "there was something"
        eventually(lambda: groups.clear(made), "an empty group", within_s=60)
        assert forest.wait(60) == -9
    groups.remove(made)
    assert not any(os.path.exists(each) for each in made)
    assert groups.clear(made), "what is gone is empty"


def test_processes_are_limited(found: groups.Groups) -> None:
    if "pids" not in found.keeps():
        pytest.skip("this hierarchy does not limit processes")
    made = found.make("b", FREE)
    with subprocess.Popen(
        [sys.executable, "-c", FOREST, "3000", *made], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as forest:
        assert forest.stdout is not None
        assert forest.stdout.readline() == f"{groups.PROCESSES - 1} 11\n"
        eventually(lambda: groups.clear(made), "an empty group", within_s=60)
    groups.remove(made)


# --- under `runtime up` -----------------------------------------------------------------------------


BOMB = """
import os, time
def main(bot_id, config):
    open("/state/marker" if os.path.isdir("/state") else os.environ["STATE_DIR"] + "/marker", "w").close()
    print("begins", flush=True)
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError as reason:
            if os.getppid() != 1:
                print("stopped:", reason.strerror, flush=True)
            time.sleep(2)
"""


def limited() -> bool:
    found = groups.find(f"test-{os.getpid()}")
    keeps = found.keeps()
    groups.remove(found.parents)
    return "pids" in keeps


def count_in(name: str, platform: Platform) -> int:
    told = json.loads(Path(platform.data.bot(name).process).read_text())
    listed = [Path(each, "cgroup.procs") for each in told["cgroups"]]
    return max(len(each.read_text().split()) for each in listed if each.exists())


def test_a_bomb_of_forks_hurts_nobody_else_and_ends_when_it_is_told_to(platform: Platform) -> None:
    if not limited():
        pytest.skip("this machine does not limit processes, and a bomb would harm it")
    platform.put("bomb", BOMB)
    up = platform.up()
    eventually(lambda: "stopped:" in platform.printed("bomb"), "the limit", within_s=120)
    assert count_in("bomb", platform) <= groups.PROCESSES
    platform.put("good")
    platform.until("good", "running", within_s=120)
    platform.until_printed("good", "is here")
    platform.bots.set_enabled("bomb", False)
    platform.tell()
    row = platform.until("bomb", "stopped", within_s=180)
    assert row["last_exit"] is not None
    assert platform.row("good")["restarts"] == 0
    told = json.loads(Path(platform.data.bot("bomb").process).read_text())
    assert not any(os.path.exists(each) for each in told["cgroups"]), "nothing of it is left"
    assert up.stop() == 0


HUNGRY = """
import os, time
from the0 import query

@query.handler("/forks")
def forks(request):
    made = 0
    try:
        while made < 3000:
            if os.fork() == 0:
                os.setsid()
                time.sleep(600)
            made += 1
    except OSError as reason:
        return {"made": made, "reason": reason.errno}
    return {"made": made}

@query.handler("/memory")
def memory(request):
    return len(bytearray(os.urandom(1)) * (400 << 20))

query.run()
"""


@pytest.mark.parametrize("warm_s", [0, 60])
def test_a_query_of_stored_state_has_the_limits_of_its_bot(platform: Platform, warm_s: int) -> None:
    if not limited():
        pytest.skip("this machine does not limit processes, and a bomb would harm it")
    for bot_id, limits in (("forks", {}), ("memory", {"memory_limit": "200Mi"})):
        the0 = {"query_warm_s": warm_s}
        config: dict[str, Any] = {"schedule": "0 0 29 2 *", "the0": the0, **limits}
        platform.put(bot_id, "", kind="scheduled", files={"query.py": HUNGRY}, **config)
    up = platform.up()
    for bot_id in ("forks", "memory"):
        platform.until(bot_id, "scheduled")
        platform.control.run(bot_id)
        stored = Path(platform.data.objects, "bot-state", bot_id, "HEAD")
        eventually(stored.exists, "state, which a process may be kept for")
    told = platform.ask("forks", "/forks")["data"]
    assert told["reason"] == errno.EAGAIN
    assert 100 < told["made"] < groups.PROCESSES
    platform.put("good")
    platform.until_printed("good", "is here")
    with pytest.raises(urllib.error.HTTPError) as refused:
        platform.ask("memory", "/memory")
    assert refused.value.code == 502, "killed"
    for bot_id in ("forks", "memory"):
        assert platform.ask(bot_id, "/health")["source"] == "stored"
    assert up.stop() == 0
    made = Path("/sys/fs/cgroup").glob(f"**/the0-{groups_key(platform.data)}/*")
    assert [each for each in made if each.is_dir()] == []


def test_what_a_query_leaves_when_all_of_it_is_killed_ends_with_the_next_platform(platform: Platform) -> None:
    if not limited():
        pytest.skip("nothing is limited here, so that no group is made")
    leaves = HUNGRY.replace("made < 3000", "made < 3").replace('return {"made": made}', "time.sleep(600)")
    platform.put("b", "pass", kind="scheduled", files={"query.py": leaves}, schedule="0 0 29 2 *")
    up = platform.up()
    platform.until("b", "scheduled")
    asking = threading.Thread(target=ask_in_vain, args=(platform,))
    asking.start()
    group = eventually(lambda: query_group(platform, members=5), "all of it in its group")
    members = sorted(int(each) for each in (group / "cgroup.procs").read_text().split())
    up.process.kill()
    os.kill(members[0], signal.SIGKILL)
    up.kill()
    asking.join()
    eventually(lambda: len((group / "cgroup.procs").read_text().split()) == 3, "what nobody watches over any more")
    platform.up()
    assert not group.exists()
    assert all((it := processes.stat(pid)) is None or it.state == "Z" for pid in members)


def ask_in_vain(platform: Platform) -> None:
    with contextlib.suppress(OSError):
        platform.ask("b", "/forks")


def query_group(platform: Platform, *, members: int) -> Path | None:
    for group in Path("/sys/fs/cgroup").glob(f"**/the0-{groups_key(platform.data)}/queries~b"):
        if len((group / "cgroup.procs").read_text().split()) == members:
            return group
    return None


def test_what_a_bot_left_in_other_sessions_ends_with_its_killed_supervisor(platform: Platform) -> None:
    if not limited():
        pytest.skip("this machine gives no groups for it")
    code = """
    import os, time
    def main(bot_id, config):
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                time.sleep(600)
        print("here", flush=True)
        time.sleep(600)
    """
    platform.put("b", code)
    platform.up()
    platform.until_printed("b", "here")
    told = json.loads(Path(platform.data.bot("b").process).read_text())
    pids = [int(pid) for pid in Path(told["cgroups"][0], "cgroup.procs").read_text().split()]
    assert len(pids) >= 7
    os.kill(platform.pid("b"), 9)
    eventually(lambda: platform.row("b")["restarts"] == 1, "another one", within_s=60)
    assert all((it := processes.stat(pid)) is None or it.state == "Z" for pid in pids)


UID = 12345


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder that other users reach."""
    made = Path(tempfile.mkdtemp(prefix="the0-user-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def interpreter(root: Path) -> str:
    """One that the other user can start, and that finds us by itself."""
    subprocess.run([unprivileged.python(UID), "-I", "-m", "venv", "--without-pip", str(root / "venv")], check=True)
    (packages,) = (root / "venv/lib").glob("python3*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "ours.pth").write_text("\n".join([str(Path(groups.__file__).parents[2]), *ours]) + "\n")
    return str(root / "venv/bin/python")


def test_without_groups_a_user_namespace_of_its_own_limits_a_bots_processes(elsewhere: Path) -> None:
    """As a user who is not root and can make no control groups."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    platform = Platform(elsewhere)
    platform.put("bomb", BOMB)
    platform.bots.close()
    subprocess.run(["chown", "-R", f"{UID}:{UID}", platform.data.path], check=True)
    python = interpreter(elsewhere)
    command = [python, "-I", "-m", "the0.cli"]
    env = {"PATH": "/usr/bin:/bin", "STOP_GRACE_S": "5", "THE0_DATA": platform.data.path, "HOME": str(elsewhere)}
    doctor = subprocess.run(
        [*command, "doctor", "--json"],
        **unprivileged.identity(UID),
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    checks = {each["check"]: each for each in json.loads(doctor.stdout)["checks"]}
    if checks["private view"]["status"] != "good":
        pytest.skip("this machine gives other users no namespaces")
    assert "limits of number of processes hold" in checks["control groups"]["found"]
    assert "memory, CPU are not limited" in checks["control groups"]["remedy"]
    with subprocess.Popen(
        [*command, "up", "--port", "0"],
        **unprivileged.identity(UID),
        env=env,
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as up:
        try:
            eventually(lambda: "stopped:" in platform.printed("bomb"), "the limit", within_s=120)
            assert 100 < running(UID) <= groups.PROCESSES + 50
        finally:
            up.terminate()
            assert up.wait(180) == 0
    eventually(lambda: running(UID) == 0, "the end of all", within_s=60)


def running(uid: int) -> int:
    """Processes of that user that have not ended."""
    found = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = Path(f"/proc/{name}/status").read_text()
        except OSError:
            continue
        found += f"\nUid:\t{uid}\t" in status and "\nState:\tZ" not in status
    return found
