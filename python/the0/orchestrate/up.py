"""`runtime up`: the whole platform of one machine in this process. Bots are processes of their own."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, TextIO

from the0 import memory, privacy
from the0.errors import ExitCode, Fatal
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.orchestrate import address, control, data, metrics, rows
from the0.orchestrate.address import Address
from the0.orchestrate.bots_sqlite import SqliteBots
from the0.orchestrate.data import Data
from the0.orchestrate.engine import Instance
from the0.orchestrate.engine_process import ProcessEngine
from the0.orchestrate.gateway import Gateway
from the0.orchestrate.news import News
from the0.orchestrate.runner import Runner
from the0.orchestrate.scheduler import Scheduler
from the0.orchestrate.service import Service
from the0.orchestrate.tables import plural, rfc3339
from the0.settings import Buckets

INTERVAL_S: Final = 5.0
"""How often the store is asked for its revision, should a command not have said that it changed."""
STOPPING_S: Final = 60.0
"""What final syncs may take beyond the grace period when the platform stops."""
STORE_S: Final = 10.0
"""How long a call of the store is repeated."""
HOST: Final = "127.0.0.1"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    environ: Mapping[str, str]
    """What bots may see a part of."""
    stop_grace_s: float
    port: int
    """Of the query gateway; 0: any free one."""
    token: str | None
    """The gateway's; None: the one that this platform had before, or a new one."""
    detach_bots: bool


def up(path: str, options: Options, *, out: TextIO) -> int:
    """Until SIGTERM, SIGINT or SIGHUP. Raises Fault where it cannot begin; then nothing was begun."""
    privacy.set_non_dumpable()
    memory.keep_little()
    # Before there are threads: they all leave these signals to this one.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    place = data.open_data(path, create=True)
    data.hold(place)  # until this process ends
    control.forget(place)
    with ExitStack() as stack:
        news = News(out)
        stack.callback(news.close)
        platform = Platform(place, options, say=news, stack=stack)
        platform.start()
        signal.sigwait(_SIGNALS)
        platform.stop()
    return 0


class Platform:
    """What runs in this process, in the order of its start; `stack` ends it in the reverse order."""

    def __init__(self, place: Data, options: Options, *, say: News, stack: ExitStack) -> None:
        self._place = place
        self._options = options
        self._say = say
        self._store = SqliteBots(place.bots_db, create=True)
        stack.callback(self._store.close)
        self._engine = ProcessEngine(
            place, environ=options.environ, stop_grace_s=options.stop_grace_s, observe=self._tell_run
        )
        stack.callback(self._engine.close)
        self._runner = Runner(
            self._store,
            self._engine,
            say=say,
            grace_s=options.stop_grace_s,
            interval_s=INTERVAL_S,
        )
        stack.callback(self._runner.close)
        self._scheduler = Scheduler(
            self._runner.bots,
            self._store,
            self._engine,
            open_store(StoreSettings(folder=place.objects), deadline_s=STORE_S),
            bucket=Buckets().state,
            say=say,
            grace_s=options.stop_grace_s,
        )
        stack.callback(self._scheduler.close)
        self._runner.subscribe(self._scheduler.wake)
        self._runner.subscribe(lambda: self._engine.keep_queries(self._runner.bots()))
        self._metrics = metrics.BotMetrics(place)
        self._gateway = self._open_gateway()
        stack.callback(self._gateway.close)
        self._control = control.ControlServer(
            place,
            {
                "ps": self._ps,
                "changed": lambda _: self._runner.wake(),
                "restart": lambda arguments: self._runner.restart(str(arguments["bot_id"])),
                "run": lambda arguments: {"slot": self._scheduler.run_now(str(arguments["bot_id"]))},
                "confirm": lambda _: self._runner.confirm(),
                "metrics": lambda _: self._prometheus(),
            },
        )
        stack.callback(self._control.close)

    def start(self) -> None:
        adopted = [each for each in self._engine.actual() if each.state != "ended"]
        took = f"; {plural(len(adopted), 'bot')} ran on" if adopted else ""
        url = f"http://{HOST}:{self._gateway.port}"
        self._say(
            "up",
            f"The platform in {self._place.path} is up{took}. Queries: {url}",
            adopted=len(adopted),
            address=url,
        )
        for each in adopted:
            what = f"run {each.slot}, which went on" if each.slot is not None else "it ran on"
            self._say("adopted", what, bot=each.bot_id, since=rfc3339(each.started_s))
        if not self._store.changed_since(self._store.revision()).count:
            self._say("empty", "There are no bots yet: `runtime deploy FOLDER`, in another terminal, brings one.")
        self._gateway.start()
        self._runner.start()
        self._scheduler.start()

    def stop(self) -> None:
        """Starts nothing any more, and stops the bots, each with its final sync, unless they are to be left running. A second
        signal, or a bot that takes too long, kills what is left."""
        self._runner.close()
        self._scheduler.hold()
        live = self._live()
        if self._options.detach_bots:
            self._say(
                "down",
                f"The platform ends; {plural(len(live), 'bot')} left running, and the next `runtime up` takes over.",
            )
            return
        if live:
            self._say("stopping", f"Stopping {plural(len(live), 'bot')}; press Ctrl-C again to kill them.")
        for name in live:
            self._engine.stop(name, grace_s=self._options.stop_grace_s, reason="the platform ended")
        deadline = time.monotonic() + self._options.stop_grace_s + STOPPING_S
        while live and time.monotonic() < deadline and signal.sigtimedwait(_SIGNALS, 0.05) is None:
            live = self._live()
        for name in live:
            self._engine.kill(name)
        self._say("down", "The platform has ended.")

    def _tell_run(self, instance: Instance) -> None:
        """Runs of scheduled bots may be over before anybody looks."""
        if instance.kind != "scheduled":
            return
        if instance.exit is None:
            self._say("started", f"run {instance.slot}", bot=instance.bot_id, slot=instance.slot)
        else:
            how = instance.exit
            self._say("ended", how.reason, bot=instance.bot_id, slot=instance.slot, code=how.code, by=how.by)

    def _live(self) -> list[str]:
        return [each.name for each in self._engine.actual() if each.state != "ended"]

    # --- the query gateway ------------------------------------------------------------------------

    def _open_gateway(self) -> Service:
        former = address.read(self._place, data.GATEWAY_FILE)
        token = self._options.token or (former.token if former else None) or secrets.token_urlsafe(32)
        gateway = Gateway(bots=self._store, engine=self._engine, token=token, metrics=self._prometheus)
        try:
            service = gateway.serve(host=HOST, port=self._options.port)
        except OSError as reason:
            raise Fatal(
                f"The query gateway cannot listen on {HOST}:{self._options.port} ({reason.strerror}): name another port with "
                "--port, or 0 for any.",
                code=ExitCode.USAGE,
            ) from reason
        address.write(self._place, data.GATEWAY_FILE, Address(HOST, service.port, token))
        return service

    # --- what is told -----------------------------------------------------------------------------

    def _ps(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        bots = self._runner.bots()
        self._metrics.keep_only(bots)
        found = []
        for bot_id, (decision, newest) in self._runner.decisions(arguments.get("bot_ids")).items():
            bot = bots.get(bot_id)
            row = rows.row(bot_id, bot, decision, newest)
            if bot is not None and bot.kind == "scheduled":
                row |= rows.scheduled(bot, self._scheduler.told(bot_id), row)
            if arguments.get("usage") and newest is not None:
                usage = self._engine.usage(newest.name)
                if usage is not None:
                    row["memory_bytes"], row["cpu_s"] = usage.memory_bytes, usage.cpu_s
                row["metrics"] = self._metrics.newest(bot_id)
            found.append(row)
        return found

    def _prometheus(self) -> str:
        return metrics.prometheus(self._ps({"usage": True}), not_ready=self._runner.not_ready(), pid=os.getpid())
