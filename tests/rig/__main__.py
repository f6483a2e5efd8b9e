"""`python tests/rig [minio|seaweed]`: runs a store until it is interrupted; prints the variables that lead to it."""

import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from rig.minio_server import minio  # noqa: E402
from rig.seaweed_server import seaweed  # noqa: E402


def main() -> None:
    kinds = {"minio": minio, "seaweed": seaweed}
    kind = sys.argv[1] if len(sys.argv) > 1 else "minio"
    if kind not in kinds:
        sys.exit(f"{kind!r} is no store of the rig: choose one of {', '.join(kinds)}.")
    # A shell starts background jobs with SIGINT ignored; whoever sends it to this program means it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with kinds[kind]() as running:
            for name, value in running.environ.items():
                print(f"export {name}={value}")
            sys.stdout.flush()
            signal.pause()
    except KeyboardInterrupt:
        pass  # how it is meant to end


main()
