"""A scheduled run of the plain engine: checks its claim as `execute` does, notes that it began, runs, and says how it ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def refused(about: dict[str, Any]) -> int:
    """The exit code where the slot is another's, else 0."""
    from the0 import runs
    from the0.errors import Fault
    from the0.objects.folder import Folder

    try:
        runs.check(
            Folder(about["store"]), bucket="bot-state", bot_id=about["bot_id"], slot=about["slot"], token=about["token"]
        )
    except Fault as fault:
        return int(fault.code)
    return 0


def main(place: Path) -> int:
    about = json.loads((place / "about.json").read_text())
    config = about["config"]
    code: int = config.get("code", 0)
    by = "bot"
    signal.signal(signal.SIGTERM, signal.SIG_IGN if config.get("stubborn") else lambda *_: sys.exit(143))
    taken = 0 if config.get("unchecked") else refused(about)
    if taken:
        code, by = taken, "runtime"
    else:
        ledger = os.open(place.parent / ".ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(ledger, f"{about['bot_id']} {about['slot']} {os.getpid()}\n".encode())
        try:
            time.sleep(config.get("seconds", 0))
        except SystemExit as asked:
            code = int(str(asked.code))
    temporary = place / ".exit.json"
    temporary.write_text(json.dumps({"code": code, "by": by, "at_s": time.time()}))
    temporary.rename(place / "exit.json")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
