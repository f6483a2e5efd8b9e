"""What a bot must not see: our memory and environment, which hold credentials.

A bot runs under our uid. A non-dumpable process of that uid cannot be read or traced by it (`/proc/PID/mem`,
`environ`, `fd`, ptrace); the flag is inherited by fork and lost by exec, so that processes with credentials are
forked, never exec'd, once a bot runs. The bot's own environment is made from an allow-list.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable, Mapping

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_PTRACE_DETACH = 17

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]

_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

_SHARED = frozenset(
    {
        *("PATH", "TZ", "LANG", "LANGUAGE", "TMPDIR", "LD_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
        *("no_proxy", "NO_PROXY"),
    }
)
"""What of our environment a bot sees too: how to find programs, time, text, certificates and the way out."""

_PROXIES = frozenset({*("http_proxy", "https_proxy", "all_proxy"), *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")})
"""Shared without the user and password that they may name."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def set_non_dumpable() -> None:
    """Closes this process and those it forks to others of its uid, and lets nothing leave a core file.
    Before the first bot is started, and before any thread. OSError where the kernel refuses."""
    _call(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def is_dumpable() -> bool:
    return bool(_prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))


def become_subreaper() -> None:
    """Orphans among our descendants become our children, as they do for PID 1."""
    _call(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int) -> None:
    """The kernel sends us this signal when our parent dies. Kept over exec; the parent must be single-threaded."""
    _call(_PR_SET_PDEATHSIG, number)


def gain_no_privileges() -> None:
    """Programs with a set-user-id bit run as we do, from here on and in all that is started: none leaves our reach as
    another user's. Kept over exec."""
    _call(_PR_SET_NO_NEW_PRIVS, 1)


def ptrace_detach(pid: int, number: int) -> None:
    """Ends our tracing of a process that is stopped by it, and sends it that signal (0: none). Without effect where there is none."""
    _libc.ptrace(_PTRACE_DETACH, pid, None, ctypes.c_void_p(number))


def set_name(name: str) -> None:
    """What `ps` and `top` call this process (15 bytes)."""
    shown = ctypes.create_string_buffer(name.encode()[:15])
    _call(_PR_SET_NAME, ctypes.addressof(shown))


def shared_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of our own environment that a bot may see."""
    shared = {name: value for name, value in environ.items() if name in _SHARED or name.startswith("LC_")}
    shared |= {name: _anonymous(environ[name]) for name in _PROXIES if name in environ}
    shared.setdefault("PATH", DEFAULT_PATH)
    return shared


def _anonymous(proxy: str) -> str:
    """`scheme://user:password@host:port`, or that without a scheme, without user and password. Whatever stands before
    the last `@` goes: a password may hold any character."""
    named, mark, host = proxy.rpartition("@")
    scheme, colon, _ = named.partition("://")
    return (scheme + colon if mark and colon and scheme.isalnum() else "") + host


def close_others(keep: Iterable[int]) -> None:
    """Closes every descriptor from 3 on but those in `keep`."""
    begin = 3
    for fd in sorted({fd for fd in keep if fd >= 3}):
        os.closerange(begin, fd)
        begin = fd + 1
    os.closerange(begin, max(begin, 1 << 16))


def _call(option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl({option})")
