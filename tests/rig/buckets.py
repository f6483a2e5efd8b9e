"""Bucket names that no other test has."""

from __future__ import annotations

import secrets

from the0.objects.store import ObjectStore


class Buckets:
    """Makes buckets, each under a new name: tests share servers and must not meet."""

    def make(self, store: ObjectStore, name: str = "bucket") -> str:
        bucket = f"{name}-{secrets.token_hex(6)}"
        store.ensure_bucket(bucket)
        return bucket
