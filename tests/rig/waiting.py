"""Waiting for what is going to happen, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

SOON_S = 20.0


def eventually(look: Callable[[], Any], what: str, *, within_s: float = SOON_S) -> Any:
    """What `look` returns as soon as it is truthy."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not happen within {within_s:g} s; last seen: {found!r}"
        time.sleep(0.005)
    return found
