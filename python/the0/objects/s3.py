"""Objects in an S3 store, by obstore: small and quick to import, and loaded only when a bucket is first used.

One request is one attempt: repeating is `Retrying`'s. What obstore cannot do (composing on the server, buckets)
is in `admin.py`, with another client, loaded only then.
"""

from __future__ import annotations

import builtins
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from the0.errors import ExitCode, Fault
from the0.objects.credentials import StoreSettings
from the0.objects.in_child import in_child
from the0.objects.keys import check_bucket, check_key, check_prefix, folded, listing_start
from the0.objects.store import (
    Bytes,
    LocalDisk,
    Missing,
    Object,
    ObjectInfo,
    PreconditionFailed,
    TooLarge,
    Unavailable,
)

if TYPE_CHECKING:
    from obstore.store import S3Store

    from the0.objects.replies import Request

MIB = 1024 * 1024
PART_BYTES = 8 * MIB
"""Larger objects go in parts of this size, two at a time: at most 24 MiB in memory."""
SMALL_BYTES = 256 * 1024
_CHUNK_BYTES = MIB
_APPEND_TIMEOUT_S = 600.0
_ATTRIBUTES = frozenset(
    {"Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Cache-Control", "Storage-Class"}
)


class S3:
    """An `ObjectStore`. A request is given up when nothing moves for `quick_timeout_s` (a whole upload of more than
    256 KiB, or one part of it: `bulk_timeout_s`, since the client counts sending as silence).

    Nothing is loaded or connected before the first call. From then on the process has threads of obstore's: one that
    is forked from it needs a store of its own, and must not have the parent's in use."""

    def __init__(
        self,
        settings: StoreSettings,
        *,
        connect_timeout_s: float = 5.0,
        quick_timeout_s: float = 15.0,
        bulk_timeout_s: float = 120.0,
    ) -> None:
        self._settings = settings
        self._connect_timeout_s = connect_timeout_s
        self._quick_timeout_s = quick_timeout_s
        self._bulk_timeout_s = bulk_timeout_s
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, bool], S3Store] = {}
        self._conditional_put_checked = False

    @property
    def name(self) -> str:
        return f"S3 store at {self._settings.url}"

    def get(self, bucket: str, key: str, *, limit_bytes: int, if_none_match: str | None = None) -> Object:
        import obstore

        with self._asking("Reading", bucket, key) as client:
            result = obstore.get(client, key, options={"if_none_match": if_none_match} if if_none_match else None)
            info = _info(result.meta, result.attributes)
            self._check_size(bucket, info, limit_bytes)
            return Object(info, bytes(result.bytes()))

    def get_to_file(self, bucket: str, key: str, fd: int, *, limit_bytes: int) -> ObjectInfo:
        import obstore

        with self._asking("Reading", bucket, key) as client:
            result = obstore.get(client, key)
            info = _info(result.meta, result.attributes)
            self._check_size(bucket, info, limit_bytes)
            written = 0
            for chunk in result.stream(_CHUNK_BYTES):
                view = memoryview(chunk)
                written += len(view)
                try:
                    while view:
                        view = view[os.write(fd, view) :]
                except OSError as reason:
                    raise _local_disk("Saving", bucket, key, reason) from reason
            if written != info.size:
                request = self._request("Reading", bucket, key)
                raise Unavailable(request.failed(f"{written} of {info.size} bytes came", "it may pass"))
            return info

    def head(self, bucket: str, key: str) -> ObjectInfo | None:
        import obstore

        # A HEAD's 404 does not say whether object or bucket is missing, and a missing bucket must not pass for
        # "no state yet": a GET, whose 404 says it, settles that.
        for head in (True, False):
            try:
                with self._asking("Looking at", bucket, key) as client:
                    result = obstore.get(client, key, options={"head": head})
                    return _info(result.meta, result.attributes)
            except Missing:
                continue
        return None

    def put(self, bucket: str, key: str, data: Bytes, *, metadata: Mapping[str, str] | None = None) -> str:
        view = memoryview(data).cast("B")
        return self._put(bucket, key, view, size=len(view), metadata=folded(metadata))

    def put_file(self, bucket: str, key: str, fd: int, *, metadata: Mapping[str, str] | None = None) -> str:
        attributes = folded(metadata)
        broken: list[LocalDisk] = []

        def pieces(size: int) -> Iterator[bytes]:
            offset = 0
            try:
                while offset < size:
                    piece = os.pread(fd, min(_CHUNK_BYTES, size - offset), offset)
                    if not piece:
                        raise OSError(f"the file shrank from {size} to {offset} bytes while it was read")
                    offset += len(piece)
                    yield piece
            except OSError as reason:
                broken.append(_local_disk("Sending", bucket, key, reason))
                raise

        try:
            size = os.fstat(fd).st_size
            source: Any = b"".join(pieces(size)) if size <= PART_BYTES else pieces(size)
            return self._put(bucket, key, source, size=size, metadata=attributes)
        except (OSError, Fault) as reason:
            if broken:
                raise broken[0] from reason
            if isinstance(reason, OSError):
                raise _local_disk("Sending", bucket, key, reason) from reason
            raise

    def put_if(
        self,
        bucket: str,
        key: str,
        data: Bytes,
        *,
        etag: str | None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        import obstore

        view = memoryview(data).cast("B")
        attributes = folded(metadata)
        with self._asking("Writing", bucket, key, bulk=len(view) > SMALL_BYTES, conditional=True) as client:
            made = obstore.put(
                client,
                key,
                view,
                attributes=dict(attributes),
                mode="create" if etag is None else {"e_tag": etag},
                use_multipart=False,
            )
            return self._etag(made, bucket, key)

    def list(self, bucket: str, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """In memory whole (about 400 bytes an object) before the first is given: SeaweedFS lists folder by folder,
        so `a/b` comes before `a-b` and byte order is only known at the end."""
        import obstore

        check_prefix(prefix)
        parent = prefix[: prefix.rfind("/") + 1]  # obstore takes whole parts only
        found: list[ObjectInfo] = []
        with self._asking("Listing", bucket, prefix, checked=True) as client:
            for page in obstore.list(client, parent or None, offset=listing_start(prefix, after), chunk_size=1000):
                for meta in page:
                    key = meta["path"]
                    # A folder's marker (`a/`, made by consoles) is given as `a`: below its own prefix it falls away.
                    if key.startswith(prefix) and (after is None or key > after):
                        found.append(_info(meta, {}))
        found.sort(key=lambda info: info.key)
        yield from found

    def list_folders(self, bucket: str, prefix: str) -> builtins.list[str]:
        import obstore

        check_prefix(prefix, folder=True)
        with self._asking("Listing", bucket, prefix, checked=True) as client:
            return sorted(f"{name}/" for name in obstore.list_with_delimiter(client, prefix or None)["common_prefixes"])

    def delete(self, bucket: str, key: str) -> None:
        import obstore

        try:
            with self._asking("Deleting", bucket, key) as client:
                obstore.delete(client, key)
        except Missing:
            pass  # some stores answer 404 instead of 204: it is gone, as asked

    def append(self, bucket: str, key: str, data: Bytes, *, etag: str | None, metadata: Mapping[str, str]) -> str:
        from the0.objects import admin

        view = memoryview(data).cast("B")
        attributes = folded(metadata)
        info = self.head(bucket, key)
        request = self._request("Appending to", bucket, key, conditional=True)
        if info is None:
            raise Missing(request.failed("there is no such object", "write it first"), code=ExitCode.STORE_DENIED)
        if etag is not None and info.etag != etag:
            raise PreconditionFailed(
                request.failed("it changed meanwhile", "read it again"), code=ExitCode.STORE_DENIED
            )
        if info.size >= admin.SMALLEST_PART_BYTES:
            # The other client would stay resident (24 MiB) in a process that appends every few minutes.
            return in_child(
                lambda: admin.append(
                    self._settings, bucket, key, bytes(view), former=info, metadata=attributes, request=request
                ),
                doing=f"Appending to {bucket}/{key}",
                timeout_s=_APPEND_TIMEOUT_S,
            )
        former = self.get(bucket, key, limit_bytes=admin.SMALLEST_PART_BYTES)
        if former.info.etag != info.etag:
            raise PreconditionFailed(
                request.failed("it changed meanwhile", "read it again"), code=ExitCode.STORE_DENIED
            )
        return self.put_if(bucket, key, former.data + bytes(view), etag=info.etag, metadata=attributes)

    def check_conditional_put(self, bucket: str, key: str) -> None:
        if self._conditional_put_checked:
            return
        for _ in range(2):  # the first one makes the object where it is missing
            try:
                self.put_if(bucket, key, b"Asks whether this store has conditional PUT.\n", etag=None)
            except PreconditionFailed:
                self._conditional_put_checked = True
                return
        from the0.objects.replies import unsuitable

        raise unsuitable(self._request("Conditional writing of", bucket, key))

    def ensure_bucket(self, bucket: str) -> None:
        from the0.objects import admin

        check_bucket(bucket)
        admin.ensure_bucket(self._settings, bucket, request=self._request("Creating bucket", bucket, ""))

    def close(self) -> None:
        with self._lock:
            self._clients.clear()

    def _put(self, bucket: str, key: str, source: Any, *, size: int, metadata: Mapping[str, str]) -> str:
        import obstore

        with self._asking("Writing", bucket, key, bulk=size > SMALL_BYTES) as client:
            made = obstore.put(
                client,
                key,
                source,
                attributes=dict(metadata),
                use_multipart=size > PART_BYTES,
                chunk_size=PART_BYTES,
                max_concurrency=2,
            )
            return self._etag(made, bucket, key)

    def _etag(self, made: Any, bucket: str, key: str) -> str:
        if not made["e_tag"]:
            from the0.objects.replies import unsuitable

            raise unsuitable(self._request("Writing", bucket, key))
        return str(made["e_tag"])

    def _check_size(self, bucket: str, info: ObjectInfo, limit_bytes: int) -> None:
        if info.size > limit_bytes:
            request = self._request("Reading", bucket, info.key)
            raise TooLarge(
                request.failed(f"it has {info.size} bytes, more than the {limit_bytes} allowed", "store a smaller one"),
                code=ExitCode.STORE_DENIED,
            )

    def _request(self, operation: str, bucket: str, key: str, *, conditional: bool = False) -> Request:
        from the0.objects.replies import Request

        return Request(operation=operation, bucket=bucket, key=key, store=self.name, conditional=conditional)

    @contextmanager
    def _asking(
        self,
        operation: str,
        bucket: str,
        key: str,
        *,
        bulk: bool = False,
        conditional: bool = False,
        checked: bool = False,
    ) -> Iterator[S3Store]:
        """The bucket's client, and every failure of it as one of ours."""
        if not checked:
            check_key(key)
        check_bucket(bucket)
        from obstore.exceptions import BaseError

        try:
            yield self._client(bucket, bulk=bulk)
        except Fault:
            raise
        except (BaseError, OSError, ValueError) as reason:
            from the0.objects.replies import fault

            request = self._request(operation, bucket, key, conditional=conditional)
            # Not chained: the client's text may quote the request, and a traceback would print it.
            raise fault(request, str(reason), kind=type(reason).__name__) from None

    def _client(self, bucket: str, *, bulk: bool) -> S3Store:
        with self._lock:
            client = self._clients.get((bucket, bulk))
            if client is None:
                client = self._clients[bucket, bulk] = self._connect(bucket, bulk=bulk)
            return client

    def _connect(self, bucket: str, *, bulk: bool) -> S3Store:
        from obstore.store import S3Store

        settings = self._settings

        def credentials() -> Any:
            return {
                "access_key_id": settings.access_key,
                "secret_access_key": settings.secret_key,
                "token": settings.session_token or None,
                "expires_at": None,
            }

        # What AWS_* variables could turn is given explicitly: obstore reads them, and a stray one must not count.
        # The credentials come through a provider, since a token from AWS_SESSION_TOKEN can't be unset otherwise.
        return S3Store(
            bucket,
            endpoint=settings.url,
            aws_endpoint_url_s3=settings.url,
            region=settings.region,
            credential_provider=credentials,
            virtual_hosted_style_request=False,
            skip_signature=False,
            s3_express=False,
            unsigned_payload=False,
            request_payer=False,
            disable_tagging=True,
            disable_bulk_delete=True,
            conditional_put="etag",
            client_options={
                "allow_http": not settings.use_ssl,
                # Without TLS no certificate is looked at; said so, the client does not load the system's CAs, which
                # takes 4 ms a bucket and fails where there are none.
                "allow_invalid_certificates": not settings.use_ssl,
                "connect_timeout": _duration(self._connect_timeout_s),
                "read_timeout": _duration(self._bulk_timeout_s if bulk else self._quick_timeout_s),
                "timeout": "2h",
                "user_agent": "the0-runtime",
            },
            retry_config={"max_retries": 0},
        )


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _info(meta: Any, attributes: Mapping[Any, str]) -> ObjectInfo:
    return ObjectInfo(
        key=meta["path"],
        size=meta["size"],
        etag=meta["e_tag"] or "",
        modified_s=meta["last_modified"].timestamp(),
        metadata={name: value for name, value in attributes.items() if name not in _ATTRIBUTES},
    )


def _local_disk(operation: str, bucket: str, key: str, reason: OSError) -> LocalDisk:
    return LocalDisk(
        f"{operation} {bucket}/{key} failed on the local disk ({reason.strerror or reason}): free or repair that disk.",
        code=ExitCode.LOCAL_DISK,
    )
