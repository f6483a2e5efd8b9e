"""A hostile bot's place: run by the real `runtime execute` on MinIO, under a uid of its own that runtime and bot share,
beside a neighbour whose folders and objects must not change.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bot_place import Ended, Place, Running, archive

from rig import unprivileged
from the0 import names
from the0.objects.store import ObjectStore
from the0.sync.head import Head, HeadFile
from the0.sync.verify import verify

BOTS = Path(__file__).parent / "bots"
UID = 20_000 + os.getpid() % 40_000
"""Of no other process on this machine, so that limits on its processes count ours only. Root only; else our own."""
LARGEST_SEARCHED_BYTES = 16 << 20
BENIGN = """
import json, os
from the0 import state

def main(bot_id, config):
    told = {"kept": state.get("kept"), "files": sum(len(files) for _, _, files in os.walk(os.environ["STATE_DIR"] + "/.."))}
    print(json.dumps({"next start": told}), flush=True)
    state.set("kept", (state.get("kept") or 0) + 1)
"""


def identity() -> dict[str, Any]:
    """Arguments of Popen: under which user all is run."""
    return unprivileged.identity(UID)


def command(*arguments: str) -> list[str]:
    """`runtime …`, of an installation that this uid cannot change."""
    return unprivileged.command(UID, *arguments)


@dataclass(frozen=True)
class World:
    """The store of this pytest run, and what must never be seen."""

    store: ObjectStore
    environ: dict[str, str]
    buckets: dict[str, str]
    secrets: dict[str, str]

    def leaks(self, data: bytes) -> list[str]:
        """Which secrets are in there, plainly or encoded."""
        return [name for form, name in self._forms.items() if form in data]

    @cached_property
    def _forms(self) -> dict[bytes, str]:
        forms = {}
        for name, secret in self.secrets.items():
            raw = secret.encode()
            # Three alignments of base64; the outermost characters depend on the neighbours.
            coded = [base64.b64encode(b"\0" * shift + raw)[4:-4] for shift in range(3)]
            forms |= dict.fromkeys((raw, raw[::-1], raw.hex().encode(), *coded), name)
        return forms


def tree_digest(folder: Path) -> str:
    """Names, kinds, modes, times and contents of all below."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        digest.update(f"{path.relative_to(folder)!r} {info.st_mode} {info.st_mtime_ns}".encode())
        if path.is_symlink():
            digest.update(os.readlink(path).encode())
        elif path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass
class Yard:
    """One bot's place, in this world."""

    world: World
    bot_id: str
    root: Path
    neighbour: Yard | None = None
    started_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.root.mkdir(mode=0o755, exist_ok=True)
        self.place = Place(self.root, command=command("execute"), popen=identity())
        shutil.rmtree(self.place.store)
        self.place.env |= {
            "OBJECT_STORE_DIR": None,
            "BOT_ID": self.bot_id,
            "CODE_FILE": self.bot_id,
            "STOP_GRACE_S": "3",
            **self.world.environ,
        }
        self.hand_over()

    def hand_over(self) -> None:
        """All in the place belongs to the bot's user."""
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", "-h", f"{UID}:{UID}", self.root], check=True)

    def deploy(self, main: str, **config: Any) -> None:
        """`main`: a program's text, or the name of a file in bots/. Its configuration names places to try."""
        text = (BOTS / main).read_text() if main.endswith(".py") else main
        tools = (BOTS / "tools.py").read_text()
        self.world.store.put(self.world.buckets["code"], self.bot_id, archive({"main.py": text, "tools.py": tools}))
        config |= {
            "endpoint": self.world.environ["MINIO_ENDPOINT"],
            "buckets": self.world.buckets,
            "run_dir": str(self.place.run_dir),
            "logs": str(self.place.logs),
            "neighbour": str(self.neighbour.root) if self.neighbour else "",
            "neighbour_id": self.neighbour.bot_id if self.neighbour else "",
            "everybody": os.geteuid() == 0,
        }
        self.place.env["BOT_CONFIG"] = json.dumps(config)

    def run(self, main: str, *, within_s: float = 30.0, **config: Any) -> Ended:
        return self.start(main, **config).end(within_s=within_s)

    def start(self, main: str, **config: Any) -> Running:
        self.deploy(main, **config)
        return self.place.start()

    def runtime(self, *arguments: str, **popen: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command(*arguments), env=self.place.environment(), cwd="/", timeout=60, check=False, **popen
        )

    @property
    def findings(self) -> dict[str, Any]:
        """What the bot said that it had got."""
        told: dict[str, Any] = json.loads((self.place.state / "findings.json").read_text())
        return told

    @property
    def head(self) -> Head:
        stored = HeadFile(self.world.store, bucket=self.world.buckets["state"], bot_id=self.bot_id).read()
        assert stored is not None
        return stored.head

    # --- what must hold after every attack ----------------------------------------------------------

    def objects(self) -> Iterator[tuple[str, str, bytes]]:
        """(key, ETag, content and metadata) of all that is stored of this bot."""
        store, buckets = self.world.store, self.world.buckets
        for bucket, prefix in (
            (buckets["state"], names.state_prefix(self.bot_id)),
            (buckets["logs"], names.logs_prefix(self.bot_id)),
        ):
            for info in list(store.list(bucket, prefix)):
                found = store.get(bucket, info.key, limit_bytes=1 << 30)
                head = store.head(bucket, info.key)
                metadata = json.dumps(dict(head.metadata)) if head else ""
                yield info.key, info.etag, found.data + metadata.encode()

    def fingerprint(self) -> tuple[str, list[tuple[str, str]]]:
        return tree_digest(self.root), [(key, etag) for key, etag, _ in self.objects()]

    def no_secret(self, *ended: Ended) -> None:
        """In nothing that the bot printed, has on its disk, or has in the store."""
        for one in ended:
            assert self.world.leaks(f"{one.out}\n{one.err}\n{one.log}\n{one.record}".encode()) == []
        for folder, _, found in os.walk(self.root):
            for name in found:
                path = Path(folder, name)
                assert self.world.leaks(os.fsencode(path)) == []
                if path.is_symlink() or not path.is_file():
                    continue
                with path.open("rb") as file:
                    assert self.world.leaks(file.read(LARGEST_SEARCHED_BYTES)) == [], path
        for key, _, data in self.objects():
            assert self.world.leaks(key.encode() + data) == [], key

    def sound(self) -> None:
        """What is stored is whole."""
        found = verify(self.world.store, bucket=self.world.buckets["state"], bot_id=self.bot_id)
        assert found.problems == ()

    def next_start(self, *, anew: bool = False, within_s: float = 30.0) -> dict[str, Any]:
        """A well-behaved version of the bot on the same disk, or on another machine (`anew`): what it finds, and that it ends well."""
        if anew:
            other = Yard(self.world, self.bot_id, self.root.with_name(f"{self.root.name}-anew"), self.neighbour)
            try:
                told = other.next_start(within_s=within_s)
                other.no_secret()
                return told
            finally:
                other.close()
        ended = self.run(BENIGN, within_s=within_s)
        assert ended.code == 0, ended.err + ended.log
        self.no_secret(ended)
        self.sound()
        lines = [json.loads(line) for line in ended.out.splitlines() if line.startswith('{"next start"')]
        told = lines[-1]["next start"]
        assert isinstance(told, dict)
        return told

    def close(self) -> None:
        self.place.close()
        if os.geteuid() == 0:
            _end_all_of(UID)
        shutil.rmtree(self.root, ignore_errors=True)


def honest(ended: Ended, *, by: str, code: int) -> None:
    """The exit code and both records agree."""
    assert ended.record is not None, ended.err
    assert (ended.code, ended.record["by"], ended.record["code"]) == (code, by, code), (ended.record, ended.err)


def _end_all_of(uid: int) -> None:
    """Whatever a bot left running under the uid that is this suite's own."""

    def left() -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and os.stat(f"/proc/{name}/task/{name}/comm").st_uid in (uid, 0):
                    with open(f"/proc/{name}/status") as status:
                        if f"\nUid:\t{uid}\t" in (told := status.read()) and "\nState:\tZ" not in told:
                            found.append(int(name))
            except OSError:
                continue
        return found

    deadline = time.monotonic() + 10
    while (pids := left()) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass


def leftovers() -> list[str]:
    """Command lines of what runs under the suite's uid."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/status") as status:
                if name.isdigit() and f"\nUid:\t{UID}\t" in (told := status.read()) and "\nState:\tZ" not in told:
                    found.append(Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def new_root(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"the0-{name}-"))
