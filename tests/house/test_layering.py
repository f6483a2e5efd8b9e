"""The floors of the house: imports go down only, one module for each third-party client, and who reads the environment."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "the0"

# What a bot imports stands apart: standard library and itself only.
SDK = {"the0", "the0.bot", "the0.state", "the0.query", "the0.query_server", "the0.stops"}
WRAPPERS = "the0.execute.wrappers"

# From the ground up. A floor may import itself and those listed; all may import the shared modules and the crate.
FLOORS: dict[str, set[str]] = {
    "shared": set(),
    "objects": set(),
    "sync": {"objects"},
    "execute": {"sync", "objects"},
    "orchestrate": {"sync", "objects"},
    "cli": {"sync", "objects", "execute", "orchestrate"},
}
EXCEPTIONS = {
    ("the0.settings", "the0.objects.credentials"): "settings hand the store's address and keys on",
    ("the0.runs", "the0.objects.store"): "`execute` checks the claim that the orchestrator made",
}

CLIENTS = {
    "obstore": "the0.objects.s3",
    "minio": "the0.objects.admin",
    "urllib3": "the0.objects.admin",
    "docker": None,
    "kubernetes": None,
    "pymongo": None,
    "nats": None,
    "croniter": "the0.orchestrate.schedule",
    "jsonschema": "the0.orchestrate.manifest",
    "referencing": "the0.orchestrate.manifest",
    "yaml": "the0.orchestrate.manifest",
    "pathspec": "the0.orchestrate.archive",
}
"""Each third-party package and the one module that may import it; None until one does, then any one."""

ENVIRONMENT_READERS = {"the0.cli", "the0.settings"} | SDK
"""Wrappers run inside the bot's process; they read its environment, too."""


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    """A module of ours in full, or the name of a foreign top-level package."""
    line: int
    deferred: bool
    """Within a function, hence not part of what importing the module loads."""
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if "wrappers/sdk" not in path.as_posix()}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def resolved(module: str, name: str) -> str:
    """`from the0 import files` imports the module the0.files, `from the0 import __version__` the package."""
    full = f"{module}.{name}"
    return full if full in FILES or full == "the0.statehash" else module


def imports_of(importer: str) -> Iterator[Import]:
    def walk(node: ast.AST, *, deferred: bool, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            found: list[str] = []
            if isinstance(child, ast.Import):
                found = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{importer}:{child.lineno}: imports are absolute here"
                assert child.module is not None
                found = [resolved(child.module, alias.name) for alias in child.names]
            for name in found:
                ours = name.partition(".")[0] == "the0"
                yield Import(importer, name if ours else name.partition(".")[0], child.lineno, deferred, typing_only)
            guard = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, deferred=deferred or inner, typing_only=typing_only or guard)

    return walk(TREES[importer], deferred=False, typing_only=False)


IMPORTS = [found for name in FILES for found in imports_of(name)]


def floor(module: str) -> str:
    if module in SDK:
        return "sdk"
    if module.startswith(WRAPPERS):
        return "wrappers"
    part = module.split(".")[1]
    return part if part in FLOORS else "shared"


def foreign(found: Import) -> bool:
    return not found.imported.startswith("the0") and found.imported not in sys.stdlib_module_names


def breaches(found: Import) -> str | None:
    importer, imported = floor(found.importer), found.imported
    if found.typing_only and importer == "sdk":
        return None
    if importer == "wrappers":
        return None if imported in sys.stdlib_module_names else f"{found}: a wrapper stands alone"
    if importer == "sdk":
        allowed = imported in SDK or imported in sys.stdlib_module_names
        return None if allowed else f"{found}: what a bot imports is standard library only"
    if not imported.startswith("the0") or imported == "the0.statehash":
        return None
    if imported == "the0":
        return None if found.importer == "the0.cli" else f"{found}: the package itself is the bot's"
    if (found.importer, imported) in EXCEPTIONS or floor(imported) in {"shared", importer} | FLOORS[importer]:
        return None
    return f"{found}: {importer} stands below {floor(imported)}"


def test_imports_go_down_only() -> None:
    assert [said for found in IMPORTS if (said := breaches(found))] == []


def test_the_rules_themselves_find_breaches() -> None:
    """So that a mistake in this file does not make it pass."""

    def breach(importer: str, imported: str) -> bool:
        return breaches(Import(importer, imported, 1, deferred=False, typing_only=False)) is not None

    for importer, imported in (
        ("the0.files", "the0.sync.head"),
        ("the0.settings", "the0.objects.store"),
        ("the0.objects.s3", "the0.sync.head"),
        ("the0.sync.head", "the0.execute.run"),
        ("the0.sync.head", "the0.orchestrate.runner"),
        ("the0.sync.head", "the0.cli"),
        ("the0.orchestrate.runner", "the0.execute.run"),
        ("the0.bot", "the0.files"),
        ("the0.state", "requests"),
        ("the0.execute.wrappers.python", "the0"),
        ("the0.sync.head", "the0.bot"),
        ("the0.sync.head", "the0"),
    ):
        assert breach(importer, imported), f"{importer} may not import {imported}"
    for importer, imported in (
        ("the0.sync.head", "the0.objects.store"),
        ("the0.execute.run", "the0.sync.lock"),
        ("the0.settings", "the0.objects.credentials"),
        ("the0.objects.s3", "the0.errors"),
        ("the0.cli", "the0.execute.run"),
        ("the0.names", "the0.statehash"),
        ("the0.query", "the0.state"),
    ):
        assert not breach(importer, imported), f"{importer} may import {imported}"


def test_every_foreign_package_is_imported_in_one_module() -> None:
    importers: dict[str, set[str]] = defaultdict(set)
    for found in IMPORTS:
        if foreign(found):
            importers[found.imported].add(found.importer)
    assert set(importers) <= set(CLIENTS), "a new dependency is named in CLIENTS"
    for package, modules in importers.items():
        assert len(modules) == 1, f"{package} is imported by {sorted(modules)}"
        assert CLIENTS[package] in (None, *modules)


def test_clients_are_imported_where_they_are_used_only() -> None:
    """Within functions: nobody pays for a client that is not needed."""
    assert [str(found) for found in IMPORTS if foreign(found) and not (found.deferred or found.typing_only)] == []


@pytest.mark.parametrize("module", ["the0.cli", "the0.execute.run", "the0.settings", "the0.sync.daemon"])
def test_what_a_process_loads_at_its_start(module: str) -> None:
    """The supervisor keeps what it loaded for as long as the bot runs: the standard library and our own."""
    shown = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    loaded = set(shown.stdout.split()) - set(sys.stdlib_module_names) - {"__main__", "the0"}
    # Of the environment the tests run in, not of ours.
    assert loaded - {"_distutils_hack", "sitecustomize", "usercustomize", "__editable__"} == set()


def test_no_module_imports_itself_in_a_circle() -> None:
    """Deferred imports count too, except within the bot's own modules: a floor has an order inside as well."""
    graph: dict[str, set[str]] = defaultdict(set)
    for found in IMPORTS:
        if not found.typing_only and found.imported in FILES and found.importer not in SDK:
            graph[found.importer].add(found.imported)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*above, module))
            done.add(module)

    for module in sorted(FILES):
        visit(module, ())


def reads_environment(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        text = f"{node.value.id}.{node.attr}"
        if text in ("os.environ", "os.environb", "os.getenv", "os.getenvb", "sys.argv"):
            return text
    if isinstance(node, ast.ImportFrom) and node.module in ("os", "sys"):
        for alias in node.names:
            if alias.name in ("environ", "environb", "getenv", "getenvb", "argv"):
                return f"{node.module}.{alias.name}"
    return None


def test_the_environment_is_read_in_few_places() -> None:
    readers = {
        name: text
        for name, tree in TREES.items()
        if name not in ENVIRONMENT_READERS and not name.startswith(WRAPPERS)
        for node in ast.walk(tree)
        if (text := reads_environment(node))
    }
    assert readers == {}


def test_nothing_below_the_command_line_prints_to_stdout() -> None:
    printing = {
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        if floor(name) in ("shared", "objects")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "breakpoint")
        if not any(keyword.arg == "file" for keyword in node.keywords)
    }
    assert printing == set()
