"""Canonical JSON: compact, sorted keys, ASCII, and a whole number has no fraction or exponent.

Stored documents hold every number as a double, and typed bots reject `5.0`: so `5.0` is written `5` and
`1e6` is written `1000000`. What is handed to bots and what is hashed is written here only.
"""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """ValueError for NaN, infinities, lone types that JSON lacks, and nesting too deep to write."""
    try:
        return json.dumps(_whole(value), separators=(",", ":"), sort_keys=True, ensure_ascii=True, allow_nan=False)
    except (TypeError, RecursionError) as reason:
        raise ValueError(f"this is not JSON: {reason}") from reason


def as_text(value: Any) -> str:
    """One param of a query as text: a string as it is, any other value as compact JSON."""
    return value if isinstance(value, str) else dumps(value)


def loads_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object, strictly: no NaN, no number beyond a double, no name twice. ValueError says what is wrong."""
    try:
        value = json.loads(
            text, parse_constant=refuse_constant, parse_float=_finite_float, object_pairs_hook=_object_of
        )
    except RecursionError as reason:
        raise ValueError("it is nested too deeply") from reason
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {_kind(value)}, not an object")
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not JSON")
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {_key(key): _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return value


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"the key {key!r} is no string")
    return key


def refuse_constant(name: str) -> Any:
    """As `parse_constant`: Python's own reader takes NaN and infinities. Raises ValueError."""
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(parse_constant=refuse_constant)
"""Reads any JSON value: ValueError for what is none, RecursionError for what is nested too deeply."""


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it names {twice!r} twice")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}.get(type(value), "value")
