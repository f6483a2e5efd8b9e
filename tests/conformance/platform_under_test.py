"""The platform as its users see it: the `runtime` command and the gateway's HTTP, whatever engine is behind them.

Without variables, a `runtime up` of our own. Another platform is chosen by:

CONFORMANCE_GATEWAY   its gateway, such as http://127.0.0.1:9477
GATEWAY_TOKEN         the gateway's token, where it wants one
CONFORMANCE_RUNTIME   the command that talks to it, such as "docker exec platform /app/runtime"; default: `runtime` of this Python,
                      which finds the platform by its own variables (THE0_DATA, MONGO_URI, KUBECONFIG …)
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig.waiting import eventually

RUNTIME = [sys.executable, "-I", "-m", "the0.cli"]
WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Answered:
    status: int
    body: dict[str, Any]


class Platform:
    def __init__(self, *, command: list[str], gateway: str, token: str | None, environ: Mapping[str, str]) -> None:
        self._command = command
        self._gateway = gateway
        self._token = token
        self._environ = dict(environ)

    def run(self, *words: str, ok: bool = True) -> Said:
        done = subprocess.run(
            [*self._command, *words], check=False, env=self._environ, capture_output=True, text=True, timeout=90
        )
        if ok:
            assert done.returncode == 0, f"{words}: {done.returncode}: {done.stderr}"
        return Said(done.returncode, done.stdout, done.stderr)

    def deploy(self, folder: Path, *words: str) -> dict[str, Any]:
        told: dict[str, Any] = self.run("deploy", str(folder), "--json", *words).json
        return told

    def ps(self, bot_id: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.run("ps", "--json").json
        return next((row for row in rows if row["id"] == bot_id), {})

    def is_at(self, bot_id: str, status: str) -> dict[str, Any]:
        """The bot's row of `ps` as soon as it has that status."""

        def look() -> dict[str, Any]:
            row = self.ps(bot_id)
            return row if row.get("status") == status else {}

        return eventually(look, f"{bot_id} is {status}", within_s=WITHIN_S)

    def has(self, bot_id: str, seen: Callable[[dict[str, Any]], bool], *, what: str) -> dict[str, Any]:
        """The bot's row of `ps` as soon as `seen` holds of it."""

        def look() -> dict[str, Any]:
            row = self.ps(bot_id)
            return row if row and seen(row) else {}

        return eventually(look, f"{bot_id}: {what}", within_s=WITHIN_S)

    def ask(self, body: object, *, path: str = "/query", method: str = "POST", token: str | None = "") -> Answered:
        """`token`: "" for the right one, None for none."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self._gateway + path, data if method != "GET" else None, method=method)
        sent = self._token if token == "" else token
        if sent is not None:
            request.add_header("Authorization", f"Bearer {sent}")
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                return Answered(answer.status, json.loads(answer.read()))
        except urllib.error.HTTPError as refused:
            return Answered(refused.code, json.loads(refused.read()))

    def query(self, bot_id: str, path: str, **params: Any) -> Answered:
        return self.ask({"bot_id": bot_id, "query_path": path, "params": params})

    def answers(self, bot_id: str, path: str, *, source: str) -> Answered:
        """A query's answer as soon as it is a good one from there."""

        def look() -> Answered | None:
            answered = self.query(bot_id, path)
            return answered if answered.status == 200 and answered.body.get("source") == source else None

        found = eventually(look, f"{bot_id} answers {path} ({source})", within_s=WITHIN_S)
        assert found is not None
        return found

    @property
    def wants_token(self) -> bool:
        return self._token is not None


class Up:
    """A `runtime up` on a folder of its own."""

    def __init__(self, base: Path) -> None:
        self.data = base / "data"
        self.token = secrets.token_urlsafe(16)
        self.environ = {**os.environ, "THE0_DATA": str(self.data), "GATEWAY_TOKEN": self.token}
        self._log = base / "up.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self._log, "wb") as log:
            return subprocess.Popen([*RUNTIME, "up", "--port", "0"], env=self.environ, stdout=log, stderr=log)

    @property
    def gateway(self) -> str:
        def look() -> str:
            assert self.process.poll() is None, self.told
            found = re.search(r"http://[0-9.]+:[0-9]+", self.told)
            return found[0] if found else ""

        return eventually(look, "`runtime up` says where its gateway is", within_s=WITHIN_S)

    @property
    def told(self) -> str:
        return self._log.read_text(errors="replace")

    def platform(self) -> Platform:
        return Platform(command=RUNTIME, gateway=self.gateway, token=self.token, environ=self.environ)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def again(self) -> Platform:
        self.process = self._start()
        return self.platform()

    def close(self) -> int:
        """The exit code after SIGTERM."""
        self.process.terminate()
        return self.process.wait(90)


def chosen() -> Platform | None:
    """The platform that the variables name."""
    gateway = os.environ.get("CONFORMANCE_GATEWAY")
    if not gateway:
        return None
    command = shlex.split(os.environ.get("CONFORMANCE_RUNTIME", "")) or RUNTIME
    return Platform(command=command, gateway=gateway, token=os.environ.get("GATEWAY_TOKEN"), environ=os.environ)
