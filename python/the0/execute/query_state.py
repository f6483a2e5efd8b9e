"""Where an ephemeral query finds its bot's state: restored for it alone, thrown away afterwards, never synced.

That is STATE_PATH itself where nothing lies there and nobody uses it, as in a container of its own; else a folder of
its own below `.the0/`, or among temporary files, so that a bot which runs on STATE_PATH never notices.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from the0 import files, names
from the0.errors import Fault
from the0.sync.lock import hold_lock

_NOT_OURS = frozenset({names.RESERVED_DIR, "lost+found"})
_OWN = "the0-query-"
_SETTLED_S = 60.0
"""A younger copy may be one whose query has not locked it yet."""


class QueryState:
    """A folder for one query. `lock_fd` is held by it and those that fill it; `close` removes what is in it."""

    def __init__(self, state_path: str, *, elsewhere: str) -> None:
        """`elsewhere` is a folder for temporary files, for where nothing can be written below STATE_PATH. Fatal (LOCAL_DISK)."""
        self.copy: str | None = None
        """The folder, where it is not STATE_PATH itself."""
        self._parent_fd = -1
        """Of the copy."""
        self._state_path = state_path
        self._elsewhere = elsewhere
        try:
            # Before the lock is taken: a bot that starts there at this moment must find it free.
            if not _is_used(state_path) and self._take_in_place():
                return
        except (Fault, OSError):
            pass  # a bot runs there, or it cannot be written: then it is left alone
        self._make_copy()

    @property
    def path(self) -> str:
        """As the query's own process finds it."""
        return self.copy or self._state_path

    @property
    def safe_path(self) -> str:
        """For this process and those forked with `lock_fd`: the folder itself, wherever links that a bot planted lead to by now."""
        return self._state_path if self.copy is None else f"/proc/self/fd/{self.lock_fd}"

    def close(self) -> None:
        """Removes the state. OSError is the caller's to tell."""
        try:
            if self.copy is None:
                with files.folder(self._state_path) as fd:
                    self._wipe(fd)
            else:
                files.remove_tree(self._parent_fd, os.path.basename(self.copy))
        finally:
            os.close(self.lock_fd)
            self._leave_parent()

    # --- in place ---------------------------------------------------------------------------------

    def _take_in_place(self) -> bool:
        """Whether STATE_PATH is nobody's. Marked from then on, so that whoever comes after a crash begins with an empty folder."""
        self.lock_fd = hold_lock(self._state_path)
        try:
            if not _is_used(self._state_path):
                self.mark()
                with files.folder(self._state_path) as fd:
                    self._wipe(fd, unmark=False)
                return True
        except BaseException:
            os.close(self.lock_fd)
            raise
        os.close(self.lock_fd)
        return False

    def mark(self) -> None:
        """Says that all there may go. The restore takes its own mark away when it is done."""
        if self.copy is not None:
            return
        with files.folder(self._state_path) as fd:
            reserved = files.open_folder_beneath(fd, names.RESERVED_DIR, create=True, mode=0o700)
            try:
                files.write_atomic(reserved, names.RESTORING, b"", durable=False)
            finally:
                os.close(reserved)

    def _wipe(self, root_fd: int, *, unmark: bool = True) -> None:
        for name in set(os.listdir(root_fd)) - _NOT_OURS:
            files.remove_tree(root_fd, name)
        reserved = files.open_folder_beneath(root_fd, names.RESERVED_DIR)
        try:
            files.remove_tree(reserved, names.INDEX)
            if unmark:
                files.remove_tree(reserved, names.RESTORING)
        finally:
            os.close(reserved)

    # --- a copy -----------------------------------------------------------------------------------

    def _make_copy(self) -> None:
        try:
            self._parent_fd = _copies(self._state_path)
            _sweep(self._parent_fd)
            self._begin_copy(os.path.join(self._state_path, names.RESERVED_DIR, names.QUERY_COPIES))
        except OSError:
            # STATE_PATH is read-only, not there, or a bot put something else in place of the folders for copies.
            self._leave_parent()
            try:
                self._parent_fd = files.open_root(self._elsewhere)
                self._begin_copy(self._elsewhere)
            except OSError as reason:
                self._leave_parent()
                raise files.disk_fault(reason, "making a folder for the state of a query") from reason

    def _begin_copy(self, parent: str) -> None:
        name = f"{_OWN}{os.urandom(8).hex()}"
        os.mkdir(name, 0o700, dir_fd=self._parent_fd)
        self.lock_fd = files.open_folder_beneath(self._parent_fd, name)
        fcntl.flock(self.lock_fd, fcntl.LOCK_EX)
        self.copy = os.path.join(parent, name)

    def _leave_parent(self) -> None:
        if self._parent_fd != -1:
            os.close(self._parent_fd)
            self._parent_fd = -1


def _copies(state_path: str) -> int:
    """The folder for copies. A bot that runs there may put a link to anywhere in its place, which is not followed."""
    with files.folder(state_path) as fd:
        return files.open_folder_beneath(fd, f"{names.RESERVED_DIR}/{names.QUERY_COPIES}", create=True, mode=0o700)


def _is_used(state_path: str) -> bool:
    """Whether something lies there that is not marked as half a restore, which may go."""
    try:
        with files.folder(state_path) as fd:
            if _exists(fd, f"{names.RESERVED_DIR}/{names.RESTORING}"):
                return False
            return _exists(fd, f"{names.RESERVED_DIR}/{names.INDEX}") or bool(set(os.listdir(fd)) - _NOT_OURS)
    except FileNotFoundError:
        return False


def _sweep(copies_fd: int) -> None:
    """Removes copies whose queries were killed before they could: nobody holds them any more."""
    for name in os.listdir(copies_fd):
        if not name.startswith(_OWN):
            continue
        try:
            fd = files.open_folder_beneath(copies_fd, name)
        except OSError:
            continue  # gone, or nothing of ours
        try:
            if time.time() - os.fstat(fd).st_mtime < _SETTLED_S:
                continue
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.remove_tree(copies_fd, name)
        except OSError as reason:
            if reason.errno not in (errno.EWOULDBLOCK, errno.ENOTEMPTY, errno.EACCES, errno.EPERM):
                raise
        finally:
            os.close(fd)


def _exists(root_fd: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
