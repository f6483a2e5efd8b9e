"""Which buckets, keys and metadata every store can hold: the rest is refused by name, before anything is sent.

Stores differ in what they do with a key such as `a//b`, `a/../b` or `/a`: some refuse it, some quietly store it
under another name. A key that comes back under another name would be lost state, so none is let through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from the0.errors import ExitCode, clip
from the0.objects.store import Refused

KEY_LIMIT_BYTES = 1024
METADATA_LIMIT_BYTES = 2048
"""Names and values together, as S3 counts them."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_METADATA_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_METADATA_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ufffe\uffff]")
"""What XML, and so a listing, cannot hold, and DEL."""


def check_bucket(bucket: str) -> None:
    """Raises Refused for a name that S3 does not allow."""
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise Refused(
            f"The bucket name {clip(bucket)!r} is not allowed: use 3 to 63 of a-z, 0-9, '.' and '-'.",
            code=ExitCode.STORE_DENIED,
        )


def check_key(key: str) -> None:
    """Raises Refused for a key that some store would alter: empty, over 1,024 bytes of UTF-8, with an empty, `.` or
    `..` part (so no leading or trailing `/`), a control character or a lone surrogate."""
    reason = _wrong_with(key)
    if reason:
        raise Refused(f"The object key {clip(key)!r} {reason}: choose another key.", code=ExitCode.STORE_DENIED)


def check_prefix(prefix: str, *, folder: bool = False) -> None:
    """Like check_key for the start of a key: empty, or a key with or without a `/` at its end (`folder`: with it)."""
    if not prefix:
        return
    if folder and not prefix.endswith("/"):
        raise Refused(f"The prefix {clip(prefix)!r} must end in '/'.", code=ExitCode.STORE_DENIED)
    # The last part may be the beginning of a longer one, so `a/.` is as good as `a/.b`.
    reason = _wrong_with(prefix.removesuffix("/"), open_end=not prefix.endswith("/"))
    if reason:
        raise Refused(f"The prefix {clip(prefix)!r} {reason}: choose another one.", code=ExitCode.STORE_DENIED)


def folded(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """User metadata with its names in lower case. Raises Refused for what some store drops or alters: empty values,
    outer spaces, anything but printable ASCII, names other than a-z, 0-9, `-` and `_`, more than 2 KiB in all."""
    found: dict[str, str] = {}
    for name, value in (metadata or {}).items():
        lower = name.lower()
        if not _METADATA_NAME.fullmatch(lower) or lower in found:
            raise Refused(
                f"The metadata name {clip(name)!r} is not allowed: use a-z, 0-9, '-' and '_', each name once.",
                code=ExitCode.STORE_DENIED,
            )
        if not _METADATA_VALUE.fullmatch(value):
            raise Refused(
                f"The value of metadata {lower!r} is not allowed: use printable ASCII, not empty, no outer spaces.",
                code=ExitCode.STORE_DENIED,
            )
        found[lower] = value
    if sum(len(name) + len(value) for name, value in found.items()) > METADATA_LIMIT_BYTES:
        raise Refused(
            f"The metadata is larger than {METADATA_LIMIT_BYTES} bytes: store it in the object.",
            code=ExitCode.STORE_DENIED,
        )
    return found


def listing_start(prefix: str, after: str | None) -> str | None:
    """Where the store may begin so that nothing of `prefix` after `after` is missed, in whichever order it lists.

    SeaweedFS lists folder by folder (there `a-` comes after all of `a/`) and passes over all of `a/` when it begins
    after `a`. So: a beginning of `after` without characters below `/`, that ends amid a part.
    """
    parent = prefix.rfind("/") + 1
    if after is None or not after.startswith(prefix):
        start = prefix[:-1]
    else:
        end = next((i for i in range(len(prefix), len(after)) if after[i] < "/"), len(after)) - 1
        while end > parent and "/" in after[end - 1 : end + 1]:
            end -= 1
        start = after[:end]
    if len(start) <= parent:
        return None
    # Half a key may look like no key (`a/.`): then from the beginning.
    return None if _wrong_with(start) else start


def _wrong_with(key: str, *, open_end: bool = False) -> str | None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if not key:
        return "is empty"
    if size > KEY_LIMIT_BYTES:
        return f"is longer than {KEY_LIMIT_BYTES} bytes"
    if _CONTROL.search(key):
        return "has a control character"
    parts = key.split("/")
    if open_end:
        parts.pop()
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty part, or one that is '.' or '..'"
    return None
