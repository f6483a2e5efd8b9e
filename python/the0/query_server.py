"""The HTTP side of a bot's served queries: one question at a time, small answers, nothing kept open."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from the0.query import QueryRequest, merged_params

_LONGEST_BODY = 1 << 20
_PATIENCE_S = 30.0

Answer = Callable[[QueryRequest], tuple[bool, str]]


class _Server(ThreadingHTTPServer):
    # Threads, so that a connection which sends nothing holds up nobody; handlers still run one at a time.
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], answer: Answer) -> None:
        self.answer = answer
        self.turn = threading.Lock()
        super().__init__(address, _Asked)

    def server_bind(self) -> None:
        # HTTPServer's own looks the host's name up, which may take seconds without a name server.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        reason = sys.exception() if sys.version_info >= (3, 12) else sys.exc_info()[1]
        if not isinstance(reason, OSError):  # an asker that went away is no news
            super().handle_error(request, client_address)


class _Asked(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE_S
    wbufsize = -1

    def do_POST(self) -> None:
        self.close_connection = True
        try:
            request = merged_params(self.path, self._body())
        except _Refused as refused:
            self._reply(refused.status, json.dumps({"status": "error", "error": refused.args[0]}))
            return
        with self.server.turn:
            good, text = self.server.answer(request)
        self._reply(HTTPStatus.OK if good else HTTPStatus.INTERNAL_SERVER_ERROR, text)

    do_GET = do_POST

    def _body(self) -> dict[str, Any]:
        if self.headers.get("Transfer-Encoding"):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "send the body with a Content-Length")
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
        if int(length) > _LONGEST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a query may have {_LONGEST_BODY} bytes")
        text = self.rfile.read(int(length))
        if not text.strip():
            return {}
        try:
            params = json.loads(text)
        except (ValueError, RecursionError) as reason:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {reason}") from reason
        if params is None:
            return {}
        if not isinstance(params, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the body is no JSON object of params")
        return params

    def _reply(self, status: HTTPStatus, text: str) -> None:
        body = text.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True
        status = HTTPStatus(code)
        self._reply(status, json.dumps({"status": "error", "error": message or explain or status.phrase}))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """Questions are not logged: their log is the bot's."""


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def listen(host: str, port: int, answer: Answer) -> ThreadingHTTPServer:
    """A bound server; `serve_forever` serves. OSError names what is wrong with the address."""
    return _Server((host, port), answer)
