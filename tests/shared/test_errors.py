"""Faults and the table of exit codes."""

from __future__ import annotations

import pytest

from the0.errors import EXIT_CODES, ExitCode, Fatal, Fault, Permanent, Transient, clip


def test_exit_codes_are_ours_and_each_is_explained_once() -> None:
    assert [meaning.code for meaning in EXIT_CODES] == sorted(ExitCode)
    assert all(200 <= code <= 219 for code in ExitCode)
    assert len({int(code) for code in ExitCode}) == len(ExitCode.__members__), "no two names for one number"
    for meaning in EXIT_CODES:
        assert meaning.meaning
        assert not meaning.meaning.endswith(".")


@pytest.mark.parametrize("kind", [Transient, Permanent, Fatal])
def test_a_fault_is_its_sentence(kind: type[Fault]) -> None:
    fault = kind("The thing is broken: mend it.", code=ExitCode.CODE)
    assert str(fault) == fault.sentence == "The thing is broken: mend it."
    assert fault.code == 203


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 😀", "plain é 😀"),
        ("two\nlines\r\x1b[31m", "two\\nlines\\r\\x1b[31m"),
        ("\u202eright to left \ud800", "\\u202eright to left \\ud800"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 199 + "…"),
        ("\n" * 1_000_000, "\\n" * 99 + "\\…"),
        ("", ""),
    ],
    ids=range(7),
)
def test_foreign_text_fits_one_line(text: str, shown: str) -> None:
    assert clip(text) == shown
    assert len(clip(text, limit=10)) <= 10
