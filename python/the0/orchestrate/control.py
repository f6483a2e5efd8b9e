"""How other commands talk to a running `up`: one call, one answer, over loopback HTTP with a token that is in the data
folder, readable by its owner only. This is the serving end; `control_client.py` is the other.

`POST /VERB` with a JSON object of arguments answers 200 with `{"answer": …}`, or another status with
`{"sentence", "code"}` (an exit code).
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from the0 import files
from the0.errors import ExitCode, Fault
from the0.orchestrate.data import CONTROL_FILE, Data

Verb = Callable[[Mapping[str, Any]], Any]
"""Takes the arguments, returns JSON or raises a Fault. Runs in a thread of the server."""

LIMIT_BYTES: Final = 1 << 20
TIMEOUT_S: Final = 30.0
CONNECTIONS: Final = 32


class ControlServer:
    """Serves from the constructor on, until `close`."""

    def __init__(self, data: Data, verbs: Mapping[str, Verb]) -> None:
        """Raises Fault (LOCAL_DISK) where no port or file can be had."""
        self._data = data
        try:
            self._server = _Server(("127.0.0.1", 0), _Handler)
            self._server.verbs = verbs
            self._server.token = secrets.token_urlsafe(32)
            told = {"address": list(self._server.server_address[:2]), "token": self._server.token, "pid": os.getpid()}
            with files.folder(data.path) as fd:
                files.write_atomic(fd, CONTROL_FILE, json.dumps(told).encode(), mode=0o600, durable=False)
        except OSError as reason:
            raise files.disk_fault(reason, "opening the control address of `runtime up`") from reason
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Idempotent."""
        if self._closing:
            return
        self._closing = True
        forget(self._data)
        with socket.create_connection(("127.0.0.1", self._server.server_address[1]), timeout=5.0):
            pass  # wakes the thread: it has no timer
        self._thread.join()
        self._server.server_close()

    def _serve(self) -> None:
        while not self._closing:
            self._server.handle_request()


def forget(data: Data) -> None:
    """Removes the address of one that runs no more."""
    try:
        os.unlink(data.control)
    except FileNotFoundError:
        pass  # as wanted


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    verbs: Mapping[str, Verb] = {}
    token = ""

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is the other side's affair; everything else was answered in `do_POST`."""
        kind = sys.exc_info()[0]
        if kind is not None and not issubclass(kind, OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = TIMEOUT_S
    server_version = "the0"
    sys_version = ""

    def do_POST(self) -> None:
        try:
            self._answer(200, {"answer": self._call()})
        except _Refused as refused:
            self._answer(refused.status, {"sentence": refused.sentence, "code": int(ExitCode.USAGE)})
        except Fault as fault:
            self._answer(409, {"sentence": fault.sentence, "code": int(fault.code)})
        except OSError:
            raise
        except Exception as reason:  # noqa: BLE001 - the caller gets a sentence, the traceback goes to stderr
            sys.excepthook(type(reason), reason, reason.__traceback__)
            said = f"`runtime up` failed at this ({type(reason).__name__}): its output has the traceback."
            self._answer(500, {"sentence": said, "code": int(ExitCode.INTERNAL)})

    def _call(self) -> Any:
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            raise _Refused(401, "This is the control address of a `runtime up`, and the token is missing or another's.")
        verb = self.server.verbs.get(self.path.lstrip("/"))
        if verb is None:
            raise _Refused(404, f"This `runtime up` knows no {self.path[:64]!r}: it may be of another version.")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LIMIT_BYTES:
            raise _Refused(413, "The request is too large, or does not say how large it is.")
        try:
            arguments = json.loads(self.rfile.read(int(length)) or b"{}")
        except ValueError as reason:
            raise _Refused(400, "The request is no JSON.") from reason
        if not isinstance(arguments, dict):
            raise _Refused(400, "The request is no JSON object.")
        return verb(arguments)

    def _answer(self, status: int, told: Mapping[str, Any]) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class has it
        """Calls are no news."""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Refused(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
