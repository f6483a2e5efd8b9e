"""Python bots as the wire contract describes them, each a real process under `runtime execute`."""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from bot_place import Place, archive

import the0


def test_main_gets_id_and_config(place: Place) -> None:
    place.env["BOT_CONFIG"] = '{"symbol": "AAPL", "amount": 5.0, "deep": {"list": [1, 2.5, null]}}'
    place.put_bot("""
        def main(bot_id, config):
            print(bot_id, sorted(config), config["amount"], type(config["amount"]).__name__, config["deep"])
    """)
    ended = place.run()
    assert ended.code == 0, ended.err
    assert ended.out == "bot-1 ['amount', 'deep', 'symbol'] 5 int {'list': [1, 2.5, None]}\n"
    assert ended.log.endswith(ended.out)
    assert place.result() == {"status": "success", "message": "The bot has ended."}
    assert ended.record is not None
    assert ended.record["by"] == "bot"
    assert (place.run_dir / "done").read_text().strip() == "0"


def test_async_main_is_awaited(place: Place) -> None:
    place.put_bot("""
        import asyncio
        async def main(bot_id, config):
            await asyncio.sleep(0)
            print("awaited", bot_id)
    """)
    ended = place.run()
    assert (ended.code, ended.out) == (0, "awaited bot-1\n")


def test_script_without_main_has_run_when_its_import_ends(place: Place) -> None:
    place.put_bot("print('once', __name__)")
    ended = place.run()
    assert (ended.code, ended.out) == (0, "once main\n")
    assert place.result()["status"] == "success"
    assert "has no main(bot_id, config)" in place.result()["message"], "whoever misspelt it finds it here"


@pytest.mark.parametrize(
    ("body", "code", "status", "told"),
    [
        ("import sys; sys.exit(7)", 7, "error", "exit code 7"),
        ("import sys; sys.exit(0)", 0, "success", "ended"),
        ("import sys; sys.exit()", 0, "success", "ended"),
        ("import sys; sys.exit('no money left')", 1, "error", "no money left"),
        ("raise ValueError('bad price')", 1, "error", "ValueError: bad price"),
        ("raise KeyboardInterrupt", 130, "error", "KeyboardInterrupt"),
        ("import sys; sys.exit(210)", 210, "error", "exit code 210"),
    ],
)
def test_exit_codes(place: Place, body: str, code: int, status: str, told: str) -> None:
    place.put_bot(f"def main(bot_id, config):\n    {body}\n")
    ended = place.run()
    assert ended.code == code
    result = place.result()
    assert result["status"] == status
    assert told in result["message"]
    assert ended.record is not None
    assert (ended.record["by"], ended.record["code"], ended.record["bot_code"]) == ("bot", code, code)


def test_exception_leaves_a_traceback_that_begins_with_the_bot(place: Place) -> None:
    place.put_bot("""
        def main(bot_id, config):
            inner()
        def inner():
            raise RuntimeError("lost the socket")
    """)
    ended = place.run()
    assert ended.code == 1
    trace = ended.out.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert trace[1].strip().startswith(f'File "{place.code}/main.py", line 3, in main')
    assert "RuntimeError: lost the socket" in ended.log


@pytest.mark.parametrize(
    ("main", "what", "remedy"),
    [
        ("import not_there", "No module named 'not_there'", "does not bring 'not_there' along"),
        ("import not_there.deep", "No module named 'not_there'", "pip install --target vendor PACKAGE"),
        ("def main(): pass", "main() takes 0 positional arguments but 2 were given", "calls main(bot_id, config)"),
        ("async def main(bot_id): pass", "main() takes 1 positional argument but 2", "calls main(bot_id, config)"),
        ("import json.not_there", "No module named 'json.not_there'", None),
        ("def main(bot_id, config): len(5)", "object of type 'int' has no len()", None),
        ("def main(bot_id, config): main()", "main() missing 2 required positional arguments", None),
    ],
)
def test_what_beginners_do_wrong_comes_with_what_to_do(place: Place, main: str, what: str, remedy: str | None) -> None:
    place.put_bot(main)
    ended = place.run()
    assert ended.code == 1
    message = place.result()["message"]
    for told in (ended.log, message):
        assert what in told
        if remedy is None:
            assert "along" not in told
            assert "calls" not in told
        else:
            assert remedy in told


def test_a_finder_of_the_bots_that_fails_does_not_hide_the_failure(place: Place) -> None:
    place.put_bot("""
        import sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "not_there" and Finder.asked:
                    raise OSError("asked again")
                Finder.asked = True
        Finder.asked = False
        sys.meta_path.append(Finder())
        import not_there
    """)
    ended = place.run()
    assert (ended.code, place.result()["status"]) == (1, "error")
    assert "No module named 'not_there'" in ended.log
    assert "asked again" not in ended.log


def test_syntax_error_is_shown_with_its_line(place: Place) -> None:
    place.put_bot("def main(:\n    pass\n")
    ended = place.run()
    assert ended.code == 1
    assert "main.py" in ended.log
    assert "SyntaxError" in ended.log
    assert place.result()["message"].startswith("SyntaxError")


def test_result_of_the_bot_stands(place: Place) -> None:
    place.put_bot("""
        import json, os
        def main(bot_id, config):
            path = f"/{os.environ['CODE_MOUNT_DIR']}/result.json"
            json.dump({"status": "success", "message": "mine", "data": [1]}, open(path, "w"))
            raise SystemExit(3)
    """)
    assert place.run().code == 3
    assert place.result() == {"status": "success", "message": "mine", "data": [1]}


def test_result_that_came_with_the_archive_is_not_this_runs(place: Place) -> None:
    place.put_bot("def main(*_): print('hi')", result_json='{"status": "success", "message": "stale"}')
    assert place.run().code == 0
    assert place.result()["message"] == "The bot has ended."


def test_paths_and_names(place: Place) -> None:
    place.put_bot(
        """
        import json, sys, os, helper, vendored
        print(json.dumps({
            "path": sys.path, "argv": sys.argv, "name": __name__, "file": __file__, "cwd": os.getcwd(),
            "pythonpath": os.environ["PYTHONPATH"], "helper": helper.WHO, "vendored": vendored.WHO,
            "same": sys.modules["main"].__file__ == __file__, "site": sys.modules["sitecustomize"].__file__,
            "no_bytecode": sys.dont_write_bytecode,
        }))
        """,
        helper_py="WHO = 'code'",
        vendored_py="WHO = 'code'",
        vendor__vendored_py="WHO = 'vendor'",
        vendor__sitecustomize_py="import json",
    )
    ended = place.run()
    assert ended.code == 0, ended.out
    told = json.loads(ended.out)
    code = str(place.code)
    assert told["path"][:2] == [f"{code}/vendor", code]
    assert told["pythonpath"].split(os.pathsep)[:2] == [f"{code}/vendor", code]
    assert told["argv"] == [f"{code}/main.py"]
    assert told["file"] == f"{code}/main.py"
    assert told["name"] == "main"
    assert told["same"] is True
    assert told["cwd"] == code
    assert (told["helper"], told["vendored"]) == ("code", "vendor")
    assert told["site"] == f"{code}/vendor/sitecustomize.py"
    assert told["no_bytecode"] is True
    assert not any(path.endswith("wrappers") for path in told["path"])


def test_sitecustomize_runs_before_the_bot(place: Place) -> None:
    place.put_bot("print('bot')", sitecustomize_py="print('customised')")
    assert place.run().out == "customised\nbot\n"


def test_nothing_of_a_former_run_is_imported_before_the_word_to_go(place: Place) -> None:
    for folder in (place.code, place.code / "vendor"):
        folder.mkdir(parents=True)
        for module in ("sitecustomize", "usercustomize", "json", "logging"):
            (folder / f"{module}.py").write_text("print('stale code ran')")
    place.put_bot("print('fresh')")
    assert place.run().out == "fresh\n"


def test_entrypoint_in_a_folder_finds_its_neighbours(place: Place) -> None:
    place.env["ENTRYPOINT"] = "src/start.py"
    place.put(
        archive({"src/start.py": "import near, far\nprint(near.A + far.B)", "src/near.py": "A = 1", "far.py": "B = 2"})
    )
    ended = place.run()
    assert (ended.code, ended.out) == (0, "3\n")


def test_the_sdk_is_there_and_nothing_else_of_ours(place: Place) -> None:
    place.put_bot("""
        import importlib.util, subprocess, sys
        import the0
        print(the0.parse())
        print([name for name in ("python", "sdk", "wrappers") if importlib.util.find_spec(name)])
        print(sys.path)
        print(subprocess.run([sys.executable, "-c", "import the0; print(the0.parse()[0])"], capture_output=True, text=True).stdout)
    """)
    ended = place.run()
    parsed, found, path, child = ended.out.splitlines()[:4]
    assert (parsed, found, child) == ("('bot-1', {})", "[]", "bot-1")
    ours = {str(Path(the0.__file__).parent.parent), *(each for each in sys.path if each.endswith("site-packages"))}
    if sys.prefix != sys.base_prefix:
        assert not ours & set(ast.literal_eval(path))


def test_a_vendored_sdk_wins(place: Place) -> None:
    place.put_bot("import the0; print(the0.WHO)", vendor__the0_py="WHO = 'vendored'")
    assert place.run().out == "vendored\n"


def test_root_logging_goes_to_stderr_at_info(place: Place) -> None:
    place.put_bot("""
        import logging, sys
        logging.getLogger("strategy").info("position opened")
        logging.getLogger("strategy").debug("noise")
        print([handler.stream is sys.stderr for handler in logging.getLogger().handlers])
    """)
    ended = place.run()
    assert "position opened" in ended.out
    assert "noise" not in ended.out
    assert "[True]" in ended.out


def test_what_is_printed_arrives_at_once(place: Place) -> None:
    place.put_bot("""
        import time
        print("first line")
        time.sleep(60)
    """)
    running = place.start()
    running.wait_for("first line")
    assert running.stop().code == 0


def test_an_unfinished_line_arrives_at_the_end(place: Place) -> None:
    place.put_bot("print('no newline', end='')")
    ended = place.run()
    assert ended.out == "no newline"
    assert "no newline" in ended.log


TERMINATED = {"status": "terminated", "message": "The bot was asked to stop."}


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        "while True: pass",
        "threading.Thread(target=time.sleep, args=(60,)).start()",
        "threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)",
        "asyncio.run(asyncio.sleep(60))",
        "queue.Queue().get()",
        "subprocess.run(['sleep', '60'])",
        "import the0; the0.sleep(60)",
    ],
)
def test_sigterm_without_a_handler_of_the_bots(place: Place, body: str) -> None:
    place.put_bot(f"""
        import asyncio, queue, subprocess, threading, time
        def main(bot_id, config):
            print("ready")
            {body}
    """)
    running = place.start()
    running.wait_for("ready")
    ended = running.stop()
    assert ended.code == 0, ended.log
    assert place.result() == TERMINATED
    assert ended.record is not None
    assert (ended.record["by"], ended.record["stop_asked"]) == ("bot", True)


def test_sigterm_to_an_async_main_lets_its_tasks_clean_up(place: Place) -> None:
    place.put_bot("""
        import asyncio
        async def other():
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                print("cleaned up")
        async def main(bot_id, config):
            task = asyncio.create_task(other())
            await asyncio.sleep(0)
            print("ready")
            await task
    """)
    running = place.start()
    running.wait_for("ready")
    ended = running.stop()
    assert ended.code == 0
    assert "cleaned up" in ended.log
    assert place.result() == TERMINATED


@pytest.mark.parametrize(
    "handling",
    [
        "signal.signal(signal.SIGTERM, lambda *_: stop.set())",
        "asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)",
    ],
)
def test_a_handler_of_the_bots_own_wins(place: Place, handling: str) -> None:
    place.put_bot(f"""
        import asyncio, signal
        async def main(bot_id, config):
            stop = asyncio.Event()
            {handling}
            print("ready")
            while not stop.is_set():
                await asyncio.sleep(0.01)
            print("closing positions")
            return None
    """)
    running = place.start()
    running.wait_for("ready")
    ended = running.stop()
    assert ended.code == 0
    assert "closing positions" in ended.log
    assert place.result()["status"] == "success"


def test_a_request_to_stop_is_not_lost_where_python_cannot_raise(place: Place) -> None:
    place.put_bot("""
        import time
        class Resource:
            def __del__(self):
                print("ready")
                time.sleep(1)
        def main(bot_id, config):
            resource = Resource()
            del resource
            time.sleep(60)
    """)
    running = place.start()
    running.wait_for("ready")
    ended = running.stop()
    assert ended.code == 0
    assert place.result() == TERMINATED


def test_idle_workers_do_not_keep_the_bot_alive(place: Place) -> None:
    place.put_bot("""
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor()
        def main(bot_id, config):
            print(pool.submit(lambda: "worked").result())
    """)
    ended = place.run()
    assert (ended.code, ended.out) == (0, "worked\n")


def test_threads_of_the_bots_are_waited_for(place: Place) -> None:
    place.put_bot("""
        import threading, time
        def late():
            time.sleep(0.2)
            print("late")
        def main(bot_id, config):
            threading.Thread(target=late).start()
    """)
    ended = place.run()
    assert (ended.code, ended.out) == (0, "late\n")


def test_spawned_processes_find_the_bots_module(place: Place) -> None:
    place.put_bot("""
        import multiprocessing
        def double(value):
            return value * 2
        def main(bot_id, config):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(double, [1, 2]))
    """)
    ended = place.run()
    assert (ended.code, ended.out) == (0, "[2, 4]\n")


def test_death_by_a_signal(place: Place) -> None:
    place.put_bot("import os, signal\nprint('going', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)")
    ended = place.run()
    assert ended.code == 128 + signal.SIGKILL
    assert ended.record is not None
    assert (ended.record["by"], ended.record["signal"], ended.record["oom"]) == ("bot", signal.SIGKILL, False)
    assert "signal 9 (SIGKILL)" in ended.log


def test_a_crash_in_native_code_is_shown(place: Place) -> None:
    place.put_bot("import ctypes\nctypes.string_at(0)")
    ended = place.run()
    assert ended.code == 128 + signal.SIGSEGV
    assert "Segmentation fault" in ended.log
    assert "main.py" in ended.log
