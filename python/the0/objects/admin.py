"""What only services and short-lived children ask of an S3 store: buckets, and composing objects on the server.

By minio-py, which is slow to import and large: so inside functions, here alone. Plain functions without state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree

from the0.objects import replies
from the0.objects.credentials import StoreSettings
from the0.objects.store import ObjectInfo

if TYPE_CHECKING:
    from minio import Minio
    from minio.error import S3Error

_Fields = dict[str, str | list[str] | tuple[str]]

SMALLEST_PART_BYTES = 5 * 1024 * 1024
"""S3's bound for every part but the last."""
_LARGEST_PART_BYTES = 5 * 1024 * 1024 * 1024
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 120.0


def connect(settings: StoreSettings) -> Minio:
    """One attempt a request; the region is given, so that none goes to ask for it."""
    import ssl

    import urllib3
    from minio import Minio

    return Minio(
        settings.endpoint,
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        session_token=settings.session_token or None,
        secure=settings.use_ssl,
        region=settings.region,
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=_READ_TIMEOUT_S),
            retries=False,
            ssl_context=ssl.create_default_context() if settings.use_ssl else None,
        ),
    )


def ensure_bucket(settings: StoreSettings, bucket: str, *, request: replies.Request) -> None:
    """Creates the bucket if it is missing. Idempotent, also when several do it at once."""
    with _faults(request):
        client = connect(settings)
        try:
            if client.bucket_exists(bucket):
                return
        except _s3_error() as reason:
            if reason.code != "BadRequest":  # a HEAD's reply has no body to say why; the next one's has
                raise
        try:
            client.make_bucket(bucket, settings.region)
        except _s3_error() as reason:
            if reason.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise


def append(
    settings: StoreSettings,
    bucket: str,
    key: str,
    data: bytes,
    *,
    former: ObjectInfo,
    metadata: Mapping[str, str],
    request: replies.Request,
) -> str:
    """Makes a new object of `former` (at least 5 MiB) and `data` on the server; returns its ETag. Every copied part is
    bound to the former ETag, and so is the completion where the store knows that (MinIO does)."""
    with _faults(request):
        ask = partial(connect(settings)._execute, bucket_name=bucket, object_name=key)
        headers: _Fields = {
            "Content-Type": "binary/octet-stream",
            **{f"x-amz-meta-{k}": v for k, v in metadata.items()},
        }
        started = ask("POST", headers=headers, query_params={"uploads": ""})
        upload: _Fields = {"uploadId": _text(started.data, "UploadId")}
        try:
            etags: list[str] = []
            for start, end in _ranges(former.size):
                headers = {
                    "x-amz-copy-source": quote(f"/{bucket}/{key}", safe="/"),
                    "x-amz-copy-source-if-match": former.etag,
                    "x-amz-copy-source-range": f"bytes={start}-{end - 1}",
                }
                copied = ask("PUT", headers=headers, query_params={**upload, "partNumber": str(len(etags) + 1)})
                etags.append(_text(copied.data, "ETag"))
            sent = ask("PUT", body=data, query_params={**upload, "partNumber": str(len(etags) + 1)})
            etags.append(sent.headers["ETag"])
            headers = {"Content-Type": "application/xml", "If-Match": former.etag}
            done = ask("POST", body=_completion(etags), headers=headers, query_params=upload)
            return f'"{_text(done.data, "ETag").strip(chr(34))}"'
        except BaseException:
            with suppress(
                *_failures()
            ):  # what stays goes with the store's own clean-up, or gc's; the first error counts
                ask("DELETE", query_params=upload)
            raise


def _ranges(size: int) -> list[tuple[int, int]]:
    """Even pieces of what is too large for one part, so that none is below the smallest."""
    count = -(-size // _LARGEST_PART_BYTES)
    return [(size * i // count, size * (i + 1) // count) for i in range(count)]


def _completion(etags: list[str]) -> bytes:
    root = ElementTree.Element("CompleteMultipartUpload")
    for number, etag in enumerate(etags, 1):
        part = ElementTree.SubElement(root, "Part")
        ElementTree.SubElement(part, "PartNumber").text = str(number)
        ElementTree.SubElement(part, "ETag").text = etag
    return ElementTree.tostring(root)


def _text(body: bytes, name: str) -> str:
    """The first element of that name, in whatever namespace. A copy or completion may be 200 and hold an error."""
    root = ElementTree.fromstring(body)
    found = {element.tag.rpartition("}")[2]: element.text or "" for element in root.iter()}
    if "Error" in found:
        raise _LateError(found.get("Code", ""))
    if not found.get(name):
        raise ValueError(f"a reply without {name}")
    return found[name]


class _LateError(Exception):
    """A failure that the store sent after it had begun its reply with 200."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _s3_error() -> type[S3Error]:
    from minio.error import S3Error

    return S3Error


def _failures() -> tuple[type[Exception], ...]:
    from minio.error import MinioException
    from urllib3.exceptions import HTTPError

    return (MinioException, HTTPError, OSError, ValueError, ElementTree.ParseError, _LateError)


@contextmanager
def _faults(request: replies.Request) -> Iterator[None]:
    try:
        yield
    except _failures() as reason:
        # Not chained: the client's text may quote the request, and a traceback would print it.
        code = str(getattr(reason, "code", None) or "")
        if isinstance(reason, _LateError):
            raise replies.reply_fault(request, status=412 if code == "PreconditionFailed" else 500, code=code) from None
        if isinstance(reason, _s3_error()) and reason.response is not None:
            raise replies.reply_fault(request, status=reason.response.status, code=code) from None
        status = getattr(reason, "status_code", None)
        if isinstance(status, int):
            raise replies.reply_fault(request, status=status, code=code) from None
        raise replies.fault(request, f"{reason!r} {reason.__cause__!r}") from None
