"""What `.ci/run` prints at its end: the time of each step and each suite beside its budget, and the count of tests.

Exit code 1 where something took longer than its budget, or a test failed.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

# Seconds on two cores with cold caches. A suite is a folder of tests/.
STEPS_S = {"build": 600, "servers": 900, "test": 1800, "fuzz": 240, "lint": 400}
SUITES_S = dict.fromkeys(
    ("house", "objects", "sync", "execute", "languages", "hostile", "orchestrate", "conformance"), 480
)
OTHER_SUITES_S = 240


def main(folder: Path) -> int:
    good = True
    rows = [("step or suite", "tests", "seconds", "budget", "")]
    for line in (folder / "steps").read_text().splitlines():
        name, seconds, code = line.split()
        late = int(seconds) > STEPS_S[name]
        good &= not late and code == "0"
        rows.append((name, "", seconds, str(STEPS_S[name]), _verdict(late, failed=code != "0")))

    passed, failed, skipped = _rust_counts(folder / "test.log")
    suites: dict[str, list[float]] = defaultdict(list)
    broken: dict[str, int] = defaultdict(int)
    report = folder / "pytest.xml"
    # The report is what our own pytest just wrote.
    cases = ET.parse(report).iter("testcase") if report.exists() else ()
    for case in cases:
        suite = _suite(case.get("classname") or "")
        suites[suite].append(float(case.get("time", "0")))
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failed += 1
            broken[suite] += 1
        elif "skipped" in kinds:
            skipped += 1
        else:
            passed += 1
    for suite, times in sorted(suites.items()):
        budget_s = SUITES_S.get(suite, OTHER_SUITES_S)
        late = sum(times) > budget_s
        good &= not late and not broken[suite]
        verdict = _verdict(late, failed=bool(broken[suite]))
        rows.append((f"tests/{suite}", str(len(times)), f"{sum(times):.1f}", str(budget_s), verdict))

    for name, tests, took, budget, verdict in rows:
        print(f"{name:<16}{tests:>7}{took:>10}{budget:>8}  {verdict}".rstrip())
    if not report.exists():
        print("pytest did not report: see its output above.")
        good = False
    if skipped:
        print(f"{skipped} skipped")
    print(f"\n{passed} passed, {failed} failed")
    return 0 if good and not failed else 1


def _suite(classname: str) -> str:
    """`tests.sync.logs.test_spool.TestX` -> `sync`."""
    parts = [part for part in classname.split(".") if part != "tests"]
    return parts[0] if len(parts) > 1 else "(top)"


def _verdict(late: bool, *, failed: bool) -> str:
    return ", ".join(text for text, true in (("OVER ITS BUDGET", late), ("FAILED", failed)) if true)


def _rust_counts(log: Path) -> tuple[int, int, int]:
    """Passed, failed and ignored tests of cargo, summed over its test programs."""
    found = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", log.read_text(), re.MULTILINE)
    return tuple(sum(int(row[n]) for row in found) for n in range(3))  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
