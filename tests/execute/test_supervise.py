"""The run around the bot: its end and its strays, signals, output, the sync process beside it, what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bot_place import SOON_S, Place, archive, eventually, memory_group

WAITING = """
    import time
    print("ready")
    time.sleep(60)
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# --- native bots ----------------------------------------------------------------------------------


def test_a_native_bot_is_made_executable_and_run(place: Place) -> None:
    place.env |= {"RUNTIME": "gcc13", "ENTRYPOINT": "build/sma_bot"}
    place.put(archive({"build/sma_bot": '#!/bin/sh\necho "native $BOT_ID $PWD"\nexit 3\n'}))
    ended = place.run()
    assert (ended.code, ended.out) == (3, f"native bot-1 {place.code}\n")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_compiled_bot(place: Place, tmp_path: Path) -> None:
    (tmp_path / "bot.c").write_text('#include <stdio.h>\nint main(void) { puts("compiled"); return 0; }\n')
    subprocess.run(["cc", "-o", tmp_path / "compiled", tmp_path / "bot.c"], check=True)
    place.env |= {"RUNTIME": "rust-stable", "ENTRYPOINT": "target/release/bot"}
    place.put(archive({"target/release/bot": (tmp_path / "compiled").read_bytes()}))
    ended = place.run()
    assert (ended.code, ended.out) == (0, "compiled\n")


def test_a_native_bot_that_cannot_be_executed(place: Place) -> None:
    place.env |= {"RUNTIME": "ghc96", "ENTRYPOINT": "bin/sma-bot"}
    place.put(archive({"bin/sma-bot": b"\x7fELF rubbish"}))
    ended = place.run()
    assert ended.code == 204
    assert "Exec format error" in ended.err
    assert "Exec format error" in ended.log


def test_a_native_bot_has_default_signals(place: Place) -> None:
    place.env |= {"RUNTIME": "gcc13", "ENTRYPOINT": "bot"}
    place.put(archive({"bot": "#!/bin/sh\nexec cat /proc/self/status\n"}))
    masks = {
        # 32 and 33 are the C library's own; GNU make leaves them ignored, and nobody can change that.
        line.split(":")[0]: int(line.split(":")[1], 16) & ~(0b11 << 31)
        for line in place.run().out.splitlines()
        if line[:4] in ("SigI", "SigB", "SigC")
    }
    assert masks == {"SigIgn": 0, "SigBlk": 0, "SigCgt": 0}


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_the_bot_as_sigterm(place: Place, number: int) -> None:
    place.put_bot("""
        import os, signal, sys, time
        def stopping(number, frame):
            # A print here might come in the middle of the one below, which Python does not bear.
            os.write(1, f"got {signal.Signals(number).name}\\n".encode())
            sys.exit(5)
        signal.signal(signal.SIGTERM, stopping)
        print("ready")
        time.sleep(60)
    """)
    running = place.start()
    running.wait_for("ready")
    begun = time.monotonic()
    ended = running.stop(number)
    assert time.monotonic() - begun < 5
    assert ended.code == 5
    assert "got SIGTERM" in ended.log
    assert ended.record is not None
    assert (ended.record["by"], ended.record["stop_asked"]) == ("bot", True)


def test_a_bot_that_ignores_sigterm_is_killed_with_its_group(place: Place) -> None:
    place.env["STOP_GRACE_S"] = "300ms"
    place.put_bot("""
        import signal, subprocess, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        helper = subprocess.Popen(["sleep", "61"])
        print("ready", helper.pid, flush=True)
        time.sleep(60)
    """)
    running = place.start()
    running.wait_for("ready")
    helper = int(running.log().split()[1])
    begun = time.monotonic()
    ended = running.stop()
    assert 0.3 <= time.monotonic() - begun < 5
    assert ended.code == 128 + signal.SIGKILL
    assert gone(helper)
    assert ended.record is not None
    assert (ended.record["by"], ended.record["bot_code"]) == ("runtime", 137)
    assert "within 0.3 s" in ended.err
    assert "within 0.3 s" in ended.log


def test_more_signals_change_nothing(place: Place) -> None:
    place.put_bot("""
        import os, signal, sys, time
        def stopping(number, frame):
            os.write(1, b"stopping\\n")
            time.sleep(0.3)
            sys.exit(4)
        signal.signal(signal.SIGTERM, stopping)
        print("ready")
        time.sleep(60)
    """)
    running = place.start()
    running.wait_for("ready")
    running.send(signal.SIGTERM)
    running.wait_for("stopping")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) * 5:
        running.send(number)
    assert running.end().code == 4


def test_a_stop_before_the_bot_started(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        place.env |= {"OBJECT_STORE_DIR": None, "MINIO_ENDPOINT": f"127.0.0.1:{hanging.getsockname()[1]}"}
        place.env |= {"MINIO_ACCESS_KEY": "key", "MINIO_SECRET_KEY": "secret", "STOP_GRACE_S": "200ms"}
        running = place.start()
        _connection = hanging.accept()
        prepare, interpreter = running.child("the0-prepare"), running.child("bot")
        ended = running.stop()
    assert ended.code == 219
    assert ended.record is not None
    assert (ended.record["by"], ended.record["bot_code"]) == ("runtime", None)
    assert gone(prepare)
    assert gone(interpreter)
    assert (place.run_dir / "done").read_text() == "219\n"


def test_a_stop_while_a_former_holder_is_given_time(place: Place, tmp_path: Path) -> None:
    place.put_bot(WAITING)
    first = place.start()
    first.wait_for("ready")
    other = Place(tmp_path / "other", env={**place.env, "OBJECT_STORE_DIR": str(place.store)})
    try:
        second = other.start()
        waiting, head = second.child("the0-sync"), place.store / "bot-state/bot-1/HEAD"
        assert json.loads(head.read_text())["claim"]["epoch"] == 2
        ended = second.stop()
    finally:
        other.close()
    assert ended.code == 219
    assert "ready" not in ended.log
    assert gone(waiting)
    assert json.loads(head.read_text())["claim"]["released"] is True, "nobody has to wait for it"
    (place.state / "news").write_text("what the former holder can no longer store")
    fenced = first.end()
    assert fenced.code == 210
    assert fenced.record is not None
    assert (fenced.record["by"], fenced.record["bot_code"]) == ("runtime", 0)
    assert list((place.state / ".the0/aside").rglob("news"))


def test_orphans_are_reaped_and_strays_are_killed(place: Place) -> None:
    place.put_bot(
        """
        import subprocess, sys
        strays = []
        for kind in ("polite", "stubborn"):
            made = subprocess.run([sys.executable, "daemonise.py", kind], stdout=subprocess.PIPE, text=True)
            strays.append(made.stdout.split()[0])
        subprocess.run([sys.executable, "-c", "import os; os.fork() or os._exit(0)"])
        print("strays", *strays)
        """,
        daemonise_py="""
        # A daemon as they are made: a session of its own, its parent gone; it holds the bot's output.
        import subprocess, sys
        made = subprocess.Popen([sys.executable, "stray.py", sys.argv[1]], stdout=2, start_new_session=True)
        print(made.pid)
        """,
        stray_py="""
        import signal, sys, time
        if sys.argv[1] == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
        """,
    )
    begun = time.monotonic()
    ended = place.run()
    assert ended.code == 0
    line = next(line for line in ended.out.splitlines() if line.startswith("strays"))
    assert all(gone(int(pid)) for pid in line.split()[1:])
    assert time.monotonic() - begun < 10


def test_children_from_before_are_left_alone(place: Place) -> None:
    place.put_bot("print('hi')")
    place.command = ["/bin/sh", "-c", f"sleep 61 >/dev/null 2>&1 & echo $! >&2; exec {' '.join(place.command)}"]
    ended = place.run()
    neighbour = int(ended.err)
    assert (ended.code, gone(neighbour)) == (0, False)
    os.kill(neighbour, signal.SIGKILL)


def test_the_supervisors_death_ends_everything(place: Place) -> None:
    place.put_bot("""
        import multiprocessing, subprocess, sys, time
        def main(bot_id, config):
            worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            print("worker", worker.pid)
            print("ready")
            time.sleep(60)
    """)
    running = place.start()
    running.wait_for("ready")
    worker = int(running.log().split()[1])
    pids = [running.child("bot"), running.child("the0-sync"), worker]
    running.process.kill()
    eventually(lambda: all(gone(pid) for pid in pids), "the end of bot, its worker and sync")


@pytest.mark.skipif(os.geteuid() != 0, reason="process namespaces are made by root")
def test_as_process_1(place: Place) -> None:
    place.put_bot("""
        import os, subprocess, sys, time
        for _ in range(20):
            subprocess.run([sys.executable, "-S", "-c", "import os; os.fork() or os._exit(0)"])
        print("parent", os.getppid())
        def zombies():
            stats = [open(f"/proc/{pid}/stat").read() for pid in os.listdir("/proc") if pid.isdigit()]
            return [stat for stat in stats if stat.rpartition(")")[2].split()[0] == "Z"]
        while zombies():
            time.sleep(0.01)
        print("ready")
        time.sleep(60)
    """)
    place.command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *place.command]
    running = place.start()
    running.wait_for("ready")
    assert "parent 1\n" in running.log()
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    os.kill(int(children.read_text()), signal.SIGTERM)
    ended = running.end()
    assert ended.code == 0
    assert place.result()["status"] == "terminated"


def test_a_second_run_on_the_same_state_is_refused(place: Place) -> None:
    place.put_bot(WAITING)
    running = place.start()
    running.wait_for("ready")
    second = place.run()
    assert second.code == 213
    assert second.err.count("\n") == 1
    assert str(place.state) in second.err
    assert second.record is None, "the folders are the first one's"
    assert running.stop().code == 0


# --- output ---------------------------------------------------------------------------------------


def test_stdout_and_stderr_are_in_order_and_whole(place: Place) -> None:
    place.put_bot("""
        import os
        for number in range(2000):
            os.write(1 + number % 2, b"%d\\n" % number)
        os.write(1, bytes(range(256)))
    """)
    place.start(stdout=subprocess.DEVNULL).end()
    written = (place.logs / "bot.log").read_bytes()
    assert written == b"".join(b"%d\n" % number for number in range(2000)) + bytes(range(256))


def test_an_echo_that_nobody_reads_does_not_hold_the_bot_up(place: Place) -> None:
    place.put_bot("""
        import sys
        for number in range(30000):
            print(f"{number:06}", "x" * 92)
        print("all printed")
    """)
    read, write = os.pipe()
    try:
        running = place.start(stdout=write)
        running.wait_for("all printed")
        eventually((place.run_dir / "done").exists, "the end of the run")
        ended = running.end()
        assert ended.code == 0
        assert os.read(read, 65536).startswith(b"000000 xxx")
    finally:
        os.close(read)
        os.close(write)


def test_a_reader_that_comes_late_is_told_what_it_missed(place: Place) -> None:
    place.put_bot("""
        import time
        for number in range(30000):
            print(f"{number:06}", "x" * 92)
        print("all printed")
        time.sleep(60)
    """)
    running = place.start()
    running.wait_for("all printed")
    assert running.process.stdout is not None
    seen = ""
    while "are missing here" not in seen:
        seen = running.process.stdout.readline()
    assert json.loads(seen)["level"] == "warn"
    assert running.stop().code == 0


def test_a_closed_stdout_is_no_harm(place: Place) -> None:
    place.put_bot("for number in range(100000): print(number)")
    read, write = os.pipe()
    os.close(read)
    ended = place.start(stdout=write).end()
    os.close(write)
    assert ended.code == 0
    assert ended.log.endswith("99999\n")


def test_closed_standard_descriptors_are_no_harm(place: Place) -> None:
    place.put_bot("print('hi')")
    closed = f"exec {' '.join(place.command)} 0<&- 1>&- 2>&-"
    place.command = ["/bin/sh", "-c", closed]
    assert place.run().code == 0
    assert place.log() == "hi\n"


# --- the sync process -----------------------------------------------------------------------------


def test_a_sync_process_that_dies_is_started_again(place: Place) -> None:
    place.put_bot(WAITING)
    running = place.start()
    running.wait_for("ready")
    first = running.child("the0-sync")
    os.kill(first, signal.SIGKILL)
    second = eventually(
        lambda: running.children().get("the0-sync", first) != first and running.child("the0-sync"), "a new sync"
    )
    os.kill(second, signal.SIGKILL)
    eventually(lambda: running.children().get("the0-sync", second) != second, "a third sync")
    ended = running.stop()
    assert ended.code == 0
    assert ended.log.count("it is started again") == 1


def test_a_sync_process_ignores_what_a_bot_may_send(place: Place) -> None:
    place.put_bot(WAITING)
    running = place.start()
    running.wait_for("ready")
    sync = running.child("the0-sync")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(sync, number)
    assert running.stop().code == 0
    assert "started again" not in place.log()


# --- what is left behind --------------------------------------------------------------------------


def test_records_replace_whatever_the_bot_put_there(place: Place, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place.put_bot(f"""
        import os
        os.symlink({str(victim)!r}, {str(place.run_dir / "exit.json")!r})
        os.mkfifo({str(place.run_dir / "done")!r})
        os.symlink({str(victim)!r}, "result.json")
    """)
    ended = place.run()
    assert ended.code == 0, ended.err
    assert victim.read_text() == "precious"
    assert ended.record is not None
    assert (place.run_dir / "done").read_text() == "0\n"
    assert not (place.run_dir / "exit.json").is_symlink()


def test_a_folder_in_the_place_of_a_record(place: Place) -> None:
    place.put_bot(f"""
        import os
        for name in ("exit.json", "done"):
            os.makedirs(os.path.join({str(place.run_dir)!r}, name, "deep"))
    """)
    ended = place.run()
    assert ended.code == 0, ended.err
    assert (place.run_dir / "done").read_text() == "0\n"


def test_records_of_a_former_run_are_gone_before_the_bot_starts(place: Place) -> None:
    place.run_dir.mkdir()
    (place.run_dir / "done").write_text("0")
    (place.run_dir / "exit.json").write_text("{}")
    (place.run_dir / "fenced").write_text("")
    place.put_bot(f"import os; print(os.listdir({str(place.run_dir)!r}))")
    assert place.run().out == "[]\n"


def test_a_removed_run_folder_does_not_lose_the_exit_code(place: Place) -> None:
    place.put_bot(f"import shutil, sys; shutil.rmtree({str(place.run_dir)!r}); sys.exit(6)")
    ended = place.run()
    assert ended.code == 6
    assert (place.run_dir / "done").read_text() == "6\n"


# --- without sync (a sidecar's work) --------------------------------------------------------------


def test_without_sync_code_that_is_there_is_run_without_a_store(place: Place) -> None:
    place.env["OBJECT_STORE_DIR"] = None
    place.code.mkdir()
    (place.code / "main.py").write_text("print('already here')")
    ended = place.run("--skip-sync", "--skip-query-server")
    assert (ended.code, ended.out) == (0, "already here\n")
    assert not place.state.exists()


def test_without_sync_code_is_fetched_into_an_empty_folder(place: Place) -> None:
    place.put_bot("print('fetched')")
    assert place.run("--skip-sync").out == "fetched\n"
    place.put_bot("print('newer')")
    assert place.run("--skip-sync").out == "fetched\n"
    (place.code / ".the0-code").mkdir()  # what an interrupted extraction leaves
    assert place.run("--skip-sync").out == "newer\n"


def test_a_fence_from_the_sidecar_stops_the_bot(place: Place) -> None:
    place.put_bot(WAITING)
    running = place.start("--skip-sync")
    running.wait_for("ready")
    (place.run_dir / "fenced").write_text("210\n")
    ended = running.end()
    assert ended.code == 210
    assert ended.record is not None
    assert (ended.record["by"], ended.record["bot_code"]) == ("runtime", 0)
    again = place.run("--skip-sync")
    assert again.code == 210, "the fence holds for the next container of the Pod as well"
    assert "ready" in place.log()


# --- memory ---------------------------------------------------------------------------------------


def test_out_of_memory_is_told_apart(place: Place) -> None:
    group = memory_group()
    place.put_bot("""
        print("growing", flush=True)
        held = []
        while True:
            held.append(bytearray(b"x" * (4 << 20)))
    """)
    enter = f"echo $$ > {group}/cgroup.procs && exec {' '.join(place.command)}"
    place.command = ["/bin/sh", "-c", enter]
    try:
        ended = place.run()
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), "an empty control group")
        group.rmdir()
    assert ended.code == 137
    assert ended.record is not None
    assert (ended.record["by"], ended.record["oom"], ended.record["signal"]) == ("bot", True, 9)
    assert "128 MiB" in ended.log
    assert "memory" in ended.err


assert sys.platform == "linux"
assert SOON_S > 10
