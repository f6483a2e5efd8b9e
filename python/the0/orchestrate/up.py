"""`runtime up`: the whole platform of one machine in this process. Bots are processes of their own."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from typing import Any, Final, TextIO

from the0 import privacy
from the0.orchestrate import control, data
from the0.orchestrate.bots_sqlite import SqliteBots
from the0.orchestrate.engine_process import ProcessEngine
from the0.orchestrate.runner import Runner, row

INTERVAL_S: Final = 5.0
"""How often the store is asked for its revision, should a command not have said that it changed."""
STOPPING_S: Final = 60.0
"""What final syncs may take beyond the grace period when the platform stops."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def up(path: str, *, environ: Mapping[str, str], stop_grace_s: float, detach_bots: bool, out: TextIO) -> int:
    """Until SIGTERM, SIGINT or SIGHUP. Raises Fault where it cannot begin; then nothing was begun."""
    privacy.set_non_dumpable()
    # Before there are threads: they all leave these signals to this one.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    place = data.open_data(path, create=True)
    held = data.hold(place)
    assert held >= 0, "kept open until this process ends"
    control.forget(place)
    platform = Platform(place, environ=environ, stop_grace_s=stop_grace_s, say=News(out))
    try:
        platform.start()
        signal.sigwait(_SIGNALS)
        platform.stop(detach_bots=detach_bots)
    finally:
        platform.close()
    return 0


class Platform:
    """What runs in this process, in the order of its start. Its owner holds the data folder's lock."""

    def __init__(self, place: data.Data, *, environ: Mapping[str, str], stop_grace_s: float, say: News) -> None:
        self._place = place
        self._say = say
        self._grace_s = stop_grace_s
        self._control: control.ControlServer | None = None
        self._store = SqliteBots(place.bots_db, create=True)
        self._engine = ProcessEngine(place, environ=environ, stop_grace_s=stop_grace_s)
        self._runner = Runner(self._store, self._engine, say=say, grace_s=stop_grace_s, interval_s=INTERVAL_S)

    def start(self) -> None:
        adopted = [each for each in self._engine.actual() if each.state != "ended"]
        self._control = control.ControlServer(
            self._place,
            {
                "ps": self._ps,
                "changed": lambda _: self._runner.wake(),
                "restart": lambda arguments: self._runner.restart(str(arguments["bot_id"])),
                "confirm": lambda _: self._runner.confirm(),
            },
        )
        self._say("up", f"The platform in {self._place.path} is up.", adopted=len(adopted))
        self._runner.start()

    def stop(self, *, detach_bots: bool) -> None:
        """Starts nothing any more, and stops the bots, each with its final sync, unless they are to be left running. A second
        signal, or a bot that takes too long, kills what is left."""
        self._runner.close()
        live = self._live()
        if detach_bots:
            self._say("down", f"The platform ends; {len(live)} bots run on, and the next `runtime up` takes them over.")
            return
        if live:
            self._say("stopping", f"Stopping {len(live)} bots; once more to kill them.")
        for name in live:
            self._engine.stop(name, grace_s=self._grace_s, reason="the platform ends")
        deadline = time.monotonic() + self._grace_s + STOPPING_S
        while live and time.monotonic() < deadline and signal.sigtimedwait(_SIGNALS, 0.05) is None:
            live = self._live()
        for name in live:
            self._engine.kill(name)
        self._say("down", "The platform has ended.")

    def _live(self) -> list[str]:
        return [each.name for each in self._engine.actual() if each.state != "ended"]

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
        self._runner.close()
        self._engine.close()
        self._store.close()

    def _ps(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        bots = self._runner.bots()
        rows = []
        for bot_id, (decision, newest) in self._runner.decisions(arguments.get("bot_ids")).items():
            made = row(bot_id, bots.get(bot_id), decision, newest)
            if arguments.get("usage") and newest is not None:
                usage = self._engine.usage(newest.name)
                if usage is not None:
                    made["memory_bytes"], made["cpu_s"] = usage.memory_bytes, usage.cpu_s
            rows.append(made)
        return rows


class News:
    """One line each: for a person on a terminal, JSON elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()

    def __call__(self, event: str, message: str, *, bot: str | None = None, **fields: Any) -> None:
        now = time.time()
        if self._terminal:
            clock = time.strftime("%H:%M:%S", time.localtime(now))
            line = f"{clock}  {bot}  {event}{': ' if message else ''}{message}" if bot else f"{clock}  {message}"
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
            told = {"timestamp": stamp, "event": event, **({"bot": bot} if bot else {}), "message": message, **fields}
            line = json.dumps(told)
        try:
            print(line, file=self._out, flush=True)
        except OSError:
            pass  # nobody reads any more; bots must go on
