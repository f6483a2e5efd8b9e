"""`runtime execute`: from the environment to one run of one bot. What needs a store's client is imported in forked children."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from the0 import child, files, memory, names, privacy, settings
from the0.errors import ExitCode, Fatal, Fault
from the0.execute import target
from the0.execute.languages import Language, Target, find_program, language
from the0.execute.launch import Job, KeepAfter, Launched, Report, launch
from the0.execute.preparing import Prepared
from the0.execute.record import Outcome, RunFolder
from the0.execute.target import Wanted, is_complete
from the0.settings import ExecuteSettings, SyncSettings
from the0.sync.botlog import BotLogWriter
from the0.sync.lock import hold_lock

if TYPE_CHECKING:
    from threading import Event

    from the0.execute.keeper import Keep, Notify

STORE_DEADLINE_S = 10.0
"""How long one request of the sync process is repeated; its own loop goes on from there."""

LONGEST_VARIABLE_BYTES = 128 << 10
"""The kernel's limit on one string of an environment, name and end included (MAX_ARG_STRLEN)."""


def execute(environ: Mapping[str, str], *, skip_sync: bool) -> int:
    """Runs the bot that the environment describes; returns the exit code. Only for a process of its own, with one thread."""
    child.fill_standard_descriptors()
    privacy.set_non_dumpable()
    memory.keep_little()
    instance = os.urandom(16).hex()
    report = _never if skip_sync else lambda outcome: _report(environ, outcome)
    try:
        paths = settings.read_paths(environ)
        # Before anything is touched: where another run holds it, the folders are that one's.
        lock_fd = None if skip_sync else hold_lock(paths.state)
        run_folder = _run_folder(paths.run, keep_fenced=skip_sync)
        log = BotLogWriter(paths.logs)
    except Fault as fault:
        _tell(fault.sentence)
        if fault.code == ExitCode.LOCAL_DISK:
            report(Outcome(by="runtime", code=int(fault.code), reason=fault.sentence))
        return int(fault.code)
    try:
        ours = settings.read_execute(environ, skip_sync=skip_sync)
        job = _job(ours, environ, instance=instance, lock_fd=lock_fd, report=report)
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
        sys.excepthook(type(reason), reason, reason.__traceback__)
        sentence = (
            f"{type(reason).__name__} in the supervisor, which is a bug of the runtime; its traceback is on stderr."
        )
        return Outcome(by="runtime", code=ExitCode.INTERNAL, reason=sentence)


def _never(_: Outcome) -> bool:
    """With a sidecar: it ships what the local log says."""
    return False


def _report(environ: Mapping[str, str], outcome: Outcome) -> bool:
    if outcome.code in (ExitCode.STORE_UNREACHABLE, ExitCode.STOPPED_EARLY):
        return False
    from the0.execute.report import report

    try:
        store = settings.read_store(environ)
        bot_id = settings.read_bot_id(environ)
    except Fault:
        return False  # that may be the very reason
    return report(store, outcome.reason, bucket=settings.read_buckets(environ).logs, bot_id=bot_id)


def _job(
    ours: ExecuteSettings, environ: Mapping[str, str], *, instance: str, lock_fd: int | None, report: Report
) -> Job:
    bot = ours.bot
    if bot.query_path is not None:
        raise Fatal("QUERY_PATH is set, but this version answers no queries yet: unset it.", code=ExitCode.USAGE)
    row = language(bot.runtime)
    file = target.entry_file(bot.entrypoint)
    environment = _environment(ours, environ, row)
    _make_folder(ours.paths.code)
    wanted = _wanted(ours, file)

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
                find=lambda name: find_program(name, path=environment["PATH"]),
            )
        ),
        environment=environment,
        folder=ours.paths.code,
        file=file,
        stop_grace_s=ours.stop_grace_s,
        prepare=prepare,
        keep=None if ours.sync is None else _keeping(ours.sync, instance=instance),
        report=report,
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


def _wanted(ours: ExecuteSettings, file: str) -> Wanted | None:
    if not ours.bot.code_file or (ours.sync is None and is_complete(ours.paths.code)):
        return None
    if ours.store is None:
        raise Fatal(
            f"{ours.paths.code} holds no code, and no store is named to fetch {names.CODE_FILE} from: "
            "run `runtime daemon init` first, or set MINIO_ENDPOINT or OBJECT_STORE_DIR.",
            code=ExitCode.USAGE,
        )
    return Wanted(bucket=ours.buckets.code, key=ours.bot.code_file, folder=ours.paths.code, file=file)


def _environment(ours: ExecuteSettings, environ: Mapping[str, str], row: Language) -> dict[str, str]:
    """All that the bot's process gets to see."""
    bot, paths = ours.bot, ours.paths
    environment = {
        **privacy.shared_environment(environ),
        # Its own folder: writable for it, and for no other bot on this machine.
        "HOME": paths.code,
        names.BOT_ID: bot.bot_id,
        names.BOT_CONFIG: bot.config_json,
        names.BOT_TYPE: bot.bot_type,
        names.STATE_DIR: paths.sdk_state,
        names.CODE_MOUNT_DIR: paths.code.lstrip("/"),
        names.SCRIPT_PATH: bot.entrypoint,
        names.ENTRYPOINT_TYPE: "bot",
        **row.environment(),
    }
    for name, value in environment.items():
        if len(name) + len(os.fsencode(value)) + 2 > LONGEST_VARIABLE_BYTES:
            raise Fatal(
                f"{name} has {len(os.fsencode(value))} bytes, more than a process can be given (about {LONGEST_VARIABLE_BYTES >> 10} KiB): "
                "make it shorter.",
                code=ExitCode.USAGE,
            )
    return environment


def _run_folder(path: str, *, keep_fenced: bool) -> RunFolder:
    try:
        return RunFolder(path, keep_fenced=keep_fenced)
    except OSError as reason:
        raise files.disk_fault(reason, f"opening THE0_RUN_DIR {path}") from reason


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as reason:
        raise files.disk_fault(reason, f"opening CODE_PATH {path}") from reason


def _tell(sentence: str) -> None:
    print(f"the0: {sentence}", file=sys.stderr, flush=True)
