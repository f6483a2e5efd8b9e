"""What an ephemeral query answers: read from where its process wrote it, named, and handed on.

An answer is a JSON object. We add to a bot's own `"source": "stored", "generation": n`; where we have none, the object is
`{"status": "error", "error": …, "exit_code": n}`, and `exit_code` is ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from the0 import answers, canonical, files, names
from the0.answers import Answer, AnswerTooLarge, NoAnswer
from the0.errors import Fault


@contextmanager
def result_folder(path: str = names.QUERY_FOLDER) -> Iterator[int | None]:
    """The folder where the process writes its result, emptied of a former one; None where it cannot be made or written, or
    another query has it at this moment."""
    fd = -1
    try:
        fd = _taken(path)
    except OSError:
        pass  # not root, not this container's, or taken: the query is served instead
    try:
        yield None if fd == -1 else fd
    finally:
        if fd != -1:
            try:
                files.remove_tree(fd, names.RESULT)
            except OSError:
                pass  # whoever comes next has to remove it before anything else
            os.close(fd)


def _taken(path: str) -> int:
    os.makedirs(path, exist_ok=True)
    fd = files.open_root(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.access(path, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        files.remove_tree(fd, names.RESULT)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_result(folder_fd: int) -> Answer:
    """What lies there once nobody writes any more. Raises NoAnswer, AnswerTooLarge."""
    try:
        text = files.read_beneath(folder_fd, names.RESULT, limit_bytes=answers.ANSWER_BYTES)
    except OSError as reason:
        if reason.errno == errno.EFBIG:
            raise AnswerTooLarge(
                f"The query's answer is over {answers.ANSWER_BYTES >> 20} MiB: ask for less."
            ) from reason
        what = "wrote no answer" if reason.errno == errno.ENOENT else "left no file as its answer"
        raise NoAnswer(
            f"The query process {what} ({names.QUERY_FOLDER}/{names.RESULT}: {reason.strerror})."
        ) from reason
    return answers.parsed(text)


def named(answer: Answer, *, generation: int) -> str:
    """The bot's own object, byte for byte, and from which state it came; on one line."""
    line = answer.text.replace("\r", " ").replace("\n", " ")
    return answers.extended(line, {"source": "stored", "generation": generation})


def failure(fault: Fault) -> str:
    return canonical.dumps({"status": "error", "error": fault.sentence, "exit_code": int(fault.code)})
