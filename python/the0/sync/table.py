"""The start table: what a bot's start does with what it finds on the disk and in the store. Pure.

The rule behind all rows: never start empty over existing state, never run on a tree of unknown origin while the
store holds another, and never lose a tree that may be the only copy of something (it is set aside).
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

from the0.frozen import dataclass
from the0.sync.head import Head
from the0.sync.local import Origin

FAILING_S = 60.0
ANOTHER_HOST = "another host ran it since"


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What the disk holds. `origin` is None where there is no usable index; `staged` is that of a commit whose end
    was not seen; `same_boot` compares the origin's boot with this one."""

    origin: Origin | None = None
    staged: Origin | None = None
    empty: bool = True
    same_boot: bool = True
    unreadable: bool = False


class ArchiveFact(Enum):
    NONE = "none"
    """No archive, and none is expected."""
    OURS = "ours"
    FOREIGN = "foreign"
    """Somebody else wrote it since we did."""
    CLEARED = "cleared"
    """HEAD records one, and it is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What the store holds. `leftovers`: there is no HEAD, but segments or an archive of ours are there."""

    head: Head | None = None
    archive: ArchiveFact = ArchiveFact.NONE
    leftovers: bool = False


Tree = Literal["keep", "restore", "adopt", "empty", "rehash", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`tree`: keep it, restore HEAD's content, adopt it as generation 1, begin empty, first rehash it, or refuse.

    `aside`: the present tree is set aside first. `staged_true`: the staged commit had reached the store.
    `archive`: what to do with the SDK state afterwards. `new_lineage`: HEAD's content is not continued.
    """

    tree: Tree
    why: str
    aside: bool = False
    staged_true: bool = False
    new_lineage: bool = False
    archive: Literal["leave", "import", "clear"] = "leave"


def decide(local: Local, remote: Remote) -> Decision:
    head = remote.head
    if head is not None and head.content.removed:
        # The id was used before and its bot removed: nothing of that time comes back.
        return Decision(
            tree="empty",
            why="a bot of this id was removed",
            aside=not local.empty,
            new_lineage=True,
            archive="import" if remote.archive is ArchiveFact.FOREIGN else "leave",
        )
    origin = local.origin
    if origin is not None and not origin.lineage:
        origin = None  # its first claim was never seen to hold: as if there were no index
    if head is not None and origin is not None and head.content.tombstone == origin.lineage:
        return _from_store(local, remote, why="the tree is of the removed bot of this id")
    if head is None:
        return _without_head(local, remote, origin)
    if origin is None:
        if head.content.generation == 0 and head.content.tombstone is None:
            # Claimed, and nothing was ever committed: the start that claimed may have been cut off right after.
            return _begin(local, remote, over_head=True)
        why = "the index is unreadable" if local.unreadable else "no index"
        return _from_store(local, remote, why=why)
    return _compare(local, remote, origin, head)


def after_rehash(local: Local, remote: Remote, *, equal: bool, now_s: float) -> Decision:
    """The tree was rehashed after a reboot, and is or is not what the index says."""
    assert remote.head is not None
    staged_true = local.staged is not None and local.staged.of(remote.head.content)
    if equal:
        return Decision(tree="keep", why="unchanged over a reboot", staged_true=staged_true, archive=_archive(remote))
    origin = local.origin
    if origin is not None and origin.failing_since_s is not None and now_s - origin.failing_since_s > FAILING_S:
        return Decision(
            tree="refuse",
            why="the machine restarted while commits had been failing for over a minute: the local tree may hold newer work "
            "than the store, or work that the restart tore",
        )
    return _from_store(local, remote, why="the restart of the machine changed the tree")


def _without_head(local: Local, remote: Remote, origin: Origin | None) -> Decision:
    if origin is not None:
        return Decision(
            tree="refuse",
            why="the local tree is of a stored generation, but the store has no HEAD for this bot any more",
        )
    if remote.leftovers:
        return Decision(tree="refuse", why="the store holds parts of this bot's state, but its HEAD is gone")
    return _begin(local, remote)


def _begin(local: Local, remote: Remote, *, over_head: bool = False) -> Decision:
    """Nothing was ever committed."""
    if remote.archive is ArchiveFact.FOREIGN:
        return Decision(tree="empty", why="an archive is to be imported", aside=not local.empty, archive="import")
    if local.empty:
        return Decision(tree="restore" if over_head else "empty", why="first run")
    return Decision(tree="adopt", why="first run with files already there")


def _compare(local: Local, remote: Remote, origin: Origin, head: Head) -> Decision:
    content = head.content
    staged_true = local.staged is not None and local.staged.of(content)
    if staged_true or origin.of(content):
        if local.same_boot:
            return Decision(
                tree="keep",
                why="the tree is of the stored generation",
                staged_true=staged_true,
                archive=_archive(remote),
            )
        return Decision(tree="rehash", why="the machine restarted", staged_true=staged_true)
    if origin.lineage != content.lineage:
        return Decision(tree="refuse", why="the local tree is of another lineage than the store's")
    if content.generation > origin.generation:
        return _from_store(local, remote, why=ANOTHER_HOST)
    if content.generation < origin.generation:
        return Decision(
            tree="refuse",
            why=f"the store holds generation {content.generation}, older than the local tree's {origin.generation}",
        )
    return Decision(tree="refuse", why=f"generation {content.generation} is not the same here and in the store")


def _from_store(local: Local, remote: Remote, *, why: str) -> Decision:
    assert remote.head is not None
    return Decision(tree="restore", why=why, aside=not local.empty, archive=_archive(remote))


def _archive(remote: Remote) -> Literal["leave", "import", "clear"]:
    if remote.archive is ArchiveFact.FOREIGN:
        return "import"
    if remote.archive is ArchiveFact.CLEARED:
        return "clear"
    return "leave"
