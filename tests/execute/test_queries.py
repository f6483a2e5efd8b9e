"""Queries: served beside a bot, served alone, and asked once of stored state; each by real processes."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import io
import json
import os
import shutil
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bot_place import Ended, Place, Running, archive, eventually

from the0 import asking, landlock, settings
from the0.answers import Answer
from the0.errors import Fatal
from the0.execute.environment import question

STATE = """
    from the0 import sleep, state
    def main(bot_id, config):
        state.set("seen", state.get("seen", 0) + 3)
        print("up", flush=True)
        while config.get("stays") and not sleep(60):
            pass
"""
QUERY = """
    import json, os, signal, sys, time
    from the0 import query, state

    @query.handler("/seen")
    def seen(request):
        return state.get("seen")

    @query.handler("/told")
    def told(request):
        return {
            "params": request.params,
            "config": query.get_config(),
            "variables": {name: value for name, value in os.environ.items() if name.startswith("QUERY_")},
            "others": {name: os.environ.get(name) for name in ("BOT_ID", "BOT_TYPE", "SCRIPT_PATH", "ENTRYPOINT_TYPE")},
            "environment": sorted(os.environ),
            "folder": os.getcwd(),
            "state": os.environ["STATE_DIR"],
        }

    @query.handler("/set")
    def set_it(request):
        state.set("seen", 99)

    @query.handler("/write")
    def write_it(request):
        with open(os.path.join(os.environ["STATE_DIR"], "seen.json"), "w") as file:
            file.write("99")

    @query.handler("/die")
    def die(request):
        os.kill(os.getpid(), signal.SIGKILL)

    @query.handler("/kill")
    def kill(request):
        child = os.fork()
        if child == 0:
            time.sleep(60)
        told = {}
        for name, pid in (("supervisor", os.getppid()), ("bot", request.get("bot")), ("child", child)):
            try:
                os.kill(int(pid), signal.SIGCONT)
                told[name] = "signalled"
            except PermissionError:
                told[name] = "refused"
        os.kill(child, signal.SIGKILL)
        return told

    @query.handler("/say")
    def say(request):
        print("said", request.get("what"))

    @query.handler("/wait")
    def wait(request):
        time.sleep(60)

    query.run()
"""


@pytest.fixture
def place(place: Place) -> Place:
    """With a query entrypoint, on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (place.store / "query-results").mkdir()
    place.env |= {"QUERY_ENTRYPOINT": "query.py", "THE0_QUERY_PORT": str(port), "BOT_CONFIG": '{"stays": true}'}
    return place


def put(place: Place, query: str = QUERY, main: str = STATE) -> None:
    place.put(archive({"main.py": main, "query.py": query}))


def port_of(place: Place) -> int:
    return int(place.env["THE0_QUERY_PORT"] or 0)


def ask(place: Place, path: str, *, within_s: float = 20.0, **params: Any) -> Answer:
    """Asks the served process, as soon as it listens."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return asking.ask("127.0.0.1", port_of(place), path=path, params=params, deadline=deadline)
        except asking.NotListening:
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.01)


def listens(place: Place) -> bool:
    """By trying to take the port: nothing connects to a query process but to ask it."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of former connections there may be traces
        try:
            tried.bind(("0.0.0.0", port_of(place)))
        except OSError:
            return True
    return False


def once(place: Place, path: str, *flags: str) -> tuple[dict[str, Any], Ended]:
    """An ephemeral query; its answer, which is one line of stdout."""
    ended = place.run("--query", path, *flags)
    assert ended.out.count("\n") == 1, ended.out + ended.err
    return json.loads(ended.out), ended


def stored_run(place: Place, query: str = QUERY) -> None:
    """A scheduled bot that has run once, so that `seen` is 3 in generation 1 of the store."""
    put(place, query)
    place.env |= {"BOT_TYPE": "scheduled", "BOT_CONFIG": "{}"}
    assert place.run().code == 0


def fresh_machine(place: Place) -> None:
    for folder in (place.code, place.state, place.logs, place.run_dir):
        shutil.rmtree(folder, ignore_errors=True)


def head(place: Place) -> bytes:
    return (place.store / "bot-state/bot-1/HEAD").read_bytes()


def stored_objects(place: Place) -> dict[str, bytes]:
    buckets = ("bot-state", "bot-logs", "custom-bots")
    return {
        str(path): path.read_bytes() for name in buckets for path in (place.store / name).rglob("*") if path.is_file()
    }


# --- served beside the bot -------------------------------------------------------------------------


def start(place: Place, *flags: str) -> Running:
    running = place.start(*flags)
    running.wait_for("up")
    return running


def test_served_beside_a_realtime_bot(place: Place) -> None:
    place.env["BOT_CONFIG"] = '{"stays": true, "size": 5.0}'
    put(place)
    running = start(place)
    assert ask(place, "/seen").value == {"status": "ok", "data": 3}
    told = ask(place, "/told", symbol="AAPL", size=5.0, deep={"a": [1]}).value["data"]
    assert told["params"] == {"symbol": "AAPL", "size": 5, "deep": {"a": [1]}}
    assert told["config"] == {"stays": True, "size": 5}
    assert told["variables"] == {}, "a served query has none of them"
    assert told["others"] == {
        "BOT_ID": "bot-1",
        "BOT_TYPE": "realtime",
        "SCRIPT_PATH": "query.py",
        "ENTRYPOINT_TYPE": "query",
    }
    assert told["folder"] == str(place.code)
    assert not [name for name in told["environment"] if name.startswith(("MINIO", "OBJECT_STORE", "THE0_RUN"))]
    answer = ask(place, "/nothing")
    assert (answer.status, answer.value["status"]) == (500, "error")
    ended = running.stop()
    assert (ended.code, ended.record and ended.record["by"]) == (0, "bot")
    assert not listens(place)


def test_what_it_prints_is_in_the_bots_log(place: Place) -> None:
    put(place)
    running = start(place)
    ask(place, "/say", what="hello")
    running.wait_for("said hello")
    ended = running.stop()
    assert "said hello\n" in ended.out
    (day,) = (place.store / "bot-logs/logs/bot-1").glob("*.log")
    assert "said hello" in [json.loads(line)["message"] for line in day.read_text().splitlines()]


def test_its_lines_never_cut_a_line_of_the_bots(place: Place) -> None:
    put(
        place,
        main="""
        import sys, time
        from the0 import sleep
        def main(bot_id, config):
            print("up", flush=True)
            for _ in range(40):
                sys.stdout.write("bot begins ")
                sys.stdout.flush()
                time.sleep(0.02)
                print("and ends", flush=True)
            print("all", flush=True)
            while not sleep(60):
                pass
        """,
        query="""
        import time
        while True:
            print("query " * 20)
            time.sleep(0.005)
        """,
    )
    running = start(place)
    running.wait_for("all")
    lines = set(running.stop().log.splitlines()) - {""}
    assert lines == {"up", "all", "bot begins and ends", ("query " * 20).rstrip(" ") + " "}


def test_its_death_is_its_own(place: Place) -> None:
    put(place)
    running = start(place)
    assert ask(place, "/seen").value["data"] == 3
    with pytest.raises(asking.NoAnswer):
        ask(place, "/die")
    running.wait_for("The query process ended with signal 9 (SIGKILL). It is started again in 1 s; the bot goes on.")
    assert ask(place, "/seen").value["data"] == 3
    assert running.stop().code == 0


def test_one_that_crashes_at_once_is_tried_less_and_less_often(place: Place) -> None:
    put(place, query="raise SystemExit(4)")
    running = start(place)
    running.wait_for("The query process ended with exit code 4. It is started again in 1 s")
    running.wait_for("It is started again in 2 s")
    began = time.monotonic()
    running.wait_for("It is started again in 4 s")
    assert time.monotonic() - began > 1
    ended = running.stop()
    assert (ended.code, ended.record and ended.record["by"]) == (0, "bot")


@pytest.mark.parametrize(
    ("entrypoint", "said"),
    [("query.py", "The entrypoint 'query.py' is not in"), ("../query.py", "which is no path within the code")],
)
def test_a_query_file_that_is_not_there(place: Place, entrypoint: str, said: str) -> None:
    place.env["QUERY_ENTRYPOINT"] = entrypoint
    place.put_bot(STATE)
    running = start(place)
    running.wait_for("No queries are served: ")
    assert said in running.log()
    assert running.stop().code == 0


def test_one_that_leaves_the_port_to_a_child(place: Place) -> None:
    put(
        place,
        query=QUERY.replace(
            "query.run()",
            """if os.fork() == 0:
        query.run()
    time.sleep(0.3)
    os._exit(1)""",
        ),
    )
    running = start(place)
    running.wait_for("It is started again in 2 s")
    assert "Address already in use" not in running.log()
    assert running.stop().code == 0


def test_it_dies_with_a_supervisor_that_is_killed(place: Place) -> None:
    put(place)
    running = start(place)
    assert ask(place, "/seen").value["data"] == 3
    running.process.kill()
    eventually(lambda: not listens(place), "the end of the query process")


@pytest.mark.parametrize(("flags", "variables"), [(["--skip-query-server"], {}), ([], {"BOT_TYPE": "scheduled"})])
def test_none_is_served(place: Place, flags: list[str], variables: dict[str, str]) -> None:
    place.env |= variables
    put(place, query="print('query', flush=True)")
    running = start(place, *flags)
    ended = running.stop()
    assert "query" not in ended.log


def test_it_cannot_change_the_state(place: Place) -> None:
    if not landlock.available():
        pytest.skip("this kernel has no Landlock of version 3")
    put(place)
    running = start(place)
    assert "ReadOnlyStateError" in ask(place, "/set").value["error"]
    assert "PermissionError" in ask(place, "/write").value["error"]
    assert ask(place, "/seen").value["data"] == 3
    running.stop()
    assert json.loads((place.state / ".the0-state/seen.json").read_text()) == 3


def test_it_signals_nobody_else(place: Place) -> None:
    if landlock._abi() < 6:
        pytest.skip("this kernel has no Landlock of version 6")
    put(place)
    running = start(place)
    told = ask(place, "/kill", bot=running.child("bot")).value["data"]
    assert told == {"supervisor": "refused", "bot": "refused", "child": "signalled"}
    assert running.stop().code == 0


def test_one_that_ignores_the_end_and_leaves_others_behind(place: Place) -> None:
    put(
        place,
        query="""
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(1, b"pid %d\\n" % os.getpid())
                time.sleep(600)
            os._exit(0)
        os.write(1, b"pid %d\\n" % os.getpid())
        time.sleep(600)
        """,
    )
    running = start(place)
    eventually(lambda: running.log().count("pid ") == 2, "two processes")
    ended = running.stop()
    assert ended.code == 0
    pids = [int(line.split()[1]) for line in ended.log.splitlines() if line.startswith("pid ")]
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


# --- served alone ----------------------------------------------------------------------------------


def test_alone_it_claims_nothing_and_ends_at_once(place: Place) -> None:
    put(place)
    sdk_state = place.state / ".the0-state"
    sdk_state.mkdir(parents=True)
    (sdk_state / "seen.json").write_text("7")
    before = stored_objects(place)
    running = place.start("--query-server-only")
    assert ask(place, "/seen").value["data"] == 7
    with pytest.raises(asking.NoAnswer):
        ask(place, "/die")
    eventually(lambda: not listens(place), "the end of the first")
    assert ask(place, "/say", what="again").value["status"] == "ok"
    began = time.monotonic()
    ended = running.stop()
    assert time.monotonic() - began < 2
    assert (ended.code, ended.record, ended.log) == (0, None, "")
    assert "said again\n" in ended.out
    assert "is started again in 1 s" in ended.err
    assert stored_objects(place) == before
    assert sorted(path.name for path in place.state.iterdir()) == [".the0-state"]
    assert not listens(place)


def test_alone_with_the_code_that_is_there(place: Place) -> None:
    place.env |= {"CODE_FILE": None, "OBJECT_STORE_DIR": None}
    place.code.mkdir()
    (place.code / "query.py").write_text("from the0 import query\nquery.run()\n")
    running = place.start("--query-server-only")
    assert ask(place, "/health").value["data"] == {"status": "healthy"}
    assert running.stop().code == 0


@pytest.mark.parametrize("query", [None, "#!/nowhere/sh\n"])
def test_alone_with_a_program_that_cannot_be_started(place: Place, query: str | None) -> None:
    place.put(archive({"main": "", **({} if query is None else {"query": query})}))
    place.env |= {"RUNTIME": "gcc13", "ENTRYPOINT": "main", "QUERY_ENTRYPOINT": "query"}
    ended = place.run("--query-server-only")
    assert ended.code == 204
    assert "query" in ended.err


def test_alone_a_stop_while_the_code_is_fetched(place: Place) -> None:
    place.env |= {"OBJECT_STORE_DIR": None, "MINIO_ACCESS_KEY": "k", "MINIO_SECRET_KEY": "s"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place.env["MINIO_ENDPOINT"] = f"127.0.0.1:{silent.getsockname()[1]}"
        running = place.start("--query-server-only")
        silent.accept()
        began = time.monotonic()
        assert running.stop().code == 0
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("flags", [["--query-server-only"], ["--query", "/seen"]])
def test_without_a_query_entrypoint(place: Place, flags: list[str]) -> None:
    place.env["QUERY_ENTRYPOINT"] = None
    put(place)
    ended = place.run(*flags)
    assert ended.code == 201
    assert "QUERY_ENTRYPOINT" in ended.err


# --- asked once of stored state --------------------------------------------------------------------


def test_once_from_the_newest_stored_state(place: Place) -> None:
    stored_run(place)
    fresh_machine(place)
    before = stored_objects(place)
    place.env |= {
        "QUERY_PARAMS": '{"n": 5.0, "s": "x y", "l": [1, null], "a=b": 1}',
        "QUERY_RESULT_KEY": "bot-1/u/result.json",
    }
    answer, ended = once(place, "told")
    told = answer.pop("data")
    assert answer == {"status": "ok", "source": "stored", "generation": 1}
    assert (ended.code, ended.err, ended.record) == (0, "", None)
    assert told["variables"] == {
        "QUERY_PATH": "/told",
        "QUERY_PARAMS": '{"a=b":1,"l":[1,null],"n":5,"s":"x y"}',
        "QUERY_PARAM_n": "5",
        "QUERY_PARAM_s": "x y",
        "QUERY_PARAM_l": "[1,null]",
    }
    assert told["params"] == {"n": 5, "s": "x y", "l": [1, None], "a=b": 1}
    assert told["state"] == str(place.state / ".the0-state")
    assert stored_objects(place) == before, "nothing was claimed or written"
    assert (place.store / "query-results/bot-1/u/result.json").read_text() == ended.out.rstrip("\n")
    assert [path for path in place.state.rglob("*") if path.is_file()] == [], "the state was thrown away"
    assert not place.logs.exists()


def test_the_same_by_the_environment(place: Place) -> None:
    stored_run(place)
    place.env["QUERY_PATH"] = "/seen"
    ended = place.run()
    assert json.loads(ended.out) == {"status": "ok", "data": 3, "source": "stored", "generation": 1}


def test_once_beside_the_running_bot(place: Place) -> None:
    put(place)
    running = start(place)
    eventually(lambda: head(place) and b'"generation":1' in head(place), "the first commit")
    (place.state / "unsynced").write_text("by hand")
    answer, _ = once(place, "/told")
    assert answer["data"]["state"].startswith(str(place.state / ".the0/queries/the0-query-"))
    assert (place.state / "unsynced").read_text() == "by hand"
    assert list((place.state / ".the0/queries").iterdir()) == []
    assert running.stop().code == 0


def test_a_folder_that_a_bot_just_begins_to_use_is_left_to_it(place: Place) -> None:
    """Empty, and held by somebody."""
    stored_run(place)
    fresh_machine(place)
    place.state.mkdir()
    fd = os.open(place.state, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    answer, _ = once(place, "/told")
    os.close(fd)
    assert "/.the0/queries/the0-query-" in answer["data"]["state"]
    assert sorted(path.name for path in place.state.iterdir()) == [".the0"]


def test_a_state_folder_that_cannot_be_made(place: Place) -> None:
    stored_run(place)
    temporary = place.root / "temporary"
    temporary.mkdir()
    (place.root / "file").write_text("")
    place.env |= {"STATE_PATH": str(place.root / "file/state"), "TMPDIR": str(temporary)}
    answer, ended = once(place, "/told")
    assert answer["data"]["state"].startswith(f"{temporary}/the0-query-"), ended.err
    assert list(temporary.iterdir()) == []


def test_a_copy_that_a_killed_query_left_is_removed_by_the_next(place: Place) -> None:
    stored_run(place)
    left = place.state / ".the0/queries/the0-query-left"
    left.mkdir(parents=True)
    (left / "file").write_text("x")
    os.utime(left, (0, 0))
    assert once(place, "/seen")[0]["data"] == 3
    assert not left.exists()


def test_a_killed_query_leaves_a_folder_that_the_next_start_empties(place: Place) -> None:
    stored_run(place)
    fresh_machine(place)
    running = place.start("--query", "/wait")
    eventually((place.state / ".the0-state/seen.json").exists, "the state")
    running.process.kill()
    running.process.communicate()
    assert once(place, "/seen")[0] == {"status": "ok", "data": 3, "source": "stored", "generation": 1}
    assert place.run().code == 0
    assert json.loads((place.state / ".the0-state/seen.json").read_text()) == 6


def test_it_may_write_its_copy_and_changes_nothing(place: Place) -> None:
    stored_run(place)
    before = head(place)
    for fresh in (False, True):
        if fresh:
            fresh_machine(place)
        answer, ended = once(place, "/write")
        assert (answer["status"], ended.code) == ("ok", 0)
        assert "ReadOnlyStateError" in once(place, "/set")[0]["error"]
        assert once(place, "/seen")[0]["data"] == 3
    assert head(place) == before


def test_a_bot_that_never_ran(place: Place) -> None:
    put(place)
    answer, _ = once(place, "/seen")
    assert answer == {"status": "ok", "data": None, "source": "stored", "generation": 0}
    assert list((place.store / "bot-state").rglob("*")) == []


def state_archive(**keys: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for key, value in keys.items():
            member = tarfile.TarInfo(f".the0-state/{key}.json")
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value.encode()))
    return gzip.compress(raw.getvalue())


def test_an_archive_that_no_run_has_imported_yet(place: Place) -> None:
    put(place)
    key = place.store / "bot-state/bot-1/state.tar.gz"
    key.parent.mkdir()
    key.write_bytes(state_archive(seen="41"))
    assert once(place, "/seen")[0] == {"status": "ok", "data": 41, "source": "stored", "generation": 0}
    assert [path.name for path in key.parent.iterdir()] == [key.name]
    key.write_bytes(state_archive(seen="41")[:-20])
    answer, ended = once(place, "/seen")
    assert (answer["status"], answer["exit_code"], ended.code) == ("error", 214, 214)


def test_an_edit_of_the_archive_counts_from_the_next_run_on(place: Place) -> None:
    stored_run(place)
    (place.store / "bot-state/bot-1/state.tar.gz").write_bytes(state_archive(seen="41"))
    assert once(place, "/seen")[0]["data"] == 3


def test_state_whose_head_is_gone_is_not_taken_for_none(place: Place) -> None:
    stored_run(place)
    (place.store / "bot-state/bot-1/HEAD").unlink()
    answer, ended = once(place, "/seen")
    assert (ended.code, answer["exit_code"]) == (214, 214)
    assert "bot-1/HEAD is gone" in answer["error"]


@pytest.mark.parametrize("path", ["/nothing", "/set"])
def test_a_bots_own_error(place: Place, path: str) -> None:
    put(place)
    place.env["QUERY_RESULT_KEY"] = "bot-1/u/result.json"
    answer, ended = once(place, path)
    assert (answer["status"], answer["source"], ended.code) == ("error", "stored", 1)
    assert json.loads((place.store / "query-results/bot-1/u/result.json").read_text()) == answer


@pytest.mark.parametrize(
    ("runtime", "params"),
    [
        ("python3.11", '{"l":[1],"n":5,"s":"x","t":true}'),
        ("nodejs20", '{"l":[1],"n":5,"s":"x","t":true}'),
        ("rust-stable", '{"l":"[1]","n":"5","s":"x","t":"true"}'),
        ("dotnet8", '{"l":"[1]","n":"5","s":"x","t":"true"}'),
        ("scala3", '{"l":"[1]","n":"5","s":"x","t":"true"}'),
        ("ghc96", '{"l":[1],"n":5,"s":"x","t":true}'),
    ],
)
def test_params_as_each_language_takes_them(runtime: str, params: str) -> None:
    given = {
        "QUERY_PATH": "x",
        "QUERY_PARAMS": '{"s": "x", "n": 5.0, "t": true, "l": [1]}',
        "BOT_ID": "b",
        "RUNTIME": runtime,
        "ENTRYPOINT": "main",
    }
    told = question(settings.read_bot(given))
    assert told["QUERY_PARAMS"] == params
    each = {name: told[f"QUERY_PARAM_{name}"] for name in "sntl"}
    assert each == {"s": "x", "n": "5", "t": "true", "l": "[1]"}


@pytest.mark.parametrize("name", ["a=b", "nul\0", "half\ud800"])
def test_a_name_that_no_variable_has_is_only_in_the_params(name: str) -> None:
    params = json.dumps({name: "x", "long": "y" * 100_000, "plain": "nul\0"})
    given = {"QUERY_PATH": "/x", "QUERY_PARAMS": params, "BOT_ID": "b", "RUNTIME": "gcc13", "ENTRYPOINT": "main"}
    told = question(settings.read_bot(given))
    assert sorted(told) == ["QUERY_PARAMS", "QUERY_PARAM_long", "QUERY_PATH"]
    assert json.loads(told["QUERY_PARAMS"]) == json.loads(params)


def test_params_that_no_process_can_be_given() -> None:
    given = {"QUERY_PATH": "/x", "QUERY_PARAMS": json.dumps({"é": "é" * 40_000}), "BOT_ID": "b"}
    with pytest.raises(Fatal, match="QUERY_PARAMS"):
        question(settings.read_bot({**given, "RUNTIME": "gcc13", "ENTRYPOINT": "main"}))


# --- results that are none -------------------------------------------------------------------------

WRITES = "import os\nopen('/query/result.json', 'w').write('%s')\n"


@pytest.fixture
def query_folder(place: Place) -> None:
    """For those that write to the folder themselves, which only root can make, and one query has at a time."""
    try:
        os.makedirs("/query", exist_ok=True)
        fd = os.open("/query", os.O_RDONLY)
    except OSError:
        pytest.skip("/query cannot be made by this user")
    if not os.access("/query", os.W_OK):
        pytest.skip("/query cannot be written by this user")
    fcntl.flock(fd, fcntl.LOCK_EX)  # other suites on this machine
    os.close(fd)
    place.env["QUERY_TIMEOUT_S"] = "15"


@pytest.mark.usefixtures("query_folder")
@pytest.mark.parametrize(
    "ending",
    ["raise SystemExit(3)", "os.kill(os.getpid(), 9)", "import time; time.sleep(60)"],
    ids=["exit-code", "signal", "hangs"],
)
def test_a_result_counts_however_the_process_ends(place: Place, ending: str) -> None:
    if "sleep" in ending:
        place.env["QUERY_TIMEOUT_S"] = "1.5"
    put(place, query=WRITES % '{"status": "ok",\\n "data": 1.50}' + ending)
    ended = place.run("--query", "/x")
    assert ended.out == '{"status": "ok",  "data": 1.50,"source":"stored","generation":0}\n', ended.err
    assert ended.code == 0


@pytest.mark.usefixtures("query_folder")
@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("", "wrote no answer"),
        ("raise SystemExit(3)", "exit code 3"),
        (WRITES % "{", "no JSON"),
        (WRITES % "[1]", "no object"),
        ("import os; os.symlink('/etc/passwd', '/query/result.json')", "no file"),
        ("import os; os.mkfifo('/query/result.json')", "no file"),
        ("import os; os.mkdir('/query/result.json')", "no file"),
        ("import os; f = open('/query/result.json', 'w'); f.truncate(33 << 20)", "32 MiB"),
    ],
    ids=["nothing", "fails", "half", "list", "link", "fifo", "folder", "large"],
)
def test_a_result_that_is_none(place: Place, query: str, word: str) -> None:
    put(place, query=query)
    place.env["QUERY_RESULT_KEY"] = "bot-1/u/result.json"
    answer, ended = once(place, "/x")
    assert (answer["status"], answer["exit_code"], ended.code) == ("error", 217, 217)
    assert word in answer["error"]
    assert "root:" not in ended.out
    assert json.loads((place.store / "query-results/bot-1/u/result.json").read_text()) == answer
    assert not os.path.lexists("/query/result.json")


@pytest.mark.usefixtures("query_folder")
def test_nobody_writes_the_result_later(place: Place) -> None:
    """One that daemonises itself is ended before the result is read."""
    put(
        place,
        query="""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        os.wait()
        open("/query/result.json", "w").write('{"status": "ok", "data": %d}' % os.getpid())
        """,
    )
    answer, ended = once(place, "/x")
    assert ended.code == 0
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(place.code).encode() in _read(path)]
    assert left == []
    assert answer["data"] > 0


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError):  # it has ended
        return path.read_bytes()
    return b""


def test_too_slow(place: Place) -> None:
    put(place)
    place.env["QUERY_TIMEOUT_S"] = "1500ms"
    began = time.monotonic()
    answer, ended = once(place, "/wait")
    assert time.monotonic() - began < 8
    assert (answer["exit_code"], ended.code) == (218, 218)
    assert "1.5 s" in answer["error"]


def test_a_flood_of_output_is_cut(place: Place) -> None:
    put(place, query=QUERY.replace("query.run()", "sys.stdout.write('x' * 5_000_000)\n    query.run()"))
    answer, ended = once(place, "/seen")
    assert answer["status"] == "ok"
    assert len(ended.err) < 1_100_000
    assert "prints more than is shown" in ended.err


def test_a_stop_while_it_is_asked(place: Place) -> None:
    put(place)
    running = place.start("--query", "/wait")
    eventually((place.code / "query.py").exists, "the code")
    began = time.monotonic()
    ended = running.stop()
    assert time.monotonic() - began < 5
    assert ended.code == 219
    assert json.loads(ended.out)["exit_code"] == 219


def test_a_store_that_is_away(place: Place) -> None:
    put(place)
    place.env |= {"OBJECT_STORE_DIR": str(place.root / "nowhere"), "QUERY_RESULT_KEY": "bot-1/u/result.json"}
    answer, ended = once(place, "/seen")
    assert answer["status"] == "error"
    assert ended.code == answer["exit_code"]
    assert 203 <= ended.code <= 208


# --- where there is no /query ----------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[None]:
    """Somebody else has /query, as a neighbour on one machine might; or this user cannot make it."""
    try:
        os.makedirs("/query", exist_ok=True)
    except OSError:
        yield
        return
    fd = os.open("/query", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield
    os.close(fd)


@pytest.mark.usefixtures("taken")
def test_served_for_one_question(place: Place) -> None:
    stored_run(place)
    place.env |= {"QUERY_PARAMS": '{"n": 5.0, "s": "x y"}', "QUERY_RESULT_KEY": "bot-1/u/result.json"}
    answer, ended = once(place, "/told?from=1")
    told = answer.pop("data")
    assert answer == {"status": "ok", "source": "stored", "generation": 1}
    assert ended.code == 0
    assert told["params"] == {"n": 5, "s": "x y", "from": "1"}
    assert told["variables"] == {}
    assert told["others"]["BOT_TYPE"] == "realtime"
    assert not Path(told["state"]).exists()
    assert json.loads((place.store / "query-results/bot-1/u/result.json").read_text())["status"] == "ok"
    assert once(place, "/nothing")[1].code == 1


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize(
    ("query", "path", "code", "word"),
    [
        (QUERY, "/die", 217, ""),
        ("raise SystemExit(3)", "/x", 217, "exit code 3"),
        (QUERY, "/wait", 218, "1.5 s"),
        ("import time; time.sleep(60)", "/x", 218, "1.5 s"),
    ],
    ids=["dies", "never-listens", "slow", "silent"],
)
def test_served_and_no_answer(place: Place, query: str, path: str, code: int, word: str) -> None:
    put(place, query=query)
    place.env["QUERY_TIMEOUT_S"] = "1500ms" if code == 218 else "15"
    answer, ended = once(place, path)
    assert (answer["exit_code"], ended.code) == (code, code)
    assert word in answer["error"]
