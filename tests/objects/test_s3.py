"""The S3 store where it differs from the folder: servers that refuse, lie, hang, or want other credentials."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rig.buckets import Buckets
from rig.minio_server import Running, minio
from rig.proxy import Answer, CutReply, Hang, Proxy, Strip
from rig.server import free_ports
from the0.objects import admin
from the0.objects import store as protocol
from the0.objects.credentials import StoreSettings
from the0.objects.s3 import PART_BYTES, S3


@pytest.fixture
def settings(minio_server: Running) -> StoreSettings:
    return minio_server.settings


@pytest.fixture
def s3(settings: StoreSettings) -> S3:
    return S3(settings)


@pytest.fixture
def bucket(s3: S3, buckets: Buckets) -> str:
    return buckets.make(s3)


@pytest.fixture
def proxy(settings: StoreSettings) -> Iterator[Proxy]:
    with Proxy(settings.endpoint) as found:
        yield found


def test_nothing_is_imported_before_it_is_used() -> None:
    program = """
import sys
import the0.objects.store, the0.objects.open, the0.objects.s3, the0.objects.admin
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
open_store(StoreSettings(endpoint="127.0.0.1:1"), deadline_s=1)
print(*[name for name in ("obstore", "minio", "urllib3") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --- Permanent errors ------------------------------------------------------------------------------


def test_refused_credentials_name_the_variables_and_show_no_secret(settings: StoreSettings, bucket: str) -> None:
    for wrong in (replace(settings, access_key="UNKNOWN-ID"), replace(settings, secret_key="WRONG-SECRET")):
        store = S3(wrong)
        for attempt in (
            lambda store=store: store.get(bucket, "k", limit_bytes=1),
            lambda store=store: store.put(bucket, "k", b""),
            lambda store=store: list(store.list(bucket, "")),
            lambda store=store: store.ensure_bucket(bucket),
        ):
            with pytest.raises(protocol.Denied) as caught:
                attempt()
            shown = "".join(traceback.format_exception(caught.value))
            assert "MINIO_ACCESS_KEY, MINIO_SECRET_KEY" in shown or "access is denied" in shown
            assert f"in the S3 store at http://{settings.endpoint} failed" in shown
            for secret in (settings.secret_key, "UNKNOWN-ID", "WRONG-SECRET"):
                assert secret not in shown


def test_credentials_confined_to_a_prefix(settings: StoreSettings, s3: S3, bucket: str) -> None:
    from minio.credentials.providers import AssumeRoleProvider

    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
                "Resource": [f"arn:aws:s3:::{bucket}/b1/*"],
            },
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": [f"arn:aws:s3:::{bucket}"],
                "Condition": {"StringLike": {"s3:prefix": ["b1/*"]}},
            },
        ],
    }
    granted = AssumeRoleProvider(
        sts_endpoint=settings.url,
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        policy=json.dumps(policy),
        region=settings.region,
    ).retrieve()
    confined = S3(
        replace(
            settings,
            access_key=granted.access_key,
            secret_key=granted.secret_key,
            session_token=granted.session_token or "",
        )
    )
    etag = confined.put_if(bucket, "b1/HEAD", b"1", etag=None)
    assert confined.get(bucket, "b1/HEAD", limit_bytes=1).info.etag == etag
    assert [info.key for info in confined.list(bucket, "b1/")] == ["b1/HEAD"]
    confined.delete(bucket, "b1/HEAD")
    assert confined.head(bucket, "b1/HEAD") is None
    s3.put(bucket, "b2/HEAD", b"")
    denied: list[Callable[[], object]] = [
        lambda: confined.get(bucket, "b2/HEAD", limit_bytes=1),
        lambda: confined.head(bucket, "b2/HEAD"),
        lambda: confined.put(bucket, "b2/HEAD", b""),
        lambda: confined.delete(bucket, "b2/HEAD"),
        lambda: list(confined.list(bucket, "b2/")),
    ]
    for attempt in denied:
        with pytest.raises(protocol.Denied, match=r"access is denied .*grant these credentials access"):
            attempt()


def test_stray_aws_variables_do_not_count(
    settings: StoreSettings, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stray")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stray")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stray")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_S3_EXPRESS", "true")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    store = S3(settings)
    store.put_if(bucket, "k", b"1", etag=None)
    with pytest.raises(protocol.PreconditionFailed):
        store.put_if(bucket, "k", b"1", etag=None)


def test_a_store_that_is_not_there(settings: StoreSettings) -> None:
    (port,) = free_ports(1)
    nobody = S3(replace(settings, endpoint=f"127.0.0.1:{port}"))
    with pytest.raises(protocol.Unavailable, match="the connection is refused; check that the store runs"):
        nobody.head("bucket", "k")
    with pytest.raises(protocol.Unavailable, match="Creating bucket"):
        nobody.ensure_bucket("bucket")
    nowhere = S3(replace(settings, endpoint="no-such-host.invalid:9000"), connect_timeout_s=2, quick_timeout_s=3)
    with pytest.raises(protocol.Unavailable, match=r"no-such-host\.invalid:9000 failed"):
        nowhere.head("bucket", "k")


def test_a_store_that_ignores_the_condition_is_refused_by_name(
    settings: StoreSettings, proxy: Proxy, bucket: str
) -> None:
    # Without its signature the request counts as anybody's, who may write here; so the header can be taken out.
    anybody = {
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:*"],
        "Resource": [f"arn:aws:s3:::{bucket}/*"],
    }
    admin.connect(settings).set_bucket_policy(bucket, json.dumps({"Version": "2012-10-17", "Statement": [anybody]}))
    proxy.fail(lambda _: Strip(("if-none-match", "authorization")))
    store = S3(replace(settings, endpoint=proxy.endpoint))
    for _ in range(2):
        with pytest.raises(protocol.Unsuitable) as caught:
            store.check_conditional_put(bucket, "probe")
        assert f"{bucket}/probe in the S3 store at http://{proxy.endpoint} failed: the store ignores or lacks" in str(
            caught.value
        )
        assert "use a store that has it: MinIO" in str(caught.value)
    proxy.fail(lambda _: Answer(501, "NotImplemented"))
    with pytest.raises(protocol.Unsuitable):
        store.check_conditional_put(bucket, "probe")
    proxy.heal()
    store.check_conditional_put(bucket, "probe")
    proxy.reset()
    store.check_conditional_put(bucket, "probe")
    assert proxy.requests == [], "it is asked once in the life of a store"


# --- Transient errors ------------------------------------------------------------------------------


def test_a_store_that_hangs_is_given_up(settings: StoreSettings, proxy: Proxy, bucket: str) -> None:
    proxy.fail(lambda _: Hang())
    store = S3(replace(settings, endpoint=proxy.endpoint), quick_timeout_s=0.5, bulk_timeout_s=1.0)
    for attempt in (
        lambda: store.get(bucket, "k", limit_bytes=1),
        lambda: store.put(bucket, "k", b""),
        lambda: store.put(bucket, "k", bytes(1 << 20)),
        lambda: list(store.list(bucket, "")),
    ):
        began = time.monotonic()
        with pytest.raises(protocol.Unavailable, match="it did not answer in time"):
            attempt()
        assert 0.4 < time.monotonic() - began < 3


def test_a_reply_that_is_cut_never_passes_for_the_object(
    settings: StoreSettings, proxy: Proxy, bucket: str, tmp_path: Path
) -> None:
    store = S3(replace(settings, endpoint=proxy.endpoint))
    store.put(bucket, "k", os.urandom(3 << 20))
    for after_bytes in (0, 1, 1 << 20, (3 << 20) - 1):
        proxy.fail(lambda _, after_bytes=after_bytes: CutReply(after_bytes))
        with pytest.raises(protocol.Unavailable):
            store.get(bucket, "k", limit_bytes=4 << 20)
        with open(tmp_path / "file", "wb") as file, pytest.raises(protocol.Unavailable):
            store.get_to_file(bucket, "k", file.fileno(), limit_bytes=4 << 20)


def test_a_slow_large_upload_is_no_silence(settings: StoreSettings, proxy: Proxy, bucket: str) -> None:
    proxy.bytes_per_s = 2 << 20
    store = S3(replace(settings, endpoint=proxy.endpoint), quick_timeout_s=0.3, bulk_timeout_s=10)
    store.put(bucket, "k", bytes(2 << 20))
    assert store.get(bucket, "k", limit_bytes=2 << 20).info.size == 2 << 20


def test_a_failed_upload_in_parts_leaves_nothing(settings: StoreSettings, proxy: Proxy, bucket: str, s3: S3) -> None:
    proxy.fail(lambda request: Answer(503) if "partNumber=2" in request.path else None)
    store = S3(replace(settings, endpoint=proxy.endpoint))
    with pytest.raises(protocol.Unavailable, match="status 503 SlowDown"):
        store.put(bucket, "k", bytes(2 * PART_BYTES + 1))
    assert s3.head(bucket, "k") is None
    assert [request.method for request in proxy.requests][-1] == "DELETE"


# --- What others leave in a store ------------------------------------------------------------------


def test_folder_markers_are_not_the_folder(settings: StoreSettings, s3: S3, bucket: str) -> None:
    theirs = admin.connect(settings)
    for key in ("p/", "p/sub/"):
        theirs.put_object(bucket, key, io.BytesIO(b""), 0)
    s3.put(bucket, "p/sub/k", b"")
    assert [info.key for info in s3.list(bucket, "p/sub/")] == ["p/sub/k"]
    assert s3.list_folders(bucket, "p/") == ["p/sub/"]
    assert s3.list_folders(bucket, "") == ["p/"]


def test_a_file_that_shrinks_while_it_is_sent(s3: S3, bucket: str, tmp_path: Path) -> None:
    class Shrinking(S3):
        """Cuts the file as soon as the request for it is made."""

        def _put(self, *args: object, **kwargs: object) -> str:
            os.truncate(tmp_path / "file", 5)
            return super()._put(*args, **kwargs)  # type: ignore[arg-type]

    with open(tmp_path / "file", "w+b") as file:
        file.truncate(PART_BYTES + 1)
        store = Shrinking(s3._settings)
        with pytest.raises(protocol.LocalDisk, match="the file shrank"):
            store.put_file(bucket, "k", file.fileno())
    assert s3.head(bucket, "k") is None


def test_a_local_disk_without_room(s3: S3, bucket: str) -> None:
    s3.put(bucket, "k", b"bytes")
    with open("/dev/full", "wb", buffering=0) as full:
        with pytest.raises(protocol.LocalDisk, match=f"Saving {bucket}/k failed on the local disk .No space left"):
            s3.get_to_file(bucket, "k", full.fileno(), limit_bytes=5)


# --- TLS -------------------------------------------------------------------------------------------


def test_tls(tmp_path: Path, settings: StoreSettings) -> None:
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    authority, public, private = tmp_path / "authority.crt", certificates / "public.crt", certificates / "private.key"
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    root = ["-subj", "/CN=authority", "-keyout", tmp_path / "authority.key", "-out", authority]
    leaf = [
        "-subj",
        "/CN=rig",
        "-keyout",
        private,
        "-out",
        public,
        "-CA",
        authority,
        "-CAkey",
        tmp_path / "authority.key",
    ]
    leaf += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    for more in (root, leaf):
        subprocess.run([*new, *more], check=True, capture_output=True)
    program = """
import sys
from the0.errors import Fault
from the0.objects.credentials import StoreSettings
from the0.objects.s3 import S3
endpoint, access_key, secret_key, use_ssl = sys.argv[1:]
store = S3(StoreSettings(endpoint=endpoint, access_key=access_key, secret_key=secret_key, use_ssl=use_ssl == "True"))
for attempt in (lambda: store.ensure_bucket("bucket"), lambda: store.put_if("bucket", "k", b"1", etag=None)):
    try:
        attempt()
        print("done")
    except Fault as fault:
        print(fault)
"""

    def lines(to: StoreSettings, *, trusted: bool) -> list[str]:
        environ = {name: value for name, value in os.environ.items() if name not in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
        if trusted:
            environ["SSL_CERT_FILE"] = str(authority)
        argv = [sys.executable, "-c", program, to.endpoint, to.access_key, to.secret_key, str(to.use_ssl)]
        return subprocess.run(argv, env=environ, capture_output=True, text=True, check=True).stdout.splitlines()

    with minio(certificates=certificates) as running:
        assert running.settings.url.startswith("https://")
        assert lines(running.settings, trusted=True) == ["done", "done"]
        untrusted = lines(running.settings, trusted=False)
        assert len(untrusted) == 2
        assert all("its TLS certificate is not trusted here; install its CA" in line for line in untrusted)
        plain = lines(replace(running.settings, use_ssl=False), trusted=True)
        assert len(plain) == 2
        assert all("the store wants TLS; set MINIO_USE_SSL=true" in line for line in plain), plain
    eager = lines(replace(settings, use_ssl=True), trusted=True)
    assert len(eager) == 2
    assert all("the store does not speak TLS; set MINIO_USE_SSL=false" in line for line in eager), eager
