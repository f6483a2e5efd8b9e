"""What `import the0` costs a bot above a bare interpreter: whole processes, from exec to a line behind the import."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from place import launch
from report import ROOT, Figure, keep, show, wait_for_quiet
from the0.execute.languages import SDK_FOLDER

TARGET_MS = 15.0
SAY = "import time; print('first', time.monotonic_ns(), flush=True)"
IMPORTS = {
    "import the0": "import the0",
    "all its names, queries included": "from the0 import error, log, metric, parse, query, result, sleep, state, success",
}


def run(*, runs: int = 9) -> bool:
    """Measures, prints and keeps; whether the target is reached."""
    interpreter = getattr(sys, "_base_executable", None) or sys.executable
    env = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": SDK_FOLDER}
    figures = []
    with tempfile.TemporaryDirectory() as base:

        def first_ms(code: str) -> float:
            process = launch([interpreter, "-s", "-c", code], env=env, err_path=Path(base) / "stderr")
            took_ms = process.first_ms()
            process.end()
            return took_ms

        for name, code in IMPORTS.items():
            first_ms(f"{code}; {SAY}")  # byte code is compiled once
            above, bare = [], []
            for _ in range(3 * runs):
                wait_for_quiet()
                bare.append(first_ms(SAY))
                above.append(first_ms(f"{code}; {SAY}") - bare[-1])
            target = TARGET_MS if code == "import the0" else None
            figures.append(Figure(name=name, unit="ms", runs=above, bare=bare, target=target))
    show("The Python module of bots: ms above the bare interpreter, pair by pair", figures)
    print(f"Raw results: {keep('sdk_import', figures).relative_to(ROOT)}")
    return all(figure.verdict != "MISSED" for figure in figures)
