"""From a folder or zip to a stored bot: what is packed, what is refused in one sentence, what changes at the next time."""

from __future__ import annotations

import json
import os
import socket
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from the0 import statehash
from the0.errors import ExitCode, Fault
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.objects.retry import Retrying
from the0.orchestrate import archive, deploy, manifest
from the0.orchestrate.bots_sqlite import SqliteBots
from the0.orchestrate.deploy import Plan, Wanted

MANIFEST = """\
name: counter
version: 1.10
type: realtime
runtime: python3.11
entrypoints: {bot: main.py}
schema:
  bot:
    type: object
    properties:
      step: {type: integer, default: 2, minimum: 1}
      symbol: {type: string}
"""
SCHEDULED = MANIFEST.replace("realtime", "scheduled")


class World:
    """A platform's bots and objects, and a folder to deploy."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folder = base / "my-bot"
        self.folder.mkdir()
        (base / "objects/custom-bots").mkdir(parents=True)
        self.bots = SqliteBots(str(base / "bots.db"), create=True)
        self.store: Retrying = open_store(StoreSettings(folder=str(base / "objects")), deadline_s=5)

    def write(self, name: str, text: str | bytes = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def plan(self, source: Path | None = None, **wanted: Any) -> Plan:
        with archive.opened(str(source or self.folder)) as packed:
            return deploy.make_plan(Wanted(source=str(source or self.folder), **wanted), packed, self.bots)

    def deploy(self, source: Path | None = None, **wanted: Any) -> Plan:
        with archive.opened(str(source or self.folder)) as packed:
            plan = deploy.make_plan(Wanted(source=str(source or self.folder), **wanted), packed, self.bots)
            deploy.carry_out(plan, packed, bots=self.bots, store=self.store, bucket="custom-bots")
        return plan

    def refused(self, source: Path | None = None, **wanted: Any) -> Fault:
        with pytest.raises(Fault) as raised:
            self.deploy(source, **wanted)
        fault = raised.value
        assert fault.sentence.endswith(".")
        assert "\n" not in fault.sentence
        assert self.bots.list("realtime") + self.bots.list("scheduled") == [], "nothing half done"
        assert self.archives() == []
        return fault

    def archives(self) -> list[str]:
        return [info.key for info in self.store.list("custom-bots", "")]

    def body(self, bot_id: str = "counter") -> dict[str, Any]:
        found = self.bots.get(bot_id)
        assert found is not None
        return dict(found.body)

    def names(self, bot_id: str = "counter") -> list[str]:
        """In the stored archive, as `execute` extracts it."""
        target = self.base / f"extracted-{os.urandom(4).hex()}"
        target.mkdir()
        file = self.base / "objects/custom-bots" / self.body(bot_id)["custom"]["filePath"]
        archive_fd, folder_fd = os.open(file, os.O_RDONLY), os.open(target, os.O_RDONLY)
        statehash.unzip(archive_fd, folder_fd)
        os.close(archive_fd)
        os.close(folder_fd)
        return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.write("main.py", "def main(bot_id, config): pass\n")
    made.write("bot-config.yaml", MANIFEST)
    yield made
    made.bots.close()
    made.store.close()


def test_a_new_bot(world: World) -> None:
    plan = world.deploy()
    assert plan.action == "new"
    body = world.body()
    assert (body["id"], body["enabled"], body["config"]) == ("counter", True, {"step": 2})
    custom = body["custom"]
    assert custom["version"] == "1.10", "no number"
    assert custom["config"]["entrypoints"] == {"bot": "main.py"}
    assert custom["config"]["schema"]["bot"]["type"] == "object"
    assert world.archives() == [custom["filePath"]]
    assert custom["filePath"].startswith("local/counter/1.10-")
    assert world.names() == ["bot-config.yaml", "main.py"]


def test_the_same_again_changes_nothing(world: World) -> None:
    world.deploy()
    at, body = world.bots.revision(), world.body()
    os.utime(world.folder / "main.py", (1, 1))
    assert world.deploy().action == "nothing changed"
    assert (world.bots.revision(), world.body()) == (at, body)
    world.store.delete("custom-bots", body["custom"]["filePath"])
    world.deploy()
    assert world.archives() == [body["custom"]["filePath"]], "an archive that was lost is back"


def test_an_update_says_what_changes_and_keeps_the_rest(world: World) -> None:
    world.deploy(config=["symbol=MSFT", "secret=hunter2"])
    world.bots.set_enabled("counter", False)
    first = world.body()
    world.write("main.py", "def main(bot_id, config): print()\n")
    plan = world.deploy(config=["step=3", "secret=hunter3"])
    assert plan.action == "update"
    assert plan.changes == ["code", "config.secret", "config.step"]
    assert not any("hunter" in text for text in plan.changes)
    body = world.body()
    assert body["config"] == {"symbol": "MSFT", "secret": "hunter3", "step": 3}
    assert body["enabled"] is False, "what was stopped stays stopped"
    assert body["custom"]["createdAt"] == first["custom"]["createdAt"]
    assert world.deploy(unset=["symbol"]).changes == ["config.symbol"]


def test_old_archives_go_but_for_the_former_one(world: World) -> None:
    world.store.put("custom-bots", "local/other/1", b"not of this bot")
    world.store.put("custom-bots", "u1/counter/1", b"not ours")
    keys = []
    for number in range(4):
        world.write("main.py", f"def main(bot_id, config): print({number})\n")
        keys.append(world.deploy().bot.file_path)
    assert set(world.archives()) == {*keys[-2:], "local/other/1", "u1/counter/1"}


def test_a_bot_whose_type_changes_moves(world: World) -> None:
    world.deploy()
    world.write("bot-config.yaml", SCHEDULED)
    plan = world.deploy(schedule="@hourly")
    assert "type: realtime → scheduled" in plan.changes
    assert [each.id for each in world.bots.list("scheduled")] == ["counter"]
    assert world.bots.list("realtime") == []


def test_flags_win_over_the_folder_and_the_folder_over_what_is_stored(world: World) -> None:
    world.write("config.json", '{"step": 5.0, "symbol": "AAPL"}')
    assert world.deploy().config == {"step": 5, "symbol": "AAPL"}
    assert world.deploy(config=["symbol=700", "x=1.50", 'y={"a": [1]}', "z=plain text", "n=null", "e="]).config == {
        "step": 5,
        "symbol": "700",  # the schema says that it is text
        "x": 1.5,
        "y": {"a": [1]},
        "z": "plain text",
        "n": None,
        "e": "",
    }
    assert world.deploy().config["symbol"] == "AAPL"


def test_limits_and_policies_by_flags(world: World) -> None:
    plan = world.deploy(memory="512Mi", cpu="500m", config=["the0.timeout_s=60", "the0.unknwon=1", "a.b=1"])
    assert plan.bot.limits.memory_bytes == 512 << 20
    assert plan.bot.limits.cpu_cores == 0.5
    assert plan.bot.policies.timeout_s == 60.0
    assert plan.config["a.b"] == 1
    assert any("the0.unknwon" in sentence for sentence in plan.warnings)


def test_a_folder_without_a_manifest(world: World) -> None:
    (world.folder / "bot-config.yaml").unlink()
    assert "bot-config.yaml" in world.refused().sentence
    assert "--entrypoint" in world.refused(runtime="python3.11").sentence
    plan = world.deploy(runtime="python3.11", entrypoint="main.py")
    assert (plan.bot.id, plan.bot.kind) == ("my-bot", "realtime")


def test_ids_of_any_kind(world: World) -> None:
    plan = world.deploy(bot_id="../../a b/ü")
    assert plan.bot.file_path.startswith("local/~")
    assert world.names("../../a b/ü") == ["bot-config.yaml", "main.py"]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", ExitCode.USAGE, "no table"),
        ("[1, 2]", ExitCode.USAGE, "no table"),
        ("a: [", ExitCode.USAGE, "line 1"),
        ("a: \x00", ExitCode.USAGE, "bot-config.yaml"),
        ("a: !!python/object:os.system {}", ExitCode.USAGE, "bot-config.yaml"),
        ("a: &x [1]\nb: [*x, *x]", ExitCode.USAGE, "aliases"),
        ("a: " + "[" * 3000 + "]" * 3000, ExitCode.USAGE, "deep"),
        (MANIFEST.replace("realtime", "sometimes"), ExitCode.USAGE, "sometimes"),
        (MANIFEST.replace("python3.11", "python2"), ExitCode.LANGUAGE, "python2"),
        (MANIFEST.replace("runtime: python3.11\n", ""), ExitCode.USAGE, "--runtime"),
        (MANIFEST.replace("{bot: main.py}", "{query: main.py}"), ExitCode.USAGE, "--entrypoint"),
        (MANIFEST.replace("{bot: main.py}", "main.py"), ExitCode.USAGE, "entrypoints"),
        (MANIFEST.replace("main.py", "other.py"), ExitCode.ENTRYPOINT, "other.py"),
        (MANIFEST.replace("main.py", "../main.py"), ExitCode.USAGE, "../main.py"),
        (MANIFEST.replace("main.py", "/main.py"), ExitCode.USAGE, "/main.py"),
        (MANIFEST.replace("integer", "nonsense"), ExitCode.USAGE, "no JSON schema"),
        (MANIFEST.replace("{type: integer", "{$ref: 'http://localhost/x', type: integer"), ExitCode.USAGE, "refers to"),
        (MANIFEST.replace("default: 2", "default: 0"), ExitCode.USAGE, "step is against the rule minimum"),
        (MANIFEST + "    required: [key]\n", ExitCode.USAGE, "key is missing"),
        (MANIFEST + "    required: [memory_limit]\n", ExitCode.USAGE, "memory_limit is missing"),
        (MANIFEST + "    additionalProperties: false\nschedule: 5\n", ExitCode.USAGE, "schedule"),
        (SCHEDULED, ExitCode.USAGE, "schedule"),
        (SCHEDULED + 'schedule: "61 * * * *"\n', ExitCode.USAGE, "61"),
    ],
)
def test_a_manifest_that_cannot_be_used(world: World, text: str, code: ExitCode, words: str) -> None:
    world.write("bot-config.yaml", text)
    fault = world.refused()
    assert fault.code == code, fault.sentence
    assert words in fault.sentence


def test_a_strict_schema_forbids_what_it_does_not_know_but_the_platforms_own(world: World) -> None:
    strict = (
        MANIFEST.replace("realtime", "scheduled")
        + "    additionalProperties: false\n    patternProperties: {^x-: {}}\n"
    )
    world.write("bot-config.yaml", strict)
    own = {"config": ["the0.query_warm_s=5", "x-1=2"], "schedule": "@daily", "memory": "300Mi", "cpu": "500m"}
    fault = world.refused(config=["x-1=2", "other=1"], schedule="@daily")
    assert "correct it with --config" in fault.sentence
    world.deploy(**own)
    assert {"the0", "schedule", "memory_limit", "cpu_limit"} < world.body()["config"].keys()
    assert ": other is no property that the schema knows" in fault.sentence


@pytest.mark.parametrize("text", ["{", "[]", '{"a": NaN}', '{"a": 1, "a": 2}', "\xff"])
def test_a_config_that_cannot_be_used(world: World, text: str) -> None:
    world.write("config.json", text.encode("latin-1"))
    assert "config.json" in world.refused().sentence


def test_flags_that_make_no_sense(world: World) -> None:
    for wanted in (
        {"config": ["step"]},
        {"config": ["=5"]},
        {"config": ["step=many"]},
        {"memory": "lots"},
        {"runtime": "basic"},
        {"entrypoint": "no.py"},
        {"query_entrypoint": "no.py"},
        {"schedule": "@daily"},
        {"kind": "scheduled", "schedule": "never"},
        {"kind": "scheduled", "schedule": "* * * * *", "config": ["the0.timezone=Mars/Base"]},
        {"config": ["the0.overlap=yes"]},
    ):
        world.refused(**wanted)


def test_no_secret_of_a_config_is_shown(world: World) -> None:
    fault = world.refused(config=["step=hunter2"])
    assert "hunter2" not in fault.sentence


def test_a_source_that_is_none(world: World, tmp_path: Path) -> None:
    assert world.refused(tmp_path / "no").code == ExitCode.USAGE
    (tmp_path / "empty").mkdir()
    assert world.refused(tmp_path / "empty").code == ExitCode.CODE
    (tmp_path / "text").write_text("no zip")
    assert world.refused(tmp_path / "text").code == ExitCode.CODE


def test_hints(world: World) -> None:
    world.write("requirements.txt", "# nothing yet\nthe0\n-r other.txt\n")
    assert world.plan().warnings == []
    world.write("requirements.txt", "requests==2.32\n")
    assert any("-t vendor" in sentence for sentence in world.plan().warnings)
    world.write("vendor/requests/__init__.py")
    assert world.plan().warnings == []
    world.write("main.js")
    world.write("package.json", '{"dependencies": {"ws": "8"}}')
    node = world.plan(runtime="nodejs20", entrypoint="main.js")
    assert any("npm install" in sentence for sentence in node.warnings)
    with pytest.raises(Fault, match="cargo build"):
        world.plan(runtime="rust-stable", entrypoint="target/release/bot")
    with pytest.raises(Fault, match=r"perhaps it is 'vendor/requests/__init__\.py'"):
        world.plan(entrypoint="__init__.py")
    with pytest.raises(Fault, match=r"perhaps it is 'main\.py'"):
        world.plan(entrypoint="mian.py")
    with pytest.raises(Fault, match=r"has no config\.schedule: write one such as \*/5 \* \* \* \*"):
        world.plan(kind="scheduled")


def test_a_class_of_a_jar(world: World) -> None:
    world.write("target/bot-1.0.jar", b"PK")
    plan = world.plan(runtime="scala3", entrypoint="target/bot-1.0.jar:Main.Class")
    assert plan.bot.entrypoint == "target/bot-1.0.jar:Main.Class"


# --- what is packed -----------------------------------------------------------------------------------


def test_what_is_left_out(world: World) -> None:
    for name in (
        ".git/config",
        "__pycache__/main.pyc",
        "sub/__pycache__/x.pyc",
        "x.pyc",
        ".venv/bin/python",
        ".DS_Store",
    ):
        world.write(name, "x")
    world.write("node_modules/a/index.js")
    world.write(".env", "kept")
    world.deploy()
    assert world.names() == [".env", "bot-config.yaml", "main.py", "node_modules/a/index.js"]


def test_ignore_rules(world: World) -> None:
    world.write(".the0ignore", "# notes\n*.csv\n!keep.csv\n/data/\nbuild\n!.git/hooks/\n")
    for name in ("a.csv", "keep.csv", "sub/b.csv", "data/x", "sub/data/x", "build/y", "sub/build", ".git/config"):
        world.write(name, "x")
    world.deploy()
    assert world.names() == ["bot-config.yaml", "keep.csv", "main.py", "sub/data/x"]
    world.write(".the0ignore", "main.py\n")
    with pytest.raises(Fault, match="the0ignore"):
        world.plan()


def test_modes_and_links(world: World) -> None:
    world.write("run.sh", "#!/bin/sh\n").chmod(0o700)
    (world.folder / "link.py").symlink_to("main.py")
    (world.folder / "away").symlink_to("nowhere")
    (world.folder / "around").symlink_to(".")
    (world.base / "shared").mkdir()
    (world.base / "shared/common.py").write_text("x = 1\n")
    (world.folder / "shared").symlink_to(world.base / "shared")
    os.mkfifo(world.folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(world.folder / "socket"))
        plan = world.deploy()
    assert world.names() == ["bot-config.yaml", "link.py", "main.py", "run.sh", "shared/common.py"]
    said = " ".join(plan.warnings)
    assert all(name in said for name in ("away", "around", "pipe", "socket"))
    with zipfile.ZipFile(world.base / "objects/custom-bots" / plan.bot.file_path) as packed:
        modes = {info.filename: stat.S_IMODE(info.external_attr >> 16) for info in packed.infolist()}
    assert modes["run.sh"] == 0o755
    assert modes["main.py"] == 0o644


def test_what_is_packed_already_is_stored_as_it_is(world: World) -> None:
    world.write("lib/bot.JAR", "PK" * 1000)
    world.write("lib/bot.txt", "PK" * 1000)
    plan = world.deploy()
    with zipfile.ZipFile(world.base / "objects/custom-bots" / plan.bot.file_path) as packed:
        kinds = {info.filename: info.compress_type for info in packed.infolist()}
    assert kinds["lib/bot.JAR"] == zipfile.ZIP_STORED
    assert kinds["lib/bot.txt"] == zipfile.ZIP_DEFLATED


def test_a_name_that_is_no_utf8(world: World) -> None:
    with open(os.fsencode(world.folder) + b"/\xff.txt", "w"):
        pass
    plan = world.deploy()
    assert any("UTF-8" in sentence for sentence in plan.warnings)
    assert world.names() == ["bot-config.yaml", "main.py"]


def test_a_file_that_cannot_be_read(world: World) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    world.write("secret").chmod(0)
    assert "secret" in world.refused().sentence


def test_too_much_code(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "CONTENT_BYTES", 1000)
    world.write("large", b"x" * 2000)
    assert world.refused().code == ExitCode.CODE
    monkeypatch.undo()
    monkeypatch.setattr(archive, "ENTRIES", 2)
    assert world.refused().code == ExitCode.CODE
    monkeypatch.undo()
    monkeypatch.setattr(archive, "ARCHIVE_BYTES", 100)
    assert world.refused().code == ExitCode.CODE


# --- zips ---------------------------------------------------------------------------------------------


def zipped(world: World, entries: dict[str, str], name: str = "bot.zip") -> Path:
    path = world.base / name
    with zipfile.ZipFile(path, "w") as packed:
        for entry, text in entries.items():
            packed.writestr(entry, text)
    return path


def test_a_zip(world: World) -> None:
    path = zipped(world, {"main.py": "", "bot-config.yaml": MANIFEST, "config.json": '{"step": 9}'})
    plan = world.deploy(path)
    assert plan.config == {"step": 9}
    stored = world.base / "objects/custom-bots" / plan.bot.file_path
    assert stored.read_bytes() == path.read_bytes()
    assert world.deploy(path).action == "nothing changed"


def test_a_zip_of_one_folder(world: World) -> None:
    path = zipped(
        world, {"x/main.py": "", "x/bot-config.yaml": MANIFEST, "x/config.json": '{"step": 9}', "__MACOSX/._x": ""}
    )
    assert world.deploy(path).config == {"step": 9}


def test_a_zip_without_a_manifest_is_named_by_its_file(world: World) -> None:
    path = zipped(world, {"main.py": ""}, name="trader.zip")
    assert world.deploy(path, runtime="python3.11", entrypoint="main.py").bot.id == "trader"


@pytest.mark.parametrize("entry", ["../main.py", "/main.py", "a/../../b"])
def test_a_hostile_zip(world: World, entry: str) -> None:
    path = zipped(world, {"main.py": "", "bot-config.yaml": MANIFEST, entry: "x"})
    assert world.refused(path).code == ExitCode.CODE


def test_a_torn_zip_and_an_empty_one(world: World) -> None:
    path = zipped(world, {"main.py": "x" * 10_000, "bot-config.yaml": MANIFEST})
    path.write_bytes(path.read_bytes()[:-100])
    assert world.refused(path).code == ExitCode.CODE
    assert world.refused(zipped(world, {})).code == ExitCode.CODE


def test_a_zip_without_its_entrypoint(world: World) -> None:
    path = zipped(world, {"bot-config.yaml": MANIFEST, "src/main.py": ""})
    fault = world.refused(path)
    assert fault.code == ExitCode.ENTRYPOINT
    assert "src/main.py" in fault.sentence


# --- schemas ------------------------------------------------------------------------------------------


def test_a_schema_of_its_own() -> None:
    schema = {"type": "object", "properties": {"bot": {"type": "integer"}}}
    about = manifest.Manifest(entrypoints={}, rest={"schema": schema})
    assert about.schema == schema, "here `bot` is a property"
    several = manifest.Manifest(entrypoints={}, rest={"schema": {"bot": schema, "query": {}}})
    assert several.schema == schema
    assert manifest.Manifest(entrypoints={}, rest={"schema": []}).schema == {}


def test_the_plan_as_json(world: World) -> None:
    told = world.plan().as_json(dry_run=True)
    assert json.loads(json.dumps(told)) == told
    assert (told["action"], told["id"], told["dry_run"]) == ("new", "counter", True)
    assert world.archives() == []
