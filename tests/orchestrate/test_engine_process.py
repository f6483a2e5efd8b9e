"""The process engine by itself: what it refuses, what it finds on the disk, what it tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrate.platform_place import IDLE, Platform, eventually
from the0 import documents, landlock, view
from the0.documents import Bot
from the0.errors import ExitCode, Fatal
from the0.orchestrate import process_record, processes
from the0.orchestrate.engine import Instance, Start
from the0.orchestrate.engine_process import ProcessEngine


@pytest.fixture
def engine(platform: Platform) -> Iterator[ProcessEngine]:
    made = opened(platform)
    yield made
    end_all(made)


def opened(platform: Platform) -> ProcessEngine:
    return ProcessEngine(platform.data, environ={"PATH": os.environ["PATH"]}, stop_grace_s=5)


def end_all(engine: ProcessEngine) -> None:
    for each in engine.actual():
        engine.stop(each.name, grace_s=5, reason="the test ends")
    eventually(lambda: all(each.state == "ended" for each in engine.actual()), "the end of all")
    engine.close()
    engine.close()


def bot(platform: Platform, bot_id: str = "b", code: str = IDLE, **config: Any) -> Bot:
    platform.put(bot_id, code, **config)
    found = platform.bots.get(bot_id)
    assert found is not None
    read = documents.read(found.body, kind=found.kind)
    assert isinstance(read, Bot)
    return read


def only(engine: ProcessEngine) -> Instance:
    (found,) = engine.actual()
    return found


def test_one_copy_of_a_bot(platform: Platform, engine: ProcessEngine) -> None:
    wanted = Start(bot=bot(platform))
    faults = []

    def start() -> None:
        try:
            engine.start(wanted)
        except Fatal as fault:
            faults.append(fault.code)

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [ExitCode.RUNNING_HERE] * 4
    assert len(platform.supervisors()) == 1


def test_an_end_wakes_and_is_told_with_its_last_lines(platform: Platform, engine: ProcessEngine) -> None:
    woken = threading.Event()
    engine.subscribe(woken.set)
    engine.start(
        Start(bot=bot(platform, code="print('one')\nprint('two')\nraise SystemExit(9)"), restart=4, failures=2)
    )
    assert woken.wait(20)
    ended = only(engine)
    assert ended.exit is not None
    assert (ended.state, ended.restart, ended.failures) == ("ended", 4, 2)
    assert (ended.exit.code, ended.exit.by, ended.exit.lines[:2]) == (9, "bot", ("one", "two"))
    assert ended.exit.instance
    engine.start(Start(bot=bot(platform), restart=5, previous=ended.exit))
    assert only(engine).previous == ended.exit
    engine.remove("b")
    assert len(engine.actual()) == 1, "what runs is not removed"


def test_another_engine_knows_all_that_the_first_one_knew(platform: Platform) -> None:
    first = opened(platform)
    first.start(Start(bot=bot(platform), restart=3, failures=2, slot=None))
    platform.until_printed("b", "is here")
    before = only(first)
    first.close()
    second = opened(platform)
    assert only(second) == before
    usage = second.usage("b")
    assert usage is not None
    assert usage.memory_bytes > 5_000_000
    end_all(second)
    third = opened(platform)
    assert only(third).state == "ended"
    assert only(third).exit is not None
    third.remove("b")
    assert third.actual() == ()
    third.close()


def test_a_pid_that_passed_to_another_process_is_not_taken_for_the_bot(platform: Platform) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        first = opened(platform)
        first.start(Start(bot=bot(platform)))
        platform.until_printed("b", "is here")
        end_all(first)
        folders = platform.data.bot("b")
        record = process_record.read(folders)
        assert record is not None
        assert record.process is not None
        found = processes.identify(other.pid)
        assert found is not None
        lies = (
            replace(record.process, pid=other.pid),
            replace(found, boot_id="another boot"),
            replace(found, start_ticks=found.start_ticks + 1),
        )
        for lie in lies:
            running = replace(record, instance=replace(record.instance, state="running", exit=None), process=lie)
            process_record.write(folders, running)
            second = opened(platform)
            assert only(second).state == "ended"
            second.kill("b")
            second.close()
            assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 99}', b'{"format": 1, "instance": {"a": 1}}', b"\0" * 2000]
)
def test_a_record_that_makes_no_sense_is_as_none(platform: Platform, content: bytes) -> None:
    folders = platform.data.bot("b")
    folders.make()
    Path(folders.process).write_bytes(content)
    engine = opened(platform)
    assert engine.actual() == ()
    engine.start(Start(bot=bot(platform)))
    end_all(engine)


def test_a_bot_that_lies_about_its_end_is_believed_in_form_only(platform: Platform, engine: ProcessEngine) -> None:
    engine.start(Start(bot=bot(platform, code=IDLE)))
    platform.until_printed("b", "is here")
    run = Path(platform.data.bot("b").run)
    os.kill(platform.pid("b"), 9)
    (run / "exit.json").write_text(json.dumps({"by": "god", "code": "x", "reason": []}))
    eventually(lambda: only(engine).state == "ended", "its end")
    ended = only(engine).exit
    assert ended is not None
    assert (ended.code, ended.by) == (137, "runtime")
    assert "signal 9" in ended.reason


def test_what_cannot_begin_says_why(platform: Platform, engine: ProcessEngine) -> None:
    wanted = bot(platform)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from the0.sync.lock import hold_lock; fd = hold_lock(sys.argv[1]); print(flush=True); sys.stdin.read()",
            platform.data.bot("b").state,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()
    engine.start(Start(bot=wanted))
    # Nothing of it counts as ended while somebody holds its state.
    eventually(lambda: only(engine).state == "stopping", "the wait for whoever holds it")
    with pytest.raises(Fatal):
        engine.start(Start(bot=wanted))
    holder.stdin.close()
    holder.wait()
    holder.stdout.close()
    eventually(lambda: only(engine).state == "ended", "its end")
    ended = only(engine).exit
    assert ended is not None
    assert (ended.code, ended.by) == (ExitCode.RUNNING_HERE, "runtime")
    assert "already running" in ended.reason


def test_without_views_a_bot_still_cannot_write_what_is_not_its_own(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not landlock.available():
        pytest.skip("this kernel has no Landlock")
    monkeypatch.setattr(view, "why_not", lambda _: "not here")
    code = """
    import os
    def main(bot_id, config):
        own = os.path.dirname(os.environ["STATE_DIR"]) + "/mine"
        for path in (own, "result", config["data"] + "/objects/bot-state/x", config["data"] + "/bots/y"):
            try:
                open(path, "w").close()
                print("wrote", os.path.basename(path), flush=True)
            except OSError as reason:
                print("refused", os.path.basename(path), flush=True)
        print("done", flush=True)
    """
    engine = opened(platform)
    engine.start(Start(bot=bot(platform, code=code, data=platform.data.path)))
    platform.until_printed("b", "done")
    said = platform.printed("b")
    assert all(line in said for line in ("wrote mine", "wrote result", "refused x", "refused y"))
    end_all(engine)


def test_a_query_from_stored_state(platform: Platform, engine: ProcessEngine) -> None:
    query = """
    from the0 import query, state
    @query.handler("/n")
    def n(request):
        return {"n": state.get("n"), "p": request.get("p")}
    query.run()
    """
    asked = bot(
        platform, code="from the0 import state\nstate.set('n', 7)\nprint('set', flush=True)", files={"query.py": query}
    )
    with pytest.raises(Fatal) as caught:
        engine.query(replace(asked, query_entrypoint="none.py"), path="/n", params={}, timeout_s=10)
    assert "none.py" in caught.value.sentence
    engine.start(Start(bot=asked))
    eventually(lambda: only(engine).state == "ended", "its end")
    told = engine.query(asked, path="/n", params={"p": "ü"}, timeout_s=20)
    assert told.answer["data"] == {"n": 7, "p": "ü"}
    assert told.generation is not None
    assert told.generation >= 1
    assert engine.query(asked, path="/none", params={}, timeout_s=20).answer["status"] == "error"


def test_a_removed_bot_leaves_no_folder(platform: Platform, engine: ProcessEngine) -> None:
    engine.start(Start(bot=bot(platform)))
    platform.until_printed("b", "is here")
    engine.discard("b")
    assert only(engine).state == "running"
    engine.stop("b", grace_s=5, reason="it was removed")
    eventually(lambda: only(engine).state == "ended", "its end")
    engine.discard("b")
    assert engine.actual() == ()
    assert not Path(platform.data.bot("b").path).exists()
    engine.discard("b")
    engine.discard("never there")
