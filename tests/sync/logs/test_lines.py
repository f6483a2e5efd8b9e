from __future__ import annotations

import json
import random
from typing import Any

import pytest

from the0.sync import lines

NOW_S = 1_700_000_000.1239
NOW = "2023-11-14T22:13:20.123Z"


def plain(message: str) -> dict[str, Any]:
    return {"timestamp": NOW, "message": message}


def test_stamp_and_day_are_utc() -> None:
    assert lines.stamp(NOW_S) == NOW
    assert lines.stamp(1_700_006_399.9999) == "2023-11-14T23:59:59.999Z"
    assert (lines.day(1_700_006_399.9999), lines.day(1_700_006_400.0)) == ("20231114", "20231115")


@pytest.mark.parametrize(
    "line",
    [
        b'{"timestamp":"2024-01-01T00:00:00Z","message":"x"}',
        b'{ "timestamp" : 1700000000123 , "n":1e400}',
        b'\t {"timestamp":null}  ',
        b'{"a":[{"b":{}}],"timestamp":{"odd":true}}',
        b'{"timest\\u0061mp":1}',
        b'{"timestamp":1,"timestamp":2}',
        b'{"timestamp":1,"message":{"not":"text"}}',
        b'{"_metric":"price","value":-0.0,"timestamp":"t"}',
        b'{"timestamp":1,"n":' + b"9" * 10_000 + b"}",
        '{"timestamp":1,"m":"grüße \\ud83d"}'.encode(),
    ],
)
def test_an_object_with_a_timestamp_passes_byte_for_byte(line: bytes) -> None:
    assert lines.normalise(line, NOW) == line + b"\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{}", b'{"timestamp":"%b"}\n'),
        (b'{"a":1.50}', b'{"timestamp":"%b","a":1.50}\n'),
        (b'  { "message":"x" }', b'  {"timestamp":"%b", "message":"x" }\n'),
        (b'{"a":{"timestamp":1}}', b'{"timestamp":"%b","a":{"timestamp":1}}\n'),
        (b'{"_metric":"x","v":[1,2]}', b'{"timestamp":"%b","_metric":"x","v":[1,2]}\n'),
    ],
)
def test_an_object_without_a_timestamp_gets_one_and_keeps_its_bytes(line: bytes, expected: bytes) -> None:
    assert lines.normalise(line, NOW) == expected % NOW.encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"hello", "hello"),
        (b"hello\r", "hello"),
        (b"50%\r60%", "50%\r60%"),
        (b'{"a":NaN}', '{"a":NaN}'),
        (b'{"a":-Infinity}', '{"a":-Infinity}'),
        (b'{"a":1}{"b":2}', '{"a":1}{"b":2}'),
        (b'{"a":01}', '{"a":01}'),
        (b"{'a':1}", "{'a':1}"),
        (b'{"a":"\x01"}', '{"a":"\x01"}'),
        (b'\xef\xbb\xbf{"a":1}', '\ufeff{"a":1}'),
        (b'{"a":"\xff"}', '{"a":"\ufffd"}'),
        (b'\x0b{"a":1}', '\x0b{"a":1}'),
        (b'["timestamp"]', '["timestamp"]'),
        (b"null", "null"),
        (b"\x00\xff\xfe\x1b[31m\x7f", "\x00\ufffd\ufffd\x1b[31m\x7f"),
        (b'{"a":' * 20_000, '{"a":' * 20_000),
    ],
)
def test_any_other_line_becomes_a_message(line: bytes, message: str) -> None:
    assert json.loads(lines.normalise(line, NOW)) == plain(message)


@pytest.mark.parametrize("line", [b"", b"\r", b"   ", b"\t \r", "\u00a0".encode()])
def test_blank_lines_are_dropped(line: bytes) -> None:
    assert lines.normalise(line, NOW) == b""


def test_however_the_bytes_arrive_the_lines_are_the_same() -> None:
    rng = random.Random(3)
    whole = bytearray()
    for number in range(400):
        whole += rng.choice([b'{"n":%d}' % number, b'{"timestamp":%d}' % number, rng.randbytes(number % 90), b""])
        whole += rng.choice([b"\n", b"\r\n", b"\n\n"])
    whole += b"x" * (lines.LINE_LIMIT_BYTES * 3) + b"\nlast"
    once = lines.LineCutter()
    expected = once.feed(bytes(whole), now_s=NOW_S) + once.flush(now_s=NOW_S)
    for _ in range(8):
        cutter, out, at = lines.LineCutter(), b"", 0
        while at < len(whole):
            size = rng.choice([1, 7, 100, 5000, 1 << 20])
            size = size if at < 20_000 else max(size, 50_000)
            out += cutter.feed(bytes(whole[at : at + size]), now_s=NOW_S)
            at += size
        assert out + cutter.flush(now_s=NOW_S) == expected
    for line in expected.splitlines():
        json.loads(line)


def test_a_line_of_ten_megabytes_is_cut_with_a_mark_and_counted() -> None:
    cutter = lines.LineCutter()
    out, held = [], 0
    for _ in range(160):
        out.append(cutter.feed(b"x" * 65_536, now_s=NOW_S))
        held = max(held, cutter.held_bytes)
    out.append(cutter.feed(b"\nnext\n", now_s=NOW_S))
    first, notice, following = [json.loads(line) for line in b"".join(out).splitlines()]
    assert first["message"] == "x" * lines.LINE_LIMIT_BYTES + " … [cut]"
    assert notice == {
        "timestamp": NOW,
        "level": "warn",
        "message": f"a line of {160 * 65_536} bytes was cut to its first {lines.LINE_LIMIT_BYTES}",
    }
    assert following == plain("next")
    assert held <= lines.LINE_LIMIT_BYTES


def test_what_was_cut_goes_on_in_a_successor() -> None:
    former = lines.LineCutter()
    assert former.feed(b"x" * (2 << 20), now_s=NOW_S)
    successor = lines.LineCutter(skipped_bytes=former.skipped_bytes)
    found = successor.feed(b"xxx\nnext\n", now_s=NOW_S).splitlines()
    assert f"a line of {(2 << 20) + 3} bytes" in json.loads(found[0])["message"]
    assert json.loads(found[1]) == plain("next")


@pytest.mark.parametrize("byte", [b"\x00", b"\xff", b'"', "€".encode()[:2]])
def test_escapes_do_not_blow_a_long_line_up(byte: bytes) -> None:
    line = lines.normalise(byte * lines.LINE_LIMIT_BYTES, NOW)
    assert len(line) < lines.LINE_LIMIT_BYTES * 3 // 2
    assert json.loads(line)["message"].endswith("[cut]")


def test_our_own_lines_are_json_whatever_they_say() -> None:
    line = lines.ours('a "quoted"\npath \udcff', level="warn", now_s=NOW_S)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"timestamp": NOW, "level": "warn", "message": 'a "quoted"\npath ?'}
