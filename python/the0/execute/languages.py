"""How each language runtime's entrypoints are run: one row each, nothing else knows a language."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from the0.errors import ExitCode, Fatal, clip
from the0.frozen import dataclass

_WRAPPERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wrappers")
SDK_FOLDER = os.path.join(_WRAPPERS, "sdk")
"""A folder that holds `the0` as bots import it, and no other package of ours."""
_VM_START_S = 0.25
WORD_FD = 3
"""Where a program that is started early waits for the word to go: one byte, or the end of the file for "never mind"."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be run. `folder` is CODE_PATH; `find` looks a program up on the PATH, or is None."""

    folder: str
    entrypoint: str
    """A path within the code."""
    find: Callable[[str], str | None]
    part: str = ""
    """What of that file is to be run: a class in a jar; "" for what the file itself says."""

    @property
    def file(self) -> str:
        return os.path.join(self.folder, self.entrypoint)


@dataclass(frozen=True, slots=True)
class Language:
    bot: Callable[[Target], list[str]]
    """argv of the bot's process; argv[0] is an absolute path. Raises Fatal (LANGUAGE) where this machine lacks what it needs."""
    query: Callable[[Target], list[str]]
    early: bool = False
    """Whether the program is started before the code is there, waits on WORD_FD, and touches nothing of the bot before."""
    undisturbed_s: float = 0.0
    """How long the start of its virtual machine has the CPUs to itself, unless the bot prints something earlier."""
    executable: bool = False
    """Whether the entrypoint itself is what is executed."""
    folders: bool = False
    """Whether an entrypoint may be a folder, too."""
    environment: Callable[[], Mapping[str, str]] = dict
    """More variables for the bot's process, and for its query process."""
    query_environment: Callable[[Target], Mapping[str, str]] = lambda _: {}
    """Still more for the query process, which no wrapper of ours sets up."""


def language(name: str) -> Language:
    """Fatal (LANGUAGE) for a name that is not in the table."""
    found = LANGUAGES.get(name)
    if found is None:
        known = ", ".join(sorted(LANGUAGES))
        raise Fatal(
            f"RUNTIME is {clip(name)!r}, which is no language runtime: use one of {known}.", code=ExitCode.LANGUAGE
        )
    return found


def find_program(name: str, *, path: str) -> str | None:
    """The first executable of that name in the folders of `path`."""
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder, name)
        if os.path.isabs(candidate) and os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def _python(target: Target) -> str:
    # Our own interpreter without the packages of our own environment, if it is the right one: known to work, and no
    # version manager's shim in between, which would cost 30 ms.
    own: str = getattr(sys, "_base_executable", None) or sys.executable
    if sys.version_info[:2] == (3, 11):
        return own
    return target.find("python3.11") or own


def _python_bot(target: Target) -> list[str]:
    # -s: the folder of user packages lies below HOME, which the bot can write.
    wrapper = os.path.join(_WRAPPERS, "python.py")
    return [_python(target), "-s", wrapper, str(WORD_FD), target.folder, target.entrypoint, SDK_FOLDER]


def _python_query(target: Target) -> list[str]:
    return [_python(target), "-s", target.file]


def _python_query_environment(target: Target) -> dict[str, str]:
    folders = [os.path.join(target.folder, "vendor"), target.folder, SDK_FOLDER]
    # Unbuffered: what is printed must not wait in a process that serves for days, and may be killed.
    return {"PYTHONPATH": os.pathsep.join(folders), "PYTHONUNBUFFERED": "1"}


def _native(target: Target) -> list[str]:
    return [target.file]


def _needed(target: Target, program: str, package: str) -> str:
    """Where the program is. Fatal (LANGUAGE) without it."""
    found = target.find(program)
    if found is None:
        raise Fatal(
            f"The bot needs {package}, and this machine's PATH has no `{program}`: install {package}, "
            "or use the runtime's image.",
            code=ExitCode.LANGUAGE,
        )
    return found


def _node(target: Target) -> str:
    return _needed(target, "node", "Node.js 20")


def _node_bot(target: Target) -> list[str]:
    return [_node(target), os.path.join(_WRAPPERS, "node.cjs"), str(WORD_FD), target.folder, target.entrypoint]


def _node_query(target: Target) -> list[str]:
    return [_node(target), target.file]


def _dotnet(target: Target) -> list[str]:
    if target.entrypoint.endswith(".dll"):
        return [_needed(target, "dotnet", "the .NET 8 runtime"), target.file]
    program = _needed(target, "dotnet", "the .NET 8 SDK")
    if not _has_entries(os.path.join(os.path.dirname(os.path.realpath(program)), "sdk")):
        raise Fatal(
            f"The entrypoint {clip(target.entrypoint)!r} has to be built, and this machine has the .NET runtime only: "
            "publish the bot and name its .dll as the entrypoint, or install the .NET 8 SDK.",
            code=ExitCode.LANGUAGE,
        )
    return [program, "run", "--project", target.file]


def _has_entries(folder: str) -> bool:
    try:
        return bool(os.listdir(folder))
    except OSError:
        return False  # not there


def _dotnet_environment() -> dict[str, str]:
    environment = {"DOTNET_NOLOGO": "1", "DOTNET_CLI_TELEMETRY_OPTOUT": "1"}
    if not _has_icu():
        # Without its libraries .NET does not even start, unless it is told to know no cultures.
        environment["DOTNET_SYSTEM_GLOBALIZATION_INVARIANT"] = "1"
    return environment


def _has_icu() -> bool:
    triplet = getattr(sys.implementation, "_multiarch", "")
    for folder in (f"/usr/lib/{triplet}", f"/lib/{triplet}", "/usr/lib64", "/lib64", "/usr/lib", "/usr/local/lib"):
        try:
            if any(name.startswith("libicuuc.so.") for name in os.listdir(folder)):
                return True
        except OSError:
            continue  # this machine keeps its libraries elsewhere
    return False


def _java(target: Target) -> list[str]:
    program = _needed(target, "java", "Java 17")
    if not target.part:
        return [program, "-jar", target.file]
    if not all(part.replace("$", "_").isidentifier() for part in target.part.split(".")):
        # Also what `java` would take for an option.
        raise Fatal(
            f"The entrypoint names {clip(target.part)!r}, which is no class: write FILE.jar or FILE.jar:Main.Class.",
            code=ExitCode.ENTRYPOINT,
        )
    return [program, "-cp", target.file, target.part]


_PYTHON = Language(
    bot=_python_bot,
    query=_python_query,
    early=True,
    environment=lambda: {"PYTHONDONTWRITEBYTECODE": "1"},
    query_environment=_python_query_environment,
)
_NODE = Language(bot=_node_bot, query=_node_query, early=True)
_NATIVE = Language(bot=_native, query=_native, executable=True)
_DOTNET = Language(bot=_dotnet, query=_dotnet, undisturbed_s=_VM_START_S, folders=True, environment=_dotnet_environment)
_JVM = Language(bot=_java, query=_java, undisturbed_s=_VM_START_S)

LANGUAGES: Mapping[str, Language] = {
    "python3.11": _PYTHON,
    "nodejs20": _NODE,
    "rust-stable": _NATIVE,
    "gcc13": _NATIVE,
    "cpp-gcc13": _NATIVE,
    "ghc96": _NATIVE,
    "dotnet8": _DOTNET,
    "scala3": _JVM,
}
