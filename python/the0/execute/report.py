"""A start that fails before it has the claim: its sentence goes into the bot's log in the store, where its owner looks."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING

from the0 import child
from the0.objects.credentials import StoreSettings

if TYPE_CHECKING:
    from threading import Event

WITHIN_S = 5.0


def report(store: StoreSettings, sentence: str, *, bucket: str, bot_id: str) -> bool:
    """Whether it arrived. Best effort, in a forked child: the failure itself has been said elsewhere too."""
    try:
        read_fd, write_fd = os.pipe()
    except OSError:
        return False
    try:
        forked = child.fork_child(
            "report", lambda stop: _work(store, sentence, bucket, bot_id, write_fd, stop), keep=(write_fd,)
        )
    except OSError:
        os.close(read_fd)
        return False
    finally:
        os.close(write_fd)
    answer = select.poll()
    answer.register(read_fd, select.POLLIN)
    arrived = bool(answer.poll(int(WITHIN_S * 1000))) and os.read(read_fd, 1) == b"+"
    child.send_group(forked.pid, signal.SIGKILL)
    os.close(read_fd)
    forked.drop()
    return arrived


def _work(store: StoreSettings, sentence: str, bucket: str, bot_id: str, write_fd: int, stop: Event) -> int:
    from the0.errors import Fault
    from the0.objects.open import open_store
    from the0.sync.logs import write_orphan_line

    try:
        write_orphan_line(open_store(store, deadline_s=WITHIN_S, stop=stop), bucket, bot_id, sentence, time.time())
    except Fault:
        return 1  # the local log takes it then
    os.write(write_fd, b"+")
    return 0
