"""docs/faults.md holds the rows of the suites that test faults. THE0_FAULT_TABLE=docs/faults.md writes them there, with the figures
of a run of all of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from rig.fault_table import written_rows

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "faults.md"


def marked() -> Iterator[tuple[str, str]]:
    """Of every test of tests/faults and tests/sync that is marked `fault`."""
    modules = [f"faults.{path.stem}" for path in (TESTS / "faults").glob("test_*.py")]
    modules += [path.stem for path in (TESTS / "sync").glob("test_*.py")]
    for name in modules:
        module = importlib.import_module(name)
        tests = [test for key, test in vars(module).items() if key.startswith("test_") and test.__module__ == name]
        marks = [mark for test in tests for mark in getattr(test, "pytestmark", ())]
        of_all = getattr(module, "pytestmark", ())
        marks += of_all if isinstance(of_all, list | tuple) else [getattr(of_all, "mark", of_all)]
        for mark in list(marks):
            if mark.name == "parametrize":
                marks += [inner for case in mark.args[1] for inner in getattr(case, "marks", ())]
        yield from (mark.args for mark in marks if mark.name == "fault")


def test_the_table_in_the_documents_has_the_rows_of_the_suites() -> None:
    assert written_rows(DOCUMENT.read_text()) == set(marked()), "write it anew, see above"
