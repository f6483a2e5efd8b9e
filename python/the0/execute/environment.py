"""All that a process of the bot's gets to see: an allow-list of our own environment, and what it is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from the0 import canonical, files, names, privacy
from the0.errors import ExitCode, Fatal
from the0.execute.languages import Language, Target
from the0.settings import BotSettings, ExecuteSettings

LONGEST_VARIABLE_BYTES = 128 << 10
"""The kernel's limit on one string of an environment, name, `=` and end included (MAX_ARG_STRLEN)."""
CONFIG = "config.json"
QUERY_CONFIG = "query-config.json"
"""Below THE0_RUN_DIR, for a configuration that no variable can hold: each process of a Pod may have that folder."""

TEXT_ONLY = frozenset({"rust-stable", "dotnet8", "scala3"})
"""Whose SDKs drop all params where one is no string."""


def bot_environment(ours: ExecuteSettings, environ: Mapping[str, str], row: Language) -> dict[str, str]:
    """Of the bot's process. Fatal (USAGE, LOCAL_DISK)."""
    told = {**_common(ours, environ, row), names.SCRIPT_PATH: ours.bot.entrypoint, names.ENTRYPOINT_TYPE: "bot"}
    return _checked({**told, **_config(ours, CONFIG)})


def query_environment(
    ours: ExecuteSettings, environ: Mapping[str, str], row: Language, target: Target
) -> dict[str, str]:
    """Of the query process that serves. Fatal (USAGE, LOCAL_DISK)."""
    told = {
        **_common(ours, environ, row),
        **row.query_environment(target),
        names.SCRIPT_PATH: ours.bot.query_entrypoint,
        names.ENTRYPOINT_TYPE: "query",
        names.THE0_QUERY_PORT: str(ours.bot.query_port),
    }
    return _checked({**told, **_config(ours, QUERY_CONFIG)})


def question(bot: BotSettings) -> dict[str, str]:
    """What an ephemeral query's process sees more. Fatal (USAGE) for params that no variable can hold."""
    assert bot.query_path is not None
    params = typed(bot.query_params, runtime=bot.runtime)
    each = {f"{names.QUERY_PARAM_}{name}": canonical.as_text(value) for name, value in bot.query_params.items()}
    return _checked(
        {
            names.QUERY_PATH: names.query_path(bot.query_path),
            names.QUERY_PARAMS: canonical.dumps(params),
            # All of them are in QUERY_PARAMS, too: those that cannot be variables are only there.
            **{name: value for name, value in each.items() if "=" not in name and _fits(name, value)},
        }
    )


def typed(params: Mapping[str, Any], *, runtime: str) -> dict[str, Any]:
    """Params as the SDKs of that language take them."""
    if runtime in TEXT_ONLY:
        return {name: canonical.as_text(value) for name, value in params.items()}
    return dict(params)


def _common(ours: ExecuteSettings, environ: Mapping[str, str], row: Language) -> dict[str, str]:
    bot, paths = ours.bot, ours.paths
    return {
        **privacy.shared_environment(environ),
        # Its own folder: writable for it, and for no other bot on this machine.
        "HOME": paths.code,
        names.BOT_ID: bot.bot_id,
        names.BOT_TYPE: bot.bot_type,
        names.STATE_DIR: paths.sdk_state,
        names.CODE_MOUNT_DIR: paths.code.lstrip("/"),
        **row.environment(),
    }


def _config(ours: ExecuteSettings, name: str) -> dict[str, str]:
    """The configuration, as a variable or, where it is too large for one, in a file that a variable names."""
    text = ours.bot.config_json
    if _fits(names.BOT_CONFIG, text):
        return {names.BOT_CONFIG: text}
    try:
        os.makedirs(ours.paths.run, exist_ok=True)
        with files.folder(ours.paths.run) as fd:
            files.remove_tree(fd, name)
            files.write_atomic(fd, name, text.encode("ascii"), mode=0o444, durable=False)
    except OSError as reason:
        raise files.disk_fault(reason, f"writing the bot's configuration to {ours.paths.run}") from reason
    return {names.BOT_CONFIG_FILE: os.path.join(ours.paths.run, name)}


def _checked(environment: dict[str, str]) -> dict[str, str]:
    for name, value in environment.items():
        if not _fits(name, value):
            raise Fatal(
                f"{name} ({len(value)} characters) cannot be given to a process: a variable holds about "
                f"{LONGEST_VARIABLE_BYTES >> 10} KiB, and no NUL; make it shorter.",
                code=ExitCode.USAGE,
            )
    return environment


def _fits(name: str, value: str) -> bool:
    try:
        size = len(os.fsencode(name)) + len(os.fsencode(value)) + 2
    except UnicodeEncodeError:
        return False  # half a character: JSON can name one, an environment cannot hold it
    return size <= LONGEST_VARIABLE_BYTES and "\0" not in name and "\0" not in value
