"""The start table, line by line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from the0.sync.head import ArchiveRef, Claim, Content, Head, SegmentRef
from the0.sync.local import Origin
from the0.sync.table import ArchiveFact, Decision, Local, Remote, after_rehash, decide

A = Content(lineage="aa", generation=5, segments=(SegmentRef("b/segments/aa/1-x", "x", 10),))
OLDER = replace(A, generation=4)
NEWER = replace(A, generation=6)
OTHER_DIGEST = replace(A, segments=(SegmentRef("b/segments/aa/1-y", "y", 10),))
OTHER_LINEAGE = replace(A, lineage="bb")


def head(content: Content, **claim: object) -> Head:
    base = {"epoch": 3, "holder": "h", "instance": "i", "released": True} | claim
    return Head(content=content, claim=Claim(**base))  # type: ignore[arg-type]


def at(content: Content) -> Origin:
    return Origin(instances=("i",)).at(content)


EMPTY = Local(empty=True)
FILES = Local(empty=False)
INDEXED = Local(empty=False, origin=at(A))
REBOOTED = replace(INDEXED, same_boot=False)
FOREIGN = ArchiveFact.FOREIGN
CLAIMED = Content(lineage="dd")
REMOVED = replace(A, tombstone="aa", segments=())
OVER_REMOVED = Content(lineage="cc", generation=2, tombstone="aa")

ROWS: list[tuple[str, Local, Remote, Decision]] = [
    ("first run", EMPTY, Remote(), Decision(tree="empty", why="")),
    ("restore", EMPTY, Remote(head=head(A)), Decision(tree="restore", why="")),
    ("import, empty", EMPTY, Remote(archive=FOREIGN), Decision(tree="empty", why="", archive="import")),
    (
        "import, a tree goes aside",
        FILES,
        Remote(archive=FOREIGN),
        Decision(tree="empty", why="", aside=True, archive="import"),
    ),
    ("the tree becomes generation 1", FILES, Remote(), Decision(tree="adopt", why="")),
    ("store wins, tree aside", FILES, Remote(head=head(A)), Decision(tree="restore", why="", aside=True)),
    ("index is HEAD's", INDEXED, Remote(head=head(A)), Decision(tree="keep", why="")),
    (
        "index is HEAD's, bot emptied the tree",
        replace(INDEXED, empty=True),
        Remote(head=head(A)),
        Decision(tree="keep", why=""),
    ),
    (
        "the intent is HEAD's",
        replace(INDEXED, staged=at(NEWER)),
        Remote(head=head(NEWER)),
        Decision(tree="keep", why="", staged_true=True),
    ),
    (
        "the intent did not arrive",
        replace(INDEXED, staged=at(NEWER)),
        Remote(head=head(A)),
        Decision(tree="keep", why=""),
    ),
    ("another boot", REBOOTED, Remote(head=head(A)), Decision(tree="rehash", why="")),
    (
        "another boot, the intent is HEAD's",
        replace(REBOOTED, staged=at(NEWER)),
        Remote(head=head(NEWER)),
        Decision(tree="rehash", why="", staged_true=True),
    ),
    ("another host ran it", INDEXED, Remote(head=head(NEWER)), Decision(tree="restore", why="", aside=True)),
    ("HEAD is gone", INDEXED, Remote(), Decision(tree="refuse", why="")),
    ("HEAD is gone, an archive is there", INDEXED, Remote(archive=FOREIGN), Decision(tree="refuse", why="")),
    ("other lineage", INDEXED, Remote(head=head(OTHER_LINEAGE)), Decision(tree="refuse", why="")),
    ("HEAD older than the index", INDEXED, Remote(head=head(OLDER)), Decision(tree="refuse", why="")),
    ("same generation, another digest", INDEXED, Remote(head=head(OTHER_DIGEST)), Decision(tree="refuse", why="")),
    ("other lineage, another boot", REBOOTED, Remote(head=head(OTHER_LINEAGE)), Decision(tree="refuse", why="")),
    ("removed, nothing here", EMPTY, Remote(head=head(REMOVED)), Decision(tree="empty", why="", new_lineage=True)),
    (
        "removed, index here",
        INDEXED,
        Remote(head=head(REMOVED)),
        Decision(tree="empty", why="", aside=True, new_lineage=True),
    ),
    (
        "removed, tree here",
        FILES,
        Remote(head=head(REMOVED)),
        Decision(tree="empty", why="", aside=True, new_lineage=True),
    ),
    (
        "removed, its old archive is not imported again",
        EMPTY,
        Remote(head=head(REMOVED), archive=ArchiveFact.OURS),
        Decision(tree="empty", why="", new_lineage=True),
    ),
    (
        "begun over the removed one",
        INDEXED,
        Remote(head=head(OVER_REMOVED)),
        Decision(tree="restore", why="", aside=True),
    ),
    (
        "unreadable index is no index",
        replace(FILES, unreadable=True),
        Remote(head=head(A)),
        Decision(tree="restore", why="", aside=True),
    ),
    ("unreadable index, first run", replace(FILES, unreadable=True), Remote(), Decision(tree="adopt", why="")),
    (
        "a claim that never held",
        replace(FILES, origin=Origin(instances=("i",))),
        Remote(),
        Decision(tree="adopt", why=""),
    ),
    (
        "a claim that never held, restore",
        replace(EMPTY, origin=Origin(instances=("i",))),
        Remote(head=head(A)),
        Decision(tree="restore", why=""),
    ),
    ("parts without HEAD", EMPTY, Remote(leftovers=True), Decision(tree="refuse", why="")),
    ("parts without HEAD, tree here", FILES, Remote(leftovers=True), Decision(tree="refuse", why="")),
    (
        "archive edited outside",
        INDEXED,
        Remote(head=head(A), archive=FOREIGN),
        Decision(tree="keep", why="", archive="import"),
    ),
    (
        "archive edited outside, restore",
        EMPTY,
        Remote(head=head(A), archive=FOREIGN),
        Decision(tree="restore", why="", archive="import"),
    ),
    (
        "archive cleared",
        INDEXED,
        Remote(head=head(A), archive=ArchiveFact.CLEARED),
        Decision(tree="keep", why="", archive="clear"),
    ),
]


@pytest.mark.parametrize(("local", "remote", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_row(local: Local, remote: Remote, expected: Decision) -> None:
    found = decide(local, remote)
    assert found.why
    assert replace(found, why="") == expected


def test_never_empty_over_existing_state() -> None:
    """Whatever is on the disk: where the store has content, no decision begins empty, unless the bot was removed."""
    for _, local, remote, _ in ROWS:
        if remote.head is not None and remote.head.content.segments and not remote.head.content.removed:
            assert decide(local, remote).tree in ("keep", "restore", "rehash", "refuse")
        if remote.leftovers:
            assert decide(local, remote).tree == "refuse"


def test_no_tree_is_dropped_without_being_kept_aside_or_kept() -> None:
    for _, local, remote, _ in ROWS:
        found = decide(local, remote)
        if not local.empty and found.tree in ("restore", "empty"):
            assert found.aside


@pytest.mark.parametrize(
    ("failing_since_s", "equal", "tree"),
    [
        (None, True, "keep"),
        (None, False, "restore"),
        (1000.0, False, "refuse"),
        (1955.0, False, "restore"),
        (1000.0, True, "keep"),
    ],
)
def test_after_a_reboot(failing_since_s: float | None, equal: bool, tree: str) -> None:
    local = replace(REBOOTED, origin=replace(at(A), failing_since_s=failing_since_s))
    found = after_rehash(local, Remote(head=head(A)), equal=equal, now_s=2000.0)
    assert found.tree == tree
    assert found.aside == (tree == "restore")


def test_an_archive_ref_does_not_change_what_the_tree_is() -> None:
    assert at(A).of(replace(A, archive=ArchiveRef("e", 5), stale=("x",)))
