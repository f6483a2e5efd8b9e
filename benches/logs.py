"""What a bot's lines cost: `python benches/logs.py [SECONDS]`, a minute by default, against a real MinIO.

A bot that prints 1,000 lines of 100 bytes a second; a shipper in a process of its own, as beside a bot; our reader.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from counting import Counting
from report import ROOT, Figure, keep, show
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.sync import lines, log_reader
from the0.sync.botlog import BotLogWriter
from the0.sync.logs import LogShipper

BUCKET = "bench-lines"
BOT = "bench-bot"
LINES_PER_S = 1000
WIDTH = 100
SHAPES = {
    "plain text": b"x" * (WIDTH - 1),
    "JSON with timestamp": b'{"timestamp":"2024-01-31T23:59:59.123Z","level":"info","message":"%b"}' % (b"y" * 30),
    "JSON without": b'{"level":"info","message":"%b","n":5}' % (b"y" * 60),
    "not UTF-8": b"\xff" * (WIDTH - 1),
}


def normalising() -> Iterator[Figure]:
    for name, line in SHAPES.items():
        data = (line + b"\n") * 200_000
        runs = []
        for _ in range(5):
            cutter = lines.LineCutter()
            begun = time.perf_counter()
            for at in range(0, len(data), 65_536):
                cutter.feed(data[at : at + 65_536], now_s=0.0)
            runs.append((time.perf_counter() - begun) / 200_000 * 1e6)
        # 100,000 lines a second on one core leave 10 microseconds for each, of which this is one part.
        yield Figure(name=f"normalising {name}", unit="us/line", runs=runs, target=5.0)


def ship(told: str) -> None:
    """The program's other use, a process that holds nothing else: ships until SIGTERM, then prints what it cost."""
    settings, base = StoreSettings(**json.loads(told)["settings"]), Path(json.loads(told)["base"])
    store = Counting(open_store(settings, deadline_s=30))
    shipper = LogShipper(
        store=store,
        bucket=BUCKET,
        bot_id=BOT,
        logs_path=str(base / "logs"),
        spool_path=str(base / "state" / ".the0" / "spool"),
        epoch=1,
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    shipper.one_pass(time.time())
    at_rest = pss_kib()
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.monotonic()
    shipper.run(stop)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    took_s, pss = time.monotonic() - begun, pss_kib()
    done = shipper.finish(30)
    cost = {
        "cpu": 100 * cpu_s / took_s,
        "pss_at_rest": at_rest / 1024,
        "pss": pss / 1024,
        "peak": after.ru_maxrss / 1024,
        "sent_bytes": store.sent_bytes,
        "requests": len(store.requests),
        "done": done,
    }
    print(json.dumps(cost))


def pss_kib() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))


def shipping(settings: StoreSettings, base: Path, seconds: float) -> Iterator[Figure]:
    (base / "state").mkdir()
    told = json.dumps({"settings": asdict(settings), "base": str(base)})
    shipper = subprocess.Popen([sys.executable, __file__, "--ship"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert shipper.stdin is not None
    shipper.stdin.write(told.encode())
    shipper.stdin.close()
    store = open_store(settings, deadline_s=30)
    printed_at: list[float] = []
    late: list[float] = []
    stop = threading.Event()

    def look() -> None:
        """How old the first line is that our reader does not give yet."""
        while not stop.wait(1.0):
            asked = time.monotonic()
            newest = list(log_reader.read(store, BUCKET, BOT, tail=1))
            following = json.loads(newest[0])["n"] + 1 if newest else 0
            if following < len(printed_at) and printed_at[following] < asked:
                late.append(asked - printed_at[following])

    reading = threading.Thread(target=look)
    reading.start()
    writer = BotLogWriter(str(base / "logs"))
    begun = time.monotonic()
    count = 0
    while (now := time.monotonic()) - begun < seconds:
        block = []
        while count < (now - begun) * LINES_PER_S:
            block.append(b'{"timestamp":"t","n":%d,"x":"%b"}' % (count, b"x" * 62))
            printed_at.append(now)
            count += 1
        writer.write(b"".join(line.ljust(WIDTH - 1) + b"\n" for line in block))
        time.sleep(0.02)
    stop.set()
    reading.join()
    shipper.send_signal(signal.SIGTERM)
    ended = time.monotonic()
    assert shipper.stdout is not None
    cost = json.loads(shipper.stdout.read())
    shipper.wait()
    stopping_s = time.monotonic() - ended
    found = [json.loads(line)["n"] for line in log_reader.read(store, BUCKET, BOT)]
    if found != list(range(count)) or not cost["done"]:
        raise RuntimeError(f"{count} lines were printed and {len(found)} read back, in this order or another")
    store.close()
    yield Figure(
        name=f"1,000 lines/s for {seconds:.0f} s: bytes sent",
        unit="x NDJSON",
        runs=[cost["sent_bytes"] / (count * WIDTH)],
        target=4.0,
        earlier="79",
        notes={"requests": cost["requests"]},
    )
    yield Figure(name="  oldest line that is not readable", unit="s", runs=[max(late)], target=5.0, earlier="60")
    yield Figure(name="  CPU of the shipper", unit="% of a core", runs=[cost["cpu"]], target=5.0)
    yield Figure(name="  PSS of its process, begun", unit="MiB", runs=[cost["pss_at_rest"]])
    yield Figure(name="  PSS of its process, in the end", unit="MiB", runs=[cost["pss"]], notes={"peak": cost["peak"]})
    yield Figure(name="  stop: all consolidated", unit="s", runs=[stopping_s], target=2.0)


def main() -> int:
    if sys.argv[1:] == ["--ship"]:
        ship(sys.stdin.read())
        return 0
    sys.path.insert(0, str(ROOT / "tests"))
    from rig.minio_server import minio

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    figures = list(normalising())
    with minio() as running, tempfile.TemporaryDirectory() as base:
        made = open_store(running.settings, deadline_s=30)
        made.ensure_bucket(BUCKET)
        figures += shipping(running.settings, Path(base), seconds)
    show("Lines of a bot", figures)
    print(f"\nraw: {keep('logs', figures)}")
    return 0 if all(figure.verdict != "MISSED" for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
