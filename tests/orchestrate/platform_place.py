"""A platform in a folder of its own: bots put into its stores, `runtime up` started, killed and asked as a person does."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rig.waiting import SOON_S, eventually
from the0 import names
from the0.documents import Kind
from the0.orchestrate import control_client, data, groups
from the0.orchestrate.bots_sqlite import SqliteBots
from the0.orchestrate.process_place import groups_key

COMMAND = [sys.executable, "-I", "-m", "the0.cli", "up"]

IDLE = """
import time
def main(bot_id, config):
    print(f"{bot_id} is here", config.get("word", ""), flush=True)
    while True:
        time.sleep(3600)
"""


@dataclass
class Up:
    """One started `runtime up`."""

    process: subprocess.Popen[str]
    out: Path

    def news(self, event: str, bot: str | None = None) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.out.read_text().splitlines() if line.endswith("}")]
        return [each for each in found if each["event"] == event and bot in (None, each.get("bot"))]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SOON_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Platform:
    root: Path
    data: data.Data = field(init=False)
    bots: SqliteBots = field(init=False)
    ups: list[Up] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = data.open_data(str(self.root / "data"), create=True)
        self.bots = SqliteBots(self.data.bots_db, create=True)

    def put(
        self,
        bot_id: str,
        code: str = IDLE,
        *,
        kind: Kind = "realtime",
        version: str = "1",
        files: Mapping[str, str] | None = None,
        **config: Any,
    ) -> None:
        """Stores the bot and tells a running `up`."""
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as target:
            for name, content in {"main.py": code, **(files or {})}.items():
                target.writestr(name, textwrap.dedent(content))
        key = f"u/{names.encode_id(bot_id)}/{version}"
        path = Path(self.data.objects, "custom-bots", key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zipped.getvalue())
        custom: dict[str, Any] = {
            "version": version,
            "filePath": key,
            "config": {"runtime": "python3.11", "type": kind, "entrypoints": {"bot": "main.py"}},
        }
        if files and "query.py" in files:
            custom["config"]["entrypoints"]["query"] = "query.py"
        self.bots.update(bot_id, kind, config=config, custom=custom)
        self.tell()

    def tell(self) -> None:
        control = control_client.connect(self.data)
        if control is not None:
            control.changed()

    def up(self, *flags: str, **env: str) -> Up:
        out = self.root / f"up-{len(self.ups)}.out"
        with open(out, "w") as file:
            process = subprocess.Popen(
                [*COMMAND, "--data", self.data.path, "--port", "0", *flags],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], "STOP_GRACE_S": "5", **env},
                text=True,
            )
        started = Up(process, out)
        self.ups.append(started)
        eventually(lambda: process.poll() is not None or self._serves(process.pid), "up")
        return started

    def _serves(self, pid: int) -> bool:
        try:
            return bool(json.loads(Path(self.data.control).read_text())["pid"] == pid)
        except FileNotFoundError:
            return False

    @property
    def control(self) -> control_client.Control:
        found = control_client.connect(self.data)
        assert found is not None
        return found

    def ask(self, bot_id: str, path: str, **params: Any) -> dict[str, Any]:
        """Through the gateway."""
        told = json.loads(Path(self.data.path, data.GATEWAY_FILE).read_text())
        request = urllib.request.Request(
            f"http://{told['address'][0]}:{told['address'][1]}/query",
            json.dumps({"bot_id": bot_id, "query_path": path, "params": params}).encode(),
            {"Authorization": f"Bearer {told['token']}"},
        )
        with urllib.request.urlopen(request, timeout=SOON_S) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer

    def row(self, bot_id: str) -> Any:
        rows = self.control.ps([bot_id])
        return rows[0] if rows else None

    def until(self, bot_id: str, status: str, *, within_s: float = SOON_S) -> Any:
        def is_so() -> Any:
            row = self.row(bot_id)
            return row if row and row["status"] == status else None

        return eventually(is_so, f"{bot_id} {status}", within_s=within_s)

    def printed(self, bot_id: str) -> str:
        try:
            return Path(self.data.bot(bot_id).logs, "bot.log").read_text()
        except FileNotFoundError:
            return ""

    def until_printed(self, bot_id: str, text: str) -> None:
        eventually(lambda: text in self.printed(bot_id), f"{text!r} from {bot_id}")

    def pid(self, bot_id: str) -> int:
        """Of the supervisor that was started last."""
        told = json.loads(Path(self.data.bot(bot_id).process).read_text())
        return int(told["process"]["pid"])

    def bot_pid(self, bot_id: str) -> int:
        """Of the bot's own process."""

        def look() -> int | None:
            supervisor = self.pid(bot_id)
            for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
                if b"/wrappers/" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
            return None

        return int(eventually(look, f"a process of {bot_id}"))

    def supervisors(self) -> list[int]:
        """All `execute` processes that run for this platform, known to it or not."""
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                said = os.readlink(f"/proc/{name}/fd/2")
            except OSError:
                continue  # it has ended, or is not ours
            if b"--place=" in command and said.startswith(self.data.path) and _parent_is_no_execute(int(name)):
                found.append(int(name))
        return found

    def close(self) -> None:
        for up in self.ups:
            if up.process.poll() is None:
                up.kill()
        for pid in self.supervisors():
            os.kill(pid, signal.SIGKILL)
        self.bots.close()
        self._remove_groups()

    def _remove_groups(self) -> None:
        """An `up` that was killed has left them."""
        for parent in Path("/sys/fs/cgroup").glob(f"**/the0-{groups_key(self.data)}"):
            folders = [parent, *(each for each in parent.iterdir() if each.is_dir())]
            for _ in range(100):
                if groups.clear([str(each) for each in folders]):
                    break
                time.sleep(0.05)
            groups.remove([str(each) for each in reversed(folders)])


def _parent_is_no_execute(pid: int) -> bool:
    """Sync processes are forked from the supervisor, and have its command line."""
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    try:
        return b"--place=" not in Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return True
