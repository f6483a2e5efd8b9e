"""What a query process answers: one JSON object, bounded. However it came, over HTTP or in a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from the0 import canonical
from the0.errors import ExitCode, Permanent, clip
from the0.frozen import dataclass

ANSWER_BYTES = 32 << 20
ANSWER_VALUES = 1_000_000
"""How many values it may have: each takes up to some 250 bytes of memory where the answer is read, a service among them."""

_FEW_BYTES = 1 << 20
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)


class NoAnswer(Permanent):
    """The process took the question and gave no usable answer."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, code=ExitCode.QUERY_FAILED)


class AnswerTooLarge(NoAnswer):
    """More than is taken."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is HTTP's, 200 where there was none; `text` is the JSON object as it came, without what stood around it;
    `value` is the same, read."""

    status: int
    text: str
    value: dict[str, Any]


def parsed(body: bytes, *, status: int = 200) -> Answer:
    """Raises NoAnswer for anything but a JSON object, AnswerTooLarge for one of too many values."""
    if len(body) > _FEW_BYTES and _values(body) > ANSWER_VALUES:
        raise AnswerTooLarge(f"The query process answered over {ANSWER_VALUES:,} values: ask for less.")
    try:
        text = body.decode("utf-8-sig").strip()
        value = canonical.DECODER.decode(text)
    except (ValueError, RecursionError) as reason:
        raise NoAnswer(f"The query process answered something that is no JSON: {clip(str(reason))}.") from reason
    if not isinstance(value, dict):
        raise NoAnswer("The query process answered JSON that is no object: it must look like {…}.")
    return Answer(text=text, value=value, status=status)


def extended(text: str, fields: Mapping[str, Any]) -> str:
    """The JSON object `text`, byte for byte, with our fields before its end."""
    begun = text.rstrip()[:-1].rstrip()
    comma = "" if begun.endswith("{") else ","
    return f"{begun}{comma}{json.dumps(fields, separators=(',', ':'))[1:]}"


def _values(body: bytes) -> int:
    outside = _STRING.sub(b"", body)
    return sum(outside.count(mark) for mark in (b",", b"[", b"{"))
