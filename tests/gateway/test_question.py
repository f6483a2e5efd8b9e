"""What a `POST /query` may not ask."""

from __future__ import annotations

import pytest

from the0.orchestrate.gateway import _Refused, question


@pytest.mark.parametrize(
    "params",
    [
        "NaN",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": ' + "[" * 700 + "]" * 700 + "}",
        '{"a": ' + "[" * 9000 + "]" * 9000 + "}",
    ],
)
def test_params_that_no_bot_can_be_handed_are_the_askers_mistake(params: str) -> None:
    with pytest.raises(_Refused) as refused:
        question(b'{"bot_id": "b", "query_path": "/x", "params": ' + params.encode() + b"}")
    assert refused.value.status == 400


def test_a_body_that_is_no_text_is_the_askers_mistake() -> None:
    with pytest.raises(_Refused) as refused:
        question(b'{"bot_id": "\xff"}')
    assert refused.value.status == 400
