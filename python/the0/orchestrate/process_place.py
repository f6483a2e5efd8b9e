"""Which folders, limits and view of this machine a bot's process gets, and what this machine can give at all."""

from __future__ import annotations

import hashlib
import os
import resource
import sys
from collections.abc import Mapping
from typing import Final

from the0 import files, names, view
from the0.documents import Resources
from the0.orchestrate import groups
from the0.orchestrate.data import BotFolders, Data
from the0.orchestrate.place import Place, View

_QUERIES_OF: Final = "queries~"
"""Begins the name of such a group; no bot's is called so, see `names.encode_id`."""
_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Places:
    """Of one platform; looks once what this machine gives."""

    def __init__(self, data: Data, *, environ: Mapping[str, str]) -> None:
        """`environ`: what bots may see of our own. OSError where the data folder cannot be written."""
        self._data = data
        self._environ = environ
        self._open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        # We watch each bot through a descriptor; bots get the limit that we found.
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._open_files[1], self._open_files[1]))
        self._groups = groups.find(groups_key(data))
        self.no_view = view.why_not(data.path)
        """Why bots get no view of their own; None: they do."""
        # Of a user's processes in a user namespace of its own; elsewhere it would count all that this user runs, and root is exempt.
        counted = self.no_view is None and os.geteuid() != 0
        self._processes = {"processes": (groups.PROCESSES, groups.PROCESSES)} if counted else {}
        self._private_tmp = not _in_tmp(environ.get("PATH", ""))

    def place(self, folders: BotFolders, environment: Mapping[str, str], *, groups: tuple[str, ...] = ()) -> Place:
        """For a process on these folders, which are made and, where they are no state, emptied. OSError."""
        folders.make()
        for path in (folders.temporary, folders.query, folders.run):
            _empty(path)
        paths, seen = self._view(folders) if self.no_view is None else self._bare(folders)
        return Place(
            environment={**self._environ, **paths, **environment},
            limits={"open_files": self._open_files, "core": (0, 0), **self._processes},
            groups=groups,
            view=seen,
        )

    def _view(self, folders: BotFolders) -> tuple[dict[str, str], View]:
        own = {
            "/bot": folders.code,
            "/state": folders.state,
            "/query": folders.query,
            "/var/the0": folders.run,
            "/var/the0/logs": folders.logs,
            ("/tmp" if self._private_tmp else view.TEMPORARY): folders.temporary,
        }
        paths = {
            names.OBJECT_STORE_DIR: view.STORE,
            names.CODE_PATH: "/bot",
            names.STATE_PATH: "/state",
            names.THE0_RUN_DIR: "/var/the0",
            names.LOGS_PATH: "/var/the0/logs",
            "TMPDIR": "/tmp" if self._private_tmp else view.TEMPORARY,
        }
        root = os.path.join(folders.path, "root")
        os.makedirs(root, mode=0o700, exist_ok=True)
        return paths, View(folders=own, store=self._data.objects, hidden=self._data.path, root=root)

    def _bare(self, folders: BotFolders) -> tuple[dict[str, str], None]:
        paths = {
            names.OBJECT_STORE_DIR: self._data.objects,
            names.THE0_DATA: self._data.path,
            names.CODE_PATH: folders.code,
            names.STATE_PATH: folders.state,
            names.THE0_RUN_DIR: folders.run,
            names.LOGS_PATH: folders.logs,
            "TMPDIR": folders.temporary,
        }
        return paths, None

    def close(self) -> None:
        """Leaves no control group behind in which no bot runs on."""
        groups.remove(self._groups.parents)

    def groups_for(self, name: str, limits: Resources) -> tuple[str, ...]:
        """The control groups of a bot, made; none where this machine gives none. OSError."""
        return self._groups.make(name, limits)

    def groups_for_queries(self, name: str, limits: Resources) -> tuple[str, ...]:
        """The same for a bot's queries of stored state, beside its own."""
        return self._groups.make(_QUERIES_OF + name, limits)

    def query_groups(self) -> list[str]:
        """Folders of all that `groups_for_queries` made and nobody removed."""
        return self._groups.made_with(_QUERIES_OF)


def groups_key(data: Data) -> str:
    """What keeps the control groups of this platform apart from those of others on this machine."""
    return hashlib.sha256(data.path.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _in_tmp(path: str) -> bool:
    """Whether what is needed to run bots lies in /tmp, which then stays as it is."""
    needed = [sys.prefix, sys.base_prefix, sys.executable, _PACKAGE, *path.split(os.pathsep)]
    return any(os.path.realpath(each).startswith("/tmp/") for each in needed if each)


def _empty(path: str) -> None:
    with files.folder(path) as fd:
        for name in os.listdir(fd):
            files.remove_tree(fd, name)
