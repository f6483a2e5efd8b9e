"""What a folder that holds a bot's code (CODE_PATH) says about itself."""

from __future__ import annotations

import os

STAGING = ".the0-code"
"""In it while code is extracted: as long as it exists, what lies beside it is incomplete."""
NOT_OURS = frozenset({"lost+found"})
"""What a volume's root may hold from the beginning."""
_SDK = "the0"


def is_complete(folder: str) -> bool:
    """Whether it holds code already, wholly extracted."""
    try:
        with os.scandir(folder) as found:
            present = {entry.name for entry in found} - NOT_OURS
    except FileNotFoundError:
        return False
    return bool(present) and STAGING not in present


def brings_sdk(folder: str, *, runtime: str) -> bool:
    """Whether the code has an SDK of its own. In other languages than Python it always has: the runtime brings none for them."""
    if runtime != "python3.11":
        return True
    for searched in (folder, os.path.join(folder, "vendor")):
        try:
            if any(name.partition(".")[0] == _SDK for name in os.listdir(searched)):
                return True
        except (FileNotFoundError, NotADirectoryError):
            pass  # it has no vendor folder
    return False
