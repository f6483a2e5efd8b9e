"""Which bots have a schedule, and which slot of each comes next: the scheduler's own memory, without store or engine."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from the0.documents import BadBot, Bot
from the0.errors import Permanent, clip
from the0.orchestrate.engine import Exit
from the0.orchestrate.run_keeper import Turn
from the0.orchestrate.schedule import Schedule, parse
from the0.orchestrate.slots import Due, due, first_cursor

Phase = Literal["turn", "starting", "running"]
"""Of a run: it waits for its place, is being started, or runs."""


@dataclass(slots=True)
class Current:
    """A run from the decision to run it until its end is recorded."""

    turn: Turn | None
    """None: it was found running."""
    slot: str | None
    phase: Phase
    since_s: float
    name: str = ""
    stop_s: float | None = None
    killed: bool = False
    gone_s: float | None = None
    """Since when the engine does not know it."""


@dataclass(slots=True)
class Entry:
    """What is known of one bot."""

    bot: Bot | BadBot | None = None
    """None: it runs, but is not stored."""
    schedule: Schedule | None = None
    """None: nothing is due; it is bad, disabled or paused."""
    reason: str | None = None
    """Why there is no schedule, where that is an error."""
    cursor: int = 0
    version: int = 0
    """Of what the heap holds of it."""
    undecided: set[int] = field(default_factory=set)
    """Slots that had their time, but have no record yet: whoever comes after a crash begins with the first of them."""
    current: Current | None = None
    queued: Turn | None = None
    last_exit: Exit | None = None
    last_manual_s: int = 0
    folded_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a person sees of a scheduled bot; moments are Unix seconds."""

    next_s: int | None
    error: str | None
    phase: Phase | None
    slot: str | None
    since_s: float | None
    queued: str | None


@dataclass(frozen=True, slots=True)
class News:
    """What a look at the stored bots found."""

    bad: Mapping[str, str]
    """Sentences, by bot: schedules that cannot be used."""
    resumed: tuple[str, ...]
    """Bots that a former scheduler had run."""


class Timetable:
    """Not for several threads at once."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.live: Mapping[str, str | None] = {}
        """Bots of which something runs, as the engine said last, and its slot."""
        self._bots: Mapping[str, Bot | BadBot] = {}
        """As of the last look. A bot of which nothing changed is the same object."""
        self._slots: list[tuple[int, int, str, int]] = []
        """Heap: slot, order, bot, version of its entry."""
        self._order = count()
        self._nexts: dict[str, int] = {}

    def entry(self, bot_id: str) -> Entry:
        """Of a bot that runs, stored or not."""
        return self.entries.setdefault(bot_id, Entry())

    def told(self, bot_id: str) -> Told | None:
        entry = self.entries.get(bot_id)
        if entry is None:
            return None
        current = entry.current
        return Told(
            next_s=entry.cursor if entry.schedule is not None else None,
            error=entry.bot.reason if isinstance(entry.bot, BadBot) else entry.reason,
            phase=current.phase if current is not None else None,
            slot=current.slot if current is not None else None,
            since_s=current.since_s if current is not None else None,
            queued=entry.queued.slot if entry.queued is not None else None,
        )

    # --- bots -------------------------------------------------------------------------------------

    def refresh(self, bots: Mapping[str, Bot | BadBot], *, now_s: float) -> News:
        """These are the stored bots now."""
        before, self._bots = self._bots, bots
        for bot_id in before.keys() - bots.keys():
            self._drop(bot_id)
        bad: dict[str, str] = {}
        resumed: list[str] = []
        for bot_id, bot in bots.items():
            if before.get(bot_id) is bot:
                continue
            if bot.kind != "scheduled":
                self._drop(bot_id)
                continue
            known = self.entries.get(bot_id)
            new = known is None or known.bot is None
            try:
                changed = self._read(bot_id, bot, new=new, now_s=now_s)
            except Permanent as fault:
                bad[bot_id] = fault.sentence
                continue
            if changed and new and isinstance(bot, Bot) and bot.next_s is not None:
                resumed.append(bot_id)
        return News(bad, tuple(resumed))

    def _drop(self, bot_id: str) -> None:
        entry = self.entries.get(bot_id)
        if entry is not None:
            _unschedule(entry)
            entry.bot = None
            self.forget_idle(bot_id)

    def _read(self, bot_id: str, bot: Bot | BadBot, *, new: bool, now_s: float) -> bool:
        """Whether it has another schedule than before, or has one again. Permanent where it cannot be used."""
        entry = self.entry(bot_id)
        former, entry.bot = entry.bot, bot
        if isinstance(bot, BadBot) or not bot.enabled or bot.paused or bot.schedule is None:
            entry.reason = None
            _unschedule(entry)
            return False
        if isinstance(former, Bot) and _timing(former) == _timing(bot):
            return False
        try:
            entry.schedule = parse(bot.schedule, timezone=bot.policies.timezone)
            # Slots that went by while it was disabled, or under another schedule, were nobody's.
            cursor = first_cursor(entry.schedule, stored_s=bot.next_s if new else None, now_s=now_s)
        except Permanent as fault:
            _unschedule(entry)
            entry.reason = fault.sentence
            raise
        entry.reason = None
        self._wait_for(bot_id, entry, cursor)
        return True

    def forget_idle(self, bot_id: str) -> None:
        entry = self.entries.get(bot_id)
        if entry is not None and entry.bot is None and entry.current is None:
            del self.entries[bot_id]

    # --- slots ------------------------------------------------------------------------------------

    def first_s(self) -> int | None:
        """The next slot of all."""
        while self._slots:
            slot, _, bot_id, version = self._slots[0]
            entry = self.entries.get(bot_id)
            if entry is not None and entry.version == version:
                return slot
            heapq.heappop(self._slots)
        return None

    def pass_slots(self, *, now_s: float) -> Iterator[tuple[Bot, Entry, Schedule, Due]]:
        """What is due, in the order of slots; each is given once."""
        while (slot := self.first_s()) is not None and slot <= now_s:
            bot_id = heapq.heappop(self._slots)[2]
            entry = self.entries[bot_id]
            bot, schedule = entry.bot, entry.schedule
            assert isinstance(bot, Bot)
            assert schedule is not None, "whose version is current has a schedule"
            try:
                found = due(schedule, bot.policies, cursor=entry.cursor, now_s=now_s)
            except (ValueError, OverflowError) as reason:  # the calendar ends with the year 9999
                _unschedule(entry)
                entry.reason = f"The schedule {clip(schedule.expression)!r} has no next slot: {clip(str(reason))}."
                continue
            if found.missed is not None:
                entry.undecided.add(found.missed.first)
            if found.run is not None:
                entry.undecided.add(found.run)
            self._wait_for(bot_id, entry, found.next)
            yield bot, entry, schedule, found

    def decided(self, bot_id: str, slot: int) -> None:
        """The store knows what became of the slot (of the stretch of slots that begins with it)."""
        entry = self.entries.get(bot_id)
        if entry is not None and slot in entry.undecided:
            entry.undecided.discard(slot)
            self._nexts[bot_id] = min([entry.cursor, *entry.undecided])

    def set_back(self, *, now_s: float) -> None:
        """The clock was: what comes next is decided anew; slots that have a record stay as they are."""
        for bot_id, entry in self.entries.items():
            if entry.schedule is not None:
                self._wait_for(bot_id, entry, entry.schedule.next(now_s))

    def _wait_for(self, bot_id: str, entry: Entry, cursor: int) -> None:
        entry.cursor = cursor
        entry.version += 1
        heapq.heappush(self._slots, (cursor, next(self._order), bot_id, entry.version))
        self._nexts[bot_id] = min([cursor, *entry.undecided])

    # --- next_execution_time ----------------------------------------------------------------------

    def take_nexts(self) -> dict[str, int]:
        """What changed since the last time, by bot: the first slot without a record."""
        taken, self._nexts = self._nexts, {}
        return taken

    def give_back(self, nexts: Mapping[str, int]) -> None:
        """They could not be stored."""
        self._nexts = {**nexts, **self._nexts}


def _unschedule(entry: Entry) -> None:
    entry.schedule = None
    entry.version += 1


def _timing(bot: Bot) -> tuple[object, ...]:
    return bot.schedule, bot.policies.timezone, bot.enabled, bot.paused
