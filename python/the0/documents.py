"""A bot's stored document: read into a `Bot`, or into the one sentence that says why it cannot be run.

Documents come from other programs and earlier versions: numbers are doubles, ids have two spellings, whole parts are
missing. Nothing here raises for one; a bad document is an error on that bot alone. Pure, no I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from the0 import canonical, durations
from the0.errors import clip
from the0.plain import plain
from the0.quantities import cores, whole_bytes

Kind = Literal["realtime", "scheduled"]
_A_SCHEDULE: Final = "write one such as */5 * * * * (every five minutes), or deploy it with --schedule"
KINDS: Final[tuple[Kind, Kind]] = ("realtime", "scheduled")
RUNTIMES: Final = frozenset(
    ("python3.11", "nodejs20", "rust-stable", "gcc13", "cpp-gcc13", "ghc96", "dotnet8", "scala3")
)
"""The language runtimes that `execute` knows."""
NO_ID: Final = "(no id)"
SMALLEST_MEMORY_BYTES: Final = 6 << 20
"""Container engines take no smaller limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """None: not named in the document."""

    memory_bytes: int | None = None
    cpu_cores: float | None = None
    memory_request_bytes: int | None = None
    cpu_request_cores: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """`config.the0`. None where the default depends on something else."""

    timezone: str = "UTC"
    """As written; whether there is such a zone, the schedule finds out."""
    catch_up: Literal["none", "one"] = "none"
    start_deadline_s: float | None = None
    overlap: Literal["skip", "queue"] = "skip"
    timeout_s: float | None = None
    store_down: Literal["run", "stop"] = "run"
    incomplete: Literal["refuse", "run"] = "refuse"
    query_warm_s: float | None = None


POLICY_NAMES: Final = frozenset(Policies.__dataclass_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bot:
    id: str
    kind: Kind
    enabled: bool
    paused: bool
    """Of a scheduled bot: no slot is run until somebody starts it again; a run that is under way goes on."""
    runtime: str
    version: str
    file_path: str
    """Key of the code archive."""
    entrypoint: str
    query_entrypoint: str | None
    config: Mapping[str, Any]
    """As stored, in JSON's own types."""
    config_json: str
    """The same in canonical JSON: BOT_CONFIG."""
    limits: Resources
    policies: Policies
    schedule: str | None
    """The expression of a scheduled bot as stored; None of a realtime one, whatever its config holds."""
    next_s: int | None
    """`next_execution_time`, Unix seconds, where it is stored and makes sense."""
    config_hash: str
    """Over config, file path, version, runtime, entrypoints and limits: another one is another process."""
    custom_bot_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BadBot:
    id: str
    kind: Kind
    enabled: bool
    reason: str
    """One sentence."""


class _Bad(Exception):
    """The sentence's middle: what is wrong, and what to do."""


def read(document: Mapping[str, Any], *, kind: Kind) -> Bot | BadBot:
    """`kind` is that of the collection the document was found in. Never raises."""
    if not isinstance(document, Mapping):
        return BadBot(
            id=NO_ID, kind=kind, enabled=False, reason="A stored bot is no document: remove it, or deploy it again."
        )
    bot_id = document_id(document)
    enabled = is_enabled(document)
    try:
        return _read(document, kind=kind, enabled=enabled)
    except _Bad as bad:
        shown = clip(bot_id or NO_ID)
        return BadBot(id=bot_id or NO_ID, kind=kind, enabled=enabled, reason=f"Bot {shown} {bad}.")


def read_all(documents: Iterable[tuple[Kind, Mapping[str, Any]]]) -> dict[str, Bot | BadBot]:
    """As `by_id`."""
    return by_id(read(document, kind=kind) for kind, document in documents)


def by_id(bots: Iterable[Bot | BadBot]) -> dict[str, Bot | BadBot]:
    """An id that occurs twice, in one collection or in both, is bad: two copies of a bot never run."""
    found: dict[str, Bot | BadBot] = {}
    for bot in bots:
        if bot.id in found:
            reason = f"Bot {clip(bot.id)} is stored more than once: remove all of its documents but one."
            bot = BadBot(id=bot.id, kind=bot.kind, enabled=bot.enabled, reason=reason)
        found[bot.id] = bot
    return found


def document_id(document: Mapping[str, Any]) -> str | None:
    """`id` where there is one, else `_id`; None where neither can be an id."""
    return _id_text(document.get("id")) or _id_text(document.get("_id"))


def is_enabled(document: Mapping[str, Any]) -> bool:
    """Unless `enabled` or `config.enabled` is false, in any spelling."""
    config = document.get("config")
    inner = config.get("enabled") if isinstance(config, Mapping) else None
    return not (says_false(document.get("enabled")) or says_false(inner))


def says_false(value: object) -> bool:
    """false, 0, "false", "0". Missing is not false."""
    if isinstance(value, str):
        return value.strip().lower() in ("false", "0")
    return isinstance(value, int | float) and value == 0


def _read(document: Mapping[str, Any], *, kind: Kind, enabled: bool) -> Bot:
    bot_id = document_id(document)
    if bot_id is None:
        raise _Bad("has neither id nor _id: give it one")
    if not _fit(bot_id):
        raise _Bad("has an id that no variable can hold: choose another one")
    config, config_json = _config(document)
    custom = _part(document, "custom", "deploy it again")
    about = _part(custom, "config", "deploy it again", within="custom.")
    entrypoints = _part(about, "entrypoints", "deploy it again", within="custom.config.")
    runtime = _text(about, "runtime", within="custom.config.")
    if runtime not in RUNTIMES:
        raise _Bad(f"names the runtime {clip(runtime)!r}, which is none: use one of {', '.join(sorted(RUNTIMES))}")
    entrypoint = _entrypoint(_text(entrypoints, "bot", within="custom.config.entrypoints."))
    query = _optional_text(entrypoints, "query", within="custom.config.entrypoints.")
    query_entrypoint = _entrypoint(query) if query else None
    file_path = _text(custom, "filePath", within="custom.")
    version = _version(custom) or _version(about)
    limits = _limits(config)
    fingerprint = {
        "config": config,
        "filePath": file_path,
        "version": version,
        "runtime": runtime,
        "entrypoints": {"bot": entrypoint, "query": query_entrypoint},
        "limits": [limits.memory_bytes, limits.cpu_cores, limits.memory_request_bytes, limits.cpu_request_cores],
    }
    return Bot(
        id=bot_id,
        kind=kind,
        enabled=enabled,
        paused=kind == "scheduled" and document.get("paused") is True,
        runtime=runtime,
        version=version,
        file_path=file_path,
        entrypoint=entrypoint,
        query_entrypoint=query_entrypoint,
        config=config,
        config_json=config_json,
        limits=limits,
        policies=_policies(config),
        schedule=_text(config, "schedule", within="config.", remedy=_A_SCHEDULE).strip()
        if kind == "scheduled"
        else None,
        next_s=_unix_s(document.get("next_execution_time")),
        config_hash=hashlib.sha256(canonical.dumps(fingerprint).encode("ascii")).hexdigest()[:32],
        custom_bot_id=_id_text(config.get("customBotId")),
    )


def _id_text(value: object) -> str | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        try:
            return canonical.dumps(value)
        except ValueError:
            return None
    text = value if isinstance(value, str) else str(value) if type(value).__name__ == "ObjectId" else ""
    return text or None


def _fit(text: str) -> bool:
    """For the environment and for keys."""
    try:
        return b"\0" not in text.encode("utf-8")
    except UnicodeEncodeError:
        return False


def _config(document: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    value = document.get("config")
    if value is None:
        return {}, "{}"
    if not isinstance(value, Mapping):
        raise _Bad("has a config that is no object: write one")
    try:
        config = cast("dict[str, Any]", plain(value))
        return config, canonical.dumps(config)
    except ValueError as reason:
        raise _Bad(f"has a config that cannot be handed to it ({clip(str(reason))}): correct it") from reason


def _part(document: Mapping[str, Any], name: str, remedy: str, *, within: str = "") -> Mapping[str, Any]:
    value = document.get(name)
    if not isinstance(value, Mapping):
        wrong = "has no" if value is None else "is wrong: no object is"
        raise _Bad(f"{wrong} {within}{name}: {remedy}")
    return value


def _text(document: Mapping[str, Any], name: str, *, within: str, remedy: str = "give it one") -> str:
    text = _optional_text(document, name, within=within)
    if text is None or not text.strip():
        raise _Bad(f"has no {within}{name}: {remedy}")
    return text


def _optional_text(document: Mapping[str, Any], name: str, *, within: str) -> str | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _Bad(f"has a {within}{name} that is no text: correct it")
    if not _fit(value):
        raise _Bad(f"has a {within}{name} that no variable can hold: correct it")
    return value


def _entrypoint(text: str) -> str:
    file = text.partition(".jar:")[0]
    if file.startswith("/") or ".." in file.split("/") or not file.strip("/. "):
        raise _Bad(f"has the entrypoint {clip(text)!r}, which is no path within its code: write one such as main.py")
    return text


def _version(holder: Mapping[str, Any]) -> str:
    value = holder.get("version")
    if isinstance(value, str):
        return value
    return (_id_text(value) or "") if isinstance(value, int | float) else ""


def _limits(config: Mapping[str, Any]) -> Resources:
    def of(name: str, parse: Any) -> Any:
        value = config.get(name)
        if value is None or value == "":
            return None
        try:
            return parse(value)
        except ValueError as reason:
            raise _Bad(f"has config.{name} {clip(str(value))!r}: {reason}") from reason

    found = Resources(
        memory_bytes=of("memory_limit", whole_bytes),
        cpu_cores=of("cpu_limit", cores),
        memory_request_bytes=of("memory_request", whole_bytes),
        cpu_request_cores=of("cpu_request", cores),
    )
    if found.memory_bytes is not None and found.memory_bytes < SMALLEST_MEMORY_BYTES:
        shown = clip(str(config.get("memory_limit")))
        raise _Bad(
            f"has config.memory_limit {shown!r}, which is {found.memory_bytes} bytes and too little for any process: "
            "write it like 512Mi"
        )
    return found


def _policies(config: Mapping[str, Any]) -> Policies:
    ours = config.get("the0")
    if ours is None:
        return Policies()
    if not isinstance(ours, Mapping):
        raise _Bad("has a config.the0 that is no object: remove it, or write an object of policies")
    return Policies(
        timezone=_zone(ours),
        catch_up=_choice(ours, "catch_up", "none", "one"),
        start_deadline_s=_seconds(ours, "start_deadline_s"),
        overlap=_choice(ours, "overlap", "skip", "queue"),
        timeout_s=_seconds(ours, "timeout_s", above_zero=True),
        store_down=_choice(ours, "store_down", "run", "stop"),
        incomplete=_choice(ours, "incomplete", "refuse", "run"),
        query_warm_s=_seconds(ours, "query_warm_s"),
    )


def _zone(ours: Mapping[str, Any]) -> str:
    value = ours.get("timezone")
    if value is None:
        return "UTC"
    if not isinstance(value, str) or not value.strip():
        raise _Bad(f"has config.the0.timezone {clip(str(value))!r}: write a name such as Europe/Berlin")
    return value.strip()


def _choice(ours: Mapping[str, Any], name: str, default: Any, other: Any) -> Any:
    value = ours.get(name)
    if value is None:
        return default
    if value not in (default, other):
        raise _Bad(f"has config.the0.{name} {clip(str(value))!r}: write {default} or {other}")
    return value


def _seconds(ours: Mapping[str, Any], name: str, *, above_zero: bool = False) -> float | None:
    value = ours.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("no duration")
        seconds = durations.parse_s(value if isinstance(value, str) else f"{value:f}")
    except ValueError as reason:
        raise _Bad(f"has config.the0.{name} {clip(str(value))!r}: write seconds (30), or 30s, 5m, 1h30m") from reason
    if above_zero and seconds == 0:
        raise _Bad(f"has config.the0.{name} 0: write more, or remove it")
    return seconds


def _unix_s(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1 << 40:
        return None
    return int(value)
