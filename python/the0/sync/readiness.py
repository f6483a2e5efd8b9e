"""`/readyz` and `/healthz` of the sync daemon, for the sidecar's probes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Readiness:
    """Serves on all addresses until closed. `port` is the real one, also where 0 was asked for."""

    def __init__(self, port: int, *, reason: Callable[[], str | None]) -> None:
        """`reason` says why not ready; None means ready. Raises OSError where the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            timeout = 5
            server_version = "the0"
            sys_version = ""

            def do_GET(self) -> None:
                if self.path == "/healthz":
                    self._answer(200, "ok")
                elif self.path == "/readyz":
                    why = reason()
                    self._answer(200 if why is None else 503, "ok" if why is None else f"not ready: {why}")
                else:
                    self._answer(404, "not found")

            def _answer(self, status: int, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
                """Probes are no news."""

        self._server = ThreadingHTTPServer(("", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="readiness", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
