"""Two hosts of one bot, cut off from the store and rejoined in every order: one lineage, the loser stops, and nothing that either bot
did is lost: it is in a stored generation, or in a tree on the disk of the host that did it."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from test_keeper import Kept, keeping
from test_two_hosts import _nothing_lost, _one_line
from world import Host, Tree, World, read_tree, write_tree

from rig.fault_table import Row
from the0 import names
from the0.errors import Fault
from the0.objects.store import ObjectStore
from the0.sync.commit import Fenced
from the0.sync.head import Head, decode

SOAK = bool(os.environ.get("THE0_SOAK"))
A = ("cut", "work", "join", "start", "work") if SOAK else ("cut", "work", "join", "start")
B = ("start", "work", "cut", "work", "join") if SOAK else ("start", "work", "cut", "join")
STEP_S = 40.0
"""Between two events: longer than a holder goes without a look at HEAD, and than a bot waits that takes over."""


class Noting:
    """The store; keeps every HEAD there ever was."""

    def __init__(self, store: ObjectStore, heads: list[Head], *, bot_id: str) -> None:
        self._store, self._heads, self._bot_id = store, heads, bot_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_if(self, bucket: str, key: str, data: bytes, **more: Any) -> str:
        etag = self._store.put_if(bucket, key, data, **more)
        if key == names.head_key(self._bot_id):
            self._heads.append(decode(bytes(data), bot_id=self._bot_id))
        return etag


@dataclass
class Side:
    name: str
    world: World
    host: Host
    reported: dict[tuple[str, int], Tree]
    away: bool = False
    wanted: bool = False
    """It is to start as soon as it reaches the store."""
    bot_from_s: float = 0.0
    work: list[bytes] = field(default_factory=list)
    stops: int = 0
    kept: Kept | None = None
    opened: ExitStack = field(default_factory=ExitStack)

    def happens(self, event: str, now_s: float) -> None:
        if event in ("cut", "join"):
            self.away = event == "cut"
            if self.kept is not None:
                self.kept.store.away = self.away
        if event == "start":
            self.wanted = self.kept is None
        if event == "work" and self.kept is not None and now_s >= self.bot_from_s:
            self.work.append(f"{self.name} {len(self.work)}".encode())
            write_tree(self.host.state, {f"{self.name}/{len(self.work)}": self.work[-1], "last": self.work[-1]})

    def goes_on(self, now_s: float) -> None:
        if self.wanted and not self.away:
            started = self.world.start(self.host)
            self.kept = self.opened.enter_context(keeping(self.world, self.host))
            self.bot_from_s, self.wanted = now_s + started.wait_s, False
        if self.kept is None:
            return
        keeper = self.kept.keeper
        try:
            keeper.one_pass(now_s)
        except Fenced:
            keeper.set_aside_unsynced()
            self.opened.close()
            self.kept, self.stops = None, self.stops + 1
            return
        content = keeper._committer.content
        if content.generation and not self.away:
            self.reported.setdefault((content.lineage, content.generation), self.host.tree)

    def on_disk(self) -> set[bytes]:
        """All that stands there, set aside or not."""
        trees = [read_tree(self.host.state), *(read_tree(aside) for aside in self.host.asides)]
        return {content for tree in trees for kind, content in tree.values() if kind == "file"}


def orders() -> Iterator[tuple[str, ...]]:
    """All in which the events of both may come."""
    for places in itertools.combinations(range(len(A) + len(B)), len(A)):
        a, b = iter(A), iter(B)
        yield tuple(f"A {next(a)}" if place in places else f"B {next(b)}" for place in range(len(A) + len(B)))


def played(world: World, order: tuple[str, ...]) -> int:
    """How often a loser stopped."""
    heads: list[Head] = []
    noting: ObjectStore = Noting(world.store, heads, bot_id=world.bot_id)  # type: ignore[assignment]
    world = replace(world, store=noting)
    reported: dict[tuple[str, int], Tree] = {}
    sides = {name: Side(name, world, world.host(name), reported) for name in "AB"}
    now_s = 0.0
    sides["A"].happens("start", now_s)

    def step() -> None:
        nonlocal now_s
        now_s += STEP_S
        for side in sides.values():
            side.goes_on(now_s)
        bots = [side for side in sides.values() if side.kept is not None and not side.away and now_s >= side.bot_from_s]
        assert len(bots) < 2, "who lost the claim and reaches the store has stopped before the other bot begins"

    step()
    sides["A"].happens("work", now_s + STEP_S)
    for event in order:
        step()
        name, what = event.split()
        sides[name].happens(what, now_s)
    for side in sides.values():
        side.happens("join", now_s)
    step()
    step()
    _one_line(heads)
    _nothing_lost(world, heads, reported)
    holder = [side for side in sides.values() if side.kept is not None]
    assert len(holder) == 1, "the last one that claimed"
    assert world.stored_tree() == holder[0].host.tree
    stored = {content for tree in reported.values() for kind, content in tree.values() if kind == "file"}
    for side in sides.values():
        lost = set(side.work) - stored - side.on_disk()
        assert not lost, f"{lost} is nowhere"
        side.opened.close()
    world.check()
    return sum(side.stops for side in sides.values())


@pytest.mark.fault(
    "two hosts of one bot, cut off from the store and rejoined, working and started again, in every order",
    "one lineage; the loser stops; each work is in a stored generation or set aside where it was done",
)
def test_every_order(world: World, fault: Row) -> None:
    stops = 0
    for order in orders():
        world.reset()
        try:
            stops += played(world, order)
        except (AssertionError, Fault) as reason:
            raise AssertionError(f"{reason} in {', '.join(order)}") from reason
        fault.judged()
    assert fault.tries == math.comb(len(A) + len(B), len(A))
    assert stops >= fault.tries, "each takes over at least once"
