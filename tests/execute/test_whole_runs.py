"""Whole runs on MinIO, with a network that fails in between: what a bot remembers, and which instance may go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bot_place import CODE_KEY, Place, archive, eventually

from conftest import Buckets
from rig.minio_server import Running as MinIO
from rig.proxy import Answer, DropReply, Proxy, Request
from the0 import names
from the0.objects.open import open_store
from the0.objects.store import ObjectStore
from the0.sync.head import Head, HeadFile
from the0.sync.log_reader import read
from the0.sync.verify import verify

COUNTER = """
    import os, time
    from the0 import state

    def main(bot_id, config):
        count = state.get("count", 0)
        print(f"remembers {count}", flush=True)
        while not os.path.exists("stop"):
            count += 1
            state.set("count", count)
            with open(os.path.join(os.environ["STATE_DIR"], "..", "counted"), "a") as file:
                file.write(f"{count}\\n")
            print(f"counted {count}", flush=True)
            time.sleep(config.get("pause_s", 0.1))
"""


@dataclass
class Network:
    """MinIO behind a proxy, with buckets of this test's own."""

    proxy: Proxy
    store: ObjectStore
    environ: dict[str, str]
    state_bucket: str
    logs_bucket: str
    bot_id: str = "bot-1"

    def place(self, root: Path, **config: Any) -> Place:
        root.mkdir(parents=True, exist_ok=True)
        made = Place(root)
        made.env |= {"OBJECT_STORE_DIR": None, "BOT_CONFIG": json.dumps(config), **self.environ}
        return made

    @property
    def head(self) -> Head | None:
        stored = HeadFile(self.store, bucket=self.state_bucket, bot_id=self.bot_id).read()
        return stored.head if stored else None

    def generation(self) -> int:
        head = self.head
        return head.content.generation if head else 0

    def check(self) -> None:
        assert verify(self.store, bucket=self.state_bucket, bot_id=self.bot_id).problems == ()


@pytest.fixture
def network(minio_server: MinIO, buckets: Buckets) -> Iterator[Network]:
    store = open_store(minio_server.settings, deadline_s=10)
    made = {name: buckets.make(store, name) for name in ("code", "state", "logs", "results")}
    store.put(made["code"], CODE_KEY, archive({"main.py": COUNTER}))
    with Proxy(minio_server.settings.endpoint) as proxy:
        yield Network(
            proxy=proxy,
            store=store,
            environ={
                **minio_server.environ,
                "MINIO_ENDPOINT": proxy.endpoint,
                "MINIO_CODE_BUCKET": made["code"],
                "MINIO_STATE_BUCKET": made["state"],
                "MINIO_LOGS_BUCKET": made["logs"],
                "MINIO_QUERY_RESULTS_BUCKET": made["results"],
            },
            state_bucket=made["state"],
            logs_bucket=made["logs"],
        )
    store.close()


def remembered(log: str) -> list[int]:
    return [int(line.rsplit(" ", 1)[1].rstrip('"}')) for line in log.splitlines() if "remembers " in line]


def counted(log: str) -> list[int]:
    return [int(line.rsplit(" ", 1)[1].rstrip('"}')) for line in log.splitlines() if "counted " in line]


def test_a_clean_stop_loses_nothing_and_releases(network: Network, tmp_path: Path) -> None:
    place = network.place(tmp_path / "one")
    run = place.start()
    run.wait_for("counted 5")
    ended = run.stop()
    assert (ended.code, ended.err) == (0, "")
    head = network.head
    assert head is not None
    assert head.claim.released
    last = counted(ended.log)[-1]
    info = network.store.head(network.state_bucket, names.archive_key(network.bot_id))
    assert info is not None
    assert info.metadata[names.ARCHIVE_GENERATION] == str(head.content.generation)
    other = network.place(tmp_path / "two").start()
    other.wait_for("remembers")
    assert remembered(other.log())[0] in (last, last + 1), "SIGTERM may come between a count and its line"
    assert other.stop().code == 0
    network.check()


def test_the_machine_is_lost_under_steady_writes(network: Network, tmp_path: Path) -> None:
    """Everything is killed and the disk is gone: at most about two seconds of work are lost."""
    place = network.place(tmp_path / "one", pause_s=0.05)
    run = place.start()
    run.wait_for("counted 60")
    instance = network.head.claim.instance  # type: ignore[union-attr]
    last = counted(run.log())[-1]
    for pid in [run.process.pid, *run.children().values()]:
        os.kill(pid, signal.SIGKILL)
    run.process.wait()
    shutil.rmtree(place.state)
    other = network.place(tmp_path / "two")
    other.env["THE0_ENDED"] = instance
    again = other.start()
    again.wait_for("remembers")
    assert last - remembered(again.log())[0] <= 2.5 / 0.05, "more than 2.5 s of work were lost"
    assert remembered(again.log())[0] > 0
    assert again.stop().code == 0
    network.check()


def test_everything_is_killed_and_the_disk_stays(network: Network, tmp_path: Path) -> None:
    place = network.place(tmp_path / "one", pause_s=0.05)
    for _ in range(3):
        run = place.start()
        before = len(counted(run.log()))
        eventually(lambda before=before, run=run: len(counted(run.log())) > before + 10, "ten more counts")
        for pid in [run.process.pid, *run.children().values()]:
            os.kill(pid, signal.SIGKILL)
        run.process.wait()
    run = place.start()
    eventually(lambda: len(remembered(run.log())) == 4, "a fourth start")
    numbers = counted(run.log())
    for value in remembered(run.log())[1:]:
        assert value in numbers or value - 1 in numbers, "nothing of what had been written was lost"
    assert run.stop().code == 0
    lines = (place.state / "counted").read_text().split()
    assert lines == [str(n + 1) for n in range(len(lines))], "counted on without a gap or a repeat"
    network.check()


def test_another_instance_takes_over(network: Network, tmp_path: Path) -> None:
    here, there = network.place(tmp_path / "here", pause_s=0.05), network.place(tmp_path / "there", pause_s=0.05)
    first = here.start()
    eventually(lambda: network.generation() > 0, "a first commit")
    there.env["THE0_ENDED"] = network.head.claim.instance  # type: ignore[union-attr]
    second = there.start()
    ended = first.end(within_s=60)
    assert ended.code == 210
    assert ended.record is not None
    assert ended.record["by"] == "runtime"
    asides = list((here.state / ".the0/aside").iterdir())
    assert len(asides) == 1, "what the loser had not stored is kept"
    second.wait_for("counted")
    assert second.stop().code == 0
    assert remembered(second.log())[0] > 0
    network.check()


def test_sync_is_killed_again_and_again(network: Network, tmp_path: Path) -> None:
    place = network.place(tmp_path / "one", pause_s=0.05)
    run = place.start()
    for _ in range(3):
        seen = network.generation()
        eventually(lambda seen=seen: network.generation() > seen, "a commit")
        os.kill(run.child("the0-sync"), signal.SIGKILL)
    seen = network.generation()
    eventually(lambda: network.generation() > seen, "a commit after the last kill")
    epoch = network.head.claim.epoch  # type: ignore[union-attr]
    assert epoch == 1, "a respawned sync goes on under the same claim"
    ended = run.stop()
    assert ended.code == 0
    other = network.place(tmp_path / "two").start()
    other.wait_for("remembers")
    assert remembered(other.log())[0] >= counted(ended.log)[-1]
    other.stop()
    network.check()


def test_the_store_is_away_for_a_while(network: Network, tmp_path: Path) -> None:
    place = network.place(tmp_path / "one", pause_s=0.05)
    run = place.start()
    eventually(lambda: network.generation() > 0, "a first commit")
    network.proxy.down()
    seen, before = network.generation(), len(counted(run.log()))
    eventually(lambda: len(counted(run.log())) > before + 40, "the bot goes on")
    assert network.generation() == seen
    network.proxy.up()
    eventually(lambda: network.generation() > seen, "it is caught up", within_s=40)
    ended = run.stop()
    assert ended.code == 0
    other = network.place(tmp_path / "two").start()
    other.wait_for("remembers")
    assert remembered(other.log())[0] >= counted(ended.log)[-1]
    other.stop()
    network.check()


@pytest.mark.parametrize("fate", [Answer(503), Answer(500), DropReply()], ids=["503", "500", "reply dropped"])
def test_every_third_request_fails(network: Network, tmp_path: Path, fate: object) -> None:
    def rule(request: Request) -> Any:
        return fate if request.number % 3 == 0 else None

    network.proxy.fail(rule)
    place = network.place(tmp_path / "one", pause_s=0.02)
    run = place.start()
    run.wait_for("counted 50")
    ended = run.stop()
    assert ended.code == 0
    network.proxy.heal()
    other = network.place(tmp_path / "two").start()
    other.wait_for("remembers")
    assert remembered(other.log())[0] >= counted(ended.log)[-1]
    other.stop()
    network.check()


def test_the_last_state_does_not_reach_the_store(network: Network, tmp_path: Path) -> None:
    place = network.place(tmp_path / "one", pause_s=0.05)
    place.env["STOP_GRACE_S"] = "1"
    run = place.start()
    eventually(lambda: network.generation() > 0, "a first commit")
    network.proxy.down()
    run.send(signal.SIGTERM)
    ended = run.end(within_s=120)
    assert ended.code == 209
    assert ended.record is not None
    network.proxy.up()
    again = place.start()
    eventually(lambda: len(remembered(again.log())) == 2, "a second start")
    assert remembered(again.log())[1] >= counted(ended.log)[-1], "the disk still had it"
    assert again.stop().code == 0
    network.check()


def test_logs_are_in_the_store_after_a_stop(network: Network, tmp_path: Path) -> None:
    place = network.place(tmp_path / "one")
    run = place.start()
    run.wait_for("counted 3")
    ended = run.stop()
    day = time.strftime("%Y%m%d", time.gmtime())
    found = network.store.get(network.logs_bucket, names.day_log_key(network.bot_id, day), limit_bytes=1 << 20)
    lines = [json.loads(line) for line in found.data.splitlines()]
    assert [line["message"] for line in lines if "counted" in line["message"]] == [
        f"counted {n}" for n in counted(ended.log)
    ]
    pieces = list(network.store.list(network.logs_bucket, names.log_pieces_prefix(network.bot_id, day)))
    assert pieces == []


def test_why_a_start_failed_is_in_the_stored_log(network: Network, tmp_path: Path) -> None:
    place = network.place(tmp_path / "one")
    place.env["CODE_FILE"] = "u1/missing/1.0.0"
    ended = place.run()
    assert ended.code == 203
    assert "u1/missing/1.0.0" in ended.err
    place.env["CODE_FILE"] = CODE_KEY
    run = place.start()
    run.wait_for("counted 3")
    assert run.stop().code == 0
    told = [line for line in read(network.store, network.logs_bucket, network.bot_id) if b"u1/missing" in line]
    assert len(told) == 1, "said once, though the disk's log and the store both could have told it"
