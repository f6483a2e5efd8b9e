"""`runtime execute`: from the environment to one run of one bot. What needs a store's client is imported in forked children."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from the0 import child, files, memory, privacy, settings
from the0.errors import ExitCode, Fault
from the0.execute import configuration, target
from the0.execute.confinement import confinement
from the0.execute.environment import bot_environment
from the0.execute.languages import Target, find_program, language
from the0.execute.launch import Job, KeepAfter, Launched, Report, launch
from the0.execute.preparing import Prepared
from the0.execute.programs import make_code_folder, query_program, wanted_code
from the0.execute.record import Outcome, RunFolder
from the0.settings import ExecuteSettings, SyncSettings
from the0.sync.botlog import BotLogWriter
from the0.sync.lock import DYING_S, hold_lock

if TYPE_CHECKING:
    from threading import Event

    from the0.execute.keeper import Keep, Notify

_STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EFBIG, errno.EINVAL)
"""The last one is poll(2)'s, where fewer files may be open than it watches."""
STORE_DEADLINE_S = 10.0
"""How long one request of the sync process is repeated; its own loop goes on from there."""


def execute(environ: Mapping[str, str], *, skip_sync: bool, skip_query_server: bool) -> int:
    """Runs the bot that the environment describes; returns the exit code. Only for a process of its own, with one thread."""
    child.fill_standard_descriptors()
    privacy.set_non_dumpable()
    memory.keep_little()
    instance = os.urandom(16).hex()
    report = _never if skip_sync else lambda outcome: _report(environ, outcome)
    try:
        paths = settings.read_paths(environ)
        # Before anything is touched: where another run holds it, the folders are that one's.
        lock_fd = None if skip_sync else hold_lock(paths.state, wait_s=DYING_S)
        run_folder = _run_folder(paths.run, keep_fenced=skip_sync)
        log = BotLogWriter(paths.logs)
    except Fault as fault:
        _tell(fault.sentence)
        if fault.code == ExitCode.LOCAL_DISK:
            report(Outcome(by="runtime", code=int(fault.code), reason=fault.sentence))
        return int(fault.code)
    try:
        environ = configuration.resolved(environ)
        ours = settings.read_execute(environ, skip_sync=skip_sync)
        serve = not skip_query_server and ours.bot.bot_type == "realtime" and bool(ours.bot.query_entrypoint)
        job = _job(ours, environ, instance=instance, lock_fd=lock_fd, report=report, serve=serve)
        launched = launch(job)
    except Fault as fault:
        outcome = Outcome(by="runtime", code=int(fault.code), reason=fault.sentence)
        if not report(outcome):
            log.say(outcome.reason)
    else:
        outcome = _supervise(job, launched, log, run_folder)
    if outcome.by == "runtime" or outcome.oom:
        _tell(outcome.reason)
    run_folder.write(outcome, instance=instance)
    return outcome.code


def _supervise(job: Job, launched: Launched, log: BotLogWriter, run_folder: RunFolder) -> Outcome:
    try:
        from the0.execute import supervise  # what was launched need not wait for this

        return supervise.run(job, launched, log=log, run_folder=run_folder)
    except Exception as reason:  # noqa: BLE001 - our end ends the bot, and has sync store what there is
        return Outcome(by="runtime", code=ExitCode.INTERNAL, reason=_unable(reason))


def _unable(reason: Exception) -> str:
    """Why the supervisor cannot go on."""
    if isinstance(reason, MemoryError) or (isinstance(reason, OSError) and reason.errno in _STARVED):
        lacking = "out of memory" if isinstance(reason, MemoryError) else reason.strerror
        return (
            f"The supervisor was left without what it needs ({lacking}), so the bot was ended: this machine is out of it, or "
            "somebody lowered the supervisor's limits; make room or raise the limits, then start again."
        )
    sys.excepthook(type(reason), reason, reason.__traceback__)
    return f"{type(reason).__name__} in the supervisor, which is a bug of the runtime; its traceback is on stderr."


def _never(_: Outcome) -> bool:
    """With a sidecar: it ships what the local log says."""
    return False


def _report(environ: Mapping[str, str], outcome: Outcome) -> bool:
    if outcome.code in (ExitCode.STORE_UNREACHABLE, ExitCode.STOPPED_EARLY):
        return False
    try:
        from the0.execute.report import report

        store = settings.read_store(environ)
        bot_id = settings.read_bot_id(environ)
    except (Fault, OSError):
        return False  # that may be the very reason
    return report(store, outcome.reason, bucket=settings.read_buckets(environ).logs, bot_id=bot_id)


def _job(
    ours: ExecuteSettings,
    environ: Mapping[str, str],
    *,
    instance: str,
    lock_fd: int | None,
    report: Report,
    serve: bool,
) -> Job:
    bot = ours.bot
    row = language(bot.runtime)
    file = target.entry_file(bot.entrypoint)
    told = bot_environment(ours, environ, row)
    make_code_folder(ours)
    wanted = wanted_code(ours, file, replace=ours.sync is not None)

    def prepare(stop: Event) -> Prepared:
        from the0.execute.prepare import prepare

        return prepare(ours, wanted=wanted, instance=instance, stop=stop)

    return Job(
        instance=instance,
        language=row,
        argv=row.bot(
            Target(
                folder=ours.paths.code,
                entrypoint=file,
                part=target.divided(bot.entrypoint)[1],
                find=lambda name: find_program(name, path=told["PATH"]),
            )
        ),
        environment=told,
        folder=ours.paths.code,
        file=file,
        stop_grace_s=ours.stop_grace_s,
        prepare=prepare,
        keep=None if ours.sync is None else _keeping(ours.sync, instance=instance),
        report=report,
        serve=(lambda: query_program(ours, environ, row)) if serve else None,
        confine=confinement(environ, ours.paths),
        shared_fds=() if lock_fd is None else (lock_fd,),
    )


def _keeping(sync: SyncSettings, *, instance: str) -> KeepAfter:
    def keep_after(prepared: Prepared) -> Keep:
        notes = list(prepared.notes)

        def keep(stop: Event, notify: Notify) -> int:
            from the0.objects.open import open_store
            from the0.sync import daemon

            store = open_store(sync.store, deadline_s=STORE_DEADLINE_S)  # a stop must not cut its last requests short
            return daemon.run(
                sync,
                store,
                instance=instance,
                epoch=prepared.epoch,
                stop=stop,
                notify=notify,
                notes=tuple(notes),
            )

        return keep

    return keep_after


def _run_folder(path: str, *, keep_fenced: bool) -> RunFolder:
    try:
        return RunFolder(path, keep_fenced=keep_fenced)
    except OSError as reason:
        raise files.disk_fault(reason, f"opening THE0_RUN_DIR {path}") from reason


def _tell(sentence: str) -> None:
    print(f"the0: {sentence}", file=sys.stderr, flush=True)
