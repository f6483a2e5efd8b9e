"""`runtime doctor`: what on this machine keeps the platform or its bots from working, and what to do about it.

Looks only; what it has to try, it takes back.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final, Literal
from zoneinfo import ZoneInfo

from the0 import documents, landlock, names, view
from the0.documents import BadBot, Bot
from the0.errors import Fault, clip
from the0.orchestrate import data, groups
from the0.orchestrate.client import Client
from the0.orchestrate.data import Data
from the0.orchestrate.tables import Screen, plural, size

Status = Literal["good", "note", "warning", "bad"]

_GIB: Final = 1 << 30
_FREE_BYTES: Final = _GIB
_FULL_BYTES: Final = 64 << 20
_FILES: Final = 4096
_FILES_A_BOT: Final = 16
"""Descriptors that `up` needs for one."""
_WATCHES: Final = 65_536
_INSTANCES: Final = 128
_TIME_ERROR: Final = 5
"""adjtimex's answer of a clock that nothing keeps."""
_RELEASED: Final = datetime(2026, 1, 1, tzinfo=UTC)
_PROGRAMS: Final[Mapping[str, tuple[str, str, str]]] = {
    "python3.11": ("python3.11", "--version", "install Python 3.11"),
    "nodejs20": ("node", "--version", "install Node.js 20"),
    "dotnet8": ("dotnet", "--list-runtimes", "install the .NET 8 runtime"),
    "scala3": ("java", "-version", "install Java 17 or newer"),
}
"""The others are programs of their own."""
_LIMITS: Final = {"memory": "memory", "CPU": "cpu", "number of processes": "pids"}


@dataclass(frozen=True, slots=True)
class Check:
    check: str
    status: Status
    found: str
    remedy: str = ""


def doctor(path: str, screen: Screen, *, search: str) -> int:
    """`search`: the PATH that bots get. Exit code 0, or 1 where something is bad."""
    place, checks = _data(path)
    bots: dict[str, Bot | BadBot] = {}
    if place is not None:
        for check in (_disk(place), *_stores(place, bots), _platform(place)):
            checks.append(check)
    checks += [_open_files(len(bots)), _processes(), _memory(bots), _clock(), _zones(), *_watches()]
    seen = _view(place)
    checks += [_landlock(), seen, _groups(private=seen.status == "good"), *_languages(bots, search)]
    bad = [check for check in checks if check.status == "bad"]
    if screen.as_json:
        screen.json({"ok": not bad, "checks": [asdict(check) for check in checks]})
    else:
        screen.table(
            ("CHECK", "", "FOUND"), [(check.check, check.status, check.found) for check in checks], coloured=""
        )
        for check in checks:
            if check.remedy:
                screen.say(f"{screen.word(check.status)}: {check.check}: {check.found}; {check.remedy}.")
        screen.say(f"{plural(len(bad), 'thing')} to do." if bad else "All that the platform needs is there.")
    return 1 if bad else 0


# --- the data folder ------------------------------------------------------------------------------


def _data(path: str) -> tuple[Data | None, list[Check]]:
    if not os.path.lexists(path):
        return None, [Check("data folder", "note", f"{clip(path)} does not exist yet; `runtime up` makes it")]
    try:
        place = data.open_data(path, create=False)
    except Fault as fault:
        return None, [Check("data folder", "bad", fault.sentence.rstrip("."), "see there")]
    mode = os.stat(path).st_mode & 0o077
    if mode:
        return place, [
            Check("data folder", "warning", f"others may look into {clip(path)}", f"run `chmod 700 {clip(path)}`")
        ]
    return place, [Check("data folder", "good", clip(path))]


def _disk(place: Data) -> Check:
    about = os.statvfs(place.path)
    free = about.f_bavail * about.f_frsize
    nodes = about.f_favail if about.f_files else 1 << 30
    found = f"{size(free)} free"
    if free < _FULL_BYTES or nodes < 1000:
        return Check("disk", "bad", f"{found}, {nodes} files", "free some space: state and logs cannot be kept")
    if free < _FREE_BYTES:
        return Check("disk", "warning", found, "free some space")
    return Check("disk", "good", found)


def _stores(place: Data, bots: dict[str, Bot | BadBot]) -> Iterator[Check]:
    """Fills `bots` with what is stored."""
    try:
        with Client(place.path, create=False) as client:
            bots.update(documents.read_all((each.kind, {**each.body, "id": each.id}) for each in client.all()))
            damage = client.bots.damage()
            if damage is not None:
                yield Check("bots", "bad", f"bots.db is damaged: {clip(damage)}", "restore it from a copy")
            bad = [bot for bot in bots.values() if isinstance(bot, BadBot)]
            if bad:
                yield Check(
                    "bots", "warning", f"{len(bad)} of {len(bots)} cannot be run", clip(bad[0].reason.rstrip("."))
                )
            elif damage is None:
                yield Check("bots", "good", plural(len(bots), "bot"))
            client.store.check_conditional_put(client.buckets.state, ".doctor")
            client.store.delete(client.buckets.state, ".doctor")
            yield Check("objects", "good", clip(place.objects))
    except Fault as fault:
        if not os.path.exists(place.bots_db):
            yield Check("bots", "note", "none was deployed yet")
            return
        yield Check("stores", "bad", fault.sentence.rstrip("."), "see there")


def _platform(place: Data) -> Check:
    try:
        with Client(place.path, create=True) as client:
            control = client.control()
            if control is not None:
                return Check("platform", "good", f"running, {plural(len(control.ps(usage=False)), 'bot')}")
    except Fault as fault:
        return Check("platform", "bad", fault.sentence.rstrip("."), "stop it and start it again")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", names.GATEWAY_PORT))
        except OSError:
            return Check(
                "platform",
                "warning",
                f"not running, and port {names.GATEWAY_PORT} is taken by another program",
                "start it with `runtime up --port`, or end that program",
            )
    return Check("platform", "note", f"not running; port {names.GATEWAY_PORT} is free")


# --- limits ---------------------------------------------------------------------------------------


def _open_files(bots: int) -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(_FILES, 1024 + bots * _FILES_A_BOT)
    unlimited = hard == resource.RLIM_INFINITY
    if not unlimited and hard < needed:
        return Check("open files", "warning", f"at most {hard}", f"raise the limit (`ulimit -Hn {needed}`)")
    return Check("open files", "good", f"{soft} of at most {'any' if unlimited else hard}")


def _processes() -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard != resource.RLIM_INFINITY and hard < 1024 and os.geteuid() != 0:
        return Check("processes", "warning", f"at most {hard} of this user", "raise the limit (`ulimit -Hu 4096`)")
    return Check("processes", "good", "any number" if hard == resource.RLIM_INFINITY else f"at most {hard}")


def _memory(bots: Mapping[str, Bot | BadBot]) -> Check:
    available = 0
    with suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        told = dict(line.split(":", 1) for line in file)
        available = int(told["MemAvailable"].split()[0]) << 10
    limits = [bot.limits.memory_bytes for bot in bots.values() if isinstance(bot, Bot) and bot.enabled]
    promised = sum(limit for limit in limits if limit)
    found = f"{size(available)} available, {size(promised)} promised to bots by their limits"
    if promised > available:
        return Check("memory", "warning", found, "lower their memory_limit, or run fewer of them here")
    return Check("memory", "good", found)


def _watches() -> Iterator[Check]:
    for what, least, file in (
        ("watched folders", _WATCHES, "max_user_watches"),
        ("watchers", _INSTANCES, "max_user_instances"),
    ):
        try:
            with open(f"/proc/sys/fs/inotify/{file}", encoding="ascii") as told:
                count = int(told.read())
        except (OSError, ValueError):
            yield Check("inotify", "warning", "the kernel has none", "changes are found by looking every minute only")
            return
        if count < least:
            yield Check("inotify", "warning", f"at most {count} {what}", f"run `sysctl fs.inotify.{file}={least * 8}`")
        else:
            yield Check("inotify", "good", f"{count} {what}")


# --- time -----------------------------------------------------------------------------------------


def _clock() -> Check:
    now = datetime.now(UTC)
    shown = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now < _RELEASED:
        return Check("clock", "bad", shown, "set it: schedules and claims go by it")
    # Asked to change nothing, it says whether anything keeps the clock; the structure is shorter than this.
    answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    if answer == _TIME_ERROR:
        return Check("clock", "warning", f"{shown}, kept by nothing that the kernel knows of", "run an NTP service")
    return Check("clock", "good", shown)


def _zones() -> Check:
    try:
        ZoneInfo("Europe/Berlin")
    except (OSError, ValueError, KeyError):
        return Check("time zones", "bad", "there are none", "install the package tzdata")
    return Check(
        "time zones", "good", f"here it is {time.strftime('%Z')}; schedules are in UTC unless they say otherwise"
    )


# --- confinement ----------------------------------------------------------------------------------


def _landlock() -> Check:
    if landlock.available():
        return Check("Landlock", "good", "queries cannot write into their bot's state")
    return Check(
        "Landlock", "note", "this kernel has none: a served query that means to can write into its bot's state"
    )


def _view(place: Data | None) -> Check:
    try:
        reason = view.why_not(place.path if place is not None else "/tmp")
    except OSError as failure:
        reason = str(failure.strerror)
    if reason is None:
        return Check("private view", "good", "each bot finds its own /bot, /state, /query, /tmp and /var/the0")
    return Check(
        "private view",
        "warning",
        f"not possible here ({clip(reason)})",
        "bots of earlier SDKs that use absolute paths answer queries in a slower way; allow user namespaces",
    )


def _groups(*, private: bool) -> Check:
    """`private`: bots have a view of their own."""
    version, keeps, reason = _look_at_groups()
    limited_users = private and os.geteuid() != 0
    held = [what for what, name in _LIMITS.items() if name in keeps or (name == "pids" and limited_users)]
    lost = [what for what in _LIMITS if what not in held]
    found = f"version {version}" if version else f"cannot be made ({clip(reason)})"
    if held:
        found += f": limits of {', '.join(held)} hold"
    if not lost:
        return Check("control groups", "good", found)
    return Check(
        "control groups",
        "warning",
        found,
        f"a bot's {', '.join(lost)} {'is' if len(lost) == 1 else 'are'} not limited: run `up` as root, or in a group of its own "
        "(systemd: Delegate=yes)",
    )


def _look_at_groups() -> tuple[int, list[str], str]:
    """Version, what can be limited, and why no more. By a process of its own, which may have to change its group for it."""
    key = f"doctor-{os.getpid()}"
    code = (
        "import json, sys; from the0.orchestrate import groups; found = groups.find(sys.argv[1]); "
        "print(json.dumps([found.version, sorted(found.keeps()), found.reason, found.made()]))"
    )
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-c", code, key], capture_output=True, text=True, timeout=10, check=True, cwd="/"
        )
        version, keeps, reason, made = json.loads(tried.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as failure:
        return 0, [], str(failure)
    groups.remove(made)
    return version, keeps, reason


# --- languages ------------------------------------------------------------------------------------


def _languages(bots: Mapping[str, Bot | BadBot], search: str) -> Iterator[Check]:
    needed = {bot.runtime for bot in bots.values() if isinstance(bot, Bot)}
    for runtime in sorted(documents.RUNTIMES):
        if runtime not in _PROGRAMS:
            continue
        program, flag, remedy = _PROGRAMS[runtime]
        path = _find(program, search) or (_own_python() if runtime == "python3.11" else None)
        if path is None:
            status: Status = "bad" if runtime in needed else "note"
            yield Check(runtime, status, f"no `{program}` on the PATH", remedy if status == "bad" else "")
        else:
            yield Check(runtime, "good", f"{path}: {_version(path, flag)}")


def _own_python() -> str | None:
    return sys.executable if sys.version_info[:2] == (3, 11) else None


def _find(program: str, search: str) -> str | None:
    for folder in search.split(os.pathsep):
        path = os.path.join(folder, program)
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _version(path: str, flag: str) -> str:
    try:
        said = subprocess.run(
            [path, flag],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as reason:
        return f"it does not run ({clip(str(reason))})"
    lines = said.stdout.decode("utf-8", "replace").strip().splitlines()
    return clip(lines[-1] if flag == "--list-runtimes" and lines else lines[0] if lines else "?", limit=60)
