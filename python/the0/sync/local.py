"""The state folder on this machine: the tree, and `.the0/` beside it with index, set-aside trees and marks.

Nothing here talks to a store. The bot may write in this folder too, so all is opened beneath it, without links.
"""

from __future__ import annotations

import errno
import json
import os
import time
from typing import Any

from the0 import canonical, files, names, statehash
from the0.errors import ExitCode, Fatal
from the0.frozen import dataclass, replace
from the0.sync.head import Content

ASIDE_KEPT = 3
ASIDE_KEPT_S = 7 * 24 * 3600.0
_CLAIM = "claim.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the local tree came from, as the index carries it.

    `lineage` is empty until the first claim held. `instances` are those of this machine that may hold the claim:
    written before a claim is sent, so that a start after a crash knows its own. `head` (of a staged commit only)
    is the HEAD that was about to be sent, whole, so that the very same swap can be repeated.
    """

    lineage: str = ""
    generation: int = 0
    digest: str = ""
    boot_id: str = ""
    instances: tuple[str, ...] = ()
    failing_since_s: float | None = None
    head: str | None = None

    def encode(self) -> bytes:
        body: dict[str, Any] = {
            "lineage": self.lineage,
            "generation": self.generation,
            "digest": self.digest,
            "boot_id": self.boot_id,
            "instances": list(self.instances),
        }
        if self.failing_since_s is not None:
            body["failing_since_s"] = self.failing_since_s
        if self.head is not None:
            body["head"] = self.head
        return canonical.dumps(body).encode()

    @staticmethod
    def decode(data: bytes) -> Origin:
        """ValueError for anything that `encode` does not write."""
        if not data:
            return Origin()
        try:
            body = json.loads(data)
            failing = body.get("failing_since_s")
            head = body.get("head")
            return Origin(
                lineage=str(body["lineage"]),
                generation=int(body["generation"]),
                digest=str(body["digest"]),
                boot_id=str(body["boot_id"]),
                instances=tuple(str(one) for one in body["instances"]),
                failing_since_s=None if failing is None else float(failing),
                head=None if head is None else str(head),
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as reason:
            raise ValueError(f"the index's origin is malformed: {reason}") from reason

    def of(self, content: Content) -> bool:
        """Whether the tree is this generation's."""
        return (self.lineage, self.generation, self.digest) == (content.lineage, content.generation, content.digest())

    def at(self, content: Content) -> Origin:
        return replace(
            self,
            lineage=content.lineage,
            generation=content.generation,
            digest=content.digest(),
            boot_id=boot_id(),
            failing_since_s=None,
            head=None,
        )


def boot_id() -> str:
    """Changes when the machine starts anew: what the page cache held is then in doubt."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class StateFolder:
    """STATE_PATH, open. Holds two descriptors; `close` them."""

    def __init__(self, path: str) -> None:
        try:
            os.makedirs(path, exist_ok=True)
            self.root_fd = files.open_root(path)
        except OSError as reason:
            raise Fatal(
                f"The state folder {path} cannot be used ({reason.strerror}): make it a folder this user may write.",
                code=ExitCode.LOCAL_DISK,
            ) from reason
        self.path = path
        try:
            self.reserved_fd = files.open_folder_beneath(self.root_fd, names.RESERVED_DIR, create=True, mode=0o700)
        except OSError as reason:
            os.close(self.root_fd)
            raise Fatal(
                f"{path}/{names.RESERVED_DIR} cannot be used ({reason.strerror}): it is the runtime's own; remove what stands there.",
                code=ExitCode.LOCAL_DISK,
            ) from reason

    def close(self) -> None:
        os.close(self.reserved_fd)
        os.close(self.root_fd)

    def __enter__(self) -> StateFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- the tree ---------------------------------------------------------------------------------

    def children(self) -> list[str]:
        with os.scandir(self.root_fd) as found:
            return sorted(entry.name for entry in found if entry.name != names.RESERVED_DIR)

    def wipe(self) -> None:
        """Removes the tree (not `.the0`). For trees that the store holds, or that a restore left half done."""
        for name in self.children():
            files.remove_tree(self.root_fd, name)

    # --- the index --------------------------------------------------------------------------------

    def open_index(self) -> statehash.Index | None:
        """None if there is none. Raises FormatError or OSError where it is unreadable."""
        try:
            return statehash.Index.open(self.reserved_fd, names.INDEX)
        except FileNotFoundError:
            return None

    def save_index(self, index: statehash.Index) -> None:
        index.save(self.reserved_fd, names.INDEX)

    def drop_index(self) -> None:
        files.remove_tree(self.reserved_fd, names.INDEX)

    # --- marks ------------------------------------------------------------------------------------

    @property
    def restoring(self) -> bool:
        try:
            os.stat(names.RESTORING, dir_fd=self.reserved_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def mark_restoring(self) -> None:
        files.write_atomic(self.reserved_fd, names.RESTORING, b"", durable=False)

    def unmark_restoring(self) -> None:
        files.remove_tree(self.reserved_fd, names.RESTORING)

    def fresh_folder(self, name: str) -> int:
        """An empty folder below `.the0`, open."""
        files.remove_tree(self.reserved_fd, name)
        return files.open_folder_beneath(self.reserved_fd, name, create=True, mode=0o755)

    def move_in(self, folder_fd: int) -> None:
        """Renames every child of the folder into the tree, which must be empty."""
        with os.scandir(folder_fd) as found:
            children = sorted(entry.name for entry in found)
        for name in children:
            files.move(name, folder_fd, self.root_fd)

    # --- set-aside trees --------------------------------------------------------------------------

    def asides(self) -> list[str]:
        """Names, oldest first; each begins with its time (UTC)."""
        try:
            fd = files.open_folder_beneath(self.reserved_fd, names.ASIDE)
        except FileNotFoundError:
            return []
        except OSError as reason:
            raise self._not_ours(reason) from reason
        try:
            with os.scandir(fd) as found:
                return sorted(entry.name for entry in found)
        finally:
            os.close(fd)

    def set_aside(self, why: str, *, now_s: float | None = None) -> str | None:
        """Moves the tree and its index to `.the0/aside/<time>-<why>`, by rename. None if there was no tree.

        The index goes first: a crash in between leaves a tree without index, which the next start sets aside too.
        Raises Fatal (REFUSED) when too many trees are aside already and none is old enough to go.
        """
        moment = time.time() if now_s is None else now_s
        children = self.children()
        if not children:
            self.drop_index()
            return None
        try:
            asides = files.open_folder_beneath(self.reserved_fd, names.ASIDE, create=True, mode=0o700)
        except OSError as reason:
            raise self._not_ours(reason) from reason
        try:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(moment))
            name = f"{stamp}-{why}"
            taken = set(self.asides())
            number = 1
            while name in taken:
                number += 1
                name = f"{stamp}-{why}-{number}"
            self._make_room(asides, moment)
            target = files.open_folder_beneath(asides, name, create=True, mode=0o700)
            try:
                try:
                    os.rename(names.INDEX, ".index", src_dir_fd=self.reserved_fd, dst_dir_fd=target)
                except FileNotFoundError:
                    pass  # a tree without index is set aside as it is
                for child in children:
                    files.move(child, self.root_fd, target)
            finally:
                os.close(target)
        finally:
            os.close(asides)
        return name

    def _not_ours(self, reason: OSError) -> Fatal:
        if reason.errno not in (errno.ENOTDIR, errno.ELOOP):
            return files.disk_fault(reason, f"opening the set-aside trees in {self.path}")
        return Fatal(
            f"{self.path}/{names.RESERVED_DIR}/{names.ASIDE} is no folder, though only the runtime writes there: "
            "remove it, then start again.",
            code=ExitCode.LOCAL_DISK,
        )

    def _make_room(self, asides_fd: int, now_s: float) -> None:
        kept = self.asides()
        while len(kept) >= ASIDE_KEPT:
            oldest = kept.pop(0)
            age_s = now_s - os.stat(oldest, dir_fd=asides_fd, follow_symlinks=False).st_mtime
            if age_s < ASIDE_KEPT_S:
                raise Fatal(
                    f"{ASIDE_KEPT} set-aside trees are already in {self.path}/{names.RESERVED_DIR}/{names.ASIDE}, none older than 7 days: "
                    "look at them (`runtime state aside`), remove what is not needed, then start again.",
                    code=ExitCode.REFUSED,
                )
            files.remove_tree(asides_fd, oldest)

    # --- the claim, handed from `daemon init` to `daemon sync` -------------------------------------

    def hand_over(self, *, instance: str, epoch: int) -> None:
        files.write_atomic(
            self.reserved_fd, _CLAIM, canonical.dumps({"instance": instance, "epoch": epoch}).encode(), durable=False
        )

    def take_over(self) -> tuple[str, int] | None:
        """(instance, epoch) as handed over; None if nothing was."""
        try:
            body = canonical.loads_object(files.read_beneath(self.reserved_fd, _CLAIM, limit_bytes=4096))
            return str(body["instance"]), int(body["epoch"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as reason:
            raise Fatal(
                f"{self.path}/{names.RESERVED_DIR}/{_CLAIM} cannot be read ({reason}): run `runtime daemon init` again.",
                code=ExitCode.REFUSED,
            ) from reason
