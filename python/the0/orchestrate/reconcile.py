"""Which realtime bots to start and stop: what is wanted and what there is in, actions out. Pure: no clock, no I/O.

One bot is decided at a time, so that none can harm another; only absence is judged over all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from the0.documents import BadBot, Bot
from the0.errors import EXIT_CODES, ExitCode, clip
from the0.orchestrate import backoff
from the0.orchestrate.actions import Action, KillInstance, RemoveInstance, StartBot, StopInstance
from the0.orchestrate.engine import Exit, Instance

KILL_AFTER_S: Final = 60.0
"""What the final sync may take after the grace period, before the instance is killed."""
CLOCK_S: Final = 5.0
"""By how much a record may be ahead of the clock before the clock is taken to have been set back."""
MISSING_SHARE: Final = 0.3

HELD: Final = frozenset(each.code for each in EXIT_CODES if not each.restart) - {
    ExitCode.STOPPED_EARLY,  # somebody else's signal came before the bot had started
    ExitCode.RUNNING_HERE,  # passes when that one ends, and the lock keeps them apart until then
}
"""Codes of ours after which a person has to look first."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A start that failed before there was an instance."""

    config_hash: str
    failures: int
    at_s: float
    sentence: str
    held: bool
    """Trying again by itself cannot help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """All stored bots, both kinds, by id."""

    bots: Mapping[str, Bot | BadBot]
    removed: frozenset[str] = frozenset()
    """Ids whose removal was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What no engine keeps. Losing it costs a backoff or a person's request, never a second copy."""

    asked_s: Mapping[str, float] = field(default_factory=dict)
    """When somebody asked for a bot's restart, Unix seconds. Served once an instance started later."""
    failed: Mapping[str, Failed] = field(default_factory=dict)
    confirmed: frozenset[str] = frozenset()
    """Missing bots of which a person said that they are gone."""
    busy: frozenset[str] = frozenset()
    """Bots of which an action is being carried out: nothing is decided about them until it is done."""


Status = Literal["running", "starting", "stopping", "waiting", "stopped", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """About one bot."""

    status: Status
    reason: str
    since_s: float | None
    due_s: float | None = None
    """When there will be something to decide without anything having happened."""
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    actions: tuple[Action, ...]
    due_s: float | None
    """When to look again at the latest."""
    missing: frozenset[str]
    """Running bots that are missing from the store without a removal seen, and so many that they are left alone."""


def reconcile(desired: Desired, actual: Sequence[Instance], *, now_s: float, memory: Memory, grace_s: float) -> Plan:
    """One pass over all bots. `grace_s` is what a bot may take to stop."""
    instances = by_bot(actual)
    missing = missing_bots(desired, actual, confirmed=memory.confirmed)
    actions: list[Action] = []
    due_s: float | None = None
    for bot_id, bot in _concerned(desired, instances):
        if bot_id in memory.busy or bot_id in missing:
            continue
        decision = decide(
            bot_id, bot, instances.get(bot_id, ()), desired=desired, memory=memory, now_s=now_s, grace_s=grace_s
        )
        actions += decision.actions
        if decision.due_s is not None and (due_s is None or decision.due_s < due_s):
            due_s = decision.due_s
    return Plan(actions=tuple(actions), due_s=due_s, missing=missing)


def by_bot(actual: Sequence[Instance]) -> Mapping[str, Sequence[Instance]]:
    """Queries left out: they are of no concern here."""
    found: dict[str, list[Instance]] = defaultdict(list)
    for instance in actual:
        if instance.kind != "query":
            found[instance.bot_id].append(instance)
    return found


def _concerned(
    desired: Desired, instances: Mapping[str, Sequence[Instance]]
) -> Iterator[tuple[str, Bot | BadBot | None]]:
    for bot_id, bot in desired.bots.items():
        if bot_id in instances or (bot.enabled and bot.kind == "realtime" and isinstance(bot, Bot)):
            yield bot_id, bot
    for bot_id in instances:
        if bot_id not in desired.bots:
            yield bot_id, None


def missing_bots(desired: Desired, actual: Sequence[Instance], *, confirmed: frozenset[str]) -> frozenset[str]:
    """Absence is not deletion: running bots that are in no list and whose removal nobody saw, if they are more than
    max(1, 30 %) of those that run, or all; else none."""
    running = {each.bot_id for each in actual if each.kind != "query" and each.state != "ended"}
    missing = frozenset(running - desired.bots.keys() - desired.removed - confirmed)
    if len(missing) > max(1.0, MISSING_SHARE * len(running)) or (missing and len(missing) == len(running)):
        return missing
    return frozenset()


LEFT_RUNNING: Final = "it is missing from the store, and left running until it is stored again or removed"


def missing_sentence(missing: frozenset[str]) -> str:
    shown = ", ".join(clip(bot_id, limit=40) for bot_id in sorted(missing)[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return (
        f"{len(missing)} running bots are missing from the store and nobody was seen removing them ({shown}{more}): they are "
        "left running until you bring them back, or confirm that they are gone."
    )


def decide(
    bot_id: str,
    bot: Bot | BadBot | None,
    instances: Sequence[Instance],
    *,
    desired: Desired,
    memory: Memory,
    now_s: float,
    grace_s: float,
) -> Decision:
    """About one bot; `bot` None: it is stored no more."""
    live = [each for each in instances if each.state != "ended"]
    if live:
        return _decide_live(bot, live, asked_s=memory.asked_s.get(bot_id), now_s=now_s, grace_s=grace_s)
    ended = max(instances, key=lambda each: (each.started_s, _ended_s(each) or 0.0, each.name), default=None)
    if bot is None:
        removed = bot_id in desired.removed or bot_id in memory.confirmed
        return Decision(
            status="stopped",
            reason="it was removed",
            since_s=_ended_s(ended),
            actions=tuple(_forget(each, discard=removed) for each in instances if each.kind == "realtime"),
        )
    if isinstance(bot, BadBot):
        return Decision(status="error", reason=bot.reason, since_s=_ended_s(ended))
    if not bot.enabled or bot.kind != "realtime":
        return Decision(status="stopped", reason="", since_s=_ended_s(ended))
    return _decide_start(bot, ended, memory=memory, now_s=now_s)


def _forget(ended: Instance, *, discard: bool) -> RemoveInstance:
    stored = ended.exit is not None and (ended.exit.by == "bot" or ended.exit.code == ExitCode.STOPPED_EARLY)
    return RemoveInstance(ended.name, ended.bot_id, discard=discard and stored)


def _ended_s(ended: Instance | None) -> float | None:
    return ended.exit.at_s if ended is not None and ended.exit is not None else None


# --- something of it runs: stop what must not, start nothing ------------------------------------------


def _decide_live(
    bot: Bot | BadBot | None, live: Sequence[Instance], *, asked_s: float | None, now_s: float, grace_s: float
) -> Decision:
    actions: list[Action] = []
    due_s: float | None = None
    kept: Instance | None = None
    for each in sorted(live, key=lambda each: (each.started_s, each.name)):
        if each.stop_asked_s is not None or each.state == "stopping":
            asked = each.stop_asked_s if each.stop_asked_s is not None else each.started_s
            kill_s = asked + grace_s + KILL_AFTER_S
            if each.stop_asked_s is not None and now_s >= kill_s:
                actions.append(KillInstance(each.name, each.bot_id, each.stop_asked_s))
                kill_s = now_s + KILL_AFTER_S
            due_s = kill_s if due_s is None else min(due_s, kill_s)
            continue
        reason = _why_stop(bot, each, asked_s=asked_s)
        if reason is None and kept is not None:
            reason = "another copy of it runs"
        if reason is None:
            kept = each
        else:
            actions.append(StopInstance(each.name, each.bot_id, reason))
    if kept is None:
        stopping = live[0]
        return Decision(
            status="stopping",
            reason=stopping.stop_reason
            or (actions[0].reason if actions and isinstance(actions[0], StopInstance) else ""),
            since_s=stopping.stop_asked_s,
            due_s=due_s,
            actions=tuple(actions),
        )
    # Who was restarted as somebody wanted it runs for no reason worth telling.
    unasked = kept.previous if kept.failures > 0 else None
    reason = bot.reason if isinstance(bot, BadBot) else _exit_sentence(unasked) if unasked is not None else ""
    return Decision(
        status="error" if isinstance(bot, BadBot) else "starting" if kept.state == "starting" else "running",
        reason=reason,
        since_s=kept.started_s,
        due_s=due_s,
        actions=tuple(actions),
    )


def _why_stop(bot: Bot | BadBot | None, instance: Instance, *, asked_s: float | None) -> str | None:
    if bot is None:
        return "it was removed"
    if not bot.enabled:
        return "it was stopped"
    if bot.kind != instance.kind:
        return f"it became a {bot.kind} bot"
    if isinstance(bot, BadBot) or bot.kind == "scheduled":
        return None  # what runs goes on; a run's own end is the scheduler's
    if bot.config_hash != instance.config_hash:
        return "its configuration or code changed"
    if asked_s is not None and instance.started_s < asked_s:
        return "a restart was asked for"
    return None


# --- nothing of it runs: start it, now or later -------------------------------------------------------


def _decide_start(bot: Bot, ended: Instance | None, *, memory: Memory, now_s: float) -> Decision:
    asked_s = memory.asked_s.get(bot.id)
    failed = memory.failed.get(bot.id)
    if failed is not None and failed.config_hash == bot.config_hash and not (asked_s and asked_s > failed.at_s):
        if failed.held:
            return Decision(status="error", reason=failed.sentence, since_s=failed.at_s)
        due_s = _due_s(failed.at_s, failed.failures - 1, now_s=now_s)
        if now_s < due_s:
            return Decision(status="waiting", reason=failed.sentence, since_s=failed.at_s, due_s=due_s)
    if ended is None or ended.exit is None or ended.config_hash != bot.config_hash or ended.kind != "realtime":
        return _start(bot, restart=0, failures=0, previous=ended.exit if ended is not None else None, now_s=now_s)
    last = ended.exit
    if ended.stop_asked_s is not None or (asked_s is not None and asked_s > ended.started_s):
        return _start(bot, restart=ended.restart + 1, failures=0, previous=last, now_s=now_s)
    if last.by == "runtime" and last.code in HELD:
        return Decision(status="error", reason=_exit_sentence(last), since_s=last.at_s)
    failures = backoff.failures_before(ended.failures, lived_s=last.at_s - ended.started_s)
    due_s = _due_s(last.at_s, failures, now_s=now_s)
    if now_s < due_s:
        return Decision(status="waiting", reason=_exit_sentence(last), since_s=last.at_s, due_s=due_s)
    return _start(bot, restart=ended.restart + 1, failures=failures + 1, previous=last, now_s=now_s)


def _start(bot: Bot, *, restart: int, failures: int, previous: Exit | None, now_s: float) -> Decision:
    return Decision(status="starting", reason="", since_s=now_s, actions=(StartBot(bot, restart, failures, previous),))


def _due_s(ended_s: float, failures: int, *, now_s: float) -> float:
    if ended_s > now_s + CLOCK_S:
        return now_s  # the clock was set back: nobody knows how long ago that was
    return ended_s + backoff.wait_s(max(failures, 0))


def _exit_sentence(last: Exit) -> str:
    return clip(last.reason, limit=500)
