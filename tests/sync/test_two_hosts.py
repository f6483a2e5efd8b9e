"""Two hosts run one bot against one store, their requests interleaved at random, some lost, late or fatal.

Each request is a turn; who has the next one is drawn. A request may fail before it is applied, lose its reply, arrive long after
its sender gave up, or be the last thing its sender did. Whatever happens there is one line of generations, none that was reported
stored is ever lost or changed, and who lost the claim never moves HEAD again.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from world import Host, Tree, World, write_tree

from rig.fault_table import Row
from the0 import names
from the0.errors import ExitCode, Fault
from the0.objects.store import ObjectStore, PreconditionFailed, Unavailable
from the0.sync.archive import ArchiveFile
from the0.sync.cleaning import Bounds
from the0.sync.commit import Committer, Fenced, reclaim
from the0.sync.head import Head, HeadFile, decode
from the0.sync.imports import publish
from the0.sync.local import Origin, StateFolder
from the0.sync.start import start
from the0.sync.sweep import Limits, Sweeper

SOAK = bool(os.environ.get("THE0_SOAK"))
SESSIONS = 4
STEPS = 6
SDK = f"{names.SDK_STATE_DIR}/seen.json"


class Killed(BaseException):
    """The process is no more; nothing that it does from here on reaches the store."""


@dataclass
class Stage:
    """Gives turns, applies requests one at a time, and keeps every HEAD there ever was."""

    store: ObjectStore
    bot_id: str
    luck: random.Random
    actors: set[str] = field(default_factory=set)
    turn: str = ""
    heads: list[Head] = field(default_factory=list)
    late: list[Callable[[], object]] = field(default_factory=list)
    lock: threading.Condition = field(default_factory=threading.Condition)

    def leave(self, actor: str) -> None:
        with self.lock:
            self.actors.discard(actor)
            self._pass_on()

    def _pass_on(self) -> None:
        if self.actors:
            self.turn = self.luck.choice(sorted(self.actors))
        self.lock.notify_all()

    def request(self, actor: str, method: str, apply: Callable[[], Any]) -> Any:
        with self.lock:
            assert self.lock.wait_for(lambda: self.turn == actor, timeout=60), "nobody passes the turn on"
            try:
                if self.late and self.luck.random() < 0.2:
                    self._swallow(self.late.pop(self.luck.randrange(len(self.late))))
                chance = self.luck.random()
                if chance < 0.02:
                    raise Unavailable("not sent")
                if chance < 0.04:
                    apply()
                    raise Unavailable("reply lost")
                if chance < 0.07 and method == "put_if":
                    self.late.append(apply)
                    raise Unavailable("still under way")
                if chance < 0.08:
                    raise Killed
                if chance < 0.09:
                    apply()
                    raise Killed
                if chance < 0.10 and method == "put_if":
                    self.late.append(apply)
                    raise Killed
                return apply()
            finally:
                if self.luck.random() < 0.5:
                    self._pass_on()

    def _swallow(self, apply: Callable[[], object]) -> None:
        try:
            apply()
        except Fault:
            pass  # nobody waits for the reply any more

    def note(self, data: bytes) -> None:
        self.heads.append(decode(data, bot_id=self.bot_id))


class Line:
    """The store as one process of an actor sees it."""

    def __init__(self, stage: Stage, actor: str) -> None:
        self._stage = stage
        self._actor = actor
        self.dead = False

    @property
    def name(self) -> str:
        return self._stage.store.name

    def __getattr__(self, method: str) -> Any:
        original = getattr(self._stage.store, method)
        stage = self._stage

        def request(bucket: str, key: str, *args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise Killed

            def apply() -> Any:
                result = original(bucket, key, *args, **kwargs)
                if method == "put_if" and key == names.head_key(stage.bot_id):
                    stage.note(bytes(args[0]))
                return list(result) if method == "list" else result

            try:
                return stage.request(self._actor, method, apply)
            except Killed:
                self.dead = True
                raise

        return request


@dataclass
class Actor:
    world: World
    stage: Stage
    host: Host
    name: str
    luck: random.Random
    reported: dict[tuple[str, int], Tree]
    errors: list[BaseException] = field(default_factory=list)
    number: int = 0

    def run(self) -> None:
        try:
            for session in range(SESSIONS):
                self._session(f"{self.name}-{session}")
        except BaseException as reason:  # noqa: BLE001 - told by the test
            self.errors.append(reason)
        finally:
            self.stage.leave(self.name)

    def _session(self, instance: str) -> None:
        line = Line(self.stage, self.name)
        before = self.host.tree if self.host.state.is_dir() else {}
        try:
            started = start(self.host.settings, line, instance=instance)  # type: ignore[arg-type]
        except Killed:
            return
        except Fault as reason:
            if reason.code in (ExitCode.STORE_UNREACHABLE, ExitCode.FENCED):
                return
            raise
        if started.how == "kept":
            assert self.host.tree == before
        elif started.generation:
            known = self.reported.get((started.lineage, started.generation))
            assert known is None or self.host.tree == known
        processes = 1
        while True:
            try:
                self._keep(line, instance=instance, epoch=started.epoch)
                return
            except Killed:
                # Its sync process is started again, or the whole host died.
                if processes == 3 or self.luck.random() < 0.5:
                    return
                processes += 1
                line = Line(self.stage, self.name)
            except Unavailable:
                line = Line(self.stage, self.name)

    def _keep(self, line: Line, *, instance: str, epoch: int) -> None:
        store: ObjectStore = line  # type: ignore[assignment]
        bucket, bot_id = self.world.buckets.state, self.world.bot_id
        with StateFolder(self.host.settings.paths.state) as folder:
            index = folder.open_index()
            assert index is not None
            try:
                committer = Committer(
                    store=store,
                    bucket=bucket,
                    bot_id=bot_id,
                    folder=folder,
                    index=index,
                    stored=reclaim(HeadFile(store, bucket=bucket, bot_id=bot_id), epoch=epoch, instance=instance),
                    max_bytes=1 << 30,
                    max_file_bytes=None,
                    bounds=Bounds(listed=4),
                )
                committer.resolve()
                assert Origin.decode(index.meta).of(committer.content)
                for _ in range(STEPS):
                    self._step(committer, folder)
                if self.luck.random() < 0.7:
                    committer.record(release=True)
            except Fenced:
                if self.stage.heads[-1].claim.instance == instance:
                    raise AssertionError("fenced, and still the holder") from None
                folder.set_aside("fenced")
                shutil.rmtree(self.host.state / names.RESERVED_DIR / names.ASIDE, ignore_errors=True)

    def _step(self, committer: Committer, folder: StateFolder) -> None:
        self.number += 1
        write_tree(
            self.host.state,
            {
                f"{self.luck.randrange(4)}": f"{self.name} {self.number}".encode(),
                SDK: f"{self.name} {self.number}".encode(),
            },
        )
        tree = self.host.tree
        try:
            done = committer.commit(committer.scan())
            if done.generation is not None:
                self.reported[(committer.content.lineage, done.generation)] = tree
            if self.luck.random() < 0.3:
                former = committer.content.archive
                stored = ArchiveFile(
                    self.stage_line(committer), bucket=self.world.buckets.state, bot_id=self.world.bot_id
                )
                publish(folder, committer, stored, former_etag=former.etag if former else None)
            if self.luck.random() < 0.3:
                committer.look()
            if self.luck.random() < 0.2:
                claim = committer.stored.head.claim
                Sweeper(
                    self.stage_line(committer),
                    bucket=self.world.buckets.state,
                    bot_id=self.world.bot_id,
                    epoch=claim.epoch,
                    instance=claim.instance,
                    limits=Limits(age_s=-1.0),
                ).sweep(live_bytes=0, stop=threading.Event())
        except Unavailable:
            pass  # the next step, or the next process, goes on
        except PreconditionFailed:
            pass  # the other one wrote an archive since: left for the next start

    def stage_line(self, committer: Committer) -> ObjectStore:
        return committer._store


@pytest.mark.fault(
    "two hosts of one bot, their requests interleaved at random, one in ten of them lost, late, without a reply, or its sender's last",
    "one line of generations, each that was reported as it was; who lost the claim moves HEAD no more",
)
@pytest.mark.parametrize("seed", range(int(os.environ.get("TWO_HOSTS_SEEDS", "100" if SOAK else "12"))))
def test_two_hosts(world: World, seed: int, fault: Row) -> None:
    luck = random.Random(seed)
    stage = Stage(store=world.store, bot_id=world.bot_id, luck=luck, actors={"A", "B"}, turn="A")
    reported: dict[tuple[str, int], Tree] = {}
    actors = [
        Actor(world, stage, world.host(name), name, random.Random(f"{seed} {name}"), reported) for name in ("A", "B")
    ]
    threads = [threading.Thread(target=actor.run, name=actor.name, daemon=True) for actor in actors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    for late in stage.late:
        stage._swallow(late)
    for actor in actors:
        for error in actor.errors:
            raise error
    _one_line(stage.heads)
    _nothing_lost(world, stage.heads, reported)
    world.check()
    fault.judged()


def _one_line(heads: list[Head]) -> None:
    assert heads
    former = heads[0]
    gone: set[str] = set()
    for head in heads[1:]:
        old, new = former.content, head.content
        assert new.lineage == old.lineage
        if new.since == old.since:
            assert new.segments[: len(old.segments)] == old.segments
        else:
            assert new.since == new.generation == old.generation + 1
        assert new.generation - old.generation in (0, 1)
        if (head.claim.epoch, head.claim.instance) != (former.claim.epoch, former.claim.instance):
            assert head.claim.epoch == former.claim.epoch + 1
            assert new.digest() == old.digest(), "a claim moves no content"
            gone.add(former.claim.instance)
        assert head.claim.instance not in gone, "who lost the claim never moves HEAD again"
        former = head


def _nothing_lost(world: World, heads: list[Head], reported: dict[tuple[str, int], Tree]) -> None:
    contents = {(head.content.lineage, head.content.generation): head.content for head in heads}
    assert reported.keys() <= contents.keys()
    for key in sorted(reported):
        assert world.stored_tree(contents[key]) == reported[key], f"generation {key[1]} is what its holder had reported"
