"""Query processes that leave something else than an answer, and look around while they are asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import pytest
from bot_place import Ended, archive

from hostile.yard import BOTS, UID, Yard, leftovers, tree_digest

RUN = 'mount -t tmpfs -o mode=0777 tmpfs /query && exec setpriv --reuid="$0" --regid="$0" --clear-groups -- "$@"'


@pytest.fixture
def asked(yard: Yard) -> Any:
    """A bot with stored state, and a folder /query of its own as a container has it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("giving a process a /query of its own takes root, unshare and setpriv")
    os.makedirs("/query", exist_ok=True)
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/query"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    assert yard.next_start()["kept"] is None
    place = yard.place
    code = {"main.py": "", "query.py": (BOTS / "ask.py").read_text()}
    yard.world.store.put(yard.world.buckets["code"], yard.bot_id, archive(code))
    config = json.loads(place.environment()["BOT_CONFIG"]) | {"state": str(place.state)}
    place.env |= {"QUERY_ENTRYPOINT": "query.py", "BOT_CONFIG": json.dumps(config)}
    plain = list(place.command)
    place.command, place.popen = ["unshare", "-m", "sh", "-c", RUN, str(UID), *plain], {}

    def ask(path: str) -> Ended:
        shutil.rmtree(place.code)  # a query's container has a fresh one
        place.env["QUERY_PATH"] = path
        place.code.mkdir()
        yard.hand_over()
        ended = place.run()
        assert yard.world.leaks(f"{ended.out}{ended.err}".encode()) == []
        assert leftovers() == []
        return ended

    yield ask
    assert yard.world.leaks(b"".join(data for _, _, data in yard.objects())) == []


@pytest.mark.attack(
    "/query/result.json as a link to /proc/self/environ, to the neighbour's file, to /dev/zero, as a FIFO, a folder, 1 TiB long",
    "217 (or a sentence on its size) at once, never followed or waited for",
)
def test_something_else_than_an_answer(asked: Any) -> None:
    for path in ("/environ", "/neighbour", "/endless", "/fifo", "/folder", "/large"):
        ended = asked(path)
        told = json.loads(ended.out)
        assert (told["status"], told["exit_code"]) == ("error", ended.code), path
        assert ended.code == 217, (path, ended.err)
        assert "100" not in str(told.get("data")), "nothing of the neighbour's"


@pytest.mark.attack(
    "result.json exchanged with a link to /proc/self/environ by a daemon of the query's that ignores SIGTERM",
    "the daemon is killed before the answer is read: its own answer or 217",
)
def test_an_answer_swapped_while_it_is_read(asked: Any) -> None:
    told = json.loads(asked("/swap").out)
    assert told.get("data") == "mine" or told["exit_code"] == 217


@pytest.mark.attack(
    "a query that looks into the process that asks it (environ, mem, maps, descriptors), and writes stored state",
    "Permission denied; what it may write is a copy that is thrown away",
)
def test_a_query_that_looks_around(asked: Any, yard: Yard) -> None:
    looked = json.loads(asked("/look").out)
    assert set(looked["data"].values()) == {"PermissionError"}
    before = yard.head.content
    asked("/state")
    assert yard.head.content == before


@pytest.mark.attack(
    "the folder below .the0 where queries beside a bot have their copies of its state, or .the0 itself, as a link to somebody's folder",
    "never followed: the query has its copy among temporary files, and nothing there is touched",
)
@pytest.mark.parametrize("planted", [".the0/queries", ".the0"])
def test_copies_of_state_lead_elsewhere(yard: Yard, planted: str) -> None:
    place = yard.place
    place.env |= {"QUERY_ENTRYPOINT": "query.py", "TMPDIR": str(yard.root / "tmp")}
    victim = yard.root / "victim"
    for folder in ("old", "the0-query-old"):
        (victim / folder).mkdir(parents=True)
        (victim / folder / "cash").write_text("100")
    (yard.root / "tmp").mkdir()
    yard.hand_over()
    running = yard.start("ask_beside.py", planted=planted, victim=str(victim))
    running.wait_for("planted")
    for folder in (*victim.iterdir(), victim):
        os.utime(folder, (0, 0))  # copies that a killed query left are removed after a while
    before = tree_digest(victim)
    yard.world.store.put(
        yard.world.buckets["code"],
        yard.bot_id,
        archive({"main.py": "", "query.py": (BOTS / "ask_seen.py").read_text()}),
    )
    shutil.rmtree(place.code)
    asked = place.start("--query", "/seen").end()
    assert json.loads(asked.out)["data"] == "asked", asked.err
    assert tree_digest(victim) == before
    assert list((yard.root / "tmp").glob("the0-query-*")) == []
    running.stop()
    assert tree_digest(victim) == before
