"""The query gateway of a running `runtime up`, beside asking the bot's own query process: `gateway.py [--requests N]`.

The load comes from ApacheBench (`ab`, Debian's apache2-utils), a new connection for each request on both sides.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

if __package__ is None and str(Path(__file__).resolve().parent.parent / "tests") not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from conformance.platform_under_test import Platform, Up
from report import Figure, keep, show, wait_for_quiet
from rig import toolchains
from the0 import asking

PROGRAMS = Path(__file__).with_name("programs")
CLIENTS = 16
COLD_MS = 1000.0
WARM_MS = 20.0


def deploy(platform: Platform, base: Path, bot_id: str, runtime: str, files: Mapping[str, Path]) -> None:
    folder = base / bot_id
    folder.mkdir()
    for name, source in files.items():
        shutil.copy(source, folder / name)
    first = next(iter(files))
    told = {
        "name": bot_id,
        "type": "realtime",
        "runtime": runtime,
        "version": "1.0.0",
        "author": "bench",
        "description": "asked",
    }
    (folder / "bot-config.yaml").write_text(json.dumps({**told, "entrypoints": {"bot": first, "query": first}}))
    platform.deploy(folder, "--id", bot_id)


def query_port(bot_id: str) -> int:
    """Of the bot's own query process, from its environment."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in Path("/proc").glob("[0-9]*/environ"):
            try:
                told = dict(part.split(b"=", 1) for part in process.read_bytes().split(b"\0") if b"=" in part)
            except OSError:
                continue
            mine = told.get(b"BOT_ID") == bot_id.encode() and told.get(b"ENTRYPOINT_TYPE") == b"query"
            if mine and b"THE0_QUERY_PORT" in told:
                return int(told[b"THE0_QUERY_PORT"])
        time.sleep(0.1)
    raise SystemExit(f"{bot_id} has no query process")


def load(url: str, body: Path, *, token: str, requests: int, clients: int) -> tuple[float, float, float]:
    """(requests/s, p50 ms, p99 ms)"""
    with tempfile.NamedTemporaryFile() as csv:
        argv = ["ab", "-q", "-n", str(requests), "-c", str(clients), "-p", str(body), "-T", "application/json"]
        told = subprocess.run(
            [*argv, "-H", f"Authorization: Bearer {token}", "-e", csv.name, url],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        rows = [line.split(",") for line in Path(csv.name).read_text().splitlines()[1:]]
    bad = re.search(r"Non-2xx responses:\s+(\d+)", told)
    rate = re.search(r"Requests per second:\s+([0-9.]+)", told)
    failed = re.search(r"Failed requests:\s+(\d+)", told)
    assert bad is None, told
    assert rate is not None
    lengths = re.search(r"Length: (\d+)", told)  # answers with another duration in them are of another length
    assert failed is None or int(failed[1]) == (int(lengths[1]) if lengths else 0), told
    percent = {int(row[0]): float(row[1]) for row in rows}
    return float(rate[1]), percent[50], percent[99]


def measure(up: Up, base: Path, bot_id: str, requests: int, runs: int) -> list[Figure]:
    port = query_port(bot_id)
    body = base / f"{bot_id}.json"
    body.write_text(json.dumps({"bot_id": bot_id, "query_path": "/price"}))
    empty = base / "empty.json"
    empty.write_text("{}")
    deadline = time.monotonic() + 20
    while True:
        try:
            asking.ask("127.0.0.1", port, path="/price", params={}, deadline=deadline)
            break
        except asking.NotListening:
            time.sleep(0.05)
    direct, gateway = f"http://127.0.0.1:{port}/price", f"{up.gateway}/query"
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(runs):
        wait_for_quiet()
        rows.setdefault("direct 1", []).append(load(direct, empty, token=up.token, requests=requests // 2, clients=1))
        rows.setdefault("gateway 1", []).append(load(gateway, body, token=up.token, requests=requests // 2, clients=1))
        rows.setdefault("direct many", []).append(
            load(direct, empty, token=up.token, requests=requests, clients=CLIENTS)
        )
        rows.setdefault("gateway many", []).append(
            load(gateway, body, token=up.token, requests=requests, clients=CLIENTS)
        )

    def of(name: str, column: int) -> list[float]:
        return [row[column] for row in rows[name]]

    p50, p99 = statistics.median(of("direct 1", 1)), statistics.median(of("direct 1", 2))
    rate = statistics.median(of("direct many", 0))
    asked = of("gateway many", 0)
    least = 700.0 if bot_id == "native" else rate / 2
    return [
        Figure(name=f"{bot_id}: asked itself, p50", unit="ms", runs=of("direct 1", 1)),
        Figure(name=f"{bot_id}: through the gateway, p50", unit="ms", runs=of("gateway 1", 1), target=p50 + 3),
        Figure(name=f"{bot_id}: asked itself, p99", unit="ms", runs=of("direct 1", 2)),
        Figure(name=f"{bot_id}: through the gateway, p99", unit="ms", runs=of("gateway 1", 2), target=p99 + 10),
        Figure(name=f"{bot_id}: asked itself by {CLIENTS}", unit="/s", runs=of("direct many", 0)),
        Figure(name=f"{bot_id}: through the gateway by {CLIENTS}", unit="/s", runs=asked),
        Figure(
            name=f"{bot_id}: ms a request may take to reach {least:.0f}/s",
            unit="ms",
            runs=[1000 / each for each in asked],
            target=1000 / least,
        ),
    ]


STORED = """\
from the0 import query, state


@query.handler("/count")
def count(request):
    return {"count": state.get("count")}


query.run()
"""


def stored(up: Up, platform: Platform, base: Path, requests: int, runs: int) -> list[Figure]:
    """Of a scheduled bot: one whose query process is kept for the next question, and one that has each answered by another."""
    for bot_id, warm_s in (("warm", 300), ("cold", 0)):
        folder = base / f"stored-{bot_id}"
        folder.mkdir()
        (folder / "main.py").write_text("from the0 import state\nstate.set('count', 1)\n")
        (folder / "query.py").write_text(STORED)
        told = {
            "name": bot_id,
            "type": "scheduled",
            "runtime": "python3.11",
            "version": "1.0.0",
            "schedule": "0 0 29 2 *",
        }
        entrypoints = {"bot": "main.py", "query": "query.py"}
        (folder / "bot-config.yaml").write_text(json.dumps({**told, "entrypoints": entrypoints}))
        platform.deploy(folder, "--id", bot_id, "--config", f"the0.query_warm_s={warm_s}")
        platform.run("run", bot_id)
        (base / f"{bot_id}.json").write_text(json.dumps({"bot_id": bot_id, "query_path": "/count"}))
        deadline = time.monotonic() + 30
        while platform.query(bot_id, "/count").body["generation"] == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
    url = f"{up.gateway}/query"
    rows: dict[str, list[float]] = {"warm": [], "cold": []}
    for _ in range(runs):
        wait_for_quiet()
        rows["cold"].append(load(url, base / "cold.json", token=up.token, requests=20, clients=1)[1])
        platform.query("warm", "/count")
        rows["warm"].append(load(url, base / "warm.json", token=up.token, requests=requests // 4, clients=1)[1])
    return [
        Figure(name="stored state, a process for each question, p50", unit="ms", runs=rows["cold"], target=COLD_MS),
        Figure(name="stored state, the process is kept, p50", unit="ms", runs=rows["warm"], target=WARM_MS),
    ]


def run(*, requests: int, runs: int) -> bool:
    if shutil.which("ab") is None:
        raise SystemExit("ab is missing: install Debian's apache2-utils.")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        up = Up(base)
        try:
            platform = up.platform()
            deploy(platform, base, "python", "python3.11", {"asked.py": PROGRAMS / "asked.py"})
            native = toolchains.cpp(PROGRAMS / "asked.cpp")
            deploy(platform, base, "native", "gcc13", {"asked": native.folder / "program"})
            figures += stored(up, platform, base, requests, runs)
            for bot_id in ("python", "native"):
                figures += measure(up, base, bot_id, requests, runs)
        finally:
            up.close()
    show("Query gateway", figures)
    print(keep("gateway", figures))
    return all(figure.verdict != "MISSED" for figure in figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    return 0 if run(requests=arguments.requests, runs=arguments.runs) else 1


if __name__ == "__main__":
    sys.exit(main())
