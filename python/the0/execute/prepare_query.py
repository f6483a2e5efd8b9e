"""In the forked child before an ephemeral query: the bot's code and its newest stored state, both at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Event, Thread

from the0.errors import ExitCode, Fatal, Fault
from the0.execute import code
from the0.execute.preparing import Prepared
from the0.execute.target import Wanted
from the0.objects.open import open_store
from the0.settings import SyncSettings
from the0.sync.peek import restore_newest

DEADLINE_S = 10.0
"""How long a store that does not answer is asked again before the query fails."""


def prepare_query(sync: SyncSettings, *, wanted: Wanted | None, state: str, stop: Event) -> Prepared:
    """`wanted` None: the code is there already. `state` is the folder for the state; nothing is claimed. Raises no Fault."""
    store = open_store(sync.store, deadline_s=DEADLINE_S, stop=stop)
    faults: list[Fault] = []
    generations: list[int] = []

    def guarded(what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Fault as reason:
            faults.append(reason)
            stop.set()  # the other one would be for nothing
        except Exception as reason:  # noqa: BLE001 - made a sentence for the supervisor, the traceback goes to stderr
            sys.excepthook(type(reason), reason, reason.__traceback__)
            sentence = f"{what}: {type(reason).__name__}, which is a bug of the runtime; its traceback is on stderr."
            faults.append(Fatal(sentence, code=ExitCode.INTERNAL))
            stop.set()

    def fetch() -> None:
        if wanted is not None:
            code.fetch(store, wanted)

    thread = Thread(target=guarded, args=("The bot's code cannot be fetched", fetch), name="code", daemon=True)
    thread.start()
    guarded(
        "The bot's state cannot be read",
        lambda: generations.append(restore_newest(sync, store, state, stop=stop)),
    )
    thread.join()
    if faults:
        return Prepared(fault=faults[0])
    return Prepared(generation=generations[0])
