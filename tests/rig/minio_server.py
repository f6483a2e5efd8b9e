"""MinIO: the one that MINIO_ENDPOINT names, else a cached binary, else built from source."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig.server import Server, ServerError, cache, free_ports
from the0.objects.credentials import StoreSettings

MODULE = "github.com/minio/minio"
VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"


@dataclass(frozen=True, slots=True)
class Running:
    """A store that answers."""

    settings: StoreSettings
    pid: int | None
    """None where somebody else started it."""
    again: Callable[[], None] | None = None
    """Kills it and starts it on the same data; None where somebody else started it."""

    @property
    def environ(self) -> dict[str, str]:
        """What leads the runtime to it."""
        return {
            "MINIO_ENDPOINT": self.settings.endpoint,
            "MINIO_ACCESS_KEY": self.settings.access_key,
            "MINIO_SECRET_KEY": self.settings.secret_key,
            "MINIO_USE_SSL": "true" if self.settings.use_ssl else "false",
            "MINIO_REGION": self.settings.region,
        }


@contextmanager
def minio(*, certificates: Path | None = None) -> Iterator[Running]:
    """`certificates`: a folder with public.crt and private.key, for one of our own that speaks TLS."""
    endpoint = os.environ.get("MINIO_ENDPOINT")
    if endpoint and certificates is None:
        yield Running(
            StoreSettings(
                endpoint=endpoint,
                access_key=os.environ.get("MINIO_ACCESS_KEY", ""),
                secret_key=os.environ.get("MINIO_SECRET_KEY", ""),
                use_ssl=os.environ.get("MINIO_USE_SSL", "").lower() in ("1", "true", "yes"),
                region=os.environ.get("MINIO_REGION") or "us-east-1",
            ),
            None,
        )
        return
    program = binary()
    server = Server("minio")
    (port,) = free_ports(1)
    settings = StoreSettings(
        endpoint=f"127.0.0.1:{port}",
        access_key="rig-root",
        secret_key=secrets.token_hex(16),
        use_ssl=certificates is not None,
    )
    environ = {
        "MINIO_ROOT_USER": settings.access_key,
        "MINIO_ROOT_PASSWORD": settings.secret_key,
        "MINIO_UPDATE": "off",
    }
    argv = [str(program), "server", "--quiet", "--address", settings.endpoint, "--console-address", "127.0.0.1:0"]
    if certificates is not None:
        argv += ["--certs-dir", str(certificates)]

    def start() -> None:
        server.start(
            [*argv, str(server.folder / "data")],
            environ=environ,
            ready=lambda: answers(f"{settings.url}/minio/health/ready"),
        )

    def again() -> None:
        server.kill()
        start()

    try:
        start()
        yield Running(settings, server.pid, again)
    finally:
        server.stop()


def answers(url: str, *, also: tuple[int, ...] = ()) -> bool:
    """Whether the address answers 200 (or one of `also`)."""
    unchecked = ssl._create_unverified_context()  # whether it answers, not who it is
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked)
    )
    try:
        with opener.open(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError as reason:
        return reason.code in also
    except OSError:
        return False


def binary() -> Path:
    """Builds it where the cache has none: about 4 minutes on 2 cores, once."""
    folder = cache() / "servers" / f"minio-{VERSION.removeprefix('v')}"
    program = folder / "minio"
    if program.exists():
        return program
    if shutil.which("go") is None:
        raise ServerError(
            "MinIO is needed and there is no Go to build it with: install Go 1.26 or newer, "
            "or set MINIO_ENDPOINT, MINIO_ACCESS_KEY and MINIO_SECRET_KEY to a running one."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "minio.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists():
            return program
        print(f"building {MODULE}@{VERSION} into {folder} (about 4 minutes, once)", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            environ = {**os.environ, "GOBIN": made, "CGO_ENABLED": "0"}
            argv = ["go", "install", "-ldflags", "-s -w", f"{MODULE}@{VERSION}"]
            done = subprocess.run(argv, env=environ, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise ServerError(f"MinIO could not be built:\n{done.stderr[-2000:]}")
            folder.mkdir(exist_ok=True)
            os.rename(Path(made) / "minio", program)
    return program
