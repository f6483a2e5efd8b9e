"""Settings of `execute` and the sync daemon: flag > environment > default, checked once, then frozen.

Only this module and `cli.py` know the environment. Every refusal is one sentence that names the variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from the0 import canonical, durations, names
from the0.errors import ExitCode, Fatal, clip
from the0.frozen import dataclass
from the0.objects.credentials import StoreSettings

MIB = 1024 * 1024
LONGEST_CONFIG_BYTES = 32 * MIB
_ENDPOINT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_MEGABYTES = re.compile(r"0*[1-9][0-9]{0,11}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    code: str = "custom-bots"
    state: str = "bot-state"
    logs: str = "bot-logs"
    query_results: str = "query-results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    state_bytes: int = 8192 * MIB
    state_file_bytes: int = 8192 * MIB

    @property
    def left_out_over_bytes(self) -> int | None:
        """Files over this keep their last stored version; None where only the limit of the whole tree counts."""
        return self.state_file_bytes if self.state_file_bytes < self.state_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Absolute folders on this machine."""

    code: str = "/bot"
    state: str = "/state"
    logs: str = "/var/the0/logs"
    sdk_state: str = "/state/.the0-state"
    run: str = "/var/the0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """`config.the0` of a bot, as far as one run of it is concerned."""

    store_down: Literal["run", "stop"] = "run"
    incomplete: Literal["refuse", "run"] = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSettings:
    """All that keeps one bot's state and logs in the store."""

    bot_id: str
    store: StoreSettings
    buckets: Buckets
    limits: Limits
    paths: Paths
    policies: Policies
    interval_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BotSettings:
    """What the bot is and how it is run."""

    bot_id: str
    runtime: str
    entrypoint: str
    code_file: str
    config_json: str
    bot_type: Literal["realtime", "scheduled"]
    query_entrypoint: str
    query_path: str | None
    query_params: Mapping[str, Any]
    query_result_key: str
    query_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecuteSettings:
    bot: BotSettings
    paths: Paths
    buckets: Buckets
    store: StoreSettings | None
    """None only where nothing is synced here and no store is named: then the code must be in CODE_PATH already."""
    sync: SyncSettings | None
    """None where a sidecar syncs, or nobody."""
    stop_grace_s: float
    query_timeout_s: float
    ended_instance: str | None
    slot: str | None
    run_token: str | None


def read_execute(environ: Mapping[str, str], *, skip_sync: bool = False) -> ExecuteSettings:
    """Raises Fatal (USAGE) in one sentence for whatever is missing or malformed."""
    bot = read_bot(environ)
    named = environ.get(names.OBJECT_STORE_DIR) or environ.get(names.MINIO_ENDPOINT)
    sync = None if skip_sync else read_sync(environ, bot_id=bot.bot_id)
    return ExecuteSettings(
        bot=bot,
        paths=read_paths(environ),
        buckets=read_buckets(environ),
        store=read_store(environ) if named else None,
        sync=sync,
        stop_grace_s=duration_s(environ, names.STOP_GRACE_S, 30.0),
        query_timeout_s=duration_s(environ, names.QUERY_TIMEOUT_S, 30.0) or 30.0,
        ended_instance=environ.get(names.THE0_ENDED) or None,
        slot=environ.get(names.THE0_SLOT) or None,
        run_token=environ.get(names.THE0_RUN_TOKEN) or None,
    )


def with_config_file(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment with BOT_CONFIG as the file BOT_CONFIG_FILE holds it, where it is not set itself."""
    path = environ.get(names.BOT_CONFIG_FILE)
    if environ.get(names.BOT_CONFIG) or not path:
        return environ
    try:
        with open(_absolute(names.BOT_CONFIG_FILE, path), "rb") as file:
            text = file.read(LONGEST_CONFIG_BYTES + 1)
    except OSError as reason:
        raise _usage(
            names.BOT_CONFIG_FILE, f"({clip(path)}) cannot be read ({reason.strerror})", "name a readable file"
        ) from reason
    if len(text) > LONGEST_CONFIG_BYTES:
        raise _usage(names.BOT_CONFIG_FILE, f"({clip(path)}) is over {LONGEST_CONFIG_BYTES // MIB} MiB", "shorten it")
    return {**environ, names.BOT_CONFIG: text.decode("utf-8", "surrogateescape")}


def read_bot_id(environ: Mapping[str, str]) -> str:
    return _required(environ, names.BOT_ID, "the bot's id")


def read_bot(environ: Mapping[str, str]) -> BotSettings:
    config = _json_object(environ, names.BOT_CONFIG)
    bot_type = environ.get(names.BOT_TYPE) or ("scheduled" if _flag(environ, names.IS_SCHEDULED) else "realtime")
    if bot_type not in ("realtime", "scheduled"):
        raise _usage(names.BOT_TYPE, f"is {clip(bot_type)!r}", "set it to realtime or scheduled")
    return BotSettings(
        bot_id=read_bot_id(environ),
        runtime=_required(environ, names.RUNTIME, "a language runtime such as python3.11"),
        entrypoint=_required(environ, names.ENTRYPOINT, "the file to run, such as main.py"),
        code_file=environ.get(names.CODE_FILE, ""),
        config_json=config,
        bot_type=cast(Literal["realtime", "scheduled"], bot_type),
        query_entrypoint=environ.get(names.QUERY_ENTRYPOINT, ""),
        query_path=environ.get(names.QUERY_PATH) or None,
        query_params=canonical.loads_object(_json_object(environ, names.QUERY_PARAMS)),
        query_result_key=environ.get(names.QUERY_RESULT_KEY, ""),
        query_port=_port(environ, names.THE0_QUERY_PORT, names.QUERY_PORT),
    )


def read_sync(environ: Mapping[str, str], *, bot_id: str, interval_s: float = 60.0) -> SyncSettings:
    config = canonical.loads_object(_json_object(environ, names.BOT_CONFIG))
    state_mb = _megabytes(environ, names.MAX_STATE_SIZE_MB, 8192 * MIB)
    return SyncSettings(
        bot_id=bot_id,
        store=read_store(environ),
        buckets=read_buckets(environ),
        limits=Limits(
            state_bytes=state_mb,
            state_file_bytes=_megabytes(environ, names.MAX_STATE_FILE_SIZE_MB, state_mb),
        ),
        paths=read_paths(environ),
        policies=read_policies(config),
        interval_s=interval_s,
    )


def read_buckets(environ: Mapping[str, str]) -> Buckets:
    return Buckets(
        code=environ.get(names.MINIO_CODE_BUCKET) or environ.get(names.MINIO_BUCKET) or "custom-bots",
        state=environ.get(names.MINIO_STATE_BUCKET) or "bot-state",
        logs=environ.get(names.MINIO_LOGS_BUCKET) or "bot-logs",
        query_results=environ.get(names.MINIO_QUERY_RESULTS_BUCKET) or "query-results",
    )


def read_paths(environ: Mapping[str, str]) -> Paths:
    code = _path(environ, names.CODE_PATH, "/bot")
    state = _path(environ, names.STATE_PATH, "/state")
    sdk_state = _path(environ, names.STATE_DIR, os.path.join(state, names.SDK_STATE_DIR))
    # Both folders are emptied and filled as a whole: neither may hold the other, or the machine.
    for variable, path in ((names.CODE_PATH, code), (names.STATE_PATH, state)):
        if not path.strip("/"):
            raise _usage(variable, "is the root folder", "give it a folder of its own")
    if _holds(code, state) or _holds(state, code):
        raise _usage(
            names.STATE_PATH, f"({clip(state)}) and CODE_PATH ({clip(code)}) overlap", "make them separate folders"
        )
    if not _holds(state, sdk_state) or _holds(os.path.join(state, names.RESERVED_DIR), sdk_state):
        raise _usage(
            names.STATE_DIR,
            f"({clip(sdk_state)}) is not kept with the state in {clip(state)}",
            f"leave it unset, or name a folder below STATE_PATH other than {names.RESERVED_DIR}",
        )
    return Paths(
        code=code,
        state=state,
        logs=_path(environ, names.LOGS_PATH, "/var/the0/logs"),
        sdk_state=sdk_state,
        run=_path(environ, names.THE0_RUN_DIR, "/var/the0"),
    )


def read_store(environ: Mapping[str, str]) -> StoreSettings:
    """The folder where OBJECT_STORE_DIR is set, else S3 at MINIO_ENDPOINT."""
    folder = environ.get(names.OBJECT_STORE_DIR)
    if folder:
        return StoreSettings(folder=_absolute(names.OBJECT_STORE_DIR, folder))
    endpoint = environ.get(names.MINIO_ENDPOINT, "")
    if not endpoint:
        raise _usage(
            names.MINIO_ENDPOINT,
            "is missing",
            "set it to the store's host:port, or set OBJECT_STORE_DIR to a folder",
        )
    address = _ENDPOINT.fullmatch(endpoint)
    if address is None or not 0 < int(address["port"] or 80) < 65536:
        shown = "holds a password" if "@" in endpoint else f"is {clip(endpoint)!r}"
        raise _usage(names.MINIO_ENDPOINT, shown, "write host:port without a scheme; MINIO_USE_SSL selects TLS")
    return StoreSettings(
        endpoint=endpoint,
        access_key=_required(environ, names.MINIO_ACCESS_KEY, "the store's access key"),
        secret_key=_required(environ, names.MINIO_SECRET_KEY, "the store's secret key"),
        use_ssl=_flag(environ, names.MINIO_USE_SSL) or _flag(environ, names.MINIO_SSL),
        region=environ.get(names.MINIO_REGION) or "us-east-1",
    )


def read_policies(config: Mapping[str, Any]) -> Policies:
    ours = config.get("the0", {})
    if not isinstance(ours, dict):
        raise _usage("BOT_CONFIG", "has a `the0` that is no object", "remove it or write an object of policies")
    store_down = ours.get("store_down", "run")
    incomplete = ours.get("incomplete", "refuse")
    if store_down not in ("run", "stop"):
        raise _usage("BOT_CONFIG", f"has the0.store_down {clip(str(store_down))!r}", "write run or stop")
    if incomplete not in ("run", "refuse"):
        raise _usage("BOT_CONFIG", f"has the0.incomplete {clip(str(incomplete))!r}", "write run or refuse")
    return Policies(store_down=store_down, incomplete=incomplete)


def _usage(variable: str, wrong: str, remedy: str) -> Fatal:
    return Fatal(f"{variable} {wrong}: {remedy}.", code=ExitCode.USAGE)


def _required(environ: Mapping[str, str], variable: str, what: str) -> str:
    value = environ.get(variable, "")
    if not value:
        raise _usage(variable, "is missing", f"set it to {what}")
    return value


def _flag(environ: Mapping[str, str], variable: str) -> bool:
    value = environ.get(variable, "").strip().lower()
    if value in ("1", "true", "yes", "on", "t"):
        return True
    if value in ("", "0", "false", "no", "off", "f"):
        return False
    raise _usage(variable, f"is {clip(value)!r}", "set it to true or false")


def _json_object(environ: Mapping[str, str], variable: str) -> str:
    text = environ.get(variable) or "{}"
    try:
        # Bytes that are no UTF-8 came as lone surrogates.
        return canonical.dumps(canonical.loads_object(text.encode("utf-8")))
    except ValueError as reason:
        raise _usage(variable, f"is not usable ({clip(str(reason))})", "set it to a JSON object") from reason


def _megabytes(environ: Mapping[str, str], variable: str, default_bytes: int) -> int:
    text = environ.get(variable)
    if not text:
        return default_bytes
    if not _MEGABYTES.fullmatch(text.strip()):
        raise _usage(variable, f"is {clip(text)!r}", "set it to a whole number of MiB above 0")
    return int(text) * MIB


def duration_s(environ: Mapping[str, str], variable: str, default_s: float) -> float:
    """Of a variable that holds a duration. Fatal (USAGE) where it is malformed."""
    text = environ.get(variable)
    if not text:
        return default_s
    try:
        return durations.parse_s(text)
    except ValueError as reason:
        raise _usage(variable, "is malformed", str(reason)) from reason


def _port(environ: Mapping[str, str], variable: str, default: int) -> int:
    text = environ.get(variable) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise _usage(variable, f"is {clip(text)!r}", "set it to a port number, 1 to 65535")
    return int(text)


def _path(environ: Mapping[str, str], variable: str, default: str) -> str:
    return _absolute(variable, environ.get(variable) or default)


def _absolute(variable: str, path: str) -> str:
    if "\0" in path or not os.path.isabs(path):
        raise _usage(variable, f"is {clip(path)!r}", "set it to an absolute path")
    return os.path.normpath(path)


def _holds(outer: str, inner: str) -> bool:
    return os.path.commonpath([outer, inner]) == outer
