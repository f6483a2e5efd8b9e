"""Merging a foreign archive by key: somebody else's change is taken, unless the bot changed that key too."""

from __future__ import annotations

from itertools import product

from the0.sync.archive import Merge, merge

VALUES = (None, "1", "2", "3")


def one(base: str | None, theirs: str | None, ours: str | None) -> tuple[str | None, bool]:
    """(the key's value afterwards, whether a conflict was told)."""

    def side(value: str | None) -> dict[str, str]:
        return {} if value is None else {"k": value}

    plan = merge(base=side(base), theirs=side(theirs), ours=side(ours))
    if plan.take:
        return theirs, bool(plan.kept)
    if plan.delete:
        return None, bool(plan.kept)
    return ours, bool(plan.kept)


def test_every_combination() -> None:
    for base, theirs, ours in product(VALUES, repeat=3):
        value, told = one(base, theirs, ours)
        if theirs == base:
            assert value == ours, "what nobody else touched stays the bot's"
        elif ours == base:
            assert value == theirs, "what only somebody else changed is taken"
        else:
            assert value == ours, "what both changed stays the bot's"
        assert told == (theirs != base and ours != base and ours != theirs)


def test_keys_are_independent() -> None:
    plan = merge(
        base={"edited": "1", "deleted": "1", "both": "1", "same": "1"},
        theirs={"edited": "2", "both": "2", "same": "1", "new": "9"},
        ours={"edited": "1", "deleted": "1", "both": "3", "same": "4"},
    )
    assert plan == Merge(take=("edited", "new"), delete=("deleted",), kept=("both",))


def test_merging_twice_changes_nothing_more() -> None:
    base, theirs = {"a": "1", "b": "1"}, {"a": "2"}
    ours = {"a": "2"}  # as the first time left it
    assert merge(base=base, theirs=theirs, ours=ours) == Merge(take=(), delete=(), kept=())
