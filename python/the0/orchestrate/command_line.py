"""The commands of people, as argparse knows them; each body is imported when it is called."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from the0.orchestrate.client import Client
    from the0.orchestrate.tables import Screen

Environ = Mapping[str, str]


def add_commands(commands: argparse._SubParsersAction[Any], environ: Environ) -> None:
    """`environ` is that of the command line; nothing here reads another one."""
    _add_deploy(_new(commands, "deploy", "pack, check and start a bot from a folder or zip", environ, _deploy))
    ps = _new(commands, "ps", "the bots: what they do, and why", environ, _ps)
    ps.add_argument("bot_ids", metavar="BOT", nargs="*")
    for name, what in (
        ("start", "start bots, also ones that were stopped or paused"),
        ("stop", "stop bots, each with its final sync; --all is the kill switch"),
        ("pause", "run no more slots of scheduled bots; a run that is under way goes on"),
        ("restart", "stop bots and start them again"),
    ):
        parser = _new(commands, name, what, environ, _restart if name == "restart" else _change)
        parser.add_argument("bot_ids", metavar="BOT", nargs="*")
        parser.add_argument("--all", dest="every", action="store_true", help="all bots")
        parser.set_defaults(what=name)
    rm = _new(commands, "rm", "remove a bot; its state and logs stay", environ, _rm)
    rm.add_argument("bot_id", metavar="BOT")
    rm.add_argument("--purge", action="store_true", help="also its state, logs and runs, for ever")
    rm.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    run = _new(commands, "run", "run a scheduled bot now, outside its schedule", environ, _run)
    run.add_argument("bot_id", metavar="BOT")
    following = _new(commands, "next", "the next slots of a scheduled bot", environ, _next)
    following.add_argument("bot_id", metavar="BOT")
    following.add_argument("-n", dest="count", type=_count, default=10, metavar="N", help="how many (10)")
    runs = _new(commands, "runs", "the runs of a scheduled bot, missed and lost ones included", environ, _runs)
    runs.add_argument("bot_id", metavar="BOT")
    runs.add_argument("-n", dest="count", type=_count, default=50, metavar="N", help="how many (50)")
    query = _new(commands, "query", "ask a bot", environ, _query)
    query.add_argument("bot_id", metavar="BOT")
    query.add_argument("path", metavar="/PATH")
    query.add_argument("params", metavar="NAME=VALUE", nargs="*", help="JSON where it is JSON, else text")
    _new(commands, "doctor", "what on this machine is wrong for bots, and what to do", environ, _doctor)
    query.add_argument("--timeout", type=_seconds, default=30.0, metavar="D", help="30, 5m (30s)")


def add_completion(
    commands: argparse._SubParsersAction[Any], parser: argparse.ArgumentParser, environ: Environ
) -> None:
    """Last of all: what it completes is what `parser` knows by then."""
    completion = commands.add_parser("completion", help="what a shell needs to complete commands and bots")
    completion.add_argument("shell", choices=["bash", "zsh", "fish", "bots"])
    completion.set_defaults(run=lambda arguments: _completion(arguments, parser), environ=environ)


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="the platform's folder (default: THE0_DATA, ~/.local/share/the0)")


def bot_environ(environ: Environ, *, data: str | None, bot_id: str) -> dict[str, str]:
    """The environment of commands that look at one bot (`state`, `logs`), as the platform on this machine would set it: where
    --data or THE0_DATA names one, or nothing names another store. Raises Fatal where there is no such platform or bot."""
    from the0 import names
    from the0.orchestrate import client
    from the0.orchestrate import data as data_folder

    named = data or environ.get(names.THE0_DATA)
    if not named and (environ.get(names.OBJECT_STORE_DIR) or environ.get(names.MINIO_ENDPOINT)):
        return dict(environ)
    with client.Client(data_folder.data_path(environ, data)) as opened:
        opened.known(bot_id)
        folders = opened.place.bot(bot_id)
        # Its buckets have their usual names.
        kept = {
            name: value for name, value in environ.items() if not name.startswith("MINIO_") and name != names.STATE_DIR
        }
        return {
            **kept,
            names.OBJECT_STORE_DIR: opened.place.objects,
            names.STATE_PATH: folders.state,
            names.CODE_PATH: folders.code,
            names.LOGS_PATH: folders.logs,
        }


def _new(
    commands: argparse._SubParsersAction[Any],
    name: str,
    what: str,
    environ: Environ,
    body: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    add_data(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=body, environ=environ)
    return parser


def _add_deploy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER|ZIP")
    parser.add_argument("--id", dest="bot_id", metavar="NAME", help="the bot's id (default: its name, or the folder's)")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="JSON where it is JSON, else text; the0.x: policies",
    )
    parser.add_argument("--unset", action="append", default=[], metavar="NAME", help="take this out of the config")
    parser.add_argument("--type", dest="kind", choices=["realtime", "scheduled"])
    parser.add_argument("--runtime", help="the language runtime, such as python3.11")
    parser.add_argument("--entrypoint", metavar="FILE", help="the file to run")
    parser.add_argument("--query-entrypoint", metavar="FILE", help="the file that answers queries")
    parser.add_argument("--schedule", metavar="CRON", help='such as "*/5 * * * *", @hourly, "@every 90s"')
    parser.add_argument("--version", help="the bot's version")
    parser.add_argument("--memory", metavar="SIZE", help="limit, such as 512Mi")
    parser.add_argument("--cpu", metavar="CORES", help="limit, such as 500m or 2")
    parser.add_argument("--no-start", dest="start", action="store_false", help="leave a new bot stopped")
    parser.add_argument("--dry-run", action="store_true", help="only show the plan")


def _client(arguments: argparse.Namespace, *, create: bool = False) -> Client:
    from the0.orchestrate import data
    from the0.orchestrate.client import Client

    return Client(data.data_path(arguments.environ, arguments.data), create=create)


def screen(arguments: argparse.Namespace) -> Screen:
    """Colour only on a terminal that has some, and not where NO_COLOR forbids it."""
    from the0.orchestrate.tables import Screen

    terminal = sys.stdout.isatty()
    plain = bool(arguments.environ.get("NO_COLOR")) or arguments.environ.get("TERM") == "dumb"
    return Screen(
        out=sys.stdout,
        as_json=arguments.json,
        width=shutil.get_terminal_size().columns if terminal else None,
        colour=terminal and not plain,
    )


def _deploy(arguments: argparse.Namespace) -> int:
    from the0.orchestrate import commands
    from the0.orchestrate.deploy import Wanted

    names = ("bot_id", "config", "unset", "kind", "runtime", "entrypoint", "query_entrypoint", "schedule", "version")
    given = {name: getattr(arguments, name) for name in (*names, "memory", "cpu", "start")}
    wanted = Wanted(source=os.path.normpath(arguments.source), **given)
    with _client(arguments, create=True) as client:
        return commands.deploy(client, screen(arguments), wanted, dry_run=arguments.dry_run)


def _ps(arguments: argparse.Namespace) -> int:
    from the0.orchestrate import listing

    with _client(arguments) as client:
        return listing.ps(client, screen(arguments), arguments.bot_ids)


def _change(arguments: argparse.Namespace) -> int:
    from the0.orchestrate import commands

    with _client(arguments) as client:
        return commands.change(client, screen(arguments), arguments.bot_ids, every=arguments.every, what=arguments.what)


def _restart(arguments: argparse.Namespace) -> int:
    from the0.orchestrate import commands

    with _client(arguments) as client:
        return commands.restart(client, screen(arguments), arguments.bot_ids, every=arguments.every)


def _rm(arguments: argparse.Namespace) -> int:
    from the0.orchestrate import removal

    with _client(arguments) as client:
        return removal.rm(client, screen(arguments), arguments.bot_id, purge=arguments.purge, dry_run=arguments.dry_run)


def _run(arguments: argparse.Namespace) -> int:
    from the0.orchestrate import commands

    with _client(arguments) as client:
        return commands.run(client, screen(arguments), arguments.bot_id)


def _next(arguments: argparse.Namespace) -> int:
    from the0.orchestrate import slot_listing

    with _client(arguments) as client:
        return slot_listing.next_slots(client, screen(arguments), arguments.bot_id, count=arguments.count)


def _runs(arguments: argparse.Namespace) -> int:
    from the0.orchestrate import slot_listing

    with _client(arguments) as client:
        return slot_listing.runs(client, screen(arguments), arguments.bot_id, limit=arguments.count)


def _query(arguments: argparse.Namespace) -> int:
    from the0.orchestrate import commands

    with _client(arguments) as client:
        return commands.query(
            client, screen(arguments), arguments.bot_id, arguments.path, arguments.params, timeout_s=arguments.timeout
        )


def _completion(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from the0.orchestrate import completion

    if arguments.shell == "bots":
        arguments.data = None
        with _client(arguments) as client:
            for each in client.all():
                print(each.id)
        return 0
    print(completion.script(parser, arguments.shell), end="")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from the0.orchestrate import data, doctor

    path = data.data_path(arguments.environ, arguments.data)
    return doctor.doctor(path, screen(arguments), search=arguments.environ.get("PATH", ""))


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) <= 100_000):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 100000")
    return int(text)


def _seconds(text: str) -> float:
    from the0 import durations

    try:
        return durations.parse_s(text)
    except ValueError as reason:
        raise argparse.ArgumentTypeError(str(reason)) from reason
