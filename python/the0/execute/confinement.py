"""What a bot's processes must not reach although they run under our uid, as far as this machine lets us keep them from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from the0 import landlock, names, view
from the0.settings import Paths


def confinement(environ: Mapping[str, str], paths: Paths) -> Callable[[], None] | None:
    """To be called in each process of the bot's, last before its program. None: nothing more than its container does is to be
    done (THE0_DATA names the data folder of a platform on this machine), or nothing can be."""
    if view.is_private():
        return view.confine
    data = environ.get(names.THE0_DATA)
    if not data or not landlock.available():
        return None
    own = [paths.code, paths.state, paths.run, environ.get("TMPDIR", paths.run)]
    return lambda: landlock.forbid_writes(data, but=own)
