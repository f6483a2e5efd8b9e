"""Whatever is wrong: one sentence that names thing, reason and remedy, an exit code, and nothing half done."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from bot_place import CODE_KEY, Ended, Place, archive

from rig.proxy import Delay, Proxy
from the0.errors import ExitCode
from the0.execute import target
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store

BOT = "print('the bot ran')"


def check(
    place: Place, ended: Ended, code: int, *words: str, left: frozenset[str] = frozenset(), stored: str | None = None
) -> None:
    """The sentence on stderr, the same in the bot's log, the record; no bot ran, of its code only `left` is there."""
    assert ended.code == code, ended.err
    sentences = ended.err.splitlines()
    assert len(sentences) == 1, ended.err
    sentence = sentences[0].removeprefix("the0: ")
    for word in words:
        assert word in sentence, sentence
    assert sentence.endswith(".")
    if stored is None:
        stored = "".join(path.read_text() for path in place.store.glob("bot-logs/logs/bot-1/**/*") if path.is_file())
    on_disk, in_store = errors(ended.log), errors(stored)
    assert [sentence] in (on_disk, in_store), (on_disk, in_store)
    assert len(on_disk) <= 1 >= len(in_store)
    assert ended.record is not None
    assert (ended.record["by"], ended.record["code"], ended.record["reason"]) == ("runtime", code, sentence)
    assert (place.run_dir / "done").read_text().strip() == str(code)
    assert ended.out == ""
    assert not place.code.exists() or set(os.listdir(place.code)) <= left


def errors(log: str) -> list[str]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line["message"] for line in lines if line.get("level") == "error"]


@pytest.mark.parametrize(
    ("variable", "value", "code", "words"),
    [
        ("BOT_ID", None, 201, ["BOT_ID is missing"]),
        ("RUNTIME", None, 201, ["RUNTIME is missing", "python3.11"]),
        ("ENTRYPOINT", None, 201, ["ENTRYPOINT is missing"]),
        ("RUNTIME", "cobol", 202, ["'cobol'", "python3.11", "rust-stable"]),
        ("ENTRYPOINT", "../main.py", 204, ["'../main.py'", "main.py"]),
        ("ENTRYPOINT", "/etc/passwd", 204, ["'/etc/passwd'"]),
        ("ENTRYPOINT", "other.py", 204, ["'other.py'", "holds main.py", "correct the entrypoint, or"]),
        ("ENTRYPOINT", "mian.py", 204, ["'mian.py'", "holds main.py", "(is it 'main.py'?)"]),
        ("ENTRYPOINT", "src/Main.py", 204, ["'src/Main.py'", "(is it 'main.py'?)"]),
        ("BOT_CONFIG", "{not json", 201, ["BOT_CONFIG", "JSON object"]),
        ("BOT_CONFIG", "[1]", 201, ["BOT_CONFIG", "array"]),
        ("BOT_CONFIG", '{"the0": {"store_down": "panic"}}', 201, ["store_down", "run or stop"]),
        ("BOT_TYPE", "sometimes", 201, ["BOT_TYPE", "realtime or scheduled"]),
        ("IS_SCHEDULED", "perhaps", 201, ["IS_SCHEDULED"]),
        ("QUERY_PARAMS", "3", 201, ["QUERY_PARAMS"]),
        ("THE0_QUERY_PORT", "0", 201, ["THE0_QUERY_PORT"]),
        ("STOP_GRACE_S", "soon", 201, ["STOP_GRACE_S", "30s"]),
        ("MAX_STATE_SIZE_MB", "-1", 201, ["MAX_STATE_SIZE_MB"]),
        ("OBJECT_STORE_DIR", None, 201, ["MINIO_ENDPOINT", "OBJECT_STORE_DIR"]),
        ("OBJECT_STORE_DIR", "relative/folder", 201, ["OBJECT_STORE_DIR", "absolute"]),
        ("CODE_FILE", "u1/sma/9.9.9", 203, ["custom-bots/u1/sma/9.9.9", "does not exist", "CODE_FILE"]),
        ("MINIO_CODE_BUCKET", "no-such-bucket", 206, ["no-such-bucket"]),
    ],
)
def test_settings(place: Place, variable: str, value: str | None, code: int, words: list[str]) -> None:
    place.put_bot(BOT)
    place.env[variable] = value
    check(place, place.run(), code, *words)


def test_a_state_bucket_that_is_missing(place: Place) -> None:
    place.put_bot(BOT)
    place.env["MINIO_STATE_BUCKET"] = "no-such-bucket"
    check(place, place.run(), 206, "no-such-bucket", left=frozenset({"main.py"}))


def test_a_scheme_in_the_endpoint(place: Place) -> None:
    place.env |= {"OBJECT_STORE_DIR": None, "MINIO_ENDPOINT": "http://minio:9000"}
    check(place, place.run(), 201, "MINIO_ENDPOINT", "without a scheme")


def test_a_config_that_just_fits_into_a_variable(place: Place) -> None:
    place.put_bot(BOT)
    place.env["BOT_CONFIG"] = json.dumps({str(number): "x" * 1000 for number in range(120)})
    assert place.run().out == "the bot ran\n", "121 kB go through"


# --- archives -------------------------------------------------------------------------------------


def zipped(*entries: tuple[str, bytes, int]) -> bytes:
    """Entries with their full Unix mode, unchecked."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content, mode in entries:
            info = zipfile.ZipInfo("placeholder" if name.startswith("/") else name)
            info.filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            target.writestr(info, content)
    return written.getvalue()


FILE = stat.S_IFREG | 0o644
MAIN = ("main.py", BOT.encode(), FILE)


def corrupt() -> bytes:
    data = bytearray(archive({"main.py": BOT, "big.txt": os.urandom(10_000)}))
    data[5000] ^= 0xFF
    return bytes(data)


def bomb() -> bytes:
    return zipped(MAIN, ("zeros", bytes(200 << 20), FILE))


def crowd() -> bytes:
    """A directory that states more entries than are allowed."""
    data = bytearray(archive({"main.py": BOT}))
    end = data.rindex(b"PK\x05\x06")
    struct.pack_into("<HH", data, end + 8, 0xFFFE, 0xFFFE)
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"", ["truncated"]),
        (lambda: b"this is no zip at all" * 100, ["no zip"]),
        (lambda: archive({"main.py": BOT})[:-10], ["truncated"]),
        (corrupt, ["big.txt"]),
        (lambda: archive({}), ["empty"]),
        (lambda: zipped(MAIN, ("../evil.py", b"x", FILE)), ["../evil.py"]),
        (lambda: zipped(MAIN, ("a/../../evil.py", b"x", FILE)), ["evil.py"]),
        (lambda: zipped(MAIN, ("/etc/evil", b"x", FILE)), ["/etc/evil"]),
        (lambda: zipped(MAIN, ("main.py/below", b"x", FILE)), ["main.py"]),
        (lambda: zipped(MAIN, MAIN), ["twice"]),
        (bomb, ["times its size"]),
        (crowd, ["entries"]),
    ],
    ids=[
        "nothing",
        "text",
        "cut",
        "corrupt",
        "empty",
        "up",
        "out",
        "absolute",
        "file-and-folder",
        "twice",
        "bomb",
        "crowd",
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives(place: Place, make: Callable[[], bytes], words: list[str], tmp_path: Path) -> None:
    place.put(make())
    check(place, place.run(), 203, f"custom-bots/{CODE_KEY}", *words)
    assert not list(tmp_path.rglob("*evil*"))


def test_an_entry_marked_as_a_link_becomes_a_file(place: Place) -> None:
    place.put(zipped(("main.py", b"print(open('link').read())", FILE), ("link", b"/etc/passwd", stat.S_IFLNK | 0o777)))
    ended = place.run()
    assert (ended.code, ended.out) == (0, "/etc/passwd\n")
    assert not (place.code / "link").is_symlink()


def test_modes_are_kept(place: Place) -> None:
    place.put(zipped(MAIN, ("tool.sh", b"#!/bin/sh\n", stat.S_IFREG | 0o755), ("locked", b"x", stat.S_IFREG | 0o044)))
    assert place.run().code == 0
    assert stat.S_IMODE((place.code / "tool.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((place.code / "locked").stat().st_mode) & 0o600 == 0o600


@pytest.mark.parametrize("more", [{}, {"__MACOSX/._main.py": "x", ".DS_Store": "x"}])
def test_a_folder_that_holds_everything_is_accepted(place: Place, more: dict[str, str]) -> None:
    place.put(archive({"sma-1.0/main.py": "import helper", "sma-1.0/helper.py": "print('inside')", **more}))
    ended = place.run()
    assert (ended.code, ended.out) == (0, "inside\n")
    assert (place.code / "helper.py").exists()
    assert not (place.code / "sma-1.0").exists()


def test_two_folders_are_not_guessed_between(place: Place) -> None:
    place.put(archive({"a/main.py": BOT, "b/other.py": ""}))
    check(place, place.run(), 204, "'main.py'", "holds a, b")


def test_code_of_a_former_run_is_replaced_whole(place: Place) -> None:
    (place.code / "old/deep").mkdir(parents=True)
    (place.code / "old/deep").chmod(0o500)
    (place.code / "stale.py").write_text("")
    (place.code / ".the0-code").mkdir()
    (place.code / ".the0-code/half.py").write_text("")
    place.put_bot("import os; print(sorted(os.listdir()))")
    ended = place.run()
    assert ended.out == "['main.py']\n"


def test_code_that_should_be_there_and_is_not(place: Place) -> None:
    place.env["CODE_FILE"] = None
    check(place, place.run(), 204, "'main.py'", str(place.code))


@pytest.mark.parametrize(
    ("program", "mode", "words"),
    [
        (b"int main() { return 0; }\n", 0o644, ["Exec format error", "no program", "name the program"]),
        (b"\x7fELF\2\1\1\0" + bytes(56), 0o755, ["Exec format error", "another kind of machine"]),
        (b"#!/opt/no-such-shell -e\necho\n", 0o755, ["No such file", "names /opt/no-such-shell -e"]),
        (b"#!/bin/sh\r\necho\r\n", 0o755, ["carriage return", "(LF)"]),
    ],
)
def test_programs_that_cannot_be_started(place: Place, program: bytes, mode: int, words: list[str]) -> None:
    place.env |= {"RUNTIME": "gcc13", "ENTRYPOINT": "build/bot"}
    place.put(archive({"build/bot": program}, modes={"build/bot": mode}))
    check(place, place.run(), 204, "build/bot", *words, left=frozenset({"build"}))


def test_only_some_of_very_many_files_are_looked_at_for_a_name_like_it(tmp_path: Path) -> None:
    """A bot may have made any number of them, and folders that lead nowhere."""
    (tmp_path / "many").mkdir()
    for number in range(target.SEARCHED + 10):
        (tmp_path / "many" / f"{number:05}").touch()
    (tmp_path / "build").mkdir()
    (tmp_path / "build/bot").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert target.suggestion(str(tmp_path), "bto") in ("", " (is it 'build/bot'?)")
    assert len(target._some_files(str(tmp_path))) <= 2 * target.SEARCHED
    assert target.suggestion(str(tmp_path / "build"), "Bot") == " (is it 'bot'?)"
    assert target.suggestion(str(tmp_path / "not-there"), "bot") == ""


def test_without_sync_and_without_a_store_code_must_be_there(place: Place) -> None:
    place.env["OBJECT_STORE_DIR"] = None
    check(place, place.run("--skip-sync"), 201, "MINIO_ENDPOINT", str(place.code))


# --- the disk -------------------------------------------------------------------------------------


def test_a_full_disk_while_extracting(place: Place, small_disk: Path) -> None:
    place.env["CODE_PATH"] = str(small_disk / "bot")
    place.put(archive({"main.py": BOT, "big.bin": os.urandom(6 << 20)}))
    ended = place.run()
    check(place, ended, 208, "No space left", "CODE_PATH")
    assert os.listdir(small_disk / "bot") == []


@pytest.mark.parametrize("what", ["bytes", "files"])
def test_a_full_disk_does_not_keep_the_records_from_being_written(place: Place, small_disk: Path, what: str) -> None:
    place.env |= {"THE0_RUN_DIR": str(small_disk / "run"), "LOGS_PATH": str(small_disk / "logs")}
    place.put_bot(f"""
        import sys
        number = 0
        try:
            with open({str(small_disk / "fill")!r}, "wb", buffering=0) as file:
                while {what == "bytes"}:
                    file.write(bytes(4096))
            while True:
                open({str(small_disk / "fill")!r} + str(number), "wb").close()
                number += 1
        except OSError as full:
            print(full.strerror)
        sys.exit(210)
    """)
    ended = place.run()
    assert (ended.code, ended.out) == (210, "No space left on device\n")
    assert "done" not in ended.err, ended.err
    told = json.loads((small_disk / "run/exit.json").read_text())
    assert (told["by"], told["code"]) == ("bot", 210), "which the number alone does not say"
    assert (small_disk / "run/done").read_text() == "210\n"


def test_a_disk_that_is_full_from_the_beginning_does_not_change_the_exit_code(place: Place, small_disk: Path) -> None:
    place.env |= {"THE0_RUN_DIR": str(small_disk / "run")}
    with (small_disk / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass  # full
    place.put_bot("import sys; sys.exit(9)")
    ended = place.run()
    assert ended.code == 9
    assert "No space left" in ended.err


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A filesystem of 4 MiB and a thousand files, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=1000,mode=0777", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("variable", ["STATE_PATH", "THE0_RUN_DIR", "LOGS_PATH", "CODE_PATH"])
def test_a_file_where_a_folder_should_be(place: Place, variable: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place.env[variable] = str(tmp_path / "file")
    place.put_bot(BOT)
    ended = place.run()
    assert ended.code == 208, ended.err
    assert len(ended.err.splitlines()) == 1
    assert str(tmp_path / "file") in ended.err


# --- the store ------------------------------------------------------------------------------------


def on_minio(place: Place, settings: StoreSettings) -> None:
    place.env |= {
        "OBJECT_STORE_DIR": None,
        "MINIO_ENDPOINT": settings.endpoint,
        "MINIO_ACCESS_KEY": settings.access_key,
        "MINIO_SECRET_KEY": settings.secret_key,
    }


def test_a_store_that_is_not_there(place: Place) -> None:
    on_minio(place, StoreSettings(endpoint="127.0.0.1:1", access_key="key", secret_key="secret"))
    ended = place.run()
    check(place, ended, ExitCode.STORE_UNREACHABLE, "127.0.0.1:1")


def make_buckets(settings: StoreSettings) -> None:
    store = open_store(settings, deadline_s=10)
    for bucket in ("custom-bots", "bot-state", "bot-logs"):
        store.ensure_bucket(bucket)
    store.close()


def test_a_store_that_denies(place: Place, minio_server: object) -> None:
    settings: StoreSettings = minio_server.settings  # type: ignore[attr-defined]
    on_minio(place, settings)
    place.env["MINIO_SECRET_KEY"] = "wrong-secret"
    ended = place.run()
    check(place, ended, ExitCode.STORE_DENIED, settings.endpoint)
    assert "wrong-secret" not in ended.err + ended.log


def test_a_bucket_that_is_missing(place: Place, minio_server: object) -> None:
    settings: StoreSettings = minio_server.settings  # type: ignore[attr-defined]
    on_minio(place, settings)
    make_buckets(settings)
    bot_id = f"bucketless-{os.getpid()}"
    place.env.update(MINIO_CODE_BUCKET="no-such-bucket", BOT_ID=bot_id)
    ended = place.run()
    # Where the claim was quicker than the code's failure, the log is in the store.
    store = open_store(settings, deadline_s=10)
    lines = [store.get("bot-logs", info.key, limit_bytes=1 << 20) for info in store.list("bot-logs", f"logs/{bot_id}/")]
    store.close()
    stored = b"".join(line.data for line in lines).decode()
    check(place, ended, ExitCode.STORE_DENIED, "no-such-bucket", stored=stored)


def test_a_claim_is_given_back_when_the_code_is_missing(place: Place, minio_server: object) -> None:
    settings: StoreSettings = minio_server.settings  # type: ignore[attr-defined]
    on_minio(place, settings)
    make_buckets(settings)
    store = open_store(settings, deadline_s=10)
    bot_id = f"claimed-{os.getpid()}"
    place.env["BOT_ID"] = bot_id
    with Proxy(settings.endpoint) as proxy:
        # Later than the claim.
        proxy.fail(lambda request: Delay(1.0) if "/custom-bots/" in request.path else None)
        place.env["MINIO_ENDPOINT"] = proxy.endpoint
        assert place.run().code == ExitCode.CODE
    place.env["MINIO_ENDPOINT"] = settings.endpoint
    head = json.loads(store.get("bot-state", f"{bot_id}/HEAD", limit_bytes=1 << 20).data)
    assert head["claim"]["released"] is True
    store.put("custom-bots", CODE_KEY, archive({"main.py": BOT}))
    ended = place.run()
    assert (ended.code, ended.out) == (0, "the bot ran\n")
    store.close()
