"""Ports for a process that listens on this machine."""

from __future__ import annotations

import os
import socket

from the0.errors import ExitCode, Fatal

FIRST_PORT, LAST_PORT = 12000, 32000
"""Below the ports that outgoing connections are given."""


def free_port() -> int:
    """A port that nobody listens on just now. Fatal (INTERNAL) where none is found."""
    ports = range(FIRST_PORT, LAST_PORT)
    for _ in range(100):
        port = ports[int.from_bytes(os.urandom(4)) % len(ports)]
        with socket.socket() as tried:
            try:
                tried.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise Fatal("No free port was found for the query process: stop some of what listens here.", code=ExitCode.INTERNAL)
