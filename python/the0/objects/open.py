"""From settings to a store."""

from __future__ import annotations

import threading

from the0.objects.credentials import StoreSettings
from the0.objects.retry import Retrying


def open_store(settings: StoreSettings, *, deadline_s: float, stop: threading.Event | None = None) -> Retrying:
    """The store that the settings name, each call repeated until `deadline_s`. Asks it nothing yet, and loads no S3
    client before the first call."""
    if settings.folder is not None:
        from the0.objects.folder import Folder

        return Retrying(Folder(settings.folder), deadline_s=deadline_s, stop=stop)
    from the0.objects.s3 import S3

    return Retrying(S3(settings), deadline_s=deadline_s, stop=stop)
