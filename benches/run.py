"""All benches: `run.py [NAME…] [--runs N] [--part PART] [--no-trace]`; without a name, all of them. See README.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import execute  # noqa: E402
import languages  # noqa: E402
import queries  # noqa: E402
import sdk_import  # noqa: E402
import unzip  # noqa: E402

NAMES = ("sdk_import", "execute", "languages", "unzip", "queries", "platform_up", "logs", "state")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures, prints tables, keeps raw results in .cache/bench.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--runs", type=int, default=9, help="how often each is measured (default 9; some more often)")
    parts = ", ".join(execute.PARTS)
    parser.add_argument(
        "--part", action="append", default=[], choices=list(execute.PARTS), help=f"of `execute`: {parts}"
    )
    parser.add_argument("--no-trace", action="store_true", help="of `execute`: without the breakdown")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"no bench {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    good = True
    for name in arguments.names or NAMES:
        if name == "execute":
            good &= execute.run(runs=arguments.runs, parts=tuple(arguments.part), traced=not arguments.no_trace)
        elif name == "languages":
            good &= languages.run(runs=arguments.runs)
        elif name == "unzip":
            good &= unzip.run(runs=arguments.runs)
        elif name == "queries":
            good &= queries.run(runs=arguments.runs)
        elif name == "sdk_import":
            good &= sdk_import.run(runs=arguments.runs)
        else:
            good &= subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
