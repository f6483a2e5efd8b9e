"""Values as databases hold them, made JSON: for configs that were stored by other programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any


def plain(value: Any) -> Any:
    """A new value of JSON's own types: whole numbers are ints, an ObjectId is its text, a time is RFC 3339.
    ValueError says what cannot be JSON."""
    try:
        return _plain(value)
    except RecursionError as reason:
        raise ValueError("it is nested too deeply") from reason


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number of JSON")
        return int(value) if value.is_integer() else float(value)
    if isinstance(value, Mapping):
        return {_name(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        told = value if value.tzinfo else value.replace(tzinfo=UTC)
        return told.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return _of_databases(value)


def _of_databases(value: Any) -> Any:
    # By name: their package is imported where MongoDB is spoken only.
    kind = type(value).__name__
    if kind == "ObjectId":
        return str(value)
    if kind == "Decimal128":
        return _plain(float(value.to_decimal()))
    if isinstance(value, Decimal):
        return _plain(float(value))
    raise ValueError(f"it holds a {kind}, which JSON has no spelling for")


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"its key {key!r} is no text")
    return key
