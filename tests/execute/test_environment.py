"""What processes of a bot see, in each language: exactly that, whatever is in the environment of the runtime itself."""

from __future__ import annotations

import json

import pytest

from the0 import names, settings
from the0.execute.environment import bot_environment, query_environment, question
from the0.execute.languages import LANGUAGES, Target, language

GIVEN = {
    "PATH": "/usr/bin",
    "BOT_ID": "bot-1",
    "ENTRYPOINT": "the/bot",
    "QUERY_ENTRYPOINT": "the/query",
    "BOT_TYPE": "realtime",
    "BOT_CONFIG": '{"n": 5.0, "big": 1e6, "more": 1e19, "text": "Ж😀"}',
    "CODE_PATH": "/code",
    "STATE_PATH": "/kept",
    "THE0_RUN_DIR": "/run",
    "LOGS_PATH": "/logs",
    "OBJECT_STORE_DIR": "/store",
    "QUERY_TIMEOUT_S": "5",
    "THE0_QUERY_PORT": "9999",
    "STOP_GRACE_S": "5",
    "MAX_STATE_SIZE_MB": "5",
    "MAX_STATE_FILE_SIZE_MB": "5",
    "IS_SCHEDULED": "false",
    "THE0_SLOT": "20240101T000000Z",
    "MINIO_USE_SSL": "true",
    "MINIO_SSL": "true",
    "MINIO_ENDPOINT": "leak:9000",
    "STATE_DIR": "/kept/.the0-state",
}
LEAKS = {
    value: f"leak-{value}"
    for name, value in vars(names).items()
    if isinstance(value, str) and value == name and value not in {*GIVEN, "RUNTIME", "QUERY_PATH", "QUERY_PARAMS"}
} | {"MONGO_URI": "leak-mongo", "NATS_URL": "leak-nats", "AWS_SECRET_ACCESS_KEY": "leak-aws", "HOME": "leak-home"}
CONFIG = '{"big":1000000,"more":10000000000000000000,"n":5,"text":"\\u0416\\ud83d\\ude00"}'
BOTH = {
    "PATH": "/usr/bin",
    "BOT_ID": "bot-1",
    "BOT_TYPE": "realtime",
    "BOT_CONFIG": CONFIG,
    "STATE_DIR": "/kept/.the0-state",
    "CODE_MOUNT_DIR": "code",
    "HOME": "/code",
}
DOTNET = {"DOTNET_NOLOGO": "1", "DOTNET_CLI_TELEMETRY_OPTOUT": "1"}
OWN = {"python3.11": {"PYTHONDONTWRITEBYTECODE": "1"}, "dotnet8": DOTNET}


def given(runtime: str, **more: str) -> dict[str, str]:
    return {**LEAKS, **GIVEN, "RUNTIME": runtime, **more}


def seen(told: dict[str, str]) -> dict[str, str]:
    """Without what depends on this machine's libraries, and on where we are installed."""
    assert not [name for name, value in told.items() if "leak" in value]
    told.pop("DOTNET_SYSTEM_GLOBALIZATION_INVARIANT", None)
    if "PYTHONPATH" in told:
        assert told.pop("PYTHONPATH").startswith("/code/vendor:/code:")
        assert told.pop("PYTHONUNBUFFERED") == "1"
    return told


def test_each_of_our_variables_is_tried() -> None:
    assert {
        "MINIO_SECRET_KEY",
        "MINIO_ACCESS_KEY",
        "GATEWAY_TOKEN",
        "THE0_RUN_TOKEN",
        "THE0_ENDED",
        "THE0_DATA",
    } <= set(LEAKS)


@pytest.mark.parametrize("runtime", sorted(LANGUAGES))
def test_the_bot(runtime: str) -> None:
    environ = given(runtime, QUERY_PATH="", QUERY_PARAMS='{"a": 1}', QUERY_PARAM_a="1")
    told = bot_environment(settings.read_execute(environ), environ, language(runtime))
    expected = {**BOTH, "SCRIPT_PATH": "the/bot", "ENTRYPOINT_TYPE": "bot"}
    assert seen(told) == {**expected, **OWN.get(runtime, {})}


@pytest.mark.parametrize("runtime", sorted(LANGUAGES))
def test_its_queries(runtime: str) -> None:
    target = Target(folder="/code", entrypoint="the/query", find=lambda _: None)
    environ = given(runtime, QUERY_PATH="", QUERY_PARAMS='{"a": 1}', QUERY_PARAM_a="1")
    served = query_environment(settings.read_execute(environ), environ, language(runtime), target)
    expected = {**BOTH, "SCRIPT_PATH": "the/query", "ENTRYPOINT_TYPE": "query", "THE0_QUERY_PORT": "9999"}
    assert seen(served) == {**expected, **OWN.get(runtime, {})}
    asked = settings.read_execute(
        given(runtime, QUERY_PATH="seen", QUERY_PARAMS='{"n": 1e6, "u": "Ж", "t": true, "o": {"b": 2.0}}')
    )
    text = runtime in ("rust-stable", "dotnet8", "scala3")
    assert question(asked.bot) == {
        "QUERY_PATH": "/seen",
        "QUERY_PARAMS": json.dumps(
            {"n": "1000000", "o": '{"b":2}', "t": "true", "u": "Ж"}
            if text
            else {"n": 1000000, "o": {"b": 2}, "t": True, "u": "Ж"},
            separators=(",", ":"),
        ),
        "QUERY_PARAM_n": "1000000",
        "QUERY_PARAM_o": '{"b":2}',
        "QUERY_PARAM_t": "true",
        "QUERY_PARAM_u": "Ж",
    }
