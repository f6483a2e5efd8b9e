"""Other programs that keep a folder in an S3 store: restic and rclone, as Debian has them."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from report import step
from rig.minio_server import Running
from rig.proxy import Proxy


class Rival:
    """Saves one tree into a place of its own in the store."""

    name: ClassVar[str]

    missing: ClassVar[str]
    """What is said where it is not installed."""

    def __init__(self, running: Running, home: Path, tree: Path, *, until_s: float) -> None:
        """Raises subprocess.TimeoutExpired, as all of this does, at that monotonic time."""
        self._until_s = until_s
        self._running = running
        self._home = home
        self._tree = tree
        self._place = f"bench-plain/{self.name}-{secrets.token_hex(4)}"
        self._home.mkdir()
        self._prepare()

    @classmethod
    def there(cls) -> bool:
        return shutil.which(cls.name) is not None

    def save(self) -> None:
        self._save(self._running.settings.endpoint)

    def counted(self) -> tuple[int, int]:
        """Saves once more, through a proxy that counts: (requests, bytes of bodies sent)."""
        with Proxy(self._running.settings.endpoint) as proxy:
            self._save(proxy.endpoint)
            return len(proxy.requests), proxy.bytes_in

    def _prepare(self) -> None:
        """What is needed once."""

    def _save(self, endpoint: str) -> None:
        raise NotImplementedError

    def _run(self, *argv: str, **environ: str) -> None:
        settings = self._running.settings
        keys = {"AWS_ACCESS_KEY_ID": settings.access_key, "AWS_SECRET_ACCESS_KEY": settings.secret_key}
        own = {"HOME": str(self._home), "PATH": os.environ["PATH"], **keys, **environ}
        left_s = max(0.0, self._until_s - time.monotonic())
        subprocess.run(argv, env=own, check=True, stdout=subprocess.DEVNULL, timeout=left_s)


class Restic(Rival):
    name = "restic"
    missing = "restic is not installed, its rows are left out: apt-get install restic"

    def _prepare(self) -> None:
        self._restic(self._running.settings.endpoint, "init")

    def _save(self, endpoint: str) -> None:
        self._restic(endpoint, "backup", "--quiet", "--exclude", ".the0", str(self._tree))

    def _restic(self, endpoint: str, *words: str) -> None:
        self._run("restic", "-r", f"s3:http://{endpoint}/{self._place}", *words, RESTIC_PASSWORD="bench")


class Rclone(Rival):
    name = "rclone"
    missing = "rclone is not installed, its rows are left out: apt-get install rclone"

    def _save(self, endpoint: str) -> None:
        store = {
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "Minio",
            "RCLONE_CONFIG_STORE_ENV_AUTH": "true",
            "RCLONE_CONFIG_STORE_ENDPOINT": f"http://{endpoint}",
        }
        self._run(
            "rclone", "sync", "--quiet", "--exclude", "/.the0/**", str(self._tree), f"store:{self._place}", **store
        )


ALL = (Restic, Rclone)

SLOW_S = 15.0
"""A rival that takes longer for the first time is asked less often afterwards."""


def measured(
    one: Rival, *, told: str, change: Callable[[], None], page: Callable[[], None] | None
) -> Iterator[tuple[str, str, list[float], dict[str, Any]]]:
    """Rows (what, unit, values, notes) of a rival; `change` changes one small file, `page` one page of the large one."""

    def timed() -> float:
        began_s = time.monotonic()
        one.save()
        return (time.monotonic() - began_s) * 1000

    with step(f"{told}: {one.name}, first"):
        first = timed()
        yield "first", "ms", [first], {}
    with step(f"{told}: {one.name}, again"):
        slow = first > SLOW_S * 1000
        yield "nothing changed", "ms", [timed() for _ in range(1 if slow else 3)], {}
        if not slow:
            requests, sent = one.counted()
            yield "nothing changed, requests", "", [requests], {"sent_kib": sent / 1024}
        change()
        requests, sent = one.counted()
        yield "one small file changed, sent", "KiB", [sent / 1024], {"requests": requests}
        yield "the same, requests", "", [requests], {}
        if page is not None:
            page()
            _, sent = one.counted()
            yield "one page changed, sent", "KiB", [sent / 1024], {}
