"""What an S3 store's refusal means: from the text of a failed request to one sentence with a remedy.

Knows no client. The client's own text is never shown: it may quote the request.
"""

from __future__ import annotations

import re

from the0.errors import ExitCode, Fault, clip
from the0.frozen import dataclass
from the0.objects.store import Denied, Missing, NotModified, PreconditionFailed, Refused, Unavailable, Unsuitable

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")

_CREDENTIALS = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "InvalidTokenId",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_PASSING = frozenset(
    {"RequestTimeout", "SlowDown", "OperationAborted", "InternalError", "ServiceUnavailable", "Throttling"}
)
_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_REGION = frozenset({"PermanentRedirect", "IncorrectEndpoint", "IllegalLocationConstraintException"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked, as a sentence names it."""

    operation: str
    """A present participle with a capital: `Reading`."""
    bucket: str
    key: str
    store: str
    conditional: bool = False
    """A PUT with If-Match or If-None-Match."""

    def failed(self, reason: str, remedy: str) -> str:
        what = f"{self.bucket}/{self.key}" if self.key else self.bucket
        return f"{self.operation} {clip(what, limit=300)} in the {self.store} failed: {reason}; {remedy}."


def fault(request: Request, text: str, *, kind: str = "") -> Fault:
    """`text` is what the client said, `kind` its exception's name; both only serve to tell the cases apart."""
    head = text.partition("\nDebug source:")[0]
    status_match = _STATUS.search(head)
    code_match = _CODE.search(head)
    return _from_status(
        request,
        status=int(status_match[1]) if status_match else 0,
        code=code_match[1] if code_match else "",
        text=text,
        kind=kind,
    )


def reply_fault(request: Request, *, status: int, code: str) -> Fault:
    """For clients that name status and S3 error code themselves."""
    return _from_status(request, status=status, code=code, text="", kind="")


def missing_bucket(request: Request) -> Denied:
    return Denied(
        request.failed(
            f"there is no bucket {request.bucket}",
            "create it (`mc mb`, or the store's console), or correct the MINIO_*_BUCKET variable that names it",
        ),
        code=ExitCode.STORE_DENIED,
    )


def _from_status(request: Request, *, status: int, code: str, text: str, kind: str) -> Fault:
    said = f"status {status}{f' {code}' if code else ''}"
    if kind == "NotModifiedError" or status == 304:
        return NotModified("not modified", code=ExitCode.INTERNAL)
    if code == "NoSuchBucket":
        return missing_bucket(request)
    if "HTTPS server" in text:
        return Denied(request.failed("the store wants TLS", "set MINIO_USE_SSL=true"), code=ExitCode.STORE_DENIED)
    if status == 0:
        return _no_reply(request, text)
    # Before the rest: a conditional PUT on a missing key is 404 on one store and 412 on the other, a race 409 or 412.
    if request.conditional and (status == 412 or code == "ConditionalRequestConflict" or (status == 404)):
        return PreconditionFailed(
            request.failed("it is not in the version expected", "read it again"), code=ExitCode.STORE_DENIED
        )
    if status == 412:
        return PreconditionFailed(request.failed("it changed meanwhile", "read it again"), code=ExitCode.STORE_DENIED)
    if (status >= 500 and status != 501) or status in (408, 429) or code in _PASSING:
        return Unavailable(request.failed(f"the store answered {said}", "it may pass; see the store's own log"))
    if status == 404:
        return Missing(request.failed("there is no such object", "check the key"), code=ExitCode.STORE_DENIED)
    if code in _CREDENTIALS or status == 401:
        return Denied(
            request.failed(
                f"the store does not accept the credentials ({said})",
                "check MINIO_ACCESS_KEY, MINIO_SECRET_KEY and MINIO_REGION",
            ),
            code=ExitCode.STORE_DENIED,
        )
    if code in _CLOCK:
        return Denied(
            request.failed(f"the clocks of store and client differ ({said})", "set this machine's clock"),
            code=ExitCode.STORE_DENIED,
        )
    if code in _REGION or 300 <= status < 400:
        return Denied(
            request.failed(f"the store sends the request elsewhere ({said})", "check MINIO_ENDPOINT and MINIO_REGION"),
            code=ExitCode.STORE_DENIED,
        )
    if status == 403:
        return Denied(
            request.failed(f"access is denied ({said})", "grant these credentials access to that bucket and key"),
            code=ExitCode.STORE_DENIED,
        )
    if status == 501 and request.conditional:
        return unsuitable(request)
    return Refused(
        request.failed(f"the store refuses the request ({said})", "check key and bucket against the store's rules"),
        code=ExitCode.STORE_DENIED,
    )


def unsuitable(request: Request) -> Unsuitable:
    return Unsuitable(
        request.failed(
            "the store ignores or lacks conditional PUT (If-None-Match), without which two writers overwrite each other",
            "use a store that has it: MinIO, AWS S3, SeaweedFS, Ceph 19 or newer; or update this one",
        ),
        code=ExitCode.STORE_UNSUITABLE,
    )


def _no_reply(request: Request, text: str) -> Fault:
    if any(mark in text for mark in ("InvalidContentType", "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")):
        return Denied(
            request.failed("the store does not speak TLS", "set MINIO_USE_SSL=false"), code=ExitCode.STORE_DENIED
        )
    if "certificate" in text.lower():
        return Denied(
            request.failed(
                "its TLS certificate is not trusted here", "install its CA certificate, or point SSL_CERT_FILE at it"
            ),
            code=ExitCode.STORE_DENIED,
        )
    if "Metadata value for" in text:
        return Refused(
            request.failed("its metadata is not plain text", "write the object again"), code=ExitCode.STORE_DENIED
        )
    if "Could not parse path" in text or "contained empty path segment" in text or "Error parsing Path" in text:
        return Refused(
            request.failed("a key there has an empty, '.' or '..' part, or a control character", "remove that object"),
            code=ExitCode.STORE_DENIED,
        )
    if "builder error" in text or "No CA certificates" in text:
        return Denied(
            request.failed(
                "the client cannot be set up", "check MINIO_ENDPOINT, and that CA certificates are installed"
            ),
            code=ExitCode.STORE_DENIED,
        )
    if "ConnectionRefused" in text:
        reason = "the connection is refused"
    elif "dns error" in text:
        reason = "its host name does not resolve"
    elif "TimedOut" in text or "Timeout" in text or "timed out" in text:
        reason = "it did not answer in time"
    else:
        reason = "the connection broke"
    return Unavailable(request.failed(reason, "check that the store runs and that MINIO_ENDPOINT names it"))
