"""Fixtures of the hostile suite, and its table at the end of a run."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hostile.table import Row, Table
from hostile.yard import World, Yard, new_root
from rig.buckets import Buckets
from rig.minio_server import Running as MinIO
from the0.objects.admin import connect
from the0.objects.open import open_store

TABLE = pytest.StashKey[Table]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attack(tried, got): a row of the table of hostile bots")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash.get(TABLE, None)
    if table is not None and table.costs:
        terminalreporter.section("hostile bots")
        for line in table.lines(width=max(terminalreporter._tw.fullwidth, 140)):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def world(minio_server: MinIO) -> Iterator[World]:
    """Credentials of its own on MinIO, recognisable wherever they turn up."""
    mark = secrets.token_hex(5)
    access, secret = f"KEY{mark}{secrets.token_hex(3)}", f"SECRET{mark}{secrets.token_hex(12)}"
    _add_account(minio_server, access=access, secret=secret)
    store = open_store(minio_server.settings, deadline_s=10)
    made = {name: Buckets().make(store, name) for name in ("code", "state", "logs", "results")}
    hidden = {
        "MINIO_ACCESS_KEY": access,
        "MINIO_SECRET_KEY": secret,
        "GATEWAY_TOKEN": f"GATEWAY{mark}{secrets.token_hex(8)}",
        "MONGO_URI": f"mongodb://MONGO{mark}:{secrets.token_hex(8)}@db/x",
        "NATS_URL": f"nats://NATS{mark}:{secrets.token_hex(8)}@bus:4222",
        "THE0_RUN_TOKEN": f"TOKEN{mark}{secrets.token_hex(8)}",
        "AWS_SECRET_ACCESS_KEY": f"AWS{mark}{secrets.token_hex(8)}",
    }
    proxy = f"PROXY{mark}{secrets.token_hex(8)}"
    yield World(
        store=store,
        environ={
            **minio_server.environ,
            **hidden,
            "HTTPS_PROXY": f"http://proxyuser:{proxy}@proxy.example:3128",
            "no_proxy": "127.0.0.1",
            "MINIO_CODE_BUCKET": made["code"],
            "MINIO_STATE_BUCKET": made["state"],
            "MINIO_LOGS_BUCKET": made["logs"],
            "MINIO_QUERY_RESULTS_BUCKET": made["results"],
        },
        buckets=made,
        secrets={**hidden, "HTTPS_PROXY": proxy, "the server's own": minio_server.settings.secret_key},
    )
    store.close()


def _add_account(server: MinIO, *, access: str, secret: str) -> None:
    from minio import MinioAdmin
    from minio.credentials.providers import StaticProvider

    settings = server.settings
    admin = MinioAdmin(
        endpoint=settings.endpoint,
        credentials=StaticProvider(access_key=settings.access_key, secret_key=settings.secret_key),
        secure=settings.use_ssl,
        http_client=connect(settings)._http,
    )
    admin.add_service_account(access_key=access, secret_key=secret)


@pytest.fixture(scope="session")
def neighbour(world: World) -> Iterator[Yard]:
    """Another bot under the same user, with state, logs and a run's record."""
    root = new_root("neighbour")
    made = Yard(world, "neighbour", root)
    ended = made.run("from the0 import state\nstate.set('cash', 'the neighbour has 100')\nprint('hello')\n")
    assert ended.code == 0, ended.err
    yield made
    made.close()


@pytest.fixture
def yard(world: World, neighbour: Yard) -> Iterator[Yard]:
    """A place for one hostile bot. Afterwards: the neighbour is as it was."""
    before = neighbour.fingerprint()
    made = Yard(world, f"bot-{secrets.token_hex(4)}", new_root("hostile"), neighbour)
    yield made
    made.close()
    shutil.rmtree(made.root, ignore_errors=True)
    assert neighbour.fingerprint() == before, "somebody else's data was touched"


@pytest.fixture(autouse=True)
def _cost(request: pytest.FixtureRequest) -> Iterator[None]:
    """The row of a test marked `attack`, once it has passed."""
    marks = list(request.node.iter_markers("attack"))
    if not marks:
        yield
        return
    request.getfixturevalue("yard")
    table = request.config.stash.setdefault(TABLE, Table())
    failed, begun, load = request.session.testsfailed, time.monotonic(), os.times()
    yield
    if request.session.testsfailed > failed:
        return
    now = os.times()
    cpu_s = now.children_user + now.children_system - load.children_user - load.children_system
    for mark in marks:
        table.costs[Row(*mark.args)] = f"{time.monotonic() - begun:.1f} s, CPU {cpu_s:.1f} s"
