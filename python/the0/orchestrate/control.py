"""How other commands talk to a running `up`: one call, one answer, over loopback HTTP with a token that is in the data
folder, readable by its owner only. This is the serving end; `control_client.py` is the other.

`POST /VERB` with a JSON object of arguments answers 200 with `{"answer": …}`, or another status with
`{"sentence", "code"}` (an exit code).
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from the0 import files
from the0.errors import ExitCode, Fault
from the0.orchestrate import address
from the0.orchestrate.address import Address
from the0.orchestrate.data import CONTROL_FILE, Data
from the0.orchestrate.service import Limits, Reply, Request, Service, bears

Verb = Callable[[Mapping[str, Any]], Any]
"""Takes the arguments, returns JSON or raises a Fault. Runs in a thread of the server."""

HOST: Final = "127.0.0.1"
LIMITS: Final = Limits(body_bytes=1 << 20, connections=32, request_s=30.0, answer_s=30.0, concurrency=32)


class ControlServer:
    """Serves from the constructor on, until `close`."""

    def __init__(self, data: Data, verbs: Mapping[str, Verb]) -> None:
        """Raises Fault (LOCAL_DISK) where no port or file can be had."""
        self._data = data
        self._verbs = verbs
        self._token = secrets.token_urlsafe(32)
        try:
            self._service = Service(
                name="control", host=HOST, port=0, answer=self._answer, failed=_refusal, limits=LIMITS
            )
            address.write(data, CONTROL_FILE, Address(HOST, self._service.port, self._token))
        except OSError as reason:
            raise files.disk_fault(reason, "opening the control address of `runtime up`") from reason
        self._service.start()

    def close(self) -> None:
        """Idempotent."""
        forget(self._data)
        self._service.close()

    def _answer(self, request: Request) -> Reply:
        try:
            return _told(HTTPStatus.OK, {"answer": self._call(request)})
        except _Refused as refused:
            return _refusal(refused.status, refused.sentence)
        except Fault as fault:
            return _told(HTTPStatus.CONFLICT, {"sentence": fault.sentence, "code": int(fault.code)})
        except Exception as reason:  # noqa: BLE001 - the caller gets a sentence, the traceback goes to stderr
            sys.excepthook(type(reason), reason, reason.__traceback__)
            said = f"`runtime up` failed at this ({type(reason).__name__}): its output has the traceback."
            told = {"sentence": said, "code": int(ExitCode.INTERNAL)}
            return _told(HTTPStatus.INTERNAL_SERVER_ERROR, told)

    def _call(self, request: Request) -> Any:
        if request.method != "POST":
            raise _Refused(HTTPStatus.NOT_IMPLEMENTED, "Call the verbs of this address by POST.")
        if not bears(request, self._token):
            raise _Refused(401, "This is the control address of a `runtime up`, and the token is missing or another's.")
        verb = self._verbs.get(request.path.lstrip("/"))
        if verb is None:
            raise _Refused(404, f"This `runtime up` knows no {request.path[:64]!r}: it may be of another version.")
        if "content-length" not in request.headers:
            raise _Refused(413, "The request does not say how large it is.")
        try:
            arguments = json.loads(request.body or b"{}")
        except ValueError as reason:
            raise _Refused(400, "The request is no JSON.") from reason
        if not isinstance(arguments, dict):
            raise _Refused(400, "The request is no JSON object.")
        return verb(arguments)


def forget(data: Data) -> None:
    """Removes the address of one that runs no more."""
    try:
        os.unlink(data.control)
    except FileNotFoundError:
        pass  # as wanted


def _told(status: int, told: Mapping[str, Any]) -> Reply:
    return Reply(status, json.dumps(told).encode())


def _refusal(status: int, sentence: str) -> Reply:
    return _told(status, {"sentence": sentence, "code": int(ExitCode.USAGE)})


class _Refused(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
