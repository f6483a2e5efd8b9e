"""Settings: every variable that is missing or malformed gives one sentence with its name, the reason and the remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from the0 import settings
from the0.errors import ExitCode, Fatal

GOOD = {
    "BOT_ID": "bot-1",
    "RUNTIME": "python3.11",
    "ENTRYPOINT": "main.py",
    "MINIO_ENDPOINT": "store:9000",
    "MINIO_ACCESS_KEY": "the-access-key",
    "MINIO_SECRET_KEY": "the-secret-key",
}


def with_(**more: str) -> dict[str, str]:
    return {**GOOD, **more}


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in GOOD.items() if key != name}


def refused(environ: Mapping[str, str]) -> str:
    with pytest.raises(Fatal) as reason:
        settings.read_execute(environ)
    assert reason.value.code == ExitCode.USAGE
    return reason.value.sentence


def test_defaults() -> None:
    read = settings.read_execute(GOOD)
    assert read.bot == settings.BotSettings(
        bot_id="bot-1",
        runtime="python3.11",
        entrypoint="main.py",
        code_file="",
        config_json="{}",
        bot_type="realtime",
        query_entrypoint="",
        query_path=None,
        query_params={},
        query_result_key="",
        query_port=9476,
    )
    assert read.paths == settings.Paths()
    assert read.buckets == settings.Buckets()
    assert read.stop_grace_s == 30
    assert (read.ended_instance, read.slot, read.run_token) == (None, None, None)
    assert read.sync is not None
    assert read.sync.limits == settings.Limits(state_bytes=8192 << 20, state_file_bytes=8192 << 20)
    assert read.sync.policies == settings.Policies(store_down="run", incomplete="refuse")
    assert read.sync.interval_s == 60
    assert read.store is not None
    assert read.store == read.sync.store
    assert (read.store.url, read.store.region, read.store.folder) == ("http://store:9000", "us-east-1", None)


def test_everything_set() -> None:
    read = settings.read_execute(
        with_(
            BOT_CONFIG='{"b": 5.0, "a": 1e6, "the0": {"store_down": "stop", "incomplete": "run", "timezone": "UTC"}}',
            BOT_TYPE="scheduled",
            CODE_FILE="u1/sma/1.0.0",
            QUERY_ENTRYPOINT="query.py",
            QUERY_PATH="/x",
            QUERY_PARAMS='{"n": 2.0, "s": "é"}',
            QUERY_RESULT_KEY="k",
            CODE_PATH="/c/./d/",
            STATE_PATH="/s",
            LOGS_PATH="/l",
            THE0_RUN_DIR="/r",
            MINIO_USE_SSL="TRUE",
            MINIO_REGION="eu-1",
            MINIO_CODE_BUCKET="cb",
            MINIO_BUCKET="ignored",
            MINIO_STATE_BUCKET="sb",
            MINIO_LOGS_BUCKET="lb",
            MINIO_QUERY_RESULTS_BUCKET="qb",
            MAX_STATE_SIZE_MB="10",
            STOP_GRACE_S="1m30s",
            THE0_ENDED="instance",
            THE0_SLOT="20260102T030405Z",
            THE0_RUN_TOKEN="token",
        )
    )
    assert read.bot.config_json == (
        '{"a":1000000,"b":5,"the0":{"incomplete":"run","store_down":"stop","timezone":"UTC"}}'
    )
    assert (read.bot.bot_type, read.bot.code_file, read.bot.query_path) == ("scheduled", "u1/sma/1.0.0", "/x")
    assert read.bot.query_params == {"n": 2, "s": "é"}
    assert isinstance(read.bot.query_params["n"], int)
    assert read.paths == settings.Paths(code="/c/d", state="/s", logs="/l", sdk_state="/s/.the0-state", run="/r")
    assert read.buckets == settings.Buckets(code="cb", state="sb", logs="lb", query_results="qb")
    assert read.sync is not None
    assert read.sync.policies == settings.Policies(store_down="stop", incomplete="run")
    assert read.sync.limits == settings.Limits(state_bytes=10 << 20, state_file_bytes=10 << 20)
    assert read.store is not None
    assert (read.store.url, read.store.region) == ("https://store:9000", "eu-1")
    assert read.stop_grace_s == 90
    assert (read.ended_instance, read.slot, read.run_token) == ("instance", "20260102T030405Z", "token")


def test_aliases_and_empty_values() -> None:
    read = settings.read_execute(
        with_(MINIO_BUCKET="cb", MINIO_SSL="1", IS_SCHEDULED="true", BOT_CONFIG="", QUERY_PATH="")
    )
    assert read.buckets.code == "cb"
    assert read.store is not None
    assert read.store.use_ssl
    assert read.bot.bot_type == "scheduled"
    assert (read.bot.config_json, read.bot.query_path) == ("{}", None)


def test_a_folder_wins_over_s3_and_needs_no_keys() -> None:
    read = settings.read_execute(
        {"BOT_ID": "b", "RUNTIME": "r", "ENTRYPOINT": "e", "OBJECT_STORE_DIR": "/var/store/", "MINIO_ENDPOINT": "x"}
    )
    assert read.store is not None
    assert read.store.folder == "/var/store"


def test_without_sync_no_store_is_needed() -> None:
    read = settings.read_execute({"BOT_ID": "b", "RUNTIME": "r", "ENTRYPOINT": "e"}, skip_sync=True)
    assert (read.store, read.sync) == (None, None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("BOT_ID", "BOT_ID is missing: set it to the bot's id."),
        ("RUNTIME", "RUNTIME is missing: set it to a language runtime such as python3.11."),
        ("ENTRYPOINT", "ENTRYPOINT is missing: set it to the file to run, such as main.py."),
        (
            "MINIO_ENDPOINT",
            "MINIO_ENDPOINT is missing: set it to the store's host:port, or set OBJECT_STORE_DIR to a folder.",
        ),
        ("MINIO_ACCESS_KEY", "MINIO_ACCESS_KEY is missing: set it to the store's access key."),
        ("MINIO_SECRET_KEY", "MINIO_SECRET_KEY is missing: set it to the store's secret key."),
    ],
)
def test_what_is_missing(name: str, sentence: str) -> None:
    assert refused(without(name)) == sentence
    assert refused(with_(**{name: ""})) == sentence


OBJECT = "set it to a JSON object."
ADDRESS = "write host:port without a scheme; MINIO_USE_SSL selects TLS."
MIB = "set it to a whole number of MiB above 0."


@pytest.mark.parametrize(
    ("name", "value", "said", "remedy"),
    [
        ("BOT_CONFIG", "{", "is not usable (Expecting property name", OBJECT),
        ("BOT_CONFIG", "[1]", "is not usable (it is a JSON array, not an object)", OBJECT),
        ("BOT_CONFIG", '{"a": NaN}', "is not usable (NaN is not JSON)", OBJECT),
        ("BOT_CONFIG", '{"a": 1e400}', "is not usable (the number 1e400 is too large)", OBJECT),
        ("BOT_CONFIG", '{"a":1,"a":2}', "is not usable (it names 'a' twice)", OBJECT),
        ("BOT_CONFIG", '{"a":' * 100_000, "is not usable (it is nested too deeply)", OBJECT),
        ("BOT_CONFIG", '{"a": "\udcff"}', "is not usable ('utf-8' codec can't encode", OBJECT),
        ("BOT_CONFIG", '{"the0": 5}', "has a `the0` that is no object", "remove it or write an object of policies."),
        ("BOT_CONFIG", '{"the0": {"store_down": "x\\n"}}', "has the0.store_down 'x\\\\n'", "write run or stop."),
        ("BOT_CONFIG", '{"the0": {"incomplete": [1]}}', "has the0.incomplete '[1]'", "write run or refuse."),
        ("QUERY_PARAMS", "null", "is not usable (it is a JSON null, not an object)", OBJECT),
        ("BOT_TYPE", "cron", "is 'cron'", "set it to realtime or scheduled."),
        ("IS_SCHEDULED", "maybe", "is 'maybe'", "set it to true or false."),
        ("MINIO_USE_SSL", "https", "is 'https'", "set it to true or false."),
        ("MINIO_SSL", "2", "is '2'", "set it to true or false."),
        ("MINIO_ENDPOINT", "http://store:9000", "is 'http://store:9000'", ADDRESS),
        ("MINIO_ENDPOINT", "store:9000/path", "is 'store:9000/path'", ADDRESS),
        ("MINIO_ENDPOINT", "store:port", "is 'store:port'", ADDRESS),
        ("MINIO_ENDPOINT", "store:0", "is 'store:0'", ADDRESS),
        ("MINIO_ENDPOINT", "store:65536", "is 'store:65536'", ADDRESS),
        ("MINIO_ENDPOINT", "store:9000\n", "is 'store:9000\\\\n'", ADDRESS),
        ("MINIO_ENDPOINT", "user:password@store:9000", "holds a password", ADDRESS),
        ("MAX_STATE_SIZE_MB", "0", "is '0'", MIB),
        ("MAX_STATE_SIZE_MB", "-1", "is '-1'", MIB),
        ("MAX_STATE_SIZE_MB", "8 GB", "is '8 GB'", MIB),
        ("MAX_STATE_SIZE_MB", "²", "is '²'", MIB),
        ("MAX_STATE_SIZE_MB", "9" * 5000, "is '9999", MIB),
        ("MAX_STATE_FILE_SIZE_MB", "1.5", "is '1.5'", MIB),
        ("STOP_GRACE_S", "-3", "is malformed", "(30s, 5m, 1h30m, 500ms)."),
        ("STOP_GRACE_S", "half an hour", "is malformed: 'half an hour' is no duration", "(30s, 5m, 1h30m, 500ms)."),
        ("CODE_PATH", "bot", "is 'bot'", "set it to an absolute path."),
        ("CODE_PATH", "//", "is the root folder", "give it a folder of its own."),
        ("STATE_PATH", "./state", "is './state'", "set it to an absolute path."),
        ("STATE_PATH", "/a/..", "is the root folder", "give it a folder of its own."),
        ("STATE_PATH", "/bot", "(/bot) and CODE_PATH (/bot) overlap", "make them separate folders."),
        ("STATE_PATH", "/bot/state", "(/bot/state) and CODE_PATH (/bot) overlap", "make them separate folders."),
        ("LOGS_PATH", "logs", "is 'logs'", "set it to an absolute path."),
        ("THE0_RUN_DIR", "run", "is 'run'", "set it to an absolute path."),
        ("OBJECT_STORE_DIR", "store", "is 'store'", "set it to an absolute path."),
        ("STATE_DIR", "x", "is 'x'", "set it to an absolute path."),
        ("STATE_DIR", "/elsewhere", "(/elsewhere) is not kept with the state in /state", "other than .the0."),
        ("STATE_DIR", "/state/../s", "(/s) is not kept with the state in /state", "other than .the0."),
        ("STATE_DIR", "/state/.the0/x", "(/state/.the0/x) is not kept", "other than .the0."),
    ],
    ids=lambda value: value[:24],
)
def test_what_is_malformed(name: str, value: str, said: str, remedy: str) -> None:
    sentence = refused(with_(**{name: value}))
    assert sentence.startswith(f"{name} {said}")
    assert sentence.endswith(remedy)
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert sentence.isprintable()


@pytest.mark.parametrize(
    "endpoint", ["store", "10.0.0.1:9000", "[::1]:9000", "[fe80::1]", "my_minio.svc.cluster.local:80"]
)
def test_addresses_that_are_fine(endpoint: str) -> None:
    read = settings.read_execute(with_(MINIO_ENDPOINT=endpoint))
    assert read.store is not None
    assert read.store.url == f"http://{endpoint}"


def test_no_refusal_and_no_repr_shows_a_credential() -> None:
    read = settings.read_execute(GOOD)
    assert "the-secret-key" not in repr(read)
    assert "the-access-key" not in repr(read)
    for name in ("BOT_ID", "MINIO_ENDPOINT"):
        sentence = refused(with_(**{name: "", "BOT_CONFIG": json.dumps({"password": "hunter2"})}))
        assert "hunter2" not in sentence
        assert "the-secret-key" not in sentence
