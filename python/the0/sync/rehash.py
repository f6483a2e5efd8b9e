"""The slow rehash: reads the whole tree again, a share at a time, for what changed without a trace in its metadata.

Writes through mmap are like that: the first one to a page moves the file's time, further ones do not until the system wrote the page back.
"""

from __future__ import annotations

from the0 import statehash

ROUND_S = 3600.0
"""How long one reading of the whole tree takes, unless that exceeds the rate."""
RATE_BYTES_S = 4 << 20
"""A tree over 14 GiB takes longer."""
LEAST_BYTES_S = 64 << 10
FILE_BYTES = 4096
"""What a small file counts as."""
EVERY_S = 20.0
SHARE = 100
"""Takes at most 1/100 of a core."""


class Rehash:
    """Reads on whenever it is asked and due. Its position is lost with the process; the next one begins anew."""

    def __init__(self, now_s: float) -> None:
        self._recheck = statehash.Recheck()
        self._last_s = now_s

    @property
    def rounds(self) -> int:
        return self._recheck.rounds

    def step(self, root_fd: int, index: statehash.Index, *, now_s: float) -> list[bytes]:
        """Reads the share of the time since the last step. Returns paths that differ: they count as changed at the next whole scan."""
        passed_s = now_s - self._last_s
        if passed_s < EVERY_S:
            return []
        self._last_s = now_s
        whole_bytes = index.bytes + index.files * FILE_BYTES
        rate = min(max(whole_bytes / ROUND_S, LEAST_BYTES_S), RATE_BYTES_S)
        # After a long time asleep no more than usual.
        passed_s = min(passed_s, 3 * EVERY_S)
        return self._recheck.step(root_fd, index, budget_bytes=int(rate * passed_s), budget_s=passed_s / SHARE)
