"""What is in the repository: nothing of one machine, and interfaces that match what is built."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from the0 import statehash
from the0.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "python" / "the0" / "statehash.pyi"

# Spelled so that this file does not hold what it looks for.
OF_ONE_MACHINE = re.compile(
    rb"(?<![\w.])/(?:ro{2}t|home|Users|wor[k]|mnt)/\w"
    rb"|pypi[.]\w+/|files[.]python[h]osted|registry[.]npm[j]s|index[.]cra[t]es|static[.]cra[t]es|proxy[.]golan[g]"
    rb"|deb[.]debia[n]|AKI[A][0-9A-Z]{16}|-{5}BEGIN [A-Z ]*PRIVATE KEY"
)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_machine_a_registry_or_a_key() -> None:
    found = {}
    for path in tracked():
        if match := OF_ONE_MACHINE.search(path.read_bytes()):
            found[path.relative_to(ROOT).as_posix()] = match[0]
    assert found == {}


def test_files_are_small_and_text() -> None:
    for path in tracked():
        assert path.stat().st_size < 300_000, f"{path} is large: keep it out of the repository"
        assert b"\0" not in path.read_bytes(), f"{path} is binary: make it where it is needed"


def test_exit_codes_are_documented() -> None:
    """docs/operating.md and the README's table, if it has one, say what `errors.py` says."""
    text = (ROOT / "docs" / "operating.md").read_text()
    rows = dict(re.findall(r"^\| *(2[01]\d) *\| *([A-Z_]+) *\|", text, re.MULTILINE))
    assert rows == {str(int(code)): code.name for code in ExitCode}


def members(body: list[ast.stmt]) -> set[str]:
    """Public names that a stub's body declares."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def public(thing: ModuleType | type) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_the_stub_and_the_built_extension_have_the_same_names() -> None:
    tree = ast.parse(STUB.read_text())
    # `entries()` returns an iterator, says the stub; its class is nobody's business.
    assert members(tree.body) == public(statehash) - {"Entries"}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            built = getattr(statehash, node.name)
            assert isinstance(built, type)
            own = members(node.body)
            assert own == (set() if issubclass(built, Exception) else public(built)), node.name
            final = any(isinstance(mark, ast.Name) and mark.id == "final" for mark in node.decorator_list)
            if final:
                with pytest.raises(TypeError):
                    type("Derived", (built,), {})
