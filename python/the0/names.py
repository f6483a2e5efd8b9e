"""Every name that crosses a process border: environment, ports, paths, object keys, ids.

Spelled here once. The wire contract fixes them: other programs and stored data use them too.
"""

from __future__ import annotations

import re
from typing import Final

# --- Environment: what `execute` and the services read -------------------------------------------
BOT_ID: Final = "BOT_ID"
RUNTIME: Final = "RUNTIME"
ENTRYPOINT: Final = "ENTRYPOINT"
CODE_FILE: Final = "CODE_FILE"
BOT_CONFIG: Final = "BOT_CONFIG"
BOT_CONFIG_FILE: Final = "BOT_CONFIG_FILE"
BOT_CONFIG_KEY: Final = "BOT_CONFIG_KEY"
BOT_TYPE: Final = "BOT_TYPE"
IS_SCHEDULED: Final = "IS_SCHEDULED"
QUERY_ENTRYPOINT: Final = "QUERY_ENTRYPOINT"
QUERY_PATH: Final = "QUERY_PATH"
QUERY_PARAMS: Final = "QUERY_PARAMS"
QUERY_RESULT_KEY: Final = "QUERY_RESULT_KEY"
QUERY_TIMEOUT_S: Final = "QUERY_TIMEOUT_S"
CODE_PATH: Final = "CODE_PATH"
STATE_PATH: Final = "STATE_PATH"
LOGS_PATH: Final = "LOGS_PATH"
STATE_DIR: Final = "STATE_DIR"
LOG_LEVEL: Final = "LOG_LEVEL"
MINIO_ENDPOINT: Final = "MINIO_ENDPOINT"
MINIO_ACCESS_KEY: Final = "MINIO_ACCESS_KEY"
MINIO_SECRET_KEY: Final = "MINIO_SECRET_KEY"
MINIO_USE_SSL: Final = "MINIO_USE_SSL"
MINIO_SSL: Final = "MINIO_SSL"
MINIO_REGION: Final = "MINIO_REGION"
MINIO_CODE_BUCKET: Final = "MINIO_CODE_BUCKET"
MINIO_BUCKET: Final = "MINIO_BUCKET"
MINIO_STATE_BUCKET: Final = "MINIO_STATE_BUCKET"
MINIO_LOGS_BUCKET: Final = "MINIO_LOGS_BUCKET"
MINIO_QUERY_RESULTS_BUCKET: Final = "MINIO_QUERY_RESULTS_BUCKET"
MAX_STATE_SIZE_MB: Final = "MAX_STATE_SIZE_MB"
MAX_STATE_FILE_SIZE_MB: Final = "MAX_STATE_FILE_SIZE_MB"
OBJECT_STORE_DIR: Final = "OBJECT_STORE_DIR"
THE0_RUN_DIR: Final = "THE0_RUN_DIR"
THE0_SLOT: Final = "THE0_SLOT"
THE0_RUN_TOKEN: Final = "THE0_RUN_TOKEN"
THE0_ENDED: Final = "THE0_ENDED"
STOP_GRACE_S: Final = "STOP_GRACE_S"
THE0_DATA: Final = "THE0_DATA"
GATEWAY_TOKEN: Final = "GATEWAY_TOKEN"

# --- Environment: what only the bot's own process sees -------------------------------------------
CODE_MOUNT_DIR: Final = "CODE_MOUNT_DIR"
SCRIPT_PATH: Final = "SCRIPT_PATH"
ENTRYPOINT_TYPE: Final = "ENTRYPOINT_TYPE"
QUERY_PARAM_: Final = "QUERY_PARAM_"
"""Begins the name of the variable that holds one param of an ephemeral query."""
THE0_QUERY_PORT: Final = "THE0_QUERY_PORT"

# --- Ports ---------------------------------------------------------------------------------------
QUERY_PORT: Final = 9476
GATEWAY_PORT: Final = 9477
SYNC_READINESS_PORT: Final = 8079

# --- Paths ---------------------------------------------------------------------------------------
SDK_STATE_DIR: Final = ".the0-state"
"""Where SDKs keep their keys, below STATE_PATH."""
RESERVED_DIR: Final = ".the0"
"""Ours, below STATE_PATH: never scanned, stored or restored."""
INDEX: Final = "index"
RESTORING: Final = "index.restoring"
LOCK: Final = "lock"
SPOOL: Final = "spool"
ASIDE: Final = "aside"
RESTORE: Final = "restore"
BOT_LOG: Final = "bot.log"
DONE: Final = "done"
EXIT_RECORD: Final = "exit.json"
FENCED: Final = "fenced"
RESULT: Final = "result.json"
QUERY_FOLDER: Final = "/query"
"""Where an ephemeral query's process writes `result.json`: the SDKs have it built in."""
QUERY_COPIES: Final = "queries"
QUERY_GOOD: Final = b"+"
QUERY_CHANGED: Final = b"!"
"""Below RESERVED_DIR: throw-away copies of stored state, one for each ephemeral query under way."""

# --- Object keys ---------------------------------------------------------------------------------
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NUMBERED = re.compile(r"([0-9]{12,})(?:-[0-9a-f]+)?")


def encode_id(bot_id: str) -> str:
    """A bot's id as keys, folders, containers and pods spell it.

    Plain ids stay as they are; every other one becomes `~` and 32 hex digits of its BLAKE3, so that no
    two ids meet and none leaves its folder. Raises ValueError for an empty id.
    """
    if not bot_id:
        raise ValueError("a bot id must not be empty")
    if _PLAIN_ID.fullmatch(bot_id) and bot_id not in (".", ".."):
        return bot_id
    from the0 import statehash

    return "~" + statehash.digest(bot_id.encode("utf-8", "surrogatepass"))[:32]


def state_prefix(bot_id: str) -> str:
    return f"{encode_id(bot_id)}/"


def head_key(bot_id: str) -> str:
    return f"{encode_id(bot_id)}/HEAD"


def segment_key(bot_id: str, *, lineage: str, generation: int, digest: str) -> str:
    return f"{encode_id(bot_id)}/segments/{lineage}/{generation:012d}-{digest}"


def segments_prefix(bot_id: str) -> str:
    return f"{encode_id(bot_id)}/segments/"


def history_key(bot_id: str, *, lineage: str, generation: int) -> str:
    return f"{encode_id(bot_id)}/history/{lineage}/{generation:012d}"


def history_prefix(bot_id: str) -> str:
    return f"{encode_id(bot_id)}/history/"


def numbered(key: str) -> tuple[str, int] | None:
    """Lineage and generation in the key of a segment or a history entry; None for a key of another form."""
    parts = key.split("/")
    found = _NUMBERED.fullmatch(parts[-1])
    return (parts[-2], int(found[1])) if len(parts) == 4 and found else None


def run_key(bot_id: str, slot: str) -> str:
    return f"{encode_id(bot_id)}/runs/{slot}.json"


def runs_prefix(bot_id: str) -> str:
    return f"{encode_id(bot_id)}/runs/"


def runs_month_key(bot_id: str, month: str) -> str:
    """Old records, one a line; `month` is YYYYMM (UTC)."""
    return f"{encode_id(bot_id)}/runs/{month}.ndjson"


def archive_key(bot_id: str) -> str:
    return f"{encode_id(bot_id)}/state.tar.gz"


def archive_base_key(bot_id: str) -> str:
    return f"{encode_id(bot_id)}/archive-base"


def grant_key(bot_id: str) -> str:
    return f"{encode_id(bot_id)}/grant"


def config_key(bot_id: str, digest: str) -> str:
    """A configuration that is too large for an environment, in the state bucket; named by its content."""
    return f"{encode_id(bot_id)}/config/{digest}.json"


def logs_prefix(bot_id: str) -> str:
    return f"logs/{encode_id(bot_id)}/"


def day_log_key(bot_id: str, day: str) -> str:
    """`day` is YYYYMMDD (UTC)."""
    return f"logs/{encode_id(bot_id)}/{day}.log"


def log_piece_key(bot_id: str, day: str, *, epoch: int, seq: int) -> str:
    return f"logs/{encode_id(bot_id)}/{day}/{epoch:010d}-{seq:012d}.ndjson"


def log_pieces_prefix(bot_id: str, day: str) -> str:
    return f"logs/{encode_id(bot_id)}/{day}/"


# --- User metadata of objects (lower case: stores fold it) ---------------------------------------
ARCHIVE_GENERATION: Final = "the0-generation"
LOG_LAST_PIECE: Final = "the0-last-piece"


def query_path(path: str) -> str:
    """A query's path as bots know it: with a slash before it."""
    return path if path.startswith("/") else f"/{path}"
