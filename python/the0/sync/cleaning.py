"""Which segments the next commit carries forward, so that HEAD's list, the storage and a restore stay small. Pure.

Two reasons to clean: HEAD would list too many segments, or too much of what is stored no longer counts. What is chosen is stored
anew (up to `carry_bytes` a commit) and dropped from the list.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from the0.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Held:
    """A listed segment: its bytes in the store, and the share of them that still counts."""

    key: str
    stored_bytes: int
    live_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """`listed` segments, and one more for each `per_bytes` of live data, are what HEAD lists at most. `carry_bytes` is what one commit
    carries at most. Segments that are less than half live are cleaned once they hold more than `slack_bytes` of dead ones."""

    listed: int = 64
    per_bytes: int = 32 << 20
    carry_bytes: int = 32 << 20
    slack_bytes: int = 1 << 20


def choose(segments: Sequence[Held], *, bounds: Bounds, spared: Collection[str] = ()) -> tuple[str, ...]:
    """Keys of the segments to carry, given all that HEAD lists; none where the next commit need not clean. `spared` are those that could
    not be carried a short while ago."""
    live = sum(held.live_bytes for held in segments)
    open_to = [held for held in segments if held.key not in spared]
    room = bounds.carry_bytes
    chosen: dict[str, Held] = {}
    hollow = [held for held in open_to if 2 * held.live_bytes < held.stored_bytes]
    # A file that is written again and again leaves one dead segment a commit: not worth a cleaning each.
    if sum(map(_dead, hollow)) > max(bounds.slack_bytes, live // 16):
        for held in sorted(hollow, key=_dead, reverse=True):
            if held.live_bytes <= room:
                chosen[held.key] = held
                room -= held.live_bytes
    limit = bounds.listed + live // bounds.per_bytes
    if len(segments) - len(chosen) >= limit:
        # Down to three quarters, and from there on whatever is no larger than what is carried already: so each byte is carried
        # a few times in all, each time into a segment that is about twice as large.
        excess = len(segments) - limit * 3 // 4
        carried = sum(held.live_bytes for held in chosen.values())
        for held in sorted(open_to, key=lambda held: held.live_bytes):
            if held.key in chosen:
                continue
            if held.live_bytes > room or (len(chosen) >= excess and held.live_bytes > carried):
                break
            chosen[held.key] = held
            room -= held.live_bytes
            carried += held.live_bytes
    return tuple(held.key for held in segments if held.key in chosen)


def _dead(held: Held) -> int:
    return held.stored_bytes - held.live_bytes
