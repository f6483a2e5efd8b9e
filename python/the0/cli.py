"""The `runtime` command: reads argv, dispatches, turns faults into one sentence and an exit code.

`execute` goes past argparse and everything else that costs time at its start.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from threading import Event

    from the0.objects.store import ObjectStore
    from the0.settings import SyncSettings

USAGE = 2
"""Of a command line that makes no sense; `execute`'s own is in the table of exit codes."""

_EXECUTE_HELP = """\
usage: runtime execute [--skip-sync] [--skip-query-server]
       runtime execute --query-server-only
       runtime execute --query PATH

Runs one bot, as the environment describes it: fetches its code and state, runs it, keeps state and logs in the
store, and ends with the bot's exit code. `runtime help exit-codes` lists those of our own.

  --skip-sync           neither claim, restore nor sync state: a sidecar does (code is fetched into an empty CODE_PATH)
  --skip-query-server   start no query server beside the bot
  --query-server-only   only the query server, without claim and sync (code is fetched into an empty CODE_PATH)
  --query PATH          answer one query from the newest stored state: the answer is printed as one JSON object

required:  BOT_ID  RUNTIME  ENTRYPOINT  and MINIO_ENDPOINT, MINIO_ACCESS_KEY, MINIO_SECRET_KEY or OBJECT_STORE_DIR
optional:  CODE_FILE (key of the archive; empty: the code is in CODE_PATH)  BOT_CONFIG ({})  BOT_TYPE (realtime)
           BOT_CONFIG_FILE or BOT_CONFIG_KEY (a file, an object in the state bucket: where BOT_CONFIG is not set)
           CODE_PATH (/bot)  STATE_PATH (/state)  LOGS_PATH (/var/the0/logs)  THE0_RUN_DIR (/var/the0)
           STOP_GRACE_S (30)  MAX_STATE_SIZE_MB (8192)  MAX_STATE_FILE_SIZE_MB
           MINIO_USE_SSL  MINIO_REGION  MINIO_CODE_BUCKET (custom-bots)  MINIO_STATE_BUCKET (bot-state)
           MINIO_LOGS_BUCKET (bot-logs)  MINIO_QUERY_RESULTS_BUCKET (query-results)
queries:   QUERY_ENTRYPOINT  THE0_QUERY_PORT (9476)  QUERY_PATH (as --query)  QUERY_PARAMS ({})  QUERY_TIMEOUT_S (30)
           QUERY_RESULT_KEY (where the answer is stored, too)
"""


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["execute"]:
        return _execute(argv[1:])
    return _others(argv)


def _execute(flags: Sequence[str]) -> int:
    if "--help" in flags or "-h" in flags:
        print(_EXECUTE_HELP, end="")
        return 0
    given: set[str] = set()
    place_fd = ""
    query_path: str | None = None
    serve_stored = False
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if flag in ("--skip-sync", "--skip-query-server", "--query-server-only"):
            given.add(flag)
        elif flag.startswith("--place="):  # of our own engine
            place_fd = flag.partition("=")[2]
        elif flag == "--serve-stored":  # of our own engine
            serve_stored = True
        elif flag.startswith("--query="):
            query_path = flag.partition("=")[2]
        elif flag == "--query" and rest:
            query_path = rest.pop(0)
        elif flag == "--query":
            return _refuse_execute("--query is given without a path: write --query /PATH.")
        else:
            return _refuse_execute(f"runtime execute knows no {flag!r}: `runtime execute --help` lists its flags.")
    # A request to stop that comes before there is anybody to hear it waits; PID 1 would lose it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    environ: Mapping[str, str] = os.environ
    if place_fd:
        from the0.orchestrate import place

        told = place.take(place_fd)
        if isinstance(told, int):
            return told
        environ = told
    if serve_stored:
        from the0.execute import stored_server

        return stored_server.serve(environ)
    if "--query-server-only" in given:
        from the0.execute import query_sidecar

        return query_sidecar.serve(environ)
    if query_path is not None or environ.get("QUERY_PATH"):
        from the0.execute import queries

        return queries.query(environ if query_path is None else {**environ, "QUERY_PATH": query_path or "/"})
    from the0.execute import run

    return run.execute(environ, skip_sync="--skip-sync" in given, skip_query_server="--skip-query-server" in given)


def _refuse_execute(sentence: str) -> int:
    from the0.errors import ExitCode

    _tell(sentence)
    return ExitCode.USAGE


def _others(argv: Sequence[str]) -> int:
    from the0.errors import Fault

    parser = _parser()
    if not argv:
        parser.print_help()
        return USAGE
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except Fault as fault:
        _tell(fault.sentence)
        return int(fault.code)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; nothing more may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    import argparse

    from the0.orchestrate import command_line

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            self.exit(USAGE, f"the0: {message}: `{self.prog} --help` says more.\n")

    parser = Parser(prog="runtime", description="Runs bots, keeps their state and logs safe in an object store.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("execute", help="run one bot, as the environment describes it", add_help=False)

    daemon = commands.add_parser("daemon", help="the parts of a run as processes of their own (sidecars)")
    daemons = daemon.add_subparsers(metavar="COMMAND", required=True)
    _add_daemon_sync(daemons.add_parser("sync", help="keep a bot's state and logs in the store"))
    _add_daemon_init(daemons.add_parser("init", help="claim and restore a bot's state, fetch its code, then exit"))

    state = commands.add_parser("state", help="look at a bot's stored state, check it, decide about it")
    _add_state(state.add_subparsers(metavar="COMMAND", required=True))

    logs = commands.add_parser("logs", help="what a bot printed, from the store")
    logs.add_argument("bot_id", metavar="BOT")
    logs.add_argument("--since", metavar="D", help="only the last 90 (seconds), 30s, 5m, 1h30m")
    logs.add_argument("--tail", type=_count, metavar="N", help="only the last N lines")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until interrupted")
    logs.add_argument("--grep", metavar="X", help="only lines that this regular expression finds")
    logs.add_argument("--json", action="store_true", help="as they are stored")
    command_line.add_data(logs)
    logs.set_defaults(run=_logs)

    command_line.add_commands(commands, os.environ)
    _add_up(commands.add_parser("up", help="the platform on this machine, in the foreground, with nothing to install"))

    version = commands.add_parser("version", help="the version")
    version.set_defaults(run=_version)
    helping = commands.add_parser("help", help="help on a topic")
    helping.add_argument("topic", choices=["exit-codes"])
    helping.set_defaults(run=_exit_codes)
    command_line.add_completion(commands, parser, os.environ)
    return parser


# --- daemon ---------------------------------------------------------------------------------------


def _add_daemon_sync(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bot-id", required=True)
    parser.add_argument("--state-path", help="default: STATE_PATH, /state")
    parser.add_argument("--logs-path", help="default: LOGS_PATH, /var/the0/logs")
    parser.add_argument("--interval", help="seconds, or like 30s, 5m (default 60s)")
    parser.add_argument("--watch-done", metavar="FILE", help="sync for the last time when FILE appears, then exit")
    parser.add_argument("--readiness-port", type=int, help="serve /readyz there")
    parser.set_defaults(run=_daemon_sync)


def _add_daemon_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bot-id", required=True)
    parser.add_argument("--code-file", required=True, help="key of the code archive; empty: fetch no code")
    parser.add_argument("--code-path", help="default: CODE_PATH, /bot")
    parser.add_argument("--state-path", help="default: STATE_PATH, /state")
    parser.set_defaults(run=_daemon_init)


def _daemon_sync(arguments: argparse.Namespace) -> int:
    from the0.sync import sidecar

    settings = _settings(arguments, interval=arguments.interval)
    stop = _stop_on_signals()
    with _Store(settings, stop=stop) as store:
        return sidecar.keep(
            settings,
            store,
            stop=stop,
            done_file=arguments.watch_done,
            readiness_port=arguments.readiness_port,
        )


def _daemon_init(arguments: argparse.Namespace) -> int:
    from the0 import names
    from the0.execute import code, target
    from the0.sync import sidecar

    settings = _settings(arguments)
    stop = _stop_on_signals()
    entrypoint = os.environ.get(names.ENTRYPOINT)
    with _Store(settings, stop=stop) as store:
        if arguments.code_file:
            wanted = target.Wanted(
                bucket=settings.buckets.code,
                key=arguments.code_file,
                folder=settings.paths.code,
                file=target.entry_file(entrypoint) if entrypoint else None,
            )
            code.fetch(store, wanted)
        sidecar.init(settings, store, ended=os.environ.get(names.THE0_ENDED) or None, stop=stop)
    return 0


def _settings(arguments: argparse.Namespace, *, interval: str | None = None) -> SyncSettings:
    """Of the bot that is named: flags win over the environment."""
    from the0 import durations, names, settings
    from the0.errors import ExitCode, Fatal
    from the0.execute import configuration

    environ = dict(configuration.resolved(os.environ))
    if hasattr(arguments, "data"):
        from the0.orchestrate import command_line

        environ = command_line.bot_environ(environ, data=arguments.data, bot_id=arguments.bot_id)
    for flag, variable in (
        ("state_path", names.STATE_PATH),
        ("logs_path", names.LOGS_PATH),
        ("code_path", names.CODE_PATH),
    ):
        value = getattr(arguments, flag, None)
        if value is not None:
            environ[variable] = value
    try:
        interval_s = 60.0 if interval is None else durations.parse_s(interval)
    except ValueError as reason:
        raise Fatal(f"--interval is malformed: {reason}.", code=ExitCode.USAGE) from reason
    return settings.read_sync(environ, bot_id=arguments.bot_id, interval_s=interval_s)


class _Store:
    """The settings' store for one command, in a process that others of our uid cannot look into."""

    def __init__(self, settings: SyncSettings, *, stop: Event | None = None) -> None:
        from the0 import memory, privacy
        from the0.objects.open import open_store

        privacy.set_non_dumpable()
        memory.keep_little()
        self._store = open_store(settings.store, deadline_s=15.0, stop=stop)

    def __enter__(self) -> ObjectStore:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()


def _stop_on_signals() -> Event:
    from threading import Event

    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    return stop


# --- the platform on this machine -----------------------------------------------------------------


def _add_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="its folder (default: THE0_DATA, ~/.local/share/the0)")
    parser.add_argument("--port", type=_count, metavar="N", help="of the query gateway on 127.0.0.1 (9477; 0: any)")
    parser.add_argument("--detach-bots", action="store_true", help="at the end, leave bots running for the next `up`")
    parser.set_defaults(run=_up)


def _up(arguments: argparse.Namespace) -> int:
    from the0 import names, settings
    from the0.orchestrate import data, up

    options = up.Options(
        environ=os.environ,
        stop_grace_s=settings.duration_s(os.environ, names.STOP_GRACE_S, 30.0),
        port=names.GATEWAY_PORT if arguments.port is None else min(arguments.port, 65535),
        token=os.environ.get(names.GATEWAY_TOKEN) or None,
        detach_bots=arguments.detach_bots,
    )
    return up.up(data.data_path(os.environ, arguments.data), options, out=sys.stdout)


# --- state ----------------------------------------------------------------------------------------


def _add_state(commands: argparse._SubParsersAction[Any]) -> None:
    from the0.orchestrate import command_line

    for name, what in (
        ("show", "the stored generation, its claim, and what lies on this disk"),
        ("ls", "the files of the stored generation"),
        ("verify", "read all of it and check every digest"),
        ("history", "the generations that can be restored"),
        ("restore", "the files of a generation, into a folder of its own"),
        ("adopt", "decide between local and stored state after a refused start"),
        ("aside", "the trees that were set aside on this disk"),
    ):
        parser = commands.add_parser(name, help=what, description=what)
        parser.add_argument("bot_id", metavar="BOT")
        parser.add_argument("--state-path", help="default: the platform's, or STATE_PATH, /state")
        command_line.add_data(parser)
        if name == "adopt":
            side = parser.add_mutually_exclusive_group(required=True)
            side.add_argument("--local", dest="side", action="store_const", const="local", help="this disk is right")
            side.add_argument("--store", dest="side", action="store_const", const="store", help="the store is right")
        if name in ("ls", "restore"):
            parser.add_argument("--generation", type=_count, metavar="N", help="default: the newest")
            parser.add_argument("--lineage", help="default: the present one")
        if name == "restore":
            parser.add_argument("--to", metavar="DIR", required=True, help="a new folder")
        elif name != "adopt":
            parser.add_argument("--json", action="store_true", help="as JSON")
        parser.set_defaults(run=_state, command=name)


def _state(arguments: argparse.Namespace) -> int:
    from the0.sync import commands

    settings = _settings(arguments)
    if arguments.command == "aside":
        return commands.aside(settings, as_json=arguments.json)
    with _Store(settings) as store:
        if arguments.command == "adopt":
            return commands.adopt(settings, store, side=arguments.side)
        if arguments.command in ("ls", "restore"):
            chosen = {"generation": arguments.generation, "lineage": arguments.lineage}
            if arguments.command == "restore":
                return commands.restore(settings, store, to=arguments.to, **chosen)
            return commands.ls(settings, store, as_json=arguments.json, **chosen)
        command = {"show": commands.show, "verify": commands.check, "history": commands.history}[arguments.command]
        return command(settings, store, as_json=arguments.json)


# --- logs -----------------------------------------------------------------------------------------


def _logs(arguments: argparse.Namespace) -> int:
    import time

    from the0 import durations
    from the0.errors import ExitCode, Fatal
    from the0.sync import log_follow, log_reader

    flag = "--since"
    try:
        since_s = None if arguments.since is None else time.time() - durations.parse_s(arguments.since)
        flag = "--grep"
        keep = None if arguments.grep is None else log_reader.matcher(arguments.grep)
    except ValueError as reason:
        raise Fatal(f"{flag} is malformed: {reason}.", code=ExitCode.USAGE) from reason
    settings = _settings(arguments)
    out = sys.stdout.buffer

    def show(line: bytes) -> None:
        out.write(log_reader.shown(line, as_json=arguments.json))
        if arguments.follow:
            out.flush()

    stop = _stop_on_signals() if arguments.follow else None
    with _Store(settings, stop=stop) as store:
        where = (store, settings.buckets.logs, settings.bot_id)
        if stop is not None:
            follower = log_follow.Follower(*where, keep=keep)
            log_follow.follow(follower, show=show, since_s=since_s, tail=arguments.tail, stop=stop)
        else:
            for line in log_reader.read(*where, since_s=since_s, tail=arguments.tail, keep=keep):
                show(line)
        out.flush()
    return 0


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        import argparse

        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


# --- about ourselves ------------------------------------------------------------------------------


def _version(_: argparse.Namespace) -> int:
    from the0 import __version__

    print(f"the0 runtime {__version__}")
    return 0


def _exit_codes(_: argparse.Namespace) -> int:
    from the0.errors import EXIT_CODES

    print("Exit codes 200 to 219 are the runtime's; every other one is the bot's own, 128+N where signal N ended it.")
    print("A bot may end with any number: exit.json in THE0_RUN_DIR says who it was.\n")
    for each in EXIT_CODES:
        restart = "starting again may help" if each.restart else "needs a person"
        print(f"{each.code:>4}  {each.meaning} ({restart})")
    return 0


def _tell(sentence: str) -> None:
    print(f"the0: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
