"""Cold starts: the same file, started bare and through `runtime execute` on MinIO, turn by turn.

What is compared is the time from exec to the program's own first statement, which it tells itself. The difference is
what fetching code, claiming the bot and starting it cost; the target is 80 ms of it.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from place import BUCKETS, Place, clean, launch
from report import ROOT, keep, table, wait_for_quiet
from rig import toolchains
from rig.minio_server import VERSION, minio
from the0.execute.languages import Target, find_program, language
from the0.objects.open import open_store
from the0.objects.store import ObjectStore

PROGRAMS = Path(__file__).with_name("programs")
ABOVE_MS = 80.0


@dataclass(frozen=True, slots=True)
class Program:
    runtime: str
    entrypoint: str
    files: Callable[[], Mapping[str, bytes]]
    """Of the archive, by path. Raises toolchains.Lacking."""
    path: Callable[[], str] = lambda: os.environ.get("PATH", "")


def _source(name: str) -> bytes:
    return (PROGRAMS / name).read_bytes()


def _native(path: str, built: Callable[[Path], toolchains.Built], source: str) -> Callable[[], Mapping[str, bytes]]:
    return lambda: {path: built(PROGRAMS / source).files()["program"]}


def _beside(program: Callable[[], Path]) -> Callable[[], str]:
    return lambda: f"{program().parent}:{os.environ.get('PATH', '')}"


EACH = (
    Program("python3.11", "main.py", lambda: {"main.py": _source("first.py")}),
    Program("nodejs20", "main.js", lambda: {"main.js": _source("first.js")}, _beside(toolchains.node)),
    Program("rust-stable", "target/release/first", _native("target/release/first", toolchains.rust, "first.rs")),
    Program("gcc13", "build/first", _native("build/first", toolchains.cpp, "first.cpp")),
    Program("ghc96", "bin/first", _native("bin/first", toolchains.haskell, "first.hs")),
    Program(
        "dotnet8",
        "First.dll",
        lambda: toolchains.csharp(PROGRAMS / "First.cs", name="First").files(),
        _beside(toolchains.dotnet),
    ),
    Program(
        "scala3",
        "first.jar",
        lambda: {"first.jar": toolchains.scala(PROGRAMS / "First.scala", main="First").files()["program.jar"]},
    ),
)


def run(*, runs: int = 9, parts: tuple[str, ...] = ()) -> bool:
    """Measures, prints and keeps. Whether every language that this machine has is within the target."""
    try:
        return _run(runs, parts)
    finally:
        clean()


def _run(runs: int, parts: tuple[str, ...]) -> bool:
    rows: list[tuple[str, ...]] = []
    raw: dict[str, dict[str, list[float]]] = {}
    good = True
    with minio() as running:
        store = open_store(running.settings, deadline_s=30)
        for bucket in BUCKETS.values():
            store.ensure_bucket(bucket)
        for program in EACH:
            if parts and program.runtime not in parts:
                continue
            try:
                measured = _measure(program, store, running.environ, runs=runs)
            except toolchains.Lacking as lacking:
                rows.append((program.runtime, "", "", "", "", str(lacking)))
                continue
            raw[program.runtime] = measured
            bare, ours = (statistics.median(measured[name]) for name in ("bare", "execute"))
            above = [b - a for a, b in zip(measured["bare"], measured["execute"], strict=True)]
            extra = statistics.median(above)
            good &= extra <= ABOVE_MS
            verdict = "ok" if extra <= ABOVE_MS else "MISSED"
            spread = f"{min(above):+.0f} .. {max(above):+.0f}"
            rows.append((program.runtime, f"{bare:.0f} ms", f"{ours:.0f} ms", f"{extra:+.0f} ms", spread, verdict))
    print("\nCold start on MinIO, exec to the program's first statement; medians, and of the difference in each pair\n")
    print(table(rows, ("runtime", "bare", "execute", "above", "pairs", f"<= +{ABOVE_MS:.0f} ms")))
    path = keep("languages", [], more={"minio": VERSION, "runs": raw})
    print(f"\nRaw results: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    return good


def _measure(program: Program, store: ObjectStore, environ: Mapping[str, str], *, runs: int) -> dict[str, list[float]]:
    files, path = program.files(), program.path()
    code_file = f"bench/{program.runtime}/1"
    store.put(BUCKETS["MINIO_CODE_BUCKET"], code_file, _archive(files))
    bots = {"RUNTIME": program.runtime, "ENTRYPOINT": program.entrypoint, "PATH": path}
    measured: dict[str, list[float]] = {"bare": [], "execute": []}
    for number in range(-1, runs):  # the first pair warms up
        bot_id = f"bench-{program.runtime}-{os.getpid()}-{number + 1}"
        with Place(store, {**environ, **bots}, bot_id, code_file=code_file) as place:
            wait_for_quiet()
            process = place.execute()
            execute_ms = process.first_ms()
            process.end()
            wait_for_quiet()
            bare = launch(_bare(program, place.root / "bot", path), env=_bots(place), err_path=place.root / "bare")
            bare_ms = bare.first_ms()
            bare.end()
        if number >= 0:
            measured["bare"].append(bare_ms)
            measured["execute"].append(execute_ms)
    return measured


def _archive(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return made.getvalue()


def _bare(program: Program, code: Path, path: str) -> list[str]:
    """How a query entrypoint is run, which is the interpreter and the file, without a wrapper."""
    target = Target(folder=str(code), entrypoint=program.entrypoint, find=lambda name: find_program(name, path=path))
    return language(program.runtime).query(target)


def _bots(place: Place) -> dict[str, str]:
    kept = {name: value for name, value in place.environment().items() if name in ("PATH", "BOT_ID")}
    row = language(place.environ["RUNTIME"])
    return {**kept, **row.environment(), "HOME": str(place.root / "bot"), "BOT_CONFIG": json.dumps({})}
