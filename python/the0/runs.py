"""The record of a scheduled run, `bot-state/<id>/runs/<slot>.json`, and the claim that it is.

Whoever creates a slot's record holds the slot; nobody runs it twice, and nothing reruns it. All changes are conditional
on the version that was read. Records stay for 30 days, then they fold into one file a month; older slots can't be claimed.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

from the0 import names, statehash
from the0.errors import ExitCode, Fatal, Permanent, clip
from the0.objects.store import Missing, ObjectStore, PreconditionFailed, Unavailable

Result = Literal["ok", "failed", "stopped", "timed out", "lost", "missed", "skipped"]

FORMAT: Final = 1
LIMIT_BYTES: Final = 64 * 1024
MONTH_LIMIT_BYTES: Final = 256 * 1024 * 1024
KEPT_S: Final = 30 * 86400
_FOLD_LATER_S: Final = 86400
"""Clocks differ: a record stays for a day longer than its slot can be claimed."""
_SLOT: Final = "%Y%m%dT%H%M%SZ"
MANUAL: Final = "-manual"
"""Ends the slot of a run that a person asked for."""
_MOMENTS: Final = ("claimed_s", "start_s", "end_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, or slots that were not run. Moments are Unix seconds."""

    bot_id: str
    slot: str
    """`YYYYMMDDTHHMMSSZ`; with `-manual` where a person asked for it."""
    holder: str
    """Who claimed it: the scheduler, not the bot."""
    claimed_s: float
    token_digest: str | None = None
    """Of THE0_RUN_TOKEN, which is never stored."""
    waiting: bool = False
    """Claimed, but queued behind another run of the bot."""
    start_s: float | None = None
    end_s: float | None = None
    result: Result | None = None
    """None: it has not ended, as far as the record knows."""
    code: int | None = None
    by: Literal["bot", "runtime"] | None = None
    reason: str = ""
    generation_before: int | None = None
    generation_after: int | None = None
    behind: str | None = None
    """Of a skipped one: the slot of the run that was under way."""
    count: int = 1
    """Of a missed one: how many slots, from this one on."""
    last: str | None = None
    """Of several missed ones: the last."""
    etag: str = ""
    """Of the record as it was read or written; not part of it."""

    @property
    def due_s(self) -> int:
        return slot_s(self.slot)

    @property
    def manual(self) -> bool:
        return self.slot.endswith(MANUAL)

    @property
    def is_open(self) -> bool:
        return self.result is None

    @property
    def log_range_s(self) -> tuple[float, float] | None:
        """When the lines of this run were printed; up to now while it runs."""
        if self.start_s is None:
            return None
        return self.start_s, self.end_s if self.end_s is not None else time.time()

    def document(self) -> dict[str, Any]:
        """As it is stored, and as `--json` shows it."""
        told: dict[str, Any] = {"format": FORMAT}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _MOMENTS:
                told[field.name[:-2]] = None if value is None else rfc3339(value)
            elif field.name != "etag":
                told[field.name] = value
        if self.start_s is not None and self.end_s is not None:
            told["log"] = {"from": rfc3339(self.start_s), "to": rfc3339(self.end_s)}
        return told

    def encode(self) -> bytes:
        return json.dumps(self.document(), separators=(",", ":")).encode() + b"\n"


class Changed(Exception):
    """Somebody else changed the record; `run` is what it is now, None where it is gone."""

    def __init__(self, run: Run | None) -> None:
        super().__init__("the run's record was changed by somebody else")
        self.run = run


class Runs:
    """The records of all bots in one store. Every method may be called from any thread, and raises the store's Faults."""

    def __init__(self, store: ObjectStore, *, bucket: str) -> None:
        self._store = store
        self._bucket = bucket

    def claim(
        self,
        bot_id: str,
        slot: str,
        *,
        holder: str,
        token: str,
        now_s: float,
        waiting: bool = False,
        generation_before: int | None = None,
    ) -> Run | None:
        """The slot is the caller's; None: it is somebody's already, or its time is over 30 days ago. Repeating a claim whose
        answer was lost, with the same token, is safe."""
        if slot_s(slot) < now_s - KEPT_S:
            return None
        run = Run(
            bot_id=bot_id,
            slot=slot,
            holder=holder,
            claimed_s=now_s,
            token_digest=_digest(token),
            waiting=waiting,
            generation_before=generation_before,
        )
        return self._create(run)

    def note(self, run: Run) -> Run | None:
        """Records slots that nobody ran (`result` is set); None where the slot has a record already."""
        return self._create(run)

    def read(self, bot_id: str, slot: str) -> Run | None:
        """Permanent (STATE_DAMAGED) where the record makes no sense."""
        try:
            found = self._store.get(self._bucket, names.run_key(bot_id, slot), limit_bytes=LIMIT_BYTES)
        except Missing:
            return None
        return replace(decode(found.data, bot_id=bot_id, slot=slot), etag=found.info.etag)

    def change(self, run: Run, **changes: Any) -> Run:
        """The record with these fields changed, if it is still as `run` has it. Raises Changed."""
        wanted = replace(run, **changes)
        try:
            etag = self._store.put_if(self._bucket, names.run_key(run.bot_id, run.slot), wanted.encode(), etag=run.etag)
        except (PreconditionFailed, Unavailable) as doubt:
            # A repeated or timed-out PUT may have been applied: the record itself tells.
            now = self.read(run.bot_id, run.slot)
            if now is not None and now.encode() == wanted.encode():
                return now
            if isinstance(doubt, Unavailable):
                raise
            raise Changed(now) from doubt
        return replace(wanted, etag=etag)

    def taken(self, bot_id: str, first_s: int, last_s: int) -> set[int]:
        """Which moments of this range, both ends included, are slots with a record of their own. Manual runs do not count."""
        found = set()
        for slot in self._slots(bot_id, since_s=first_s):
            if slot_s(slot) > last_s:
                break
            if not slot.endswith(MANUAL):
                found.add(slot_s(slot))
        return found

    def newest(self, bot_id: str, *, limit: int = 50, now_s: float | None = None) -> list[Run]:
        """Newest first, folded ones included. A record that cannot be read is shown as lost, with the reason."""
        found = {run.slot: run for run in self.each_newest(bot_id, limit=limit, now_s=now_s)}
        if len(found) < limit:
            for month in reversed(self._months(bot_id)):
                found = {**{run.slot: run for run in self._folded(bot_id, month)}, **found}
                if len(found) >= limit:
                    break
        return [found[slot] for slot in sorted(found, reverse=True)[:limit]]

    def each_newest(self, bot_id: str, *, limit: int, now_s: float | None = None) -> Iterator[Run]:
        """The same one after the other, each read when it is asked for; without folded ones."""
        now_s = time.time() if now_s is None else now_s
        slots: list[str] = []
        for window_s in (86400.0, 7 * 86400.0, now_s):
            slots = list(self._slots(bot_id, since_s=int(now_s - window_s)))
            if len(slots) >= limit:
                break
        for slot in reversed(slots[-limit:]):
            run = self._readable(bot_id, slot)
            if run is not None:
                yield run

    def fold(self, bot_id: str, *, now_s: float) -> int:
        """Moves old records into their month's file; returns how many. Interrupted, it is repeated: readers count a slot once."""
        before_s = now_s - KEPT_S - _FOLD_LATER_S
        by_month: dict[str, list[str]] = {}
        for slot in self._slots(bot_id, since_s=0):
            if slot_s(slot) >= before_s:
                break
            by_month.setdefault(slot[:6], []).append(slot)
        for month, slots in by_month.items():
            runs = [self._ended(run) for slot in slots if (run := self._readable(bot_id, slot)) is not None]
            if self._add_to_month(bot_id, month, b"".join(run.encode() for run in runs)):
                for slot in slots:
                    self._store.delete(self._bucket, names.run_key(bot_id, slot))
        return sum(map(len, by_month.values()))

    def _create(self, run: Run) -> Run | None:
        try:
            etag = self._store.put_if(self._bucket, names.run_key(run.bot_id, run.slot), run.encode(), etag=None)
        except (PreconditionFailed, Unavailable) as doubt:
            now = self.read(run.bot_id, run.slot)
            if now is not None and (now.encode() == run.encode() or _same_claim(now, run)):
                return now
            if isinstance(doubt, Unavailable):
                raise
            return None
        return replace(run, etag=etag)

    def _slots(self, bot_id: str, *, since_s: int) -> Iterator[str]:
        prefix = names.runs_prefix(bot_id)
        for info in self._store.list(self._bucket, prefix, after=f"{prefix}{slot_name(max(0, since_s))}"):
            slot = info.key.removeprefix(prefix).removesuffix(".json")
            if info.key.endswith(".json") and is_slot(slot):
                yield slot

    def _months(self, bot_id: str) -> list[str]:
        prefix = names.runs_prefix(bot_id)
        found = (info.key.removeprefix(prefix) for info in self._store.list(self._bucket, prefix))
        return [name.removesuffix(".ndjson") for name in found if name.endswith(".ndjson")]

    def _folded(self, bot_id: str, month: str) -> Iterator[Run]:
        key = names.runs_month_key(bot_id, month)
        for line in self._store.get(self._bucket, key, limit_bytes=MONTH_LIMIT_BYTES).data.splitlines():
            try:
                yield decode(line, bot_id=bot_id, slot=None)
            except Permanent:
                continue  # a line of a newer version, or cut: the others count

    def _readable(self, bot_id: str, slot: str) -> Run | None:
        try:
            return self.read(bot_id, slot)
        except Permanent as reason:
            return Run(
                bot_id=bot_id, slot=slot, holder="", claimed_s=slot_s(slot), result="lost", reason=reason.sentence
            )

    def _ended(self, run: Run) -> Run:
        """Nothing is open after 30 days."""
        return run if not run.is_open else replace(run, result="lost", reason="No end of it was ever recorded.")

    def _add_to_month(self, bot_id: str, month: str, lines: bytes) -> bool:
        key = names.runs_month_key(bot_id, month)
        info = self._store.head(self._bucket, key)
        try:
            if info is None:
                self._store.put_if(self._bucket, key, lines, etag=None)
            else:
                self._store.append(self._bucket, key, lines, etag=info.etag, metadata={})
        except PreconditionFailed:
            return (
                False  # another one folds just now, or our own attempt went through unheard: the next fold looks again
            )
        return True


def check(store: ObjectStore, *, bucket: str, bot_id: str, slot: str, token: str | None) -> None:
    """That this token holds the slot, and that its run has not ended. Fatal (SLOT_TAKEN) otherwise."""
    run = Runs(store, bucket=bucket).read(bot_id, slot)
    shown = f"Run {clip(slot)} of bot {clip(bot_id)}"
    if run is None:
        raise _taken(f"{shown} was never claimed, or long ago: leave starting it to the scheduler.")
    if not (token and run.token_digest and hmac.compare_digest(_digest(token), run.token_digest)):
        raise _taken(
            f"{shown} belongs to {clip(run.holder) or 'nobody'}, not to whoever started this: it is not run twice."
        )
    if not run.is_open:
        raise _taken(f"{shown} is recorded as {run.result} already: it is not run again.")


def slot_name(moment_s: int, *, manual: bool = False) -> str:
    return datetime.fromtimestamp(moment_s, UTC).strftime(_SLOT) + (MANUAL if manual else "")


def slot_s(slot: str) -> int:
    """Unix seconds. ValueError where this is no slot."""
    return int(datetime.strptime(slot.removesuffix(MANUAL), _SLOT).replace(tzinfo=UTC).timestamp())


def is_slot(text: str) -> bool:
    try:
        slot_s(text)
    except ValueError:
        return False
    return True


def rfc3339(moment_s: float) -> str:
    """UTC with milliseconds."""
    moment = datetime(1970, 1, 1) + timedelta(milliseconds=round(moment_s * 1000))
    return f"{moment.isoformat(timespec='milliseconds')}Z"


def decode(data: bytes, *, bot_id: str, slot: str | None) -> Run:
    """Permanent (STATE_DAMAGED) for what is no record of this bot (and slot)."""
    where = f"The record of run {clip(slot or '?')} of bot {clip(bot_id)}"
    try:
        told = json.loads(data)
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            version = told.get("format") if isinstance(told, dict) else None
            raise ValueError(f"its format is {version!r}, not {FORMAT}")
        run = _run(told)
        if run.bot_id != bot_id or slot not in (None, run.slot) or not is_slot(run.slot):
            raise ValueError("it names another bot or slot")
    except (ValueError, TypeError, KeyError, RecursionError) as reason:
        raise Permanent(
            f"{where} cannot be read ({clip(str(reason))}): update this program, or delete that object.",
            code=ExitCode.STATE_DAMAGED,
        ) from reason
    return run


def _run(told: Mapping[str, Any]) -> Run:
    values: dict[str, Any] = {}
    for field in fields(Run):
        if field.name in _MOMENTS:
            text = told.get(field.name[:-2])
            values[field.name] = None if text is None else datetime.fromisoformat(text).timestamp()
        elif field.name in told and field.name != "etag":
            values[field.name] = told[field.name]
    if values["claimed_s"] is None or values.get("result") not in (None, *get_args(Result)):
        raise ValueError("it has no time of its claim, or an unknown result")
    return Run(**values)


def _same_claim(now: Run, wanted: Run) -> bool:
    return now.is_open and wanted.token_digest is not None and now.token_digest == wanted.token_digest


def _digest(token: str) -> str:
    return statehash.digest(token.encode())


def _taken(sentence: str) -> Fatal:
    return Fatal(sentence, code=ExitCode.SLOT_TAKEN)
