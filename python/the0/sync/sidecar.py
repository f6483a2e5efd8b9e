"""State outside of `execute`: `daemon init` claims and restores, `daemon sync` keeps it from there on. For Pods, where both are containers.

Init hands its claim over in a file below `.the0/`; a sync container that was restarted takes it up again.
"""

from __future__ import annotations

import os
import secrets
import threading

from the0.errors import ExitCode, Fatal
from the0.objects.store import ObjectStore
from the0.settings import SyncSettings
from the0.sync import daemon
from the0.sync.local import StateFolder
from the0.sync.lock import hold_lock
from the0.sync.readiness import Readiness
from the0.sync.restore import StoppedEarly
from the0.sync.start import Started, start


def init(settings: SyncSettings, store: ObjectStore, *, ended: str | None, stop: threading.Event) -> Started:
    """Claims, restores, hands over, and waits until a former holder has noticed. Raises what `start` raises."""
    lock = hold_lock(settings.paths.state)
    try:
        instance = secrets.token_hex(16)
        started = start(settings, store, instance=instance, ended=ended, stop=stop)
        with StateFolder(settings.paths.state) as folder:
            folder.hand_over(instance=instance, epoch=started.epoch)
        if stop.wait(started.wait_s):
            raise StoppedEarly
        return started
    finally:
        os.close(lock)


def keep(
    settings: SyncSettings,
    store: ObjectStore,
    *,
    stop: threading.Event,
    done_file: str | None = None,
    readiness_port: int | None = None,
) -> int:
    """Syncs under the claim that `init` handed over, until `stop` is set or the done file appears. Returns the exit code."""
    lock = hold_lock(settings.paths.state)
    try:
        with StateFolder(settings.paths.state) as folder:
            handed = folder.take_over()
        if handed is None:
            raise Fatal(
                f"No claim was handed over in {settings.paths.state}: run `runtime daemon init` for bot {settings.bot_id} first.",
                code=ExitCode.REFUSED,
            )
        instance, epoch = handed
        unready: list[str] = ["starting"]

        def notify(news: str) -> None:
            unready[:] = [] if news == "ready" else [news]

        serving = (
            Readiness(readiness_port, reason=lambda: unready[0] if unready else None)
            if readiness_port is not None
            else None
        )
        try:
            return daemon.run(
                settings, store, instance=instance, epoch=epoch, stop=stop, notify=notify, done_file=done_file
            )
        finally:
            if serving is not None:
                serving.close()
    finally:
        os.close(lock)
