"""The head of an HTTP request: strictly read, because whoever is unsure where one request ends answers another's.

`http.server` would read it with the email package's parser, which bears with lines that are no headers and takes as long as
all the rest of a request does here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

HEADERS: Final = 100
_FIRST: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^\x00-\x20\x7f]+) HTTP/([0-9]{1,4})\.([0-9]{1,4})")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")


class BadHead(Exception):
    """A request that cannot be answered: with which status, and why."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Head:
    method: str
    path: str
    """As sent, the query string included; several slashes at its beginning are one."""
    headers: Mapping[str, str]
    """By their names in lower case; of one that comes twice, the last. As Latin-1, which any bytes are."""
    length: int
    """Of the body, in bytes."""
    newest: bool
    """HTTP/1.1 or later: the other side understands interim answers, and keeps connections without saying so."""
    keep: bool
    """Whether the other side wants to ask again on the same connection."""


def read(head: bytes) -> Head:
    """`head` without the empty line at its end. Raises BadHead."""
    text = head.decode("latin-1")
    first, *lines = text.split("\r\n")
    if "\0" in text or not text.count("\r") == text.count("\n") == len(lines):
        raise BadHead(HTTPStatus.BAD_REQUEST, "The request's head has stray control characters.")
    asked = _FIRST.fullmatch(first)
    if asked is None:
        raise BadHead(HTTPStatus.BAD_REQUEST, "This is no HTTP request.")
    method, path, major, minor = asked.groups()
    if int(major) != 1:
        raise BadHead(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "Ask with HTTP/1.1.")
    if len(lines) > HEADERS:
        raise BadHead(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The request has more than {HEADERS} headers.")
    headers: dict[str, str] = {}
    lengths: set[str] = set()
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or _NAME.fullmatch(name) is None:
            raise BadHead(HTTPStatus.BAD_REQUEST, "The request's head has a line that is no header.")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = value
        if name == "content-length":
            lengths.add(value)
    if "transfer-encoding" in headers:
        raise BadHead(HTTPStatus.LENGTH_REQUIRED, "Send the body with a Content-Length.")
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
        raise BadHead(HTTPStatus.BAD_REQUEST, "The Content-Length makes no sense.")
    newest = int(minor) >= 1
    wishes = {wish.strip() for wish in headers.get("connection", "").lower().split(",")}
    return Head(
        method=method,
        path=path if not path.startswith("//") else "/" + path.lstrip("/"),
        headers=headers,
        length=int(lengths.pop()) if lengths else 0,
        newest=newest,
        keep="close" not in wishes and (newest or "keep-alive" in wishes),
    )
