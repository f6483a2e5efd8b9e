"""Queries: what `runtime execute --query` takes above the same file run bare, and what `execute` adds to a served query.

An ephemeral query is timed from right before the exec of `execute` to its end, its answer printed; bare is the same query
file, started with the same variables on code and state that are there already, to its end. A served query is asked on a new
connection each; with and without `execute` take turns.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from place import BUCKETS, RUNTIME, BenchError, Place, base, clean, launch, until
from report import ROOT, Figure, keep, show, wait_for_quiet
from rig.minio_server import VERSION, minio
from the0 import asking
from the0.execute.languages import SDK_FOLDER, Target, language
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.objects.store import ObjectStore

RUNS = 9
ABOVE_BARE_MS = 100.0
ADDED_MS = 0.5
"""Two runs of the very same process differ by as much."""
RESULTS = {"MINIO_QUERY_RESULTS_BUCKET": "bench-results"}
KEY = "bench/query/1"

MAIN = """\
from the0 import sleep, state


def main(bot_id, config):
    state.set("seen", 3)
    print("first", 0, flush=True)
    while config.get("stays") and not sleep(60):
        pass
"""
QUERY = """\
from the0 import query, state


@query.handler("/seen")
def seen(request):
    return {"seen": state.get("seen")}


query.run()
"""
ANSWER = {"status": "ok", "data": {"seen": 3}}
ASKED = 200


def archive() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("main.py", MAIN)
        target.writestr("query.py", QUERY)
    return made.getvalue()


@dataclass
class QueryPlace(Place):
    more: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **RESULTS, "QUERY_ENTRYPOINT": "query.py", **self.more}


def place(
    store: ObjectStore, environ: Mapping[str, str], bot_id: str, *, config: str = "{}", **more: str
) -> QueryPlace:
    return QueryPlace(store, environ, bot_id, config=config, code_file=KEY, more=more)


def ephemeral(store: ObjectStore, environ: Mapping[str, str], what: str, *, runs: int) -> Figure:
    bot_id = f"bench-query-{what}-{os.getpid()}"
    at = place(store, environ, bot_id, BOT_TYPE="scheduled")
    with at:
        at.execute().end()
        bare_env = bare_environment(at)
        argv = bare_argv(at)
        bare, took, interpreter = [], [], []
        for _ in range(runs):
            wait_for_quiet()
            interpreter.append(timed([argv[0], "-s", "-c", ""], bare_env, at.root))
            bare.append(timed(argv, bare_env, at.root / "bot"))
            with place(store, environ, bot_id, BOT_TYPE="scheduled") as fresh:
                ours = [*RUNTIME, "execute", "--query", "/seen"]
                began = time.monotonic()
                process = launch(ours, env=fresh.environment(), err_path=fresh.root / "err")
                fresh.started.append(process)
                with os.fdopen(os.dup(process.out_fd), "rb") as out:
                    said = out.read()
                process.end()
                took.append((time.monotonic() - began) * 1e3)
                answer = json.loads(said)
                if {key: answer[key] for key in ANSWER} != ANSWER or answer["generation"] < 1:
                    raise BenchError(f"the answer is {said!r}")
    return Figure(
        name=f"ephemeral query, {what}",
        unit="ms",
        runs=took,
        bare=bare,
        over_bare=ABOVE_BARE_MS,
        notes={"interpreter_ms": interpreter},
    )


def bare_argv(at: QueryPlace) -> list[str]:
    target = Target(folder=str(at.root / "bot"), entrypoint="query.py", find=lambda _: None)
    return language("python3.11").query(target)


def bare_environment(at: QueryPlace) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", ""),
        "BOT_ID": at.bot_id,
        "BOT_CONFIG": "{}",
        "STATE_DIR": str(at.state / ".the0-state"),
        "CODE_MOUNT_DIR": str(at.root / "bot").lstrip("/"),
        "ENTRYPOINT_TYPE": "query",
        "PYTHONPATH": SDK_FOLDER,
        "PYTHONDONTWRITEBYTECODE": "1",
        "QUERY_PATH": "/seen",
    }


def timed(argv: list[str], env: Mapping[str, str], folder: Path) -> float:
    began = time.monotonic()
    subprocess.run(argv, env=dict(env), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic() - began) * 1e3


def served(store: ObjectStore, environ: Mapping[str, str]) -> Figure:
    """The median of what `execute` adds to one question, over the same process alone."""
    bot_id = f"bench-served-{os.getpid()}"
    at = place(store, environ, bot_id, config='{"stays": true}', BOT_TYPE="realtime", THE0_QUERY_PORT="19481")
    with at:
        process = at.execute()
        process.line("first")
        alone_env = {**bare_environment(at), "BOT_TYPE": "realtime", "THE0_QUERY_PORT": "19482"}
        del alone_env["QUERY_PATH"]
        alone = subprocess.Popen(bare_argv(at), env=alone_env, cwd=at.root / "bot")
        try:
            for port in (19481, 19482):
                until(partial(listens, port), f"port {port} listens")
            under, by_itself = [], []
            for _ in range(ASKED):
                under.append(asked_ms(19481))
                by_itself.append(asked_ms(19482))
        finally:
            alone.terminate()
            alone.wait()
        process.stop()
    added = [one - other for one, other in zip(under, by_itself, strict=True)]
    return Figure(
        name="served query, added by execute",
        unit="ms",
        runs=[statistics.median(added)],
        target=ADDED_MS,
        notes={"under_execute_ms": under, "alone_ms": by_itself},
    )


def listens(port: int) -> bool:
    try:
        return asked_ms(port) > 0
    except asking.NotListening:
        return False


def asked_ms(port: int) -> float:
    began = time.monotonic()
    answer = asking.ask("127.0.0.1", port, path="/seen", params={}, deadline=began + 10)
    took_ms = (time.monotonic() - began) * 1e3
    if answer.value != ANSWER:
        raise BenchError(f"the answer is {answer.text!r}")
    return took_ms


def run(*, runs: int = RUNS) -> bool:
    """Measures, prints and keeps. Whether all reach their targets."""
    try:
        return _run(runs)
    finally:
        clean()


def _run(runs: int) -> bool:
    figures: list[Figure] = []
    with minio() as running:
        folder = {"OBJECT_STORE_DIR": str(base() / "store")}
        for what, settings, environ in (
            ("folder", StoreSettings(folder=folder["OBJECT_STORE_DIR"]), folder),
            ("MinIO", running.settings, running.environ),
        ):
            store = open_store(settings, deadline_s=30)
            for bucket in (*BUCKETS.values(), *RESULTS.values()):
                store.ensure_bucket(bucket)
            store.put(BUCKETS["MINIO_CODE_BUCKET"], KEY, archive())
            figures.append(ephemeral(store, environ, what, runs=runs))
        figures.append(served(store, environ))
    show(f"Queries; load {os.getloadavg()[0]:.1f}", figures)
    for figure in figures:
        for name, taken in figure.notes.items():
            print(f"{figure.name}: {name} {statistics.median(taken):.2f}")
    path = keep("queries", figures, more={"minio": VERSION})
    print(f"Raw results: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    return all(figure.verdict != "MISSED" for figure in figures)
