"""Bots that make much of everything, and names and lines that a terminal or a reader would misread."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from bot_place import Running

from hostile.yard import Yard, honest

FILES, FOLDERS = (1_000_000, 200_000) if os.environ.get("THE0_SOAK") else (20_000, 200)
"""More folders than are watched, and than this user may watch."""


def peak_mib(pid: int) -> float:
    """The largest resident size so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def peaks(running: Running) -> dict[str, float]:
    """The largest resident size of each of our processes, in MiB, when the run has ended."""
    found: dict[str, float] = {}
    while running.process.poll() is None:
        try:
            sizes = {name: peak_mib(pid) for name, pid in running.children().items()}
            sizes["supervisor"] = peak_mib(running.process.pid)
        except OSError:
            break  # it has just ended
        found |= {name: max(size, found.get(name, 0.0)) for name, size in sizes.items()}
        time.sleep(0.02)
    return found


@pytest.mark.attack(
    "20,000 files in 200 folders (1,000,000 in 200,000 with THE0_SOAK=1), and a new one in each folder right before the end",
    "all of them are stored at the end; the next start has them, also on another machine; below 0.7 KiB of memory for each",
)
def test_many_files(yard: Yard, capsys: pytest.CaptureFixture[str]) -> None:
    within_s = FILES / 1000 + 30
    running = yard.start("sizes.py", act="files", files=FILES, folders=FOLDERS)
    begun_s = time.monotonic()
    peak = peaks(running)
    ended = running.end(within_s=within_s)
    honest(ended, by="bot", code=0)
    whole_s = time.monotonic() - begun_s
    yard.no_secret(ended)
    yard.sound()
    head_bytes = max(len(data) for key, _, data in yard.objects() if key.endswith("/HEAD"))
    begun_s = time.monotonic()
    assert yard.next_start(within_s=within_s)["files"] >= FILES
    again_s = time.monotonic() - begun_s
    other = Yard(yard.world, yard.bot_id, yard.root.with_name(f"{yard.root.name}-anew"), yard.neighbour)
    try:
        begun_s = time.monotonic()
        restoring = other.start("sizes.py", act="count")
        restored = peaks(restoring)
        restored_ended = restoring.end(within_s=within_s)
        restored_s = time.monotonic() - begun_s
        honest(restored_ended, by="bot", code=0)
        found = other.findings
    finally:
        other.close()
    assert (found["files"], found["wrong"]) == (FILES, 0)
    with capsys.disabled():
        print(
            f"\n{FILES} files in {FOLDERS} folders: written in {yard.findings['written_s']:.0f} s, all stored after {whole_s:.0f} s, "
            f"HEAD {head_bytes / 1024:.1f} KiB; started again in {again_s:.0f} s; on another machine, restored and read, in "
            f"{restored_s:.0f} s; MiB at most {peak}, restoring {restored}"
        )
    assert head_bytes < 64 << 10
    # Below 0.7 KiB a file, beside what a process has at rest.
    assert max(*peak.values(), *restored.values()) < 48 + FILES * 0.7 / 1024


@pytest.mark.attack(
    "a file that grows for ever, MAX_STATE_SIZE_MB=16",
    "the last generation within the limit is kept, the log says so; exit 209, since the last state is not in the store",
)
def test_a_file_grows_for_ever(yard: Yard) -> None:
    yard.place.env["MAX_STATE_SIZE_MB"] = "16"
    ended = yard.run("sizes.py", act="growing", within_s=60)
    honest(ended, by="runtime", code=209)
    assert ended.log.count("MAX_STATE_SIZE_MB") <= 3
    yard.sound()
    stored = sum(len(data) for _, _, data in yard.objects())
    assert stored < 64 << 20
    (yard.place.state / "growing").unlink()
    assert yard.next_start()["kept"] == 1


@pytest.mark.attack("64 folders within each other", "stored and restored")
def test_deep_folders(yard: Yard) -> None:
    ended = yard.run("sizes.py", act="deep", beyond=False)
    honest(ended, by="bot", code=0)
    told = yard.next_start(anew=True)
    assert (told["kept"], told["files"]) == (1, 3 + 1), "kept, findings, the leaf, and our index"


@pytest.mark.attack(
    "600 folders of 200 characters each within each other: a path beyond what the kernel takes",
    "left out, and the log says so; all else is stored; a start elsewhere is refused (211) unless `the0.incomplete` is run",
)
def test_folders_too_deep(yard: Yard) -> None:
    ended = yard.run("sizes.py", act="deep", beyond=True)
    honest(ended, by="bot", code=0)
    assert yard.findings["depth"] == 600
    assert yard.next_start()["kept"] == 1
    assert any(
        b"unreadable keep their last stored version" in data for key, _, data in yard.objects() if "logs/" in key
    )


def on_a_terminal(yard: Yard, *arguments: str) -> str:
    """What a person sees who asks."""
    ours, theirs = os.openpty()
    done = yard.runtime(*arguments, stdout=theirs, stderr=subprocess.STDOUT)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        shown += piece
    os.close(ours)
    assert done.returncode == 0, shown
    return shown.decode(errors="replace")


@pytest.mark.attack(
    "names with newlines, terminal escapes, right-to-left marks, bytes that are no UTF-8; terminal escapes in log lines, in "
    "timestamps, in set-aside trees' names",
    "stored as they are; `runtime state ls`, `state aside` and `logs` show them escaped, a line each",
)
def test_names_and_escapes(yard: Yard) -> None:
    ended = yard.run("sizes.py", act="names")
    honest(ended, by="bot", code=0)
    printed = yard.run("sizes.py", act="escapes")
    honest(printed, by="bot", code=0)
    for arguments in (("state", "ls"), ("state", "aside"), ("logs",), ("state", "show")):
        shown = on_a_terminal(yard, *arguments, yard.bot_id)
        assert shown.strip(), arguments
        assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e"}, (arguments, shown)
    listed = on_a_terminal(yard, "state", "ls", yard.bot_id).splitlines()
    assert len([line for line in listed if "line\\nbreak" in line]) == 1
    names = {os.fsencode(path.name) for path in yard.place.state.iterdir()}
    assert {b"line\nbreak", b"\xff\xfe no utf-8", b"x" * 255} <= names
    told = yard.next_start(anew=True)
    assert told["files"] >= yard.findings.get("names", 17)


@pytest.mark.attack(
    "log lines that imitate ours",
    "stored as the bot's words; who ended it is said by exit.json and the exit code alone",
)
def test_lines_that_imitate_ours(yard: Yard) -> None:
    ended = yard.run("sizes.py", act="imitate")
    honest(ended, by="bot", code=0)
    assert ended.record is not None
    assert ended.record["oom"] is False
    assert "Another instance" not in ended.err
    assert yard.next_start(anew=True)["kept"] == 1


@pytest.mark.attack(
    "one log line without an end, 64 MiB", "its first MiB and a note of its length; disk and memory stay bounded"
)
def test_an_endless_line(yard: Yard) -> None:
    running = yard.start("sizes.py", act="endless", megabytes=64)
    peak = peaks(running)
    ended = running.end()
    honest(ended, by="bot", code=0)
    assert peak["supervisor"] < 64, peak
    assert peak.get("the0-sync", 0.0) < 128, peak
    assert sum(path.stat().st_size for path in yard.place.logs.iterdir()) < 48 << 20
    longest = max(len(line) for key, _, data in yard.objects() if "logs/" in key for line in data.splitlines())
    assert longest < 2 << 20
    assert yard.next_start(anew=True)["kept"] == 1


@pytest.fixture
def small_disk(yard: Yard) -> Any:
    """A disk of 24 MiB that all of the bot's folders share."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=2000,mode=755", "tmpfs", yard.root],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yard.hand_over()
    yield
    yard.place.close()
    subprocess.run(["umount", "--lazy", yard.root], check=True)


@pytest.mark.attack(
    "the disk filled to the last byte, then printing on",
    "what is printed meanwhile is lost and counted in the log; once there is room, state and records are written",
)
@pytest.mark.usefixtures("small_disk")
def test_a_full_disk(yard: Yard) -> None:
    ended = yard.run("sizes.py", act="fill", within_s=60)
    honest(ended, by="bot", code=0)
    assert yard.findings["full"] == "ENOSPC"
    assert "bytes of the bot's output were dropped" in ended.log
    assert json.loads((yard.place.run_dir / "exit.json").read_text())["by"] == "bot"
    assert yard.next_start()["kept"] == 1


@pytest.mark.attack(
    "the disk left full at its end, to the last byte and the last file",
    "the records are written to room set aside at the start; 209 where the last state could not be stored; with room again nothing is lost",
)
@pytest.mark.usefixtures("small_disk")
def test_a_disk_left_full(yard: Yard) -> None:
    ended = yard.run("sizes.py", act="leave_full", within_s=60)
    assert yard.findings["full"] == "ENOSPC"
    honest(ended, by="runtime", code=209)
    assert ended.record is not None
    assert ended.record["bot_code"] == 0
    assert (yard.place.run_dir / "done").read_text() == "0\n"
    (yard.place.state / "filler").unlink()
    shutil.rmtree(yard.place.state / "many")
    assert yard.next_start()["kept"] == 1
