"""What README.md and docs/ show is run: shell blocks in order, with the output they claim; Python blocks as programs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from the0 import names
from the0.execute.languages import LANGUAGES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = "<<end of block>>"


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    line: int


def blocks(document: Path) -> list[Block]:
    found = []
    text = document.read_text()
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start()) + 1))
    return found


def environment(home: Path) -> dict[str, str]:
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home), "LANG": "C.UTF-8"}


def pattern(shown: str) -> re.Pattern[str]:
    """`…` stands for anything; a line of it alone, for any lines."""
    parts = []
    for line in shown.splitlines(keepends=True):
        if line == "…\n":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*".join(re.escape(piece) for piece in line.split("…")))
    return re.compile("".join(parts))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_shell_blocks_do_what_is_shown(document: Path, tmp_path: Path) -> None:
    found = blocks(document)
    shells = [block for block in found if block.kind == "sh"]
    if not shells:
        return  # its other blocks are checked below
    script = "set -eu\nexec 2>&1\n" + "".join(f"{block.text}echo '{MARK}'\n" for block in shells)
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, f"{document.name}: {ran.stdout}"
    outputs = ran.stdout.split(f"{MARK}\n")
    for number, block in enumerate(shells):
        after = found.index(block) + 1
        if after < len(found) and found[after].kind == "text":
            shown = found[after]
            where = f"{document.name}:{shown.line}"
            assert pattern(shown.text).fullmatch(outputs[number]), (
                f"{where} shows another output than:\n{outputs[number]}"
            )


PYTHONS = [(document, block) for document in DOCUMENTS for block in blocks(document) if block.kind == "python"]


@pytest.mark.parametrize(("document", "block"), PYTHONS, ids=lambda value: getattr(value, "name", None))
def test_python_blocks_run(document: Path, block: Block, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=tmp_path,
        env={
            **environment(tmp_path),
            "BOT_ID": "bot-1",
            "BOT_CONFIG": "{}",
            "STATE_DIR": str(tmp_path / "state"),
            "CODE_MOUNT_DIR": str(tmp_path).lstrip("/"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, f"{document.name}:{block.line}: {ran.stderr}"


def test_every_block_is_of_a_known_kind() -> None:
    for document in DOCUMENTS:
        for block in blocks(document):
            assert block.kind in ("", "sh", "text", "python"), f"{document.name}:{block.line}"


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    named = {
        target for path in DOCUMENTS for target in re.findall(r"(?:^|`)make ([a-z]+)", path.read_text(), re.MULTILINE)
    }
    assert named <= targets
    assert targets - {"help"} <= named, "each target is documented"


def test_every_link_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!\w+://)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_variable_is_documented_and_every_documented_one_exists() -> None:
    variables = {value for name, value in vars(names).items() if name == value and name.isupper()}
    read: set[str] = set()
    for module in ("settings", "cli"):
        tree = ast.parse((ROOT / "python" / "the0" / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "names":
                read.add(node.attr)
    text = (ROOT / "docs" / "operating.md").read_text()
    documented = set(re.findall(r"`([A-Z][A-Z0-9_]{4,})`", text))
    assert (read & variables) - documented == set()
    assert (
        documented - variables - set(re.findall(r"\b[A-Z_]{4,}\b", (ROOT / "python/the0/errors.py").read_text()))
        == set()
    )


def test_every_language_is_documented() -> None:
    rows = re.findall(r"^\| (`[a-z].*?) \|", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"`([a-z]+[0-9a-z.-]*)`", " ".join(rows))) >= set(LANGUAGES)


def test_commands_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"`runtime ([a-z]+)", text))
    shown = subprocess.run(
        [Path(sys.executable).parent / "runtime", "--help"], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert commands <= set(re.findall(r"^    ([a-z]+)(?: |$)", shown, re.MULTILINE)), "commands that this version lacks"
