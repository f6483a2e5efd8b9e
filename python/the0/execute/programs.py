"""What the settings of a run come down to: which code is to be fetched, and how its query process is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from the0 import files, names
from the0.code_folder import is_complete
from the0.errors import ExitCode, Fatal
from the0.execute import target
from the0.execute.confinement import confinement
from the0.execute.environment import query_environment
from the0.execute.languages import Language, Target, find_program
from the0.execute.target import Wanted
from the0.settings import ExecuteSettings

if TYPE_CHECKING:
    from the0.execute.serving import Program


def make_code_folder(ours: ExecuteSettings) -> None:
    try:
        os.makedirs(ours.paths.code, exist_ok=True)
    except OSError as reason:
        raise files.disk_fault(reason, f"opening CODE_PATH {ours.paths.code}") from reason


def wanted_code(ours: ExecuteSettings, file: str, *, replace: bool) -> Wanted | None:
    """What is to be fetched into CODE_PATH; None where that holds the code. `replace`: code that is there is not trusted."""
    if not ours.bot.code_file or (not replace and is_complete(ours.paths.code)):
        return None
    if ours.store is None:
        raise Fatal(
            f"{ours.paths.code} holds no code, and no store is named to fetch {names.CODE_FILE} from: "
            "run `runtime daemon init` first, or set MINIO_ENDPOINT or OBJECT_STORE_DIR.",
            code=ExitCode.USAGE,
        )
    return Wanted(bucket=ours.buckets.code, key=ours.bot.code_file, folder=ours.paths.code, file=file)


def query_program(ours: ExecuteSettings, environ: Mapping[str, str], row: Language) -> Program:
    """The bot's query entrypoint as a process that serves. Raises Fatal (USAGE, LANGUAGE, ENTRYPOINT, LOCAL_DISK)."""
    from the0.execute.serving import Program

    entrypoint = ours.bot.query_entrypoint
    if not entrypoint:
        raise Fatal(
            f"{names.QUERY_ENTRYPOINT} is missing: set it to the file that answers queries, such as query.py.",
            code=ExitCode.USAGE,
        )
    asked = Target(
        folder=ours.paths.code,
        entrypoint=target.entry_file(entrypoint),
        part=target.divided(entrypoint)[1],
        find=lambda name: find_program(name, path=environment["PATH"]),
    )
    environment = query_environment(ours, environ, row, asked)
    return Program(
        language=row,
        argv=row.query(asked),
        environment=environment,
        folder=ours.paths.code,
        file=asked.entrypoint,
        state=ours.paths.state,
        confine=confinement(environ, ours.paths),
    )
