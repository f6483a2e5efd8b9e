"""Bots that look for credentials: in processes, descriptors, core files and the store."""

from __future__ import annotations

import json
import os
import resource
import shutil

import pytest
from bot_place import archive

from hostile.yard import BOTS, Yard, honest
from languages.bots import node_path, or_skip
from the0 import landlock
from the0.ports import free_port
from the0.privacy import shared_environment

OURS = ("supervisor", "sync", "sync again")


@pytest.mark.attack(
    "environ, argv, mem, maps, fd, root, ptrace, process_vm_readv, pidfd_getfd of every process it sees; the same with all "
    "capabilities of a user namespace; a core file (`ulimit -c`, prlimit of our processes); inherited descriptors; the store "
    "without a key",
    "Permission denied by the kernel, for the supervisor, the sync process and the one forked after it; no core file; three "
    "descriptors: /dev/null and its own pipe; 403",
)
def test_looking_into_processes(yard: Yard) -> None:
    ended = yard.run("look.py")
    honest(ended, by="bot", code=0)
    found = yard.findings
    assert found["itself"] == dict.fromkeys(("environ", "maps", "mem", "fd"), "allowed"), "the looking itself works"
    for who in OURS:
        assert found[who] == {}, who
    assert found["in a user namespace"].endswith(", {})"), found["in a user namespace"]
    fds = found["descriptors"]
    assert set(fds) == {"0", "1", "2"}, fds
    assert (fds["0"], fds["1"][:5], fds["2"]) == ("/dev/null", "pipe:", fds["1"])
    assert set(found["store"]) == {403}
    assert found["core"].startswith("refused") or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0
    assert found["core files"] == []
    yard.no_secret(ended)
    assert yard.next_start(anew=True)["kept"] == 1


@pytest.mark.attack(
    "the sync process killed again and again, and whatever takes its place read from its first moment (environ, mem, maps, "
    "descriptors) in a tight loop",
    "none of thousands of opens succeeded: the new one is forked, never exec'd, and closed from birth; the bot runs on, state is "
    "kept; more than 8 kills in a minute end the bot with 216",
)
def test_racing_the_respawn(yard: Yard) -> None:
    ended = yard.run("race.py", kills=4)
    honest(ended, by="bot", code=0)
    found = yard.findings
    assert (found["killed"], found["opened"], found["last"]) == (4, [], "the0-sync")
    assert found["seen"] >= 5, "the race was run"
    assert found["tries"] > 1000
    assert yard.next_start(anew=True)["kept"] == 1


@pytest.mark.attack(
    "another bot's `runtime execute`, started again and again under the same user beside it, looked into from its first moment",
    "Permission denied, in the moment before it closes itself, too (Landlock; Linux 5.19)",
)
@pytest.mark.skipif(os.geteuid() != 0, reason="a user of its own, whose processes it may look into")
def test_looking_into_another_bots_start(yard: Yard) -> None:
    if landlock._abi() < 2:
        pytest.skip("this kernel has no Landlock of version 2")
    stop = yard.root / "stop"
    running = yard.start("peer.py", stop=str(stop))
    running.wait_for("watching")
    assert yard.neighbour is not None
    other = Yard(yard.world, f"{yard.bot_id}-peer", yard.root.with_name(f"{yard.root.name}-peer"), yard.neighbour)
    try:
        for _ in range(5):
            assert other.run("print('here')").code == 0
        stop.touch()
        ended = running.end()
    finally:
        other.place.close()
        shutil.rmtree(other.root)
    honest(ended, by="bot", code=0)
    found = yard.findings
    assert found["seen"] > 10, found
    assert found["opened"] == 0, found
    yard.no_secret(ended)
    assert yard.next_start(anew=True)["kept"] == 1


@pytest.mark.attack(
    "sitecustomize, usercustomize, .pth, pyvenv.cfg, modules named like ours and the library's, PYTHONSTARTUP, shell profiles, "
    ".aws, .netrc, programs named python3, node, sh, in /bot, HOME, state, logs, the run folder, for the respawned sync and the "
    "next start",
    "code ran in the bot's own process only, which sees no credential",
)
def test_planting_code(yard: Yard) -> None:
    ended = yard.run("plant.py")
    honest(ended, by="bot", code=0)
    assert yard.findings["respawned"]
    yard.no_secret(ended)
    place = yard.place
    # As if the engine had the folders in its own environment; the code's folder stays what the bot made of it.
    place.env |= {
        "HOME": str(place.code),
        "PYTHONSTARTUP": f"{place.code}/.pythonrc",
        "NODE_OPTIONS": f"--require {place.code}/.node_modules/trap.js",
        "PYTHONPATH": str(place.state),
        "PYTHONHOME": str(place.state),
        "PYTHONUSERBASE": f"{place.code}/.local",
    }
    place.popen = {**place.popen}
    place.env["CODE_FILE"] = ""
    (place.code / "main.py").write_text("print('planted and started')\n")
    again = place.start().end()
    honest(again, by="bot", code=0)
    assert "planted and started" in again.out
    sprung = list((place.state / "traps").glob("sprung-*"))
    yard.no_secret(again)
    for path in sprung:
        assert "wrappers/python.py" in (told := path.read_text()) or "main.py" in told, told[:300]


@pytest.mark.attack(
    "NODE_OPTIONS=--require in the runtime's own environment, in .npmrc, .env, node.config.json; package.json with `main` and "
    "`imports`; node_modules, .node_modules and lib/node with packages named like Node's own modules; programs named node; in /bot, "
    "HOME, state, logs, the run folder, for the query process, the one after it was killed, an ephemeral query and the next start",
    "nothing of it is loaded but by the bot's own children; Node starts with no options, and sees no credential",
)
def test_planting_code_for_node(yard: Yard) -> None:
    place = yard.place
    files = {name: (BOTS / name).read_text() for name in ("plant.js", "plant_query.js")}
    yard.world.store.put(yard.world.buckets["code"], yard.bot_id, archive(files))
    place.env |= {
        "RUNTIME": "nodejs20",
        "ENTRYPOINT": "plant.js",
        "QUERY_ENTRYPOINT": "plant_query.js",
        "THE0_QUERY_PORT": str(free_port()),
        "PATH": or_skip(node_path),
        "BOT_CONFIG": json.dumps({"run_dir": str(place.run_dir), "logs": str(place.logs)}),
        # As if the engine had them.
        "NODE_OPTIONS": f"--require {place.code}/trap.js",
        "NODE_PATH": f"{place.code}/lib/node",
        "NODE_REPL_EXTERNAL_MODULE": f"{place.code}/trap.js",
    }
    (place.state / "traps").mkdir(parents=True)
    yard.hand_over()
    ended = place.start().end(within_s=120)
    honest(ended, by="bot", code=0)
    assert yard.findings == {"options": [], "asked": True, "again": True}
    place.env["CODE_FILE"] = ""  # the next start: among all that was planted
    asked = place.start("--query", "/x").end(within_s=60)
    assert json.loads(asked.out)["data"]["options"] == ""
    assert json.loads(asked.out)["data"]["execArgv"] == []
    again = place.start().end(within_s=120)
    honest(again, by="bot", code=0)
    yard.no_secret(ended, asked, again)
    sprung = [json.loads(path.read_text()) for path in (place.state / "traps").glob("sprung-*")]
    assert [one["name"] for one in sprung] == ["required"] * 2, "by each bot's own child, and nowhere else"
    assert all(len(one["argv"]) == 1 and one["options"] for one in sprung), "those are children of the bot's"
    assert not list((place.state / "traps").glob("program-*"))


@pytest.mark.parametrize(
    ("proxy", "seen"),
    [
        ("http://h:1", "http://h:1"),
        ("http://user:p@h:1", "http://h:1"),
        ("http://user:p@ss@h:1/", "http://h:1/"),
        ("socks5h://user@h", "socks5h://h"),
        ("user:p@h:1", "h:1"),
        ("user:x://y@h:1", "h:1"),
        ("h:3128", "h:3128"),
    ],
)
def test_proxies_go_to_bots_without_passwords(proxy: str, seen: str) -> None:
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        assert shared_environment({name: proxy, "PATH": "/bin"}) == {name: seen, "PATH": "/bin"}
