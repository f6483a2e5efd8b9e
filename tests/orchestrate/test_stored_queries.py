"""Queries of stored state whose processes are kept: when, for how long, and that none ever answers what is not so any more."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrate.platform_place import Platform
from rig.waiting import eventually
from the0 import documents
from the0.code_folder import brings_sdk
from the0.documents import Bot
from the0.errors import ExitCode, Fault
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.orchestrate import kept_queries, stored_queries, warm_query
from the0.orchestrate.engine import QueryAnswer, Start
from the0.orchestrate.engine_process import ProcessEngine
from the0.sync.head import HeadFile

COUNTS = """
from the0 import state
def main(bot_id, config):
    state.set("count", state.get("count", 0) + 1)
"""
QUERY = """
import os, signal, time
from the0 import query, state

@query.handler("/count")
def count(request):
    return {"count": state.get("count", 0), "pid": os.getpid(), "params": request.params}

@query.handler("/write")
def write(request):
    with open(os.path.join(os.environ["STATE_DIR"], "count.json"), "w") as file:
        file.write("99")
    return state.get("count")

@query.handler("/later")
def later(request):
    import threading
    threading.Timer(0.05, write, (request,)).start()
    return "soon"

@query.handler("/die")
def die(request):
    os.kill(os.getpid(), signal.SIGKILL)

@query.handler("/hang")
def hang(request):
    time.sleep(60)

@query.handler("/large")
def large(request):
    return "x" * (33 << 20)

query.run()
"""
BY_HAND = """
import json, os
if "QUERY_PATH" not in os.environ:
    raise SystemExit("I answer once")
os.makedirs("/query", exist_ok=True)
with open("/query/result.json", "w") as file:
    json.dump({"status": "ok", "data": {"pid": os.getpid()}}, file)
"""
OWN_SDK = "def success(message): pass"


class Asked:
    """An engine and the questions that it is asked."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.engine = ProcessEngine(platform.data, environ={"PATH": os.environ["PATH"]}, stop_grace_s=5)

    def bot(self, bot_id: str = "b", *, query: str = QUERY, files: dict[str, str] | None = None, **config: Any) -> Bot:
        self.platform.put(bot_id, COUNTS, files={"query.py": query, **(files or {})}, **config)
        stored = self.platform.bots.get(bot_id)
        assert stored is not None
        read = documents.read(stored.body, kind=stored.kind)
        assert isinstance(read, Bot)
        return read

    def run(self, bot: Bot) -> None:
        """The next generation."""
        self.engine.start(Start(bot=bot))
        eventually(lambda: all(each.state == "ended" for each in self.engine.actual()), "its end")

    def has_run(self, bot_id: str = "b", **more: Any) -> Bot:
        """A bot with a generation, whose code is here."""
        made = self.bot(bot_id, **more)
        self.run(made)
        self.ask(made)
        return made

    def ask(self, bot: Bot, path: str = "/count", *, timeout_s: float = 20, **params: Any) -> QueryAnswer:
        return self.engine.query(bot, path=path, params=params, timeout_s=timeout_s)

    def pid(self, bot: Bot) -> int:
        """Of the process that answers."""
        answer = self.ask(bot).answer
        assert answer["status"] == "ok", answer
        return int(answer["data"]["pid"])

    def count(self, bot: Bot) -> int:
        return int(self.ask(bot).answer["data"]["count"])


@pytest.fixture
def asked(platform: Platform) -> Iterator[Asked]:
    made = Asked(platform)
    yield made
    made.engine.close()
    made.engine.close()
    assert not kept(platform), "closed, and a process is left"


def kept(platform: Platform) -> list[int]:
    """What watches over each process that is kept."""
    return [pid for pid in platform.supervisors() if b"--serve-stored" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def copies(platform: Platform) -> list[Path]:
    """Files of state that queries were given, and that were not thrown away."""
    return list(Path(platform.data.bots).glob("*/queries/*/state/**/*.json"))


def until_none_is_kept(platform: Platform, *, within_s: float = 20) -> None:
    eventually(lambda: not kept(platform) and not copies(platform), "nothing kept", within_s=within_s)


# --- which --------------------------------------------------------------------------------------------


def test_the_process_of_one_answer_gives_the_next_one(asked: Asked) -> None:
    bot = asked.has_run()
    first = asked.ask(bot, by=3, deep={"a": [1, 2.5, None]})
    assert first.generation == 1
    assert first.answer["data"]["params"] == {"by": 3, "deep": {"a": [1, 2.5, None]}}
    assert asked.pid(bot) == asked.pid(bot) == first.answer["data"]["pid"]
    assert len(kept(asked.platform)) == 1
    assert asked.ask(bot, "/none").answer["status"] == "error"
    assert asked.pid(bot) == first.answer["data"]["pid"], "an error of the bot's own is an answer"


@pytest.mark.parametrize(
    "files", [{"vendor/the0/__init__.py": OWN_SDK}, {"the0.py": OWN_SDK}, {"vendor/the0.py": OWN_SDK}]
)
def test_an_archive_with_an_sdk_of_its_own_is_asked_once(asked: Asked, files: dict[str, str]) -> None:
    asks_once = BY_HAND  # its `the0` hides ours
    bot = asked.bot(query=asks_once, files=files)
    asked.platform.data.bot("b").make()
    assert brings_sdk_of(asked, bot)
    pids = {asked.pid(bot) for _ in range(3)}
    assert len(pids) == 3
    assert not kept(asked.platform)


def brings_sdk_of(asked: Asked, bot: Bot) -> bool:
    asked.ask(bot)
    folder = Path(asked.platform.data.bot(bot.id).path, "queries", bot.config_hash, "bot")
    return brings_sdk(str(folder), runtime=bot.runtime)


def test_one_with_an_sdk_of_its_own_is_kept_where_it_asks_for_it(asked: Asked) -> None:
    bot = asked.has_run(
        files={"vendor/the0_more.py": "", "vendor/the0.dist-info/METADATA": ""}, the0={"query_warm_s": "1m"}
    )
    assert brings_sdk_of(asked, bot)
    assert asked.pid(bot) == asked.pid(bot)


def test_none_is_kept_where_the_configuration_says_so(asked: Asked) -> None:
    bot = asked.has_run(the0={"query_warm_s": 0})
    assert asked.pid(bot) != asked.pid(bot)
    assert not kept(asked.platform)


def test_a_program_that_answers_once_is_found_out_and_asked_once(asked: Asked) -> None:
    bot = asked.bot(query=BY_HAND, the0={"query_warm_s": 30})
    asked.run(bot)
    assert len({asked.pid(bot) for _ in range(3)}) == 3
    assert not kept(asked.platform)


def test_a_question_that_a_server_gets_a_part_of_only_is_asked_once(asked: Asked) -> None:
    bot = asked.has_run()
    asked.pid(bot)
    params: dict[str, Any] = {"words": "w" * 5000, "number": 7}
    assert asked.ask(bot, **params).answer["data"]["params"] == params, "with their types"
    assert not kept(asked.platform)


def test_a_bot_that_never_ran_is_asked_once(asked: Asked) -> None:
    bot = asked.bot()
    assert asked.pid(bot) != asked.pid(bot)
    assert asked.ask(bot).generation == 0


@pytest.mark.parametrize(
    ("runtime", "names", "brings"),
    [
        ("python3.11", ["main.py", "vendor/numpy/x.py", ".the0ignore"], False),
        ("python3.11", ["main.py", "vendor/the0/x.py"], True),
        ("python3.11", ["the0/__init__.py"], True),
        ("python3.11", ["the0.cpython-311.so"], True),
        ("python3.11", ["vendor"], False),
        ("nodejs20", ["main.js"], True),
        ("rust-stable", ["bot"], True),
    ],
)
def test_who_brings_an_sdk(tmp_path: Path, runtime: str, names: Sequence[str], brings: bool) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert brings_sdk(str(tmp_path), runtime=runtime) is brings


# --- never an old answer, never a changed one ---------------------------------------------------------


def test_a_new_generation_is_another_process(asked: Asked) -> None:
    bot = asked.has_run()
    former = asked.pid(bot)
    for count in range(2, 6):
        asked.run(bot)
        told = asked.ask(bot)
        assert (told.answer["data"]["count"], told.generation) == (count, count)
        assert told.answer["data"]["pid"] != former
        former = told.answer["data"]["pid"]
        assert len(kept(asked.platform)) == 1, "the former one is gone"
        assert asked.pid(bot) == former


def test_no_answer_is_older_than_what_was_stored_when_it_was_asked(asked: Asked) -> None:
    """Asked as fast as it goes while generations come."""
    bot = asked.has_run()
    heads = HeadFile(
        open_store(StoreSettings(folder=asked.platform.data.objects), deadline_s=5), bucket="bot-state", bot_id="b"
    )
    failed: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(5):
                asked.run(bot)
        except BaseException as reason:  # noqa: BLE001 - raised again below, in the test's own thread
            failed.append(reason)

    runs = threading.Thread(target=run)
    runs.start()
    while runs.is_alive():
        stored = heads.read()
        assert stored is not None
        told = asked.ask(bot)
        assert told.generation is not None
        assert told.generation >= stored.head.content.generation
        assert told.answer["data"]["count"] == told.generation, "each run is one generation"
    runs.join()
    if failed:
        print(asked.platform.printed("b"), asked.engine.actual())
        raise failed[0]
    assert asked.ask(bot).generation == 6


def test_what_a_question_wrote_the_next_one_does_not_see(asked: Asked) -> None:
    bot = asked.has_run()
    former = asked.pid(bot)
    assert asked.ask(bot, "/write").answer["data"] == 99, "it may write its copy"
    assert asked.count(bot) == 1
    assert asked.pid(bot) != former
    assert asked.ask(bot, "/write").answer["data"] == 99
    assert not kept(asked.platform), "a bot whose queries write is asked once each from then on"
    assert asked.count(bot) == 1
    assert copies(asked.platform) == []


def test_what_it_writes_between_two_questions_neither(asked: Asked) -> None:
    bot = asked.has_run()
    asked.pid(bot)
    assert asked.ask(bot, "/later").answer["data"] == "soon"
    written = eventually(lambda: [path for path in copies(asked.platform) if path.read_text() == "99"], "the write")
    assert written
    assert asked.count(bot) == 1


# --- processes that die and hang ----------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_killed_costs_a_start(asked: Asked, number: int) -> None:
    bot = asked.has_run()
    former = asked.pid(bot)
    os.kill(former, number)
    assert asked.pid(bot) != former
    assert len(kept(asked.platform)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_so_does_what_watches_over_it(asked: Asked, number: int) -> None:
    bot = asked.has_run()
    former = asked.pid(bot)
    os.kill(kept(asked.platform)[0], number)
    assert asked.pid(bot) != former
    eventually(lambda: len(kept(asked.platform)) == 1, "the former one's end")


def test_one_that_dies_of_its_question_is_said(asked: Asked) -> None:
    bot = asked.has_run()
    asked.pid(bot)
    with pytest.raises(Fault, match="signal 9") as caught:
        asked.ask(bot, "/die")
    assert caught.value.code == ExitCode.QUERY_FAILED
    assert asked.count(bot) == 1


def test_one_that_fails_before_it_answers_is_said_with_its_last_line(asked: Asked) -> None:
    bot = asked.bot(query="raise RuntimeError('the key is missing')\n")
    with pytest.raises(Fault) as caught:
        asked.ask(bot)
    assert caught.value.code == ExitCode.QUERY_FAILED
    assert caught.value.sentence.endswith("(last: RuntimeError: the key is missing).")


def test_however_little_time_a_question_has_it_is_kept(asked: Asked) -> None:
    bot = asked.bot()
    for timeout_s in (0.4, 0.01, 0.0001):
        with pytest.raises(Fault) as caught:
            asked.ask(bot, "/hang", timeout_s=timeout_s)
        assert caught.value.code == ExitCode.TIMED_OUT


def test_one_that_hangs_is_said_and_ended(asked: Asked) -> None:
    bot = asked.has_run()
    former = asked.pid(bot)
    began = time.monotonic()
    with pytest.raises(Fault) as caught:
        asked.ask(bot, "/hang", timeout_s=1)
    assert caught.value.code == ExitCode.TIMED_OUT
    assert time.monotonic() - began < 10
    assert asked.pid(bot) != former


def test_one_that_was_stopped_is_said_and_ended(asked: Asked) -> None:
    bot = asked.has_run()
    former = asked.pid(bot)
    os.kill(former, signal.SIGSTOP)
    with pytest.raises(Fault) as caught:
        asked.ask(bot, timeout_s=1)
    assert caught.value.code == ExitCode.TIMED_OUT
    assert asked.pid(bot) != former


def test_an_answer_that_is_too_large(asked: Asked) -> None:
    bot = asked.has_run()
    asked.pid(bot)
    with pytest.raises(Fault, match="32 MiB"):
        asked.ask(bot, "/large")
    assert asked.count(bot) == 1


def test_a_state_that_cannot_be_trusted_is_not_answered_from_what_is_kept(asked: Asked) -> None:
    bot = asked.has_run()
    asked.pid(bot)
    head = Path(asked.platform.data.objects, "bot-state/b/HEAD")
    stored = head.read_bytes()
    head.write_bytes(stored[:-10])
    with pytest.raises(Fault, match="HEAD of bot b cannot be used"):
        asked.ask(bot)
    head.write_bytes(stored)
    assert asked.count(bot) == 1


# --- how many, and for how long -----------------------------------------------------------------------


def test_only_so_many_are_kept_and_those_asked_last(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_queries, "MOST", 2)
    bots = [asked.has_run(f"b{number}") for number in range(3)]
    pids = [asked.pid(bot) for bot in bots]
    assert len(kept(asked.platform)) == 2
    assert asked.pid(bots[2]) == pids[2]
    assert asked.pid(bots[1]) == pids[1]
    assert asked.pid(bots[0]) != pids[0], "nobody asked this one for the longest time"
    assert asked.pid(bots[1]) == pids[1]
    assert len(kept(asked.platform)) == 2
    assert asked.pid(bots[2]) != pids[2], "the oldest question was its own"


def test_where_all_of_them_are_busy_a_process_answers_once(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_queries, "MOST", 1)
    busy, other = asked.has_run("busy"), asked.has_run("other")
    asked.pid(busy)

    def hang() -> None:
        with pytest.raises(Fault):
            asked.ask(busy, "/hang", timeout_s=8)

    hangs = threading.Thread(target=hang)
    hangs.start()
    eventually(lambda: asked.pid(other) != asked.pid(other), "answers by two processes, while it is busy")
    hangs.join()
    assert asked.count(busy) == 1


def test_what_is_kept_ends_when_nobody_asks(asked: Asked) -> None:
    bot = asked.has_run(the0={"query_warm_s": 1})
    assert asked.pid(bot) == asked.pid(bot)
    assert copies(asked.platform)
    until_none_is_kept(asked.platform)
    eventually(
        lambda: not [each for each in threading.enumerate() if each.name == "warm-queries"],
        "nobody who looks after nothing",
    )
    assert asked.count(bot) == 1


def test_nobody_looks_again_and_again_at_one_that_is_being_asked(asked: Asked) -> None:
    """Though it was last asked longer ago than it is to be kept."""
    bot = asked.has_run(the0={"query_warm_s": 0.1})
    asked.pid(bot)
    before_s = time.process_time()
    with pytest.raises(Fault):
        asked.ask(bot, "/hang", timeout_s=4)
    assert time.process_time() - before_s < 2, "of four seconds"


def test_what_is_kept_ends_where_memory_runs_out(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_queries, "MOST_BYTES", 1)
    monkeypatch.setattr(kept_queries, "LOOK_S", 0.2)
    bot = asked.has_run()
    asked.pid(bot)
    until_none_is_kept(asked.platform)
    assert asked.count(bot) == 1


def test_what_is_kept_of_a_former_generation_ends(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_queries, "LOOK_S", 0.2)
    bot = asked.has_run()
    asked.pid(bot)
    asked.run(bot)
    until_none_is_kept(asked.platform)


def test_what_is_kept_of_a_removed_or_changed_bot_ends(asked: Asked) -> None:
    bots = {name: asked.has_run(name) for name in ("same", "other", "gone")}
    for bot in bots.values():
        asked.pid(bot)
    same = asked.pid(bots["same"])
    assert len(kept(asked.platform)) == 3
    asked.engine.keep_queries({"same": bots["same"], "other": asked.bot("other", version="2")})
    eventually(lambda: len(kept(asked.platform)) == 1, "the end of two")
    assert asked.pid(bots["same"]) == same
    asked.engine.discard("same")
    assert not kept(asked.platform)


def test_a_large_state_is_not_left_lying_about(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_queries, "MOST_STATE_BYTES", 10)
    bot = asked.has_run()
    assert asked.pid(bot) != asked.pid(bot)
    assert not kept(asked.platform)


def test_one_that_never_listens_is_not_waited_for(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_query, "LISTENING_S", 0.3)
    sleeps = BY_HAND.replace('raise SystemExit("I answer once")', "import time; time.sleep(60)")
    bot = asked.bot(query=sleeps, the0={"query_warm_s": 30})
    asked.run(bot)
    assert asked.pid(bot) != asked.pid(bot)
    assert not kept(asked.platform)


# --- under `runtime up` -------------------------------------------------------------------------------


def put(platform: Platform, **config: Any) -> None:
    platform.put("b", COUNTS, kind="scheduled", files={"query.py": QUERY}, schedule="0 0 29 2 *", **config)


def run(platform: Platform, generation: int) -> None:
    platform.until("b", "scheduled")
    platform.control.run("b")
    eventually(lambda: platform.ask("b", "/count")["generation"] == generation, f"generation {generation}")


def answers(platform: Platform) -> int:
    """By a process that is kept."""

    def look() -> int | None:
        first, second = (platform.ask("b", "/count") for _ in range(2))
        assert first["source"] == second["source"] == "stored"
        return int(first["data"]["pid"]) if first["data"]["pid"] == second["data"]["pid"] else None

    return int(eventually(look, "two answers of one process"))


def test_a_platform_that_is_killed_leaves_no_query_behind(platform: Platform) -> None:
    put(platform)
    up = platform.up()
    run(platform, 1)
    first = answers(platform)
    assert len(kept(platform)) == 1
    up.kill()
    until_none_is_kept(platform)
    assert not Path(f"/proc/{first}").exists()
    platform.up()
    assert answers(platform) != first
    assert platform.ask("b", "/count")["generation"] == 1


def test_all_of_it_killed_at_once_leaves_no_query_behind(platform: Platform) -> None:
    put(platform)
    up = platform.up()
    run(platform, 1)
    first = answers(platform)
    (over_it,) = kept(platform)
    up.process.kill()
    os.kill(over_it, signal.SIGKILL)
    up.kill()
    eventually(lambda: not Path(f"/proc/{first}").exists(), "the end of the process")
    platform.up()
    run(platform, 2)
    assert answers(platform) != first
    assert platform.ask("b", "/count")["data"]["count"] == 2


def test_a_deployment_a_removal_and_the_platforms_end_take_what_is_kept_along(platform: Platform) -> None:
    put(platform)
    up = platform.up()
    run(platform, 1)
    first = answers(platform)
    put(platform, word="new")
    until_none_is_kept(platform)
    second = answers(platform)
    assert second != first
    platform.bots.remove("b")
    platform.tell()
    until_none_is_kept(platform)
    put(platform)
    answers(platform)
    assert up.stop() == 0
    assert not kept(platform)
    assert copies(platform) == []
