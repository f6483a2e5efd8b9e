"""How each language runtime's entrypoints are run: one row each, nothing else knows a language."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from the0.errors import ExitCode, Fatal, clip

_WRAPPERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wrappers")
SDK_FOLDER = os.path.join(_WRAPPERS, "sdk")
"""A folder that holds `the0` as bots import it, and no other package of ours."""
WORD_FD = 3
"""Where a program that is started early waits for the word to go: one byte, or the end of the file for "never mind"."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be run. `folder` is CODE_PATH; `find` looks a program up on the PATH, or is None."""

    folder: str
    entrypoint: str
    find: Callable[[str], str | None]

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
    executable: bool = False
    """Whether the entrypoint itself is what is executed."""
    environment: Mapping[str, str] = field(default_factory=dict)


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


def _native(target: Target) -> list[str]:
    return [target.file]


_PYTHON = Language(
    bot=_python_bot,
    query=_python_query,
    early=True,
    environment={"PYTHONDONTWRITEBYTECODE": "1"},
)
_NATIVE = Language(bot=_native, query=_native, executable=True)

LANGUAGES: Mapping[str, Language] = {
    "python3.11": _PYTHON,
    "rust-stable": _NATIVE,
    "gcc13": _NATIVE,
    "cpp-gcc13": _NATIVE,
    "ghc96": _NATIVE,
}
