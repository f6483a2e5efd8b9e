"""Bots that put something else in the place of files that the runtime reads or writes."""

from __future__ import annotations

import json

import pytest

from hostile.yard import Yard, honest

REPLACED = "result.json, bot.log, done, exit.json, fenced, .the0/{index,spool,lock,aside,restore,claim.json}, state files become "
NOTHING = "replaced or refused, never followed or waited for; the exit is honest; the next start has the stored state"


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.attack(REPLACED + words, NOTHING))
        for kind, words in (
            ("environ", "links to /proc/self/environ (the sync process's own, if it followed)"),
            ("memory", "links to /proc/self/{mem,fd,maps,cwd}"),
            ("neighbour", "links to the neighbour's files"),
            ("endless", "links to /dev/zero"),
            ("fifo", "FIFOs"),
            ("folder", "folders"),
            ("garbage", "random bytes, 4 TiB long"),
        )
    ],
)
def test_something_else_in_its_place(yard: Yard, kind: str) -> None:
    ended = yard.run("replace.py", kind=kind)
    honest(ended, by="bot", code=3)
    assert (yard.place.run_dir / "done").read_text() == "3\n"
    assert json.loads((yard.place.run_dir / "exit.json").read_text())["bot_code"] == 3
    yard.no_secret(ended)
    told = yard.next_start()
    assert told["kept"] == 1


@pytest.mark.attack(
    "the whole of .the0 moved away, a link to the neighbour's in its place",
    "never followed: the next start is refused (208) with a sentence; without the link it finds the state",
)
def test_the_reserved_folder_is_a_link(yard: Yard) -> None:
    ended = yard.run("replace.py", kind="reserved", within_s=60)
    assert ended.record is not None
    assert ended.code == ended.record["code"]
    assert ended.record["bot_code"] == 3
    refused = yard.place.start().end()
    honest(refused, by="runtime", code=208)
    assert "it is the runtime's own; remove what stands there" in refused.err
    (yard.place.state / ".the0").unlink()
    assert yard.next_start(within_s=60)["kept"] in (1, 2)


@pytest.mark.attack(
    "state files, folders, bot.log and .the0/spool exchanged with links to /proc/self and to the neighbour, thousands of times a "
    "second, while they are read",
    "its own bytes or nothing, never a link's target",
)
def test_paths_swapped_while_being_read(yard: Yard) -> None:
    ended = yard.run("swap.py", seconds=2)
    honest(ended, by="bot", code=0)
    yard.no_secret(ended)
    assert yard.next_start(anew=True)["kept"] == 1
