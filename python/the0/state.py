"""What a bot remembers: one JSON file a key below STATE_DIR, which the runtime keeps in the object store.

    from the0 import state

    state.set("position", {"symbol": "AAPL", "size": 5})
    state.get("position", default={})

A write replaces the file whole: whoever reads, also after the bot was killed, sees the old value or the new one.
Queries read only.
"""

from __future__ import annotations

import builtins
import json
import os

TYPE_CHECKING = False  # importing `typing` would cost a bot several milliseconds
if TYPE_CHECKING:
    from typing import Any

_SUFFIX = ".json"
_TEMPORARY = ".tmp"


class ReadOnlyStateError(RuntimeError):
    """A query tried to change state."""


def get(key: str, default: Any = None) -> Any:
    """The value, or `default` where the key does not exist. ValueError where the file holds no JSON: a damaged value
    is never taken for a missing one."""
    path = _path(key)
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return default
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as reason:
        raise ValueError(f"the state key {key!r} holds no JSON ({path}): {reason}") from reason


def set(key: str, value: Any) -> None:  # noqa: A001 - the name is the interface
    """Stores a JSON value. TypeError or ValueError where it is not one (NaN included); the old value stays then."""
    path = _writable(key)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as reason:
        kind = TypeError if isinstance(reason, TypeError) else ValueError
        # Without the frames of the json module, in which nobody finds the mistake.
        raise kind(
            f"the value for the state key {key!r} is not JSON: {reason}; convert it first, to text for instance"
        ) from None
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_whole(path, text)


def delete(key: str) -> bool:
    """Removes the key; False where it did not exist."""
    try:
        os.unlink(_writable(key))
    except FileNotFoundError:
        return False
    return True


def list() -> builtins.list[str]:  # noqa: A001 - the name is the interface
    """All keys, sorted."""
    return sorted(name.removesuffix(_SUFFIX) for name in _names() if name.endswith(_SUFFIX) and name != _SUFFIX)


def clear() -> None:
    """Removes every key."""
    _refuse_in_query()
    folder = _folder()
    for name in _names():
        # Temporary files that a killed bot left behind go, too.
        if name.endswith((_SUFFIX, _TEMPORARY)):
            try:
                os.unlink(os.path.join(folder, name))
            except FileNotFoundError:
                pass  # somebody else was quicker


def exists(key: str) -> bool:
    return os.path.isfile(_path(key))


def write_whole(path: str, text: str) -> None:
    """Replaces a file whole. Not fsynced: that would cost a bot milliseconds a key, and after a crash of the host
    the runtime compares the folder with what it stored before it believes it."""
    temporary = os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}{_TEMPORARY}")
    try:
        with open(temporary, "x", encoding="ascii") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass  # it was never made; the first error is the one to tell
        raise


def in_query() -> bool:
    """Whether this process answers queries: QUERY_PATH exists (even empty), or the runtime says so."""
    return "QUERY_PATH" in os.environ or os.environ.get("ENTRYPOINT_TYPE") == "query"


def _refuse_in_query() -> None:
    if in_query():
        raise ReadOnlyStateError("state is read-only in a query: change it in the bot itself")


def _writable(key: str) -> str:
    _refuse_in_query()
    return _path(key)


def _path(key: str) -> str:
    if not isinstance(key, str) or not key:
        raise ValueError(f"a state key is text and not empty, unlike {key!r}")
    if "/" in key or "\\" in key or ".." in key or "\0" in key:
        raise ValueError(f"the state key {key!r} must not contain '/', '\\', '..' or NUL: write '-' or '_' instead")
    name = key + _SUFFIX
    if len(os.fsencode(name)) > 255:
        raise ValueError(f"the state key {key[:20]!r}… is too long: 250 bytes are allowed")
    return os.path.join(_folder(), name)


def _folder() -> str:
    folder = os.environ.get("STATE_DIR", "")
    if not folder:
        raise ValueError("STATE_DIR is missing: the runtime sets it; to run the bot by hand, set it to a folder")
    return folder


def _names() -> builtins.list[str]:
    try:
        return os.listdir(_folder())
    except FileNotFoundError:
        return []
