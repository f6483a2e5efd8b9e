"""Configurations that no environment holds: how they come to `execute`, and how they come to the bot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bot_place import Place, archive

from rig import toolchains
from the0 import names

BIG = {"long": "é€😀" * 40_000, "many": [{"n": number, "x": 1.5} for number in range(2000)], "size": 5.0}
FITS = {"long": "x" * 120_000}
PYTHON = """
    import hashlib, json, os, subprocess
    import the0
    from the0 import query

    at_import = the0.parse()[1]

    def main(bot_id, config):
        assert config == at_import == query.get_config() == json.loads(os.environ["BOT_CONFIG"])
        assert subprocess.run(["true"]).returncode == 0, "other programs can still be started"
        print(hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(), config["size"])
"""
NODE = """
    const assert = require("node:assert");
    const { spawnSync } = require("node:child_process");
    exports.main = (id, config) => {
      assert.deepStrictEqual(config, JSON.parse(process.env.BOT_CONFIG));
      assert.strictEqual(spawnSync("true").status, 0);
      assert.ok(!Object.keys(process.env).includes("BOT_CONFIG"));
      console.log(config.long.length, config.many.length, config.size);
    };
"""
NATIVE = """#!/bin/sh
echo "variable: ${BOT_CONFIG-absent}"
wc -c < "$BOT_CONFIG_FILE"
"""


def from_file(place: Place) -> None:
    path = place.root / "config"
    path.write_text(json.dumps(BIG, ensure_ascii=False, indent=1))
    place.env |= {"BOT_CONFIG": None, "BOT_CONFIG_FILE": str(path)}


def from_object(place: Place) -> None:
    key = names.config_key("bot-1", "big")
    path = place.store / "bot-state" / key
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(BIG))
    place.env |= {"BOT_CONFIG": None, "BOT_CONFIG_KEY": key}


@pytest.mark.parametrize("given", [from_file, from_object])
def test_a_python_bot_gets_all_of_it(place: Place, given: object) -> None:
    assert callable(given)
    given(place)
    place.put_bot(PYTHON)
    ended = place.run()
    assert ended.code == 0, ended.out + ended.err
    assert ended.out.endswith(" 5\n"), "a whole number has no fraction"


def test_a_node_bot_gets_all_of_it(place: Place) -> None:
    try:
        node = toolchains.node()
    except toolchains.Lacking as lacking:
        pytest.skip(str(lacking))
    from_file(place)
    place.put(archive({"main.js": NODE}))
    place.env |= {"RUNTIME": "nodejs20", "ENTRYPOINT": "main.js", "PATH": f"{node.parent}:/usr/bin:/bin"}
    ended = place.run()
    assert ended.code == 0, ended.out + ended.err
    assert ended.out == "160000 2000 5\n"


def test_a_native_bot_is_told_the_file(place: Place) -> None:
    from_file(place)
    place.put(archive({"bot": NATIVE}))
    place.env |= {"RUNTIME": "gcc13", "ENTRYPOINT": "bot"}
    ended = place.run()
    assert ended.code == 0, ended.out + ended.err
    written = place.run_dir / "config.json"
    assert ended.out == f"variable: absent\n{written.stat().st_size}\n"
    text = written.read_text("ascii")
    assert json.loads(text) == BIG
    assert text.startswith('{"long":"\\u00e9\\u20ac\\ud83d\\ude00')
    assert text.endswith('"size":5}')
    assert written.stat().st_mode & 0o777 == 0o444


def test_what_fits_is_a_variable_wherever_it_came_from(place: Place) -> None:
    path = place.root / "config"
    path.write_text(json.dumps(FITS))
    place.env |= {"BOT_CONFIG": None, "BOT_CONFIG_FILE": str(path)}
    place.put(archive({"bot": '#!/bin/sh\necho "${#BOT_CONFIG} ${BOT_CONFIG_FILE-absent}"\n'}))
    place.env |= {"RUNTIME": "gcc13", "ENTRYPOINT": "bot"}
    ended = place.run()
    assert ended.out == f"{len(json.dumps(FITS, separators=(',', ':')))} absent\n", ended.err
    assert not (place.run_dir / "config.json").exists()


def test_a_query_gets_all_of_it(place: Place) -> None:
    from_file(place)
    (place.store / "query-results").mkdir()
    place.put_bot(
        PYTHON,
        query_py="""
        from the0 import query
        @query.handler("/long")
        def long(request):
            return [len(query.get_config()["long"]), query.get_config()["size"]]
        query.run()
        """,
    )
    place.env["QUERY_ENTRYPOINT"] = "query.py"
    ended = place.run("--query", "/long")
    assert json.loads(ended.out)["data"] == [120_000, 5], ended.err


def test_a_variable_wins_over_the_file(place: Place) -> None:
    from_file(place)
    place.env["BOT_CONFIG"] = '{"size": 7}'
    place.put_bot("def main(bot_id, config): print(config)")
    assert place.run().out == "{'size': 7}\n"


@pytest.mark.parametrize(
    ("text", "variable", "words"),
    [
        (None, "BOT_CONFIG_FILE", ["BOT_CONFIG_FILE", "No such file"]),
        ("[1]", "BOT_CONFIG_FILE", ["BOT_CONFIG", "not an object"]),
        ("\udcff", "BOT_CONFIG_FILE", ["BOT_CONFIG"]),
        (None, "BOT_CONFIG_KEY", ["BOT_CONFIG_KEY", "bot-1/config/big.json"]),
    ],
    ids=["no-file", "no-object", "no-utf8", "no-key"],
)
def test_what_cannot_be_used(place: Place, text: str | None, variable: str, words: list[str]) -> None:
    path = place.root / "config"
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    place.env |= {"BOT_CONFIG": None, variable: str(path) if variable.endswith("FILE") else "bot-1/config/big.json"}
    place.put_bot(PYTHON)
    ended = place.run()
    assert ended.code == 201
    assert [word for word in words if word not in ended.err] == []


def test_the_sync_commands_know_it_too(place: Place) -> None:
    """Its policies are theirs."""
    (place.root / "config").write_text('{"the0": {"store_down": "never"}}')
    place.env |= {"BOT_CONFIG": None, "BOT_CONFIG_FILE": str(place.root / "config")}
    command = [sys.executable, "-I", "-m", "the0.cli", "daemon", "init", "--bot-id", "bot-1", "--code-file", ""]
    done = subprocess.run(command, env=place.environment(), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 201
    assert "store_down" in done.stderr
    assert not Path(place.state / ".the0").exists()
