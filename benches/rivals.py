"""Other programs that keep a folder in an S3 store: restic and rclone, as Debian has them."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from rig.minio_server import Running
from rig.proxy import Proxy


class Rival:
    """Saves one tree into a place of its own in the store."""

    name: ClassVar[str]

    def __init__(self, running: Running, base: Path, tree: Path) -> None:
        self._running = running
        self._base = base
        self._tree = tree
        self._place = f"bench-plain/{self.name}-{secrets.token_hex(4)}"
        self._home = base / f"{self.name}-home"
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

    def remove(self) -> None:
        shutil.rmtree(self._home)

    def _prepare(self) -> None:
        """What is needed once."""

    def _save(self, endpoint: str) -> None:
        raise NotImplementedError

    def _run(self, *argv: str, **environ: str) -> None:
        settings = self._running.settings
        keys = {"AWS_ACCESS_KEY_ID": settings.access_key, "AWS_SECRET_ACCESS_KEY": settings.secret_key}
        own = {"HOME": str(self._home), "PATH": os.environ["PATH"], **keys, **environ}
        subprocess.run(argv, env=own, check=True, stdout=subprocess.DEVNULL)


class Restic(Rival):
    name = "restic"

    def _prepare(self) -> None:
        self._restic(self._running.settings.endpoint, "init")

    def _save(self, endpoint: str) -> None:
        self._restic(endpoint, "backup", "--quiet", "--exclude", ".the0", str(self._tree))

    def _restic(self, endpoint: str, *words: str) -> None:
        self._run("restic", "-r", f"s3:http://{endpoint}/{self._place}", *words, RESTIC_PASSWORD="bench")


class Rclone(Rival):
    name = "rclone"

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
