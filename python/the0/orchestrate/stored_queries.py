"""Questions to stored state: each answered by a process over the newest stored generation, which is kept for the next one where that
is safe.

A process is kept for one bot, one configuration (code included) and one generation. It is asked only after the store was: an
answer is never older than what was stored when the question came. Whatever is doubtful about a kept process ends it, and the
question is asked of a new one, which restores the state for itself.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from the0 import asking
from the0.code_folder import brings_sdk, is_complete
from the0.documents import BadBot, Bot
from the0.errors import ExitCode, Fatal, Fault
from the0.objects.credentials import StoreSettings
from the0.objects.open import open_store
from the0.orchestrate import process_query
from the0.orchestrate.data import Data
from the0.orchestrate.engine import QueryAnswer
from the0.orchestrate.kept_queries import Kept, KeptQueries
from the0.orchestrate.query_place import QueryPlaces
from the0.orchestrate.warm_query import CannotServe, WarmQuery
from the0.settings import Buckets
from the0.sync.head import HeadFile, Stored

WARM_S: Final = 60.0
"""How long a process is kept after its last question, unless `query_warm_s` says otherwise."""
MOST_STATE_BYTES: Final = 256 << 20
"""As stored: a larger state is not left lying about a second time."""
NOT_AGAIN_S: Final = 600.0
"""How long a bot is asked by a process for each question after one that was kept has proven unfit."""
STORE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Question:
    path: str
    params: Mapping[str, Any]
    deadline: float
    """Monotonic."""


class StoredQueries:
    """Of one platform, from any thread. One question at a time for a bot."""

    def __init__(self, data: Data, places: QueryPlaces) -> None:
        self._places = places
        self._store = open_store(StoreSettings(folder=data.objects), deadline_s=STORE_S)
        self._bucket = Buckets().state
        self._lock = threading.Lock()
        self._kept = KeptQueries(is_current=self._is_current)
        self._unfit: dict[str, tuple[str, float]] = {}
        """By bot, the configuration whose process cannot be kept, and until when that is not tried again."""
        self._asked: list[subprocess.Popen[bytes]] = []
        self._closed = False

    def ask(self, bot: Bot, *, path: str, params: Mapping[str, Any], timeout_s: float) -> QueryAnswer:
        """Raises Fault."""
        deadline = time.monotonic() + timeout_s
        with self._kept.turn(bot.id, deadline=deadline) as kept:
            keep_s = self._keep_s(bot, path, params)
            if keep_s > 0:
                answer = self._warm(bot, kept, _Question(path, params, deadline), keep_s=keep_s)
                if answer is not None:
                    return answer
            self._kept.end(kept)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Fatal("There was no time left to ask the bot.", code=ExitCode.TIMED_OUT)
            return process_query.ask(
                bot, places=self._places, path=path, params=params, timeout_s=left_s, started=self._note
            )

    def keep_only(self, bots: Mapping[str, Bot | BadBot]) -> None:
        """Ends what is kept of others, or of another configuration of theirs; soon, and without waiting."""

        def is_of(bot_id: str, config_hash: str) -> bool:
            bot = bots.get(bot_id)
            return isinstance(bot, Bot) and bot.config_hash == config_hash

        with self._lock:
            self._unfit = {bot_id: of for bot_id, of in self._unfit.items() if is_of(bot_id, of[0])}
        self._kept.keep_only(is_of)

    def drop(self, bot_id: str) -> None:
        """Ends what is kept of a bot, at once unless it is being asked."""
        self._kept.drop(bot_id)

    def close(self) -> None:
        """Ends all. Idempotent."""
        with self._lock:
            self._closed = True
            for child in self._asked:
                child.terminate()
        self._kept.close()

    # --- whether ----------------------------------------------------------------------------------

    def _keep_s(self, bot: Bot, path: str, params: Mapping[str, Any]) -> float:
        """How long a process that answers this may be kept; 0: it is to be one that answers once."""
        asked_for = bot.policies.query_warm_s
        if asked_for == 0:
            return 0.0
        with self._lock:
            unfit = self._unfit.get(bot.id)
        if unfit is not None and unfit[0] == bot.config_hash and time.monotonic() < unfit[1]:
            return 0.0
        # Of a longer question a server gets the part that has no types any more.
        if len(asking.request("127.0.0.1", 65535, path=path, params=params)) > asking.ONE_READ_BYTES:
            return 0.0
        if asked_for is not None:
            return asked_for
        code = self._places.folders(bot).code
        return WARM_S if is_complete(code) and not brings_sdk(code, runtime=bot.runtime) else 0.0

    # --- the process that is kept -----------------------------------------------------------------

    def _warm(self, bot: Bot, kept: Kept, asked: _Question, *, keep_s: float) -> QueryAnswer | None:
        """None: it is to be asked another way. Raises Fault."""
        stored = self._newest(bot.id, kept.stored)
        if stored is None or sum(each.bytes for each in stored.head.content.segments) > MOST_STATE_BYTES:
            return None
        kept.keep_s = keep_s
        if kept.warm is not None:
            if _serves(kept, bot, stored) and kept.warm.standing() == "good":
                kept.stored = stored
                answer = self._ask(bot, kept, kept.warm, asked)
                if answer is not None:
                    return answer
            self._kept.end(kept)
        begun = self._begin(bot, kept, stored, asked)
        return self._ask(bot, kept, begun, asked) if begun is not None else None

    def _begin(self, bot: Bot, kept: Kept, stored: Stored, asked: _Question) -> WarmQuery | None:
        """None: there is no room for one. Raises Fault."""
        begun = self._kept.begin(
            kept, lambda: WarmQuery(bot, places=self._places), config_hash=bot.config_hash, stored=stored
        )
        if begun is None:
            return None
        try:
            kept.generation = begun.generation(deadline=asked.deadline)
        except BaseException:
            self._kept.end(kept)
            raise
        if kept.generation != stored.head.content.generation:
            kept.unwanted = True  # newer than what we have seen: it may answer this question, and no other
        return begun

    def _ask(self, bot: Bot, kept: Kept, warm: WarmQuery, asked: _Question) -> QueryAnswer | None:
        """None: it gave no answer that can be trusted. Raises Fault."""
        try:
            answer = warm.ask(path=asked.path, params=asked.params, deadline=asked.deadline)
            standing = warm.standing()
        except CannotServe:
            self._note_unfit(bot)
            return None
        except asking.NoAnswer:
            return None
        except BaseException:
            self._kept.end(kept)
            raise
        if standing == "gone":
            return None  # who answered is not known for sure
        if standing == "changed":
            self._note_unfit(bot)
            kept.unwanted = True
        kept.used_s = time.monotonic()
        self._kept.look_after()
        return QueryAnswer(answer=answer.value, generation=kept.generation)

    def _newest(self, bot_id: str, known: Stored | None) -> Stored | None:
        """None where only a restore can tell what is stored, or whether anything can be trusted."""
        heads = HeadFile(self._store, bucket=self._bucket, bot_id=bot_id)
        try:
            stored = heads.read() if known is None else heads.read_if_changed(known)
        except Fault:
            return None  # a process for this question finds the same, and says it
        if stored is None or stored.head.content.removed or stored.head.claim.import_etag is not None:
            return None
        return stored

    def _is_current(self, bot_id: str, kept: Kept) -> bool:
        stored = self._newest(bot_id, kept.stored)
        return stored is not None and _is_same(kept, stored)

    def _note_unfit(self, bot: Bot) -> None:
        with self._lock:
            self._unfit[bot.id] = (bot.config_hash, time.monotonic() + NOT_AGAIN_S)

    def _note(self, child: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._asked = [each for each in self._asked if each.returncode is None]
            self._asked.append(child)
            if self._closed:
                child.terminate()


def _serves(kept: Kept, bot: Bot, stored: Stored) -> bool:
    return kept.config_hash == bot.config_hash and not kept.unwanted and _is_same(kept, stored)


def _is_same(kept: Kept, stored: Stored) -> bool:
    """Whether the process' state is what is stored; another claim alone changes nothing."""
    return kept.stored is not None and kept.stored.head.content.digest() == stored.head.content.digest()
