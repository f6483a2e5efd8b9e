"""What a bot's processes must not reach although they run under our uid, as far as this machine lets us keep them from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from the0 import landlock, names, view
from the0.settings import Paths


def confinement(environ: Mapping[str, str], paths: Paths) -> Callable[[], None]:
    """To be called in each process of the bot's, last before its program. What a container does not do (THE0_DATA names the data folder
    of a platform on this machine), and in every case: nothing of the bot's looks into other processes of its user."""
    if view.is_private():
        files: Callable[[], None] = view.confine
    else:
        data = environ.get(names.THE0_DATA)
        if not data or not landlock.available():
            files = _nothing
        else:
            own = [paths.code, paths.state, paths.run, environ.get("TMPDIR", paths.run)]
            files = partial(landlock.forbid_writes, data, but=own)

    def confine() -> None:
        files()
        landlock.look_into_nobody()

    return confine


def _nothing() -> None:
    """The container did it."""
