"""From what an S3 store says to an error with a remedy."""

from __future__ import annotations

import pytest

from the0.errors import ExitCode, Fault
from the0.objects import store as protocol
from the0.objects.replies import Request, fault, reply_fault


def _request(*, conditional: bool = False) -> Request:
    return Request(
        operation="Writing",
        bucket="bot-state",
        key="b1/HEAD",
        store="S3 store at http://s:9000",
        conditional=conditional,
    )


@pytest.mark.parametrize(
    ("status", "code", "conditional", "kind"),
    [
        (404, "NoSuchKey", False, protocol.Missing),
        (404, "", False, protocol.Missing),
        (404, "NoSuchBucket", False, protocol.Denied),
        (404, "NoSuchBucket", True, protocol.Denied),
        (404, "NoSuchKey", True, protocol.PreconditionFailed),
        (412, "PreconditionFailed", True, protocol.PreconditionFailed),
        (409, "ConditionalRequestConflict", True, protocol.PreconditionFailed),
        (412, "PreconditionFailed", False, protocol.PreconditionFailed),
        (409, "OperationAborted", True, protocol.Unavailable),
        (304, "", False, protocol.NotModified),
        (400, "RequestTimeout", False, protocol.Unavailable),
        (408, "", False, protocol.Unavailable),
        (429, "", False, protocol.Unavailable),
        (500, "InternalError", False, protocol.Unavailable),
        (503, "SlowDown", True, protocol.Unavailable),
        (507, "XMinioStorageFull", False, protocol.Unavailable),
        (403, "AccessDenied", False, protocol.Denied),
        (403, "", False, protocol.Denied),
        (403, "InvalidAccessKeyId", False, protocol.Denied),
        (403, "SignatureDoesNotMatch", False, protocol.Denied),
        (400, "ExpiredToken", False, protocol.Denied),
        (400, "AuthorizationHeaderMalformed", False, protocol.Denied),
        (403, "RequestTimeTooSkewed", False, protocol.Denied),
        (401, "", False, protocol.Denied),
        (301, "PermanentRedirect", False, protocol.Denied),
        (501, "NotImplemented", True, protocol.Unsuitable),
        (501, "NotImplemented", False, protocol.Refused),
        (400, "KeyTooLongError", False, protocol.Refused),
        (409, "BucketNotEmpty", False, protocol.Refused),
    ],
)
def test_statuses(status: int, code: str, conditional: bool, kind: type[Fault]) -> None:
    request = _request(conditional=conditional)
    body = f"<Error><Code>{code}</Code><Message>quotes the request</Message></Error>" if code else ""
    text = f"Error performing PUT http://s:9000/x - Server returned non-2xx status code: {status} Whatever: {body}"
    for found in (
        fault(request, f"{text}\n\nDebug source:\nstatus code: 999"),
        reply_fault(request, status=status, code=code),
    ):
        assert type(found) is kind
        assert "quotes the request" not in found.sentence
        if kind is not protocol.NotModified:
            assert found.sentence.startswith("Writing bot-state/b1/HEAD in the S3 store at http://s:9000 failed: ")
            assert "; " in found.sentence
            assert found.sentence.endswith(".")
            assert found.code in (ExitCode.STORE_DENIED, ExitCode.STORE_UNREACHABLE, ExitCode.STORE_UNSUITABLE)


def test_what_never_reached_a_store() -> None:
    assert isinstance(fault(_request(), "HTTP error: ConnectionReset"), protocol.Unavailable)
    assert "CA certificate" in str(fault(_request(), "Connect: invalid peer certificate: UnknownIssuer"))
