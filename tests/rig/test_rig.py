"""The rig itself: what it starts, when, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rig import minio_server
from rig.server import ROOT, Server, ServerError, free_ports, wait_until


@contextmanager
def _started(cache: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A MinIO of another process, and its endpoint."""
    (cache / "servers").symlink_to(minio_server.binary().parent.parent)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MINIO_")}
    argv = [sys.executable, str(ROOT / "tests" / "rig"), "minio"]
    with subprocess.Popen(
        argv, env={**environ, "THE0_CACHE": str(cache)}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("export MINIO_ENDPOINT=")
            yield process, line.strip().partition("=")[2]
        finally:
            process.kill()


def _answers(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif("MINIO_ENDPOINT" in os.environ, reason="MinIO is somebody else's here")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_whoever_started_it(how: signal.Signals, tmp_path: Path) -> None:
    with _started(tmp_path) as (process, endpoint):
        assert _answers(endpoint)
        (folder,) = (tmp_path / "run").iterdir()
        assert folder.name.startswith(f"minio-{process.pid}-")
        process.send_signal(how)
        process.wait(10)
        wait_until(lambda: not _answers(endpoint), deadline_s=10, what="the server is gone")
        if how == signal.SIGKILL:
            assert folder.exists(), "nobody could remove it"
        else:
            assert process.returncode == 0
            assert not folder.exists()


def test_what_a_killed_run_left_is_swept_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE0_CACHE", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale, live = tmp_path / "run" / f"x-{ended.pid}-y", tmp_path / "run" / f"x-{os.getpid()}-y"
    stale.mkdir(parents=True)
    live.mkdir()
    server = Server("other")
    assert not stale.exists()
    assert live.exists()
    server.stop()
    assert not server.folder.exists()


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE0_CACHE", str(tmp_path))
    server = Server("broken")
    with pytest.raises(ServerError, match=r"broken ended at once with status 3; the end of its log:\nno config"):
        server.start(["sh", "-c", "echo no config; exit 3"], ready=lambda: False)
    assert not server.folder.exists()
    slow = Server("slow")
    with pytest.raises(ServerError, match=r"slow is ready: not within 0\.2 s"):
        slow.start(["sleep", "60"], ready=lambda: False, deadline_s=0.2)


def test_a_test_of_the_folder_store_starts_no_server(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MINIO_")}
    argv = [sys.executable, "-m", "pytest", "-q", "tests/objects/test_contract.py", "-k", "reads_what and folder"]
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env={**environ, "THE0_CACHE": str(tmp_path / "empty"), "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert not (tmp_path / "empty").exists()


def test_minio_is_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THE0_CACHE", str(tmp_path))
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(ServerError, match=r"install Go 1\.26 or newer, or set MINIO_ENDPOINT"):
        minio_server.binary()
    go = tools / "go"
    go.write_text('#!/bin/sh\necho "$@ $CGO_ENABLED" > "$GOBIN/minio"\n')
    go.chmod(0o755)
    program = minio_server.binary()
    assert program.read_text() == f"install -ldflags -s -w github.com/minio/minio@{minio_server.VERSION} 0\n"
    assert capfd.readouterr().err.count("about 4 minutes") == 1
    go.write_text("#!/bin/sh\necho no network >&2; exit 1\n")
    assert minio_server.binary() == program
    program.unlink()
    with pytest.raises(ServerError, match="could not be built:\nno network"):
        minio_server.binary()


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20
