"""Node bots as the wire contract describes them, each a real process under `runtime execute`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from bot_place import Place, archive

import the0
from languages.bots import node_path, or_skip
from rig import toolchains

SUCCESS = {"status": "success", "message": "The bot has ended."}
TERMINATED = {"status": "terminated", "message": "The bot was asked to stop."}
WRAPPER = Path(the0.__file__).parent / "execute/wrappers/node.cjs"


@pytest.fixture
def node(place: Place) -> Place:
    place.env |= {"RUNTIME": "nodejs20", "ENTRYPOINT": "main.js", "PATH": or_skip(node_path)}
    return place


def put(place: Place, main: str, **others: str) -> None:
    place.put(archive({place.env["ENTRYPOINT"] or "": main, **others}))


def test_main_gets_id_and_config(node: Place) -> None:
    node.env["BOT_CONFIG"] = '{"symbol": "Ж", "amount": 5.0, "deep": [1, null]}'
    put(
        node,
        "exports.main = (id, config) => console.log(id, JSON.stringify(config), process.cwd(), process.argv.length)",
    )
    ended = node.run()
    assert ended.code == 0, ended.err + ended.out
    assert ended.out == f'bot-1 {{"amount":5,"deep":[1,null],"symbol":"Ж"}} {node.code} 2\n'
    assert ended.log.endswith(ended.out)
    assert node.result() == SUCCESS
    assert ended.record is not None
    assert ended.record["by"] == "bot"


@pytest.mark.parametrize(
    "source",
    [
        "exports.main = async (id) => { await null; console.log('ran', id) }",
        "exports.default = (id) => console.log('ran', id)",
        "module.exports = async (id) => console.log('ran', id)",
        "module.exports = { main(id) { console.log('ran', id) } }",
        "exports.main = (id) => ({ then(done) { console.log('ran', id); done() } })",
        "if (!module.parent) console.log('as a program'); exports.main = (id) => console.log('ran', id)",
    ],
)
def test_each_kind_of_main(node: Place, source: str) -> None:
    put(node, source)
    ended = node.run()
    assert (ended.code, ended.out) == (0, "ran bot-1\n"), ended.err
    assert node.result() == SUCCESS


@pytest.mark.parametrize(
    ("entrypoint", "package", "source"),
    [
        ("main.mjs", "{}", "import fs from 'node:fs'; export const main = (id) => console.log('ran', id, typeof fs)"),
        ("main.mjs", "{}", "export default async (id) => console.log('ran', id, 'object')"),
        ("main.js", '{"type": "module"}', "export async function main(id) { console.log('ran', id, 'object') }"),
        ("dist/main.js", '{"type": "module"}', "await 0; export const main = (id) => console.log('ran', id, 'object')"),
        ("main.cjs", '{"type": "module"}', "exports.main = (id) => console.log('ran', id, typeof require('node:fs'))"),
        ("main.js", "{}", "exports.main = async (id) => console.log('ran', id, typeof (await import('node:fs')))"),
    ],
)
def test_modules_of_both_kinds(node: Place, entrypoint: str, package: str, source: str) -> None:
    node.env["ENTRYPOINT"] = entrypoint
    put(node, source, **{"package.json": package})
    ended = node.run()
    assert (ended.code, ended.out) == (0, "ran bot-1 object\n"), ended.err


def test_module_syntax_without_a_word_in_package_json_runs_as_under_node_itself(node: Place) -> None:
    source = "console.log('loaded'); await 0; export const main = () => console.log('ran')"
    put(node, source)
    ended = node.run()
    bare = subprocess.run(
        [toolchains.node(), node.code / "main.js"], capture_output=True, text=True, check=False, timeout=20
    )
    assert ended.code == bare.returncode
    assert ended.out == ("loaded\nran\n" if ended.code == 0 else ended.out)


def test_a_module_that_cannot_be_required_by_the_bot_is_no_reason_to_run_it_twice(node: Place) -> None:
    put(
        node,
        "console.log('once'); require('./late.mjs')",
        **{"late.mjs": "await 0; export default 1"},
    )
    ended = node.run()
    assert ended.code == 1
    assert ended.out.count("once\n") == 1
    assert "ERR_REQUIRE" in ended.out


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ('{ status: "success", message: "done", data: [1] }', {"status": "success", "message": "done", "data": [1]}),
        ("Promise.resolve({ trades: 3 })", {**SUCCESS, "trades": 3}),
        ("null", SUCCESS),
        ("'words'", SUCCESS),
        ("[1]", SUCCESS),
    ],
)
def test_a_returned_object_is_the_result(node: Place, returned: str, expected: object) -> None:
    put(node, f"exports.main = () => ({returned})")
    assert node.run().code == 0
    assert node.result() == expected


def test_a_result_that_is_no_json_is_the_bots_failure(node: Place) -> None:
    put(node, "exports.main = () => { const loop = {}; loop.loop = loop; return loop }")
    ended = node.run()
    assert ended.code == 1
    assert "circular" in node.result()["message"]


def test_result_of_the_bot_stands_and_a_former_one_does_not(node: Place) -> None:
    stale = '{"status": "success", "message": "stale"}'
    put(node, "exports.main = () => {}", **{"result.json": stale})
    assert node.run().code == 0
    assert node.result() == SUCCESS
    put(
        node,
        """
        exports.main = async () => {
            const path = `/${process.env.CODE_MOUNT_DIR}/result.json`
            require("fs").writeFileSync(path, JSON.stringify({ status: "error", message: "mine" }))
            process.exit(3)
        }
        """,
    )
    assert node.run().code == 3
    assert node.result() == {"status": "error", "message": "mine"}


@pytest.mark.parametrize(
    ("body", "code", "status", "told"),
    [
        ("process.exit(7)", 7, "error", "exit code 7"),
        ("process.exit(210)", 210, "error", "exit code 210"),
        ("process.exit()", 0, "success", "ended"),
        ("process.exitCode = 4", 4, "error", "exit code 4"),
        ("throw new RangeError('bad price')", 1, "error", "RangeError: bad price"),
        ("return Promise.reject(new Error('no money'))", 1, "error", "Error: no money"),
        ("throw 'words'", 1, "error", "words"),
        ("throw null", 1, "error", "null"),
        ("setTimeout(() => { throw new Error('later') }); return new Promise(() => {})", 1, "error", "Error: later"),
        ("Promise.reject(new Error('lost')); return new Promise(r => setTimeout(r, 5000))", 1, "error", "Error: lost"),
        ("return new Promise(() => {})", 13, "error", "never happen"),
    ],
)
def test_exit_codes(node: Place, body: str, code: int, status: str, told: str) -> None:
    put(node, f"exports.main = () => {{ {body} }}")
    ended = node.run()
    assert ended.code == code
    result = node.result()
    assert result["status"] == status
    assert told in result["message"]
    assert ended.record is not None
    assert (ended.record["by"], ended.record["bot_code"]) == ("bot", code)
    if code in (1, 13):
        assert told.rpartition(": ")[2] in ended.log


@pytest.mark.parametrize(
    ("entrypoint", "main", "what", "remedy"),
    [
        ("main.js", "require('not-there/deep')", "Cannot find module 'not-there/deep'", "npm install not-there in"),
        ("main.js", "require('@some/one')", "Cannot find module '@some/one'", "npm install @some/one in"),
        ("main.js", "require('./helper')", "Cannot find module './helper'", "correct its name"),
        ("main.mjs", "import 'not-there'", "Cannot find package 'not-there'", "npm install not-there in"),
        ("main.mjs", "import './helper.js'", "helper.js' imported from", "correct its name"),
    ],
)
def test_a_module_that_is_missing_comes_with_what_to_do(
    node: Place, entrypoint: str, main: str, what: str, remedy: str
) -> None:
    node.env["ENTRYPOINT"] = entrypoint
    put(node, main)
    ended = node.run()
    assert ended.code == 1
    message = node.result()["message"]
    for told in (ended.log, message):
        assert what in told
        assert remedy in told
        assert "node.cjs" not in told, "nothing of ours, which nobody can mend"


def test_a_traceback_shows_the_bots_own_frames(node: Place) -> None:
    put(
        node,
        "exports.main = function main() { inner() }\nfunction inner() {\n  throw new Error('lost the socket')\n}\n",
    )
    ended = node.run()
    assert ended.code == 1
    trace = ended.out.splitlines()
    assert trace[0] == "Error: lost the socket"
    assert trace[1].strip() == f"at inner ({node.code}/main.js:3:9)"
    assert WRAPPER.name not in ended.out


def test_a_syntax_error_is_shown_with_its_line(node: Place) -> None:
    put(node, "\nfunction main(: {}\n")
    ended = node.run()
    assert ended.code == 1
    assert f"{node.code}/main.js:2" in ended.log
    assert node.result()["message"].startswith("SyntaxError")


def test_a_handler_of_the_bots_for_what_nobody_catches_stands(node: Place) -> None:
    put(
        node,
        """
        process.on("uncaughtException", (failure) => console.log("handled", failure.message))
        exports.main = () => new Promise((done) => {
            setTimeout(() => { throw new Error("later") })
            setTimeout(done, 100)
        })
        """,
    )
    ended = node.run()
    assert (ended.code, ended.out) == (0, "handled later\n")
    assert node.result() == SUCCESS


def test_ends_when_main_settles_whatever_is_open(node: Place) -> None:
    put(
        node,
        """
        exports.main = async () => {
            const server = require("net").createServer().listen(0)
            setInterval(() => {}, 1000)
            require("fs").watch(".", () => {})
            await new Promise((done) => server.once("listening", done))
            console.log("listening")
        }
        """,
    )
    ended = node.run()
    assert (ended.code, ended.out) == (0, "listening\n")


def test_a_script_without_main_runs_once_to_its_end(node: Place) -> None:
    put(node, "console.log('once'); setTimeout(() => console.log('later'), 50); exports.helper = 1")
    ended = node.run()
    assert (ended.code, ended.out) == (0, "once\nlater\n")
    assert node.result()["status"] == "success"
    assert "exports no main(bot_id, config)" in node.result()["message"], "whoever misspelt it finds it here"


def test_all_that_was_printed_arrives(node: Place) -> None:
    put(node, "exports.main = () => { for (let i = 0; i < 20000; i++) console.log(`line ${i} ${'x'.repeat(80)}`) }")
    ended = node.run()
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 20_000
    put(node, "exports.main = () => { console.log(`${'y'.repeat(1023)}\\n`.repeat(1024)); process.exit(5) }")
    ended = node.run()
    assert (ended.code, ended.log.count("y")) == (5, 1023 << 10)


def test_sigterm_without_a_handler(node: Place) -> None:
    put(node, "exports.main = async () => { console.log('ready'); await new Promise((r) => setTimeout(r, 60000)) }")
    running = node.start()
    running.wait_for("ready")
    ended = running.stop()
    assert ended.code == 0
    assert node.result() == TERMINATED


@pytest.mark.parametrize("method", ["on", "once", "prependListener"])
def test_a_handler_of_the_bots_own_wins(node: Place, method: str) -> None:
    put(
        node,
        f"""
        exports.main = () => new Promise((done) => {{
            process.{method}("SIGTERM", () => {{ console.log("closing"); setTimeout(() => done({{ closed: true }}), 50) }})
            setInterval(() => {{}}, 1000)
            console.log("ready")
        }})
        """,
    )
    running = node.start()
    running.wait_for("ready")
    ended = running.stop()
    assert (ended.code, ended.out) == (0, "ready\nclosing\n")
    assert node.result() == {**SUCCESS, "closed": True}


@pytest.mark.parametrize(
    "taken_away",
    [
        "process.on('SIGTERM', handler); process.off('SIGTERM', handler)",
        "process.on('SIGTERM', handler); process.removeAllListeners('SIGTERM')",
        # What libraries that clean up at a signal do: end the process themselves if nobody else listens.
        """process.on('SIGTERM', function cleanup() {
            if (process.listeners('SIGTERM').length !== 1) return
            process.off('SIGTERM', cleanup)
            process.kill(process.pid, 'SIGTERM')
        })""",
    ],
)
def test_a_handler_that_was_taken_away_is_none(node: Place, taken_away: str) -> None:
    put(
        node,
        f"""
        const handler = () => console.log("handled")
        {taken_away}
        exports.main = () => new Promise(() => setInterval(() => console.log("ready"), 50))
        """,
    )
    running = node.start()
    running.wait_for("ready")
    ended = running.stop()
    assert ended.code == 0
    assert "handled" not in ended.out
    assert node.result() == TERMINATED


def test_a_bot_that_never_yields_is_killed_after_the_grace_period(node: Place) -> None:
    node.env["STOP_GRACE_S"] = "0.5"
    put(node, "exports.main = () => { console.log('ready'); for (;;); }")
    running = node.start()
    running.wait_for("ready")
    ended = running.stop()
    assert ended.code == 128 + signal.SIGKILL
    assert ended.record is not None
    assert ended.record["by"] == "runtime"


def test_node_modules_and_a_vendored_sdk(node: Place) -> None:
    node.env["ENTRYPOINT"] = "dist/main.js"
    sdk = "exports.parse = () => ({ id: process.env.BOT_ID }); console.log('vendored the0', typeof path)"
    put(
        node,
        "const the0 = require('the0'), dep = require('dep'); exports.main = () => console.log(the0.parse().id, dep)",
        **{"node_modules/the0/index.js": sdk, "dist/node_modules/dep/index.js": "module.exports = 'dep'"},
    )
    ended = node.run()
    assert (ended.code, ended.out) == (0, "vendored the0 undefined\nbot-1 dep\n")


def test_what_is_planted_in_the_code_does_not_reach_the_wrapper(node: Place) -> None:
    planted = "console.log('planted')"
    names = ("fs", "path", "util", "url", "vm", "module", ".node_modules/fs", ".node_libraries/util", "node_modules/fs")
    put(
        node,
        "exports.main = () => console.log('ran', process.env.NODE_OPTIONS, process.env.NODE_PATH)",
        **{f"{name}/index.js": planted for name in names},
        **{".noderc": planted, "package.json": "{}"},
    )
    node.env |= {"NODE_OPTIONS": "--require ./fs/index.js", "NODE_PATH": str(node.code)}
    ended = node.run()
    assert (ended.code, ended.out) == (0, "ran undefined undefined\n")


def test_a_link_in_place_of_the_result_leads_nowhere(node: Place) -> None:
    target = node.root / "precious"
    target.write_text("precious")
    put(node, f"exports.main = () => require('fs').symlinkSync({json.dumps(str(target))}, 'result.json')")
    assert node.run().code == 0
    assert target.read_text() == "precious"


def test_a_machine_without_node(node: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    node.env["PATH"] = str(tmp_path / "empty")
    put(node, "")
    ended = node.run()
    assert ended.code == 202
    assert ended.record is not None
    assert ended.record["reason"] == (
        "The bot needs Node.js 20, and this machine's PATH has no `node`: install Node.js 20, or use the runtime's image."
    )


def test_stopped_before_the_code_was_there(node: Place) -> None:
    """The word never comes: the interpreter ends without having opened anything."""
    read_fd, write_fd = os.pipe()
    node.code.mkdir()
    program = toolchains.node()
    with subprocess.Popen(
        [program, WRAPPER, str(read_fd), node.code, "main.js"], pass_fds=[read_fd], stdout=subprocess.PIPE, cwd="/"
    ) as process:
        os.close(read_fd)
        os.close(write_fd)
        assert process.wait(timeout=20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b""
    assert list(node.code.iterdir()) == []
