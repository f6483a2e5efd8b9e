"""The slow rehash: reads files again, a share at a time, for what changed without a trace in their metadata.

Writes through mmap are like that. The first one to a page moves the file's time, further ones do not until the system has written the page
back, which it does within about half a minute. So a file is read again once it has rested for a minute, and at the end; and for systems
that never move the time (tmpfs), all files are read again, slowly, round after round.
"""

from __future__ import annotations

from the0 import statehash

RESTED_S = 60.0
ROUND_S = 3600.0
"""How long one reading of the whole tree takes, unless that exceeds the rate."""
RATE_BYTES_S = 4 << 20
"""A tree over 14 GiB takes longer."""
LEAST_BYTES_S = 64 << 10
FILE_BYTES = 4096
"""What a small file counts as."""
EVERY_S = 20.0
SHARE = 100
"""Takes at most 1/100 of the time."""
LAST_S = 5.0
"""For how long files are read at the end."""
_MOST_BYTES = 1 << 62


class Rehash:
    """Reads on whenever it is asked and due. Its position is lost with the process; the next one begins anew.

    `now_s` is of a monotonic clock, `clock_s` that of files.
    """

    def __init__(self, *, now_s: float, clock_s: float) -> None:
        self._recheck = statehash.Recheck()
        self._last_s = now_s
        # What changed in the last minutes of a predecessor may not have been read again.
        self._rested_ns = _ns(clock_s - 2 * RESTED_S)

    @property
    def rounds(self) -> int:
        return self._recheck.rounds

    def step(self, root_fd: int, index: statehash.Index, *, now_s: float, clock_s: float) -> list[bytes]:
        """Reads the share of the time since the last step. Returns paths that differ: they count as changed at the next whole scan."""
        # After a long time asleep no more than usual.
        passed_s = min(now_s - self._last_s, 3 * EVERY_S)
        if passed_s < EVERY_S:
            return []
        self._last_s = now_s
        self._prefer(index, _ns(clock_s - RESTED_S))
        rate = float(RATE_BYTES_S)
        if not self._recheck.preferred:
            rate = min(max((index.bytes + index.files * FILE_BYTES) / ROUND_S, LEAST_BYTES_S), rate)
        return self._recheck.step(root_fd, index, budget_bytes=int(rate * passed_s), budget_s=passed_s / SHARE)

    def finish(self, root_fd: int, index: statehash.Index, *, clock_s: float) -> list[bytes]:
        """Reads what changed lately and was not read again since; the bot has ended."""
        self._prefer(index, _ns(clock_s + 1.0))
        return self._recheck.step(root_fd, index, budget_bytes=_MOST_BYTES, budget_s=LAST_S, preferred_only=True)

    def _prefer(self, index: statehash.Index, upto_ns: int) -> None:
        if upto_ns > self._rested_ns:
            self._recheck.prefer(index, self._rested_ns, upto_ns)
            self._rested_ns = upto_ns


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
