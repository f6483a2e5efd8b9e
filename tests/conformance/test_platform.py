"""What every mode of the platform does, seen from outside."""

from __future__ import annotations

import json

import pytest

from conformance.bots import Folder, count, realtime, scheduled
from conformance.platform_under_test import WITHIN_S, Platform
from rig.waiting import eventually


def test_a_realtime_bot_runs_logs_answers_and_is_stored(platform: Platform, bot_id: str, folder: Folder) -> None:
    told = platform.deploy(realtime(folder), "--id", bot_id, "--config", "step=2")
    assert told["action"] == "new"
    row = platform.is_at(bot_id, "running")
    assert row["type"] == "realtime"
    assert row["restarts"] == 0
    answered = platform.answers(bot_id, "/all", source="live")
    assert answered.body["status"] == "ok"
    assert answered.body["data"]["count"] % 2 == 0
    assert isinstance(answered.body["duration"], int)
    platform.has(bot_id, lambda row: (row["generation"] or 0) >= 2, what="its state is stored again and again")
    lines = eventually(
        lambda: [line for line in platform.run("logs", bot_id, "--json").out.splitlines() if "start 1 of" in line],
        "its log can be read",
        within_s=WITHIN_S,
    )
    assert json.loads(lines[0])["message"] == f"start 1 of {bot_id}"
    assert platform.has(bot_id, lambda row: bool(row["metrics"]), what="its metrics")["metrics"]["count"]["value"] > 0


def test_a_stopped_bot_is_answered_for_from_its_stored_state_and_remembers(
    platform: Platform, bot_id: str, folder: Folder
) -> None:
    platform.deploy(realtime(folder), "--id", bot_id)
    before = count(platform, bot_id)
    platform.run("stop", bot_id)
    row = platform.is_at(bot_id, "stopped")
    answered = platform.answers(bot_id, "/all", source="stored")
    assert answered.body["generation"] == row["generation"]
    stored = answered.body["data"]["count"]
    assert stored >= before
    platform.run("start", bot_id)
    platform.is_at(bot_id, "running")
    eventually(lambda: count(platform, bot_id) > stored, "it goes on where it was", within_s=WITHIN_S)
    assert platform.query(bot_id, "/all").body["data"]["starts"] == 2


def test_a_restart_keeps_the_state(platform: Platform, bot_id: str, folder: Folder) -> None:
    platform.deploy(realtime(folder), "--id", bot_id)
    before = count(platform, bot_id)
    platform.run("restart", bot_id)
    eventually(
        lambda: platform.query(bot_id, "/all").body.get("data", {}).get("starts") == 2,
        "it was started again",
        within_s=WITHIN_S,
    )
    assert count(platform, bot_id) >= before


def test_a_bot_that_fails_is_started_again_with_its_state(platform: Platform, bot_id: str, folder: Folder) -> None:
    platform.deploy(realtime(folder), "--id", bot_id, "--config", "fails_at=5")
    row = platform.has(bot_id, lambda row: row["restarts"] >= 1 and row["status"] == "running", what="started again")
    assert row["last_exit"]["code"] == 1
    assert row["last_exit"]["by"] == "bot"
    assert count(platform, bot_id) >= 5


def test_another_configuration_is_another_start_and_the_same_one_is_none(
    platform: Platform, bot_id: str, folder: Folder
) -> None:
    source = realtime(folder)
    platform.deploy(source, "--id", bot_id)
    count(platform, bot_id)
    again = platform.deploy(source, "--id", bot_id)
    assert again["changes"] == []
    assert platform.answers(bot_id, "/all", source="live").body["data"]["starts"] == 1
    changed = platform.deploy(source, "--id", bot_id, "--config", "step=10")
    assert changed["changes"]
    eventually(
        lambda: platform.query(bot_id, "/all").body.get("data", {}).get("starts") == 2,
        "it was started again",
        within_s=WITHIN_S,
    )


def test_a_scheduled_bot_runs_when_told_and_its_runs_are_on_record(
    platform: Platform, bot_id: str, folder: Folder
) -> None:
    platform.deploy(scheduled(folder), "--id", bot_id, "--schedule", "0 4 29 2 *")
    assert platform.is_at(bot_id, "scheduled")["next"]
    for number in (1, 2):
        platform.run("run", bot_id)

        def ended(number: int = number) -> list[dict[str, object]]:
            runs = [run for run in platform.run("runs", bot_id, "--json").json if run["result"]]
            return runs if len(runs) == number else []

        runs = eventually(ended, f"run {number} has ended", within_s=WITHIN_S)
        assert {run["result"] for run in runs} == {"ok"}
    answered = platform.answers(bot_id, "/all", source="stored")
    assert answered.body["data"]["runs"] == 2
    assert answered.body["generation"] == max(int(str(run["generation_after"])) for run in runs)


def test_a_run_that_fails_is_on_record_as_failed(platform: Platform, bot_id: str, folder: Folder) -> None:
    platform.deploy(scheduled(folder), "--id", bot_id, "--schedule", "@yearly", "--config", "fails=true")
    platform.run("run", bot_id)

    def failed() -> dict[str, object]:
        runs = platform.run("runs", bot_id, "--json").json
        return runs[0] if runs and runs[0]["result"] else {}

    run = eventually(failed, "the run has ended", within_s=WITHIN_S)
    assert run["result"] == "failed"
    assert run["code"] == 1


def test_a_schedule_fires_by_itself_and_a_paused_one_does_not(platform: Platform, bot_id: str, folder: Folder) -> None:
    platform.deploy(scheduled(folder), "--id", bot_id, "--schedule", "* * * * * *")
    eventually(lambda: len(platform.run("runs", bot_id, "--json").json) >= 2, "slots are run", within_s=WITHIN_S)
    platform.run("pause", bot_id)
    assert platform.is_at(bot_id, "paused")["next"] is None


def test_a_query_cannot_write_state(platform: Platform, bot_id: str, folder: Folder) -> None:
    platform.deploy(realtime(folder), "--id", bot_id)
    count(platform, bot_id)
    for source in ("live", "stored"):
        if source == "stored":
            platform.run("stop", bot_id)
            platform.is_at(bot_id, "stopped")
        answered = platform.query(bot_id, "/write")
        assert answered.status == 500
        assert answered.body["status"] == "error"
        assert "written" not in platform.answers(bot_id, "/all", source=source).body["data"]


@pytest.mark.parametrize("source", ["live", "stored"])
def test_params_reach_the_bot_as_they_are(platform: Platform, bot_id: str, folder: Folder, source: str) -> None:
    platform.deploy(realtime(folder), "--id", bot_id)
    count(platform, bot_id)
    if source == "stored":
        platform.run("stop", bot_id)
        platform.is_at(bot_id, "stopped")
    params = {"text": "a b/ü?&=", "whole": 5, "list": [1, "x"], "none": None, "yes": True}
    answered = platform.query(bot_id, "/all", **params)
    assert answered.body["source"] == source
    assert answered.body["data"]["asked"] == params


def test_a_removed_bot_leaves_its_state_and_purging_removes_it(platform: Platform, bot_id: str, folder: Folder) -> None:
    source = realtime(folder)
    platform.deploy(source, "--id", bot_id)
    before = count(platform, bot_id)
    platform.run("rm", bot_id)
    assert platform.query(bot_id, "/all").status == 404
    eventually(lambda: not platform.ps(bot_id), "it is gone from the list", within_s=WITHIN_S)
    platform.deploy(source, "--id", bot_id)
    assert count(platform, bot_id) >= before
    platform.run("rm", bot_id, "--purge")
    eventually(lambda: not platform.ps(bot_id), "it is gone from the list", within_s=WITHIN_S)
    platform.deploy(source, "--id", bot_id)
    count(platform, bot_id)
    assert platform.query(bot_id, "/all").body["data"]["starts"] == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 400),
        (b"[]", 400),
        ({"query_path": "/all"}, 400),
        ({"bot_id": "x"}, 400),
        ({"bot_id": "x", "query_path": "/all", "params": []}, 400),
        ({"bot_id": "x", "query_path": "/all", "timeout_sec": "1"}, 400),
        ({"bot_id": "nobody-has-this-id", "query_path": "/all"}, 404),
        (b'{"bot_id": "x", "query_path": "' + b"x" * (1 << 20) + b'"}', 413),
    ],
)
def test_what_cannot_be_asked_gets_a_status_and_a_whole_answer(platform: Platform, body: object, status: int) -> None:
    answered = platform.ask(body)
    assert answered.status == status
    assert set(answered.body) == {"status", "error", "duration", "timestamp"}
    assert answered.body["status"] == "error"


def test_health_other_methods_and_the_token(platform: Platform) -> None:
    assert platform.ask({}, path="/health", method="GET", token=None).body == {"status": "ok"}
    assert platform.ask({}, method="GET").status == 405
    if platform.wants_token:
        assert platform.ask({}, token=None).status == 401
        assert platform.ask({}, token="another").status == 401


def test_an_unknown_path_is_the_bots_own_error(platform: Platform, bot_id: str, folder: Folder) -> None:
    platform.deploy(realtime(folder), "--id", bot_id)
    count(platform, bot_id)
    answered = platform.query(bot_id, "/nothing")
    assert answered.status == 500
    assert answered.body["status"] == "error"
    assert answered.body["error"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--runtime", "cobol"), "cobol"),
        (("--entrypoint", "none.py"), "none.py"),
        (("--type", "scheduled", "--schedule", "61 * * * *"), "61"),
        (("--type", "scheduled"), "schedule"),
        (("--config", "step=0"), "step"),
    ],
)
def test_a_deploy_that_makes_no_sense_changes_nothing(
    platform: Platform, bot_id: str, folder: Folder, words: tuple[str, ...], says: str
) -> None:
    said = platform.run("deploy", str(realtime(folder)), "--id", bot_id, *words, ok=False)
    assert 200 <= said.code <= 219
    assert len(said.err.strip().splitlines()) == 1
    assert says in said.err
    assert not platform.ps(bot_id)


def test_a_bot_that_is_not_there_is_named_in_one_sentence(platform: Platform) -> None:
    for words in (("stop",), ("start",), ("rm",), ("logs",), ("runs",), ("run",), ("next",), ("restart",)):
        said = platform.run(*words, "nobody-has-this-id", ok=False)
        assert said.code != 0
        assert len(said.err.strip().splitlines()) == 1
        assert "nobody-has-this-id" in said.err
