"""What a bot's folder says about it: `bot-config.yaml`, `config.json`, and the schema its config is held to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from the0 import canonical
from the0.documents import Kind
from the0.errors import ExitCode, Fatal, clip
from the0.plain import plain

NAMES: Final = ("bot-config.yaml", "bot-config.yml")
CONFIG: Final = "config.json"
LIMIT_BYTES: Final = 1 << 20
DEPTH: Final = 100
RESERVED: Final = frozenset(
    ("the0", "schedule", "enabled", "customBotId", "memory_limit", "cpu_limit", "memory_request", "cpu_request")
)
"""What the platform itself reads in a bot's config."""
_KEPT: Final = ("author", "description", "schema", "readme", "metadata")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`bot-config.yaml` as far as it is there; "" and None for what it does not say."""

    name: str = ""
    version: str = ""
    kind: Kind | None = None
    runtime: str = ""
    entrypoints: Mapping[str, Any]
    schedule: str | None = None
    rest: Mapping[str, Any]
    """Author, description, schema, readme, metadata, where they are there."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """The JSON schema of the bot's config: `schema` itself, or `schema.bot` where one file holds several."""
        schema = self.rest.get("schema")
        if not isinstance(schema, Mapping):
            return {}
        inner = schema.get("bot")
        several = not ({"type", "properties", "$schema", "$ref", "allOf"} & set(schema))
        return inner if several and isinstance(inner, Mapping) else schema


def read_manifest(folder: str) -> Manifest | None:
    """None where the folder has none. Raises Fatal (USAGE) naming the file and what is wrong in it."""
    for name in NAMES:
        text = _text(folder, name)
        if text is not None:
            return _manifest(text, name)
    return None


def read_config(folder: str) -> dict[str, Any]:
    """config.json, {} where there is none. Raises Fatal (USAGE)."""
    text = _text(folder, CONFIG)
    if text is None:
        return {}
    try:
        value: dict[str, Any] = plain(canonical.loads_object(text))
    except ValueError as reason:
        raise _wrong(CONFIG, clip(str(reason))) from reason
    return value


def with_defaults(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The config and, where it leaves them out, the defaults of the schema's own properties."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return dict(config)
    defaults = {
        name: about["default"]
        for name, about in properties.items()
        if isinstance(about, Mapping) and "default" in about and name not in config
    }
    return {**defaults, **config}


def wants_text(schema: Mapping[str, Any], name: str) -> bool:
    """Whether the schema says that this property is a string."""
    properties = schema.get("properties")
    about = properties.get(name) if isinstance(properties, Mapping) else None
    return isinstance(about, Mapping) and about.get("type") == "string"


def check_config(config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raises Fatal (USAGE): the schema is none, or what in the config is not as it says. Fetches nothing."""
    if not schema:
        return
    import jsonschema
    import referencing

    kind = jsonschema.validators.validator_for(dict(schema), default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(dict(schema))
        checker = kind(dict(schema), registry=referencing.Registry())
        errors = sorted(
            checker.iter_errors(_of_the_bots(config, schema)), key=lambda error: [str(part) for part in error.path]
        )
    except jsonschema.SchemaError as reason:
        where = _where("schema", reason.path)
        raise _wrong(NAMES[0], f"its {where} is no JSON schema ({clip(reason.message)})") from reason
    except referencing.exceptions.Unresolvable as reason:
        raise _wrong(NAMES[0], f"its schema refers to {clip(str(reason.ref))!r}, which is not in it") from reason
    except RecursionError as reason:
        raise _wrong(NAMES[0], "its schema refers to itself without end") from reason
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise Fatal(
            f"The config does not fit the bot's schema: {_said(errors[0])}{more}; correct it with --config or in {CONFIG}.",
            code=ExitCode.USAGE,
        )


def _said(error: Any) -> str:
    """Never the value itself: it may be a secret."""
    where = _where("", error.path)
    if error.validator == "required" and isinstance(error.instance, dict):
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{where}{'.' if where else ''}{clip(str(missing[0]))} is missing"
    if error.validator == "additionalProperties":
        return f"{where}{'.' if where else ''}{clip(_unknown(error))} is no property that the schema knows"
    rule = clip(f"{error.validator}: {error.validator_value}", limit=80)
    return f"{where or 'it'} is against the rule {rule}"


def _unknown(error: Any) -> str:
    known, patterns = error.schema.get("properties", {}), error.schema.get("patternProperties", {})
    names = (str(name) for name in error.instance if name not in known)
    return next(name for name in names if not any(re.search(pattern, name) for pattern in patterns))


def _of_the_bots(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the platform reads and the schema does not speak of: a strict one forbids what it does not know."""
    spoken_of = {*_named(schema.get("properties")), *_named(schema.get("required"))}
    return {name: value for name, value in config.items() if name not in RESERVED or name in spoken_of}


def _named(value: object) -> Iterable[str]:
    return value if isinstance(value, Mapping | list) else ()


def _where(first: str, path: Any) -> str:
    parts = [first, *(str(part) for part in path)]
    return clip(".".join(part for part in parts if part))


def _text(folder: str, name: str) -> str | None:
    path = os.path.join(folder, name)
    try:
        with open(path, "rb") as file:
            data = file.read(LIMIT_BYTES + 1)
        if len(data) > LIMIT_BYTES:
            raise _wrong(name, f"it is over {LIMIT_BYTES >> 20} MiB")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as reason:
        said = reason.strerror if isinstance(reason, OSError) else "it is no UTF-8"
        raise _wrong(name, said or "it cannot be read") from reason


def _manifest(text: str, name: str) -> Manifest:
    value, spelled = _yaml(text, name)
    kind = value.get("type")
    if kind not in (None, "realtime", "scheduled"):
        raise _wrong(name, f"its type is {clip(str(kind))!r}; it is realtime or scheduled")
    entrypoints = value.get("entrypoints") or {}
    if not isinstance(entrypoints, dict) or not all(isinstance(file, str) for file in entrypoints.values()):
        raise _wrong(name, "its entrypoints are no table of `bot` and `query` with a file each")
    schedule = value.get("schedule")
    if schedule is not None and not isinstance(schedule, str):
        raise _wrong(name, "its schedule is no text: put it in quotes")
    return Manifest(
        name=_word(spelled, "name", name),
        version=_word(spelled, "version", name),
        kind=kind,
        runtime=_word(spelled, "runtime", name),
        entrypoints=entrypoints,
        schedule=schedule,
        rest={key: value[key] for key in _KEPT if value.get(key) is not None},
    )


def _word(spelled: Mapping[str, Any], key: str, name: str) -> str:
    value = spelled.get(key, "")
    if not isinstance(value, str):
        raise _wrong(name, f"its {key} is no text")
    return value.strip()


def _yaml(text: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document, and the same with every scalar as it is written: `version: 1.10` is no number."""
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                # A few lines of them unfold to gigabytes.
                raise _wrong(name, "it uses aliases (`*name`): write the values out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise _wrong(name, "it is nested too deeply")
        value = plain(yaml.safe_load(text))
        spelled = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as reason:
        mark = getattr(reason, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        said = getattr(reason, "problem", None) or (
            "it is nested too deeply" if isinstance(reason, RecursionError) else str(reason)
        )
        raise _wrong(name, where + clip(said)) from reason
    if not isinstance(value, dict) or not isinstance(spelled, dict):
        raise _wrong(name, "it is no table of names and values")
    return value, spelled


def _wrong(name: str, said: str) -> Fatal:
    return Fatal(f"The bot's {name} cannot be used: {said}; correct it.", code=ExitCode.USAGE)
