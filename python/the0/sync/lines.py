"""Bytes that a bot printed, made into lines of NDJSON as the wire contract wants them. Pure: no files, no clock.

A JSON object (RFC 8259) with a `timestamp` passes byte for byte, whatever the timestamp is; one without gets it
added; any other line becomes `{"timestamp", "message"}`; blank lines are dropped.
"""

from __future__ import annotations

import time
from json.decoder import JSONDecoder
from json.encoder import encode_basestring
from typing import Final

from the0.canonical import refuse_constant

LINE_LIMIT_BYTES: Final = 1 << 20
"""A longer line is cut to its first LINE_LIMIT_BYTES; a line of ours after it says how long it was."""
_CUT_MARK: Final = " … [cut]"
_JSON_SPACE: Final = b" \t\r"


def stamp(now_s: float) -> str:
    """RFC 3339, UTC, milliseconds: `2024-01-31T23:59:59.123Z`."""
    milliseconds = int(now_s * 1000)
    seconds, rest = divmod(milliseconds, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:03d}Z"


def day(now_s: float) -> str:
    """YYYYMMDD, UTC."""
    return time.strftime("%Y%m%d", time.gmtime(now_s))


def ours(message: str, *, level: str, now_s: float) -> bytes:
    """A whole line of the runtime's own, newline included."""
    # A lone surrogate (from a file name, say) has no UTF-8; it must not cost the line.
    text = encode_basestring(message[: LINE_LIMIT_BYTES // 8])
    line = f'{{"timestamp":"{stamp(now_s)}","level":{encode_basestring(level)},"message":{text}}}\n'
    return line.encode("utf-8", "replace")


class LineCutter:
    """Cuts one stream of bytes into lines, over as many `feed`s as it takes; holds one unfinished line at most."""

    def __init__(self, *, skipped_bytes: int = 0) -> None:
        """`skipped_bytes` as a former cutter of the same stream left it."""
        self.skipped_bytes = skipped_bytes
        """Above 0 inside a line that has been cut: how many of its bytes were left out so far."""
        self._carry = b""

    @property
    def held_bytes(self) -> int:
        """Fed but not yet given back: the start of an unfinished line."""
        return len(self._carry)

    def feed(self, data: bytes, *, now_s: float) -> bytes:
        """The lines that `data` completes, normalised; `now_s` is when they arrived."""
        out: list[bytes] = []
        if self.skipped_bytes:
            end = data.find(b"\n")
            if end < 0:
                self.skipped_bytes += len(data)
                return b""
            out.append(_cut_notice(self.skipped_bytes + end, now_s=now_s))
            self.skipped_bytes = 0
            data = data[end + 1 :]
        lines = (self._carry + data).split(b"\n")
        rest = lines.pop()
        now = stamp(now_s)
        if lines and len(max(lines, key=len)) > LINE_LIMIT_BYTES:
            for line in lines:
                out.append(normalise(line, now))
                if len(line) > LINE_LIMIT_BYTES:
                    out.append(_cut_notice(len(line) - LINE_LIMIT_BYTES, now_s=now_s))
        else:
            out.extend([normalise(line, now) for line in lines])
        if len(rest) > LINE_LIMIT_BYTES:
            out.append(normalise(rest, now))
            self.skipped_bytes = len(rest) - LINE_LIMIT_BYTES
            rest = b""
        self._carry = rest
        return b"".join(out)

    def flush(self, *, now_s: float) -> bytes:
        """The unfinished line, as if it had ended here: the stream has ended, or bytes of it were lost."""
        if self.skipped_bytes:
            notice = _cut_notice(self.skipped_bytes, now_s=now_s)
            self.skipped_bytes = 0
            return notice
        line = normalise(self._carry, stamp(now_s)) if self._carry else b""
        self._carry = b""
        return line


def normalise(line: bytes, now: str) -> bytes:
    """One line without its newline, as one line of NDJSON with it; b"" where it is blank. `now` as `stamp` gives it."""
    if line[-1:] == b"\r":
        line = line[:-1]
    if len(line) > LINE_LIMIT_BYTES:
        return _message(line[:LINE_LIMIT_BYTES].decode("utf-8", "replace") + _CUT_MARK, now)
    start = 0 if line[:1] == b"{" else len(line) - len(line.lstrip(_JSON_SPACE))
    if line[start : start + 1] == b"{":
        try:
            text = line.decode()
            value, end = _decode(text, start)
        except (ValueError, RecursionError):
            return _message(line.decode("utf-8", "replace"), now)
        if end == len(text) or not text[end:].strip(" \t\r"):
            if "timestamp" in value:
                return line + b"\n"
            comma = b"," if value else b""
            return b'%b"timestamp":"%b"%b%b\n' % (line[: start + 1], now.encode(), comma, line[start + 1 :])
    text = line.decode("utf-8", "replace")
    if not text or text.isspace():
        return b""
    return _message(text, now)


def _message(text: str, now: str) -> bytes:
    encoded = f'{{"timestamp":"{now}","message":{encode_basestring(text)}}}\n'.encode()
    if len(encoded) > LINE_LIMIT_BYTES + LINE_LIMIT_BYTES // 4:
        # Escapes and replacement characters take up to six times the room of what was printed.
        return _message(text[: LINE_LIMIT_BYTES // 8] + _CUT_MARK, now)
    return encoded


def _cut_notice(left_out_bytes: int, *, now_s: float) -> bytes:
    whole = LINE_LIMIT_BYTES + left_out_bytes
    return ours(f"a line of {whole} bytes was cut to its first {LINE_LIMIT_BYTES}", level="warn", now_s=now_s)


# Only the shape matters: `len` takes a number's text at any length, where int() refuses 4,300 digits.
_decode = JSONDecoder(parse_constant=refuse_constant, parse_int=len).raw_decode
