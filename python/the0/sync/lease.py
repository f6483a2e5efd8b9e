"""Claims: which instance of a bot may write its state. Pure; the swap itself is `head.HeadFile`'s.

Whoever claimed last writes. The former holder learns of it at its next conditional PUT, or when it looks at HEAD (every
`LOOK_S`), stops its bot and sets its unsynced tree aside.
"""

from __future__ import annotations

import os

from the0.frozen import replace
from the0.sync.head import Claim, Content, Head, with_nonce

LOOK_S = 30.0
"""How often a holder looks at HEAD even when nothing changed."""
TAKEOVER_S = 35.0
"""How long a new holder waits before its bot starts, so that the former one has looked."""
BLIND_S = 60.0
"""How long a holder may be unable to read HEAD before `store_down` is obeyed."""


def holder_here() -> str:
    """How a claim names its holder: this machine and process."""
    return f"{machine_here()}:{os.getpid()}"


def machine_here() -> str:
    return os.uname().nodename


def machine_of(claim: Claim) -> str:
    return claim.holder.rpartition(":")[0]


def claimed(
    former: Head | None,
    *,
    holder: str,
    instance: str,
    new_lineage: bool = False,
    import_etag: str | None = None,
) -> Head:
    """The HEAD that claims for `instance`: the content goes on as it was, or begins as generation 0 of a new lineage."""
    if former is None:
        content = Content(lineage=os.urandom(8).hex())
    elif new_lineage:
        content = Content(lineage=os.urandom(8).hex(), tombstone=former.content.lineage)
    else:
        content = former.content
    epoch = former.claim.epoch + 1 if former else 1
    claim = Claim(epoch=epoch, holder=holder, instance=instance, import_etag=import_etag)
    return with_nonce(Head(content=content, claim=claim))


def takeover_wait_s(former: Head | None, *, own: tuple[str, ...], ended: str | None) -> float:
    """How long the bot must wait after the claim: 0 where the former holder released it, is known to have ended, or used this very
    folder (`own`, with the lock on it held by the caller)."""
    if former is None or former.claim.released:
        return 0.0
    if former.claim.instance in own or former.claim.instance == ended:
        return 0.0
    return TAKEOVER_S


def holds(head: Head, *, epoch: int, instance: str) -> bool:
    return head.claim.epoch == epoch and head.claim.instance == instance


def released(head: Head) -> Head:
    return with_nonce(replace(head, claim=replace(head.claim, released=True)))
