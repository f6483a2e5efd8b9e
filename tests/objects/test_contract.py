"""What every store promises, over all of them."""

from __future__ import annotations

import pytest

from the0.objects import store as protocol
from the0.objects.retry import Retrying


def test_reads_what_was_written(store: Retrying, bucket: str) -> None:
    etag = store.put(bucket, "a/b", b"bytes", metadata={"The0-Name": "value"})
    found = store.get(bucket, "a/b", limit_bytes=5)
    assert found.data == b"bytes"
    assert found.info.etag == etag
    assert found.info.metadata == {"the0-name": "value"}
    assert store.head(bucket, "a/b") == found.info
    with pytest.raises(protocol.NotModified):
        store.get(bucket, "a/b", limit_bytes=5, if_none_match=etag)
    with pytest.raises(protocol.TooLarge):
        store.get(bucket, "a/b", limit_bytes=4)
    with pytest.raises(protocol.Missing):
        store.get(bucket, "a/c", limit_bytes=4)
    assert store.head(bucket, "a/c") is None
