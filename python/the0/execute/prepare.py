"""In the forked child before the bot: its code and its state, both at once."""

from __future__ import annotations

import sys
from threading import Event, Thread
from typing import TYPE_CHECKING

from the0.errors import ExitCode, Fatal, Fault
from the0.execute import code
from the0.execute.preparing import Prepared
from the0.execute.target import Wanted
from the0.objects.open import open_store
from the0.objects.store import ObjectStore
from the0.settings import ExecuteSettings, SyncSettings

if TYPE_CHECKING:
    from the0.sync.start import Started

DEADLINE_S = 10.0
"""How long a store that does not answer is asked again before the start fails."""


def prepare(settings: ExecuteSettings, *, wanted: Wanted | None, instance: str, stop: Event) -> Prepared:
    """`wanted` None: the code is there already. State is left alone where nothing is synced here. Raises no Fault."""
    if settings.store is None or (wanted is None and settings.sync is None and settings.slot is None):
        return Prepared()
    store = open_store(settings.store, deadline_s=DEADLINE_S, stop=stop)
    try:
        _check_run(settings, store)
    except Fault as refused:
        return Prepared(fault=refused)
    faults: list[Fault] = []
    thread: Thread | None = None
    if wanted is not None:
        thread = Thread(target=_fetch, args=(store, wanted, faults, stop), name="code", daemon=True)
        thread.start()
    started = _start(settings.sync, store, instance=instance, ended=settings.ended_instance, faults=faults, stop=stop)
    if thread is not None:
        thread.join()
    fault = faults[0] if faults else None
    if started is None:
        return Prepared(fault=fault)
    return Prepared(fault=fault, claimed=True, epoch=started.epoch, wait_s=started.wait_s, notes=started.notes)


def _check_run(settings: ExecuteSettings, store: ObjectStore) -> None:
    """Before anything is claimed or fetched: that the slot of a scheduled run is ours. Fatal (SLOT_TAKEN) otherwise."""
    if settings.slot is not None:
        from the0 import runs  # most starts have none

        runs.check(
            store,
            bucket=settings.buckets.state,
            bot_id=settings.bot.bot_id,
            slot=settings.slot,
            token=settings.run_token,
        )


def _start(
    sync: SyncSettings | None,
    store: ObjectStore,
    *,
    instance: str,
    ended: str | None,
    faults: list[Fault],
    stop: Event,
) -> Started | None:
    if sync is None:
        return None
    try:
        from the0.sync.start import start  # while the code is on its way

        return start(sync, store, instance=instance, ended=ended, stop=stop)
    except Exception as reason:  # noqa: BLE001 - made a sentence for the supervisor, the traceback goes to stderr
        faults.append(_as_fault(reason, "The bot's state cannot be prepared"))
        stop.set()
        return None


def _fetch(store: ObjectStore, wanted: Wanted, faults: list[Fault], stop: Event) -> None:
    try:
        code.fetch(store, wanted)
    except Exception as reason:  # noqa: BLE001 - as above
        faults.append(_as_fault(reason, "The bot's code cannot be fetched"))
        stop.set()  # a long restore would be for nothing


def _as_fault(reason: Exception, what: str) -> Fault:
    if isinstance(reason, Fault):
        return reason
    sys.excepthook(type(reason), reason, reason.__traceback__)
    return Fatal(
        f"{what}: {type(reason).__name__}, which is a bug of the runtime; its traceback is on stderr.",
        code=ExitCode.INTERNAL,
    )
