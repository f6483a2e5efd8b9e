"""A scheduler as a process of its own, to be killed: `schedule_process.py ROOT` until SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]


def main(root: Path) -> None:
    from orchestrate.schedule_place import Place

    stop = threading.Event()
    place = Place(root)
    scheduler = place.scheduler(interval_s=0.5, lost_after_s=1.0)
    signal.signal(signal.SIGTERM, lambda *_: (stop.set(), scheduler.wake()))
    scheduler.run(stop)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
