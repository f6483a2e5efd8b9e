"""The wheel as a user gets it: built, looked into, installed in a fresh environment, started."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from the0 import __version__
from the0.errors import EXIT_CODES

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a release is; with what `make build` compiled still there, this takes seconds."""
    out = tmp_path_factory.mktemp("wheel")
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / ".cache" / "target"))
    built = subprocess.run(
        [BIN / "maturin", "build", "--release", "--locked", "--quiet", "--interpreter", sys.executable, "--out", out],
        cwd=ROOT,
        env={**os.environ, "CARGO_TARGET_DIR": target},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert re.fullmatch(rf"the0-{re.escape(__version__)}-cp311-abi3-\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"the0", f"the0-{__version__}.dist-info"}
    for needed in ("the0/statehash.abi3.so", "the0/statehash.pyi", "the0/py.typed", "the0/execute/wrappers/node.cjs"):
        assert needed in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for name in names:
        assert not re.search(r"test|conftest|bench|\.pyc$|\.rs$|__pycache__|\.cache|\.log$", name), name
    ours = {path.relative_to(ROOT / "python").as_posix() for path in (ROOT / "python").rglob("*") if path.is_file()}
    assert {name for name in ours if "__pycache__" not in name} == {name for name in names if name.startswith("the0/")}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel in it. What it depends on is lent by ours, so that no
    registry is asked; the package itself is not: a path in a .pth file brings no other .pth files with it."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False, symlinks=True)
    (packages,) = home.glob("lib/python3*/site-packages")
    subprocess.run(
        [BIN / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", packages, wheel],
        check=True,
        timeout=120,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    (packages / "lent.pth").write_text("\n".join(site.getsitepackages()))
    # --target puts scripts beside the packages, with the interpreter of the pip that ran: start them by our own.
    for script in (packages / "bin").iterdir():
        text = script.read_text().split("\n", 1)[1]
        (home / "bin" / script.name).write_text(f"#!{home / 'bin' / 'python'}\n{text}")
        (home / "bin" / script.name).chmod(0o755)
    return home / "bin"


def run(*command: str | Path) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=True, cwd="/", env={"PATH": "/usr/bin:/bin"}
    ).stdout


@pytest.mark.parametrize("name", ["runtime", "the0-runtime"])
def test_both_commands_start(installed: Path, name: str) -> None:
    assert run(installed / name, "version") == f"the0 runtime {__version__}\n"
    table = run(installed / name, "help", "exit-codes")
    for each in EXIT_CODES:
        assert re.search(rf"^ *{each.code:d} .*{re.escape(each.meaning)}", table, re.MULTILINE)


def test_the_installed_package_is_the_wheels_own(installed: Path) -> None:
    shown = run(installed / "python", "-I", "-c", "import the0, the0.statehash as s; print(the0.__file__, s.__file__)")
    assert all(path.startswith(str(installed.parent)) for path in shown.split())


def test_a_bot_imports_it_without_the_rest(installed: Path) -> None:
    code = "from the0 import parse, query, sleep, state; import sys; print('obstore' in sys.modules)"
    assert run(installed / "python", "-c", code) == "False\n"
