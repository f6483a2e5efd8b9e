"""`the0.bot`: configuration, results, metrics, log lines."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sdk.bots import BotFolder

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def result_of(bot: BotFolder) -> Any:
    return json.loads((bot.code / "result.json").read_text())


def test_parse_gives_id_and_config(bot: BotFolder) -> None:
    run = bot.run("from the0 import parse\nprint(parse())")
    assert run.stdout == "('bot-1', {'symbol': 'AAPL', 'size': 5})\n"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("BOT_ID", None, "BOT_ID is missing"),
        ("BOT_ID", "", "BOT_ID is missing"),
        ("BOT_CONFIG", None, "BOT_CONFIG is missing"),
        ("BOT_CONFIG", "", "BOT_CONFIG is missing"),
        ("BOT_CONFIG", "[1]", "BOT_CONFIG is JSON, but no object"),
        ("BOT_CONFIG", "{", "BOT_CONFIG is no JSON"),
        ("BOT_CONFIG", "null", "BOT_CONFIG is JSON, but no object"),
        ("BOT_CONFIG", "[" * 100_000, "BOT_CONFIG is no JSON"),
    ],
)
def test_parse_refuses_in_one_sentence(bot: BotFolder, variable: str, value: str | None, said: str) -> None:
    run = bot.run("from the0 import parse\nparse()", **{variable: value})
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith(f"ValueError: {said}")


def test_success_writes_the_result(bot: BotFolder) -> None:
    assert bot.run("import the0\nthe0.success('done', {'trades': 3})").returncode == 0
    assert result_of(bot) == {"status": "success", "message": "done", "data": {"trades": 3}}
    assert bot.run("import the0\nthe0.success('again')").returncode == 0
    assert result_of(bot) == {"status": "success", "message": "again"}


def test_error_writes_the_result_and_exits_with_1(bot: BotFolder) -> None:
    run = bot.run("import the0\nthe0.error('no money', {'needed': 0})\nprint('not reached')")
    assert (run.returncode, run.stdout, run.stderr) == (1, "", "")
    assert result_of(bot) == {"status": "error", "message": "no money", "data": {"needed": 0}}


def test_result_writes_any_object_and_leaves_nothing_else_behind(bot: BotFolder) -> None:
    run = bot.run("import the0\nthe0.result({'status': 'success', 'é': [1, None]})")
    assert run.returncode == 0
    assert result_of(bot) == {"status": "success", "é": [1, None]}
    assert sorted(path.name for path in bot.code.iterdir()) == ["result.json", "script0.py"]


@pytest.mark.parametrize("value", ["float('nan')", "object()", "{1, 2}"])
def test_a_result_that_is_not_json_leaves_the_former_one(bot: BotFolder, value: str) -> None:
    run = bot.run(f"import the0\nthe0.success('first')\nthe0.success('second', {value})")
    assert run.returncode == 1
    assert result_of(bot) == {"status": "success", "message": "first"}
    assert sorted(path.name for path in bot.code.iterdir()) == ["result.json", "script0.py"]


def test_a_result_without_the_runtime_says_so(bot: BotFolder) -> None:
    run = bot.run("import the0\nthe0.success('x')", CODE_MOUNT_DIR=None)
    assert run.stderr.splitlines()[-1].startswith("ValueError: CODE_MOUNT_DIR is missing")


def test_metric_is_one_json_line_on_stdout(bot: BotFolder) -> None:
    run = bot.run("import the0\nthe0.metric('price', {'symbol': 'AAPL', 'value': 1.5})")
    (line,) = run.stdout.splitlines()
    metric = json.loads(line)
    assert RFC_3339.fullmatch(metric.pop("timestamp"))
    assert metric == {"_metric": "price", "symbol": "AAPL", "value": 1.5}
    assert list(json.loads(line)) == ["_metric", "symbol", "value", "timestamp"]
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("log('hello')", {"level": "info", "message": "hello"}),
        ("log('hello', 'warn')", {"level": "warn", "message": "hello"}),
        ("log('hello', {'a': 1})", {"level": "info", "message": "hello", "a": 1}),
        ("log('hello', {'a': 1}, 'error')", {"level": "error", "message": "hello", "a": 1}),
        ("log('hello', None, 'error')", {"level": "error", "message": "hello"}),
        ("log('hello', level='WARNING')", {"level": "warn", "message": "hello"}),
        ("log('hello', 'shout')", {"level": "info", "message": "hello"}),
        ("log(ValueError('bad'))", {"level": "info", "message": "bad"}),
        ("log('x', {'message': 7, 'level': 3})", {"level": "info", "message": "7"}),
    ],
)
def test_log_is_one_json_line_on_stderr(bot: BotFolder, call: str, expected: dict[str, Any]) -> None:
    run = bot.run(f"from the0 import log\n{call}")
    (line,) = run.stderr.splitlines()
    shown = json.loads(line)
    assert RFC_3339.fullmatch(shown.pop("timestamp"))
    assert shown == expected
    assert (run.returncode, run.stdout) == (0, "")


def test_what_json_lacks_is_still_told(bot: BotFolder) -> None:
    run = bot.run(
        """
        import decimal, the0
        circle = []
        circle.append(circle)
        the0.metric("odd", {"price": decimal.Decimal("1.10"), "nan": float("nan"), "inf": [float("inf")], "set": {1},
                            3: "key", "bytes": b"x", "text": "a\\nb\\ud800", "tuple": (1, True, None)})
        the0.log("circle", {"circle": circle})
        """
    )
    assert run.returncode == 0
    (line,) = run.stdout.splitlines()
    metric = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    del metric["timestamp"]
    assert metric == {
        "_metric": "odd",
        "price": "1.10",
        "nan": None,
        "inf": [None],
        "set": "{1}",
        "3": "key",
        "bytes": "b'x'",
        "text": "a\nb\ud800",
        "tuple": [1, True, None],
    }
    assert json.loads(run.stderr)["message"] == "circle"


def test_lines_of_threads_do_not_mix(bot: BotFolder) -> None:
    run = bot.run(
        """
        import threading, the0
        def many(name):
            for n in range(300):
                the0.metric("m", {"name": name, "n": n, "pad": "x" * 500})
        threads = [threading.Thread(target=many, args=(name,)) for name in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        """
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert sorted((line["name"], line["n"]) for line in lines) == [(a, b) for a in range(4) for b in range(300)]


def test_importing_loads_the_standard_library_only_and_little_of_it(bot: BotFolder) -> None:
    run = bot.run(
        """
        import sys
        import the0
        print(*sorted(name for name in sys.modules if name.startswith("the0")))
        from the0 import parse, state
        print(*sorted(name for name in sys.modules if name.startswith("the0")))
        from the0 import query
        print(*sorted({"http.server", "socketserver", "asyncio", "typing", "dataclasses"} & set(sys.modules)))
        print(*sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)))
        """
    )
    assert run.stdout.splitlines() == ["the0", "the0 the0.bot the0.state the0.stops", "", "__main__ the0"]


def test_an_unknown_name_is_an_attribute_error(bot: BotFolder) -> None:
    run = bot.run("import the0\nthe0.nothing")
    assert run.stderr.splitlines()[-1] == "AttributeError: module 'the0' has no attribute 'nothing'"


def test_importing_is_quick(bot: BotFolder) -> None:
    """CONTRACT: under 15 ms above a bare interpreter; CPU time, so that a busy machine does not fail it."""
    measured = """
        import time
        before = time.process_time()
        import the0
        print(time.process_time() - before)
        """
    assert min(float(bot.run(measured).stdout) for _ in range(5)) < 0.015
    measured_more = measured.replace("import the0", "from the0 import parse, state")
    assert min(float(bot.run(measured_more).stdout) for _ in range(5)) < 0.030


def test_every_public_name_is_there() -> None:
    import the0

    for name in the0.__all__:
        assert getattr(the0, name) is not None
