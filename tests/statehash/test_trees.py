"""Random trees and edits: what was stored is what comes back, each time."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from statehash import machine, oracle
from the0 import statehash as sh


@pytest.mark.parametrize("seed", range(12))
def test_every_generation_comes_back(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    root, home = tmp_path / "root", tmp_path / "home"
    root.mkdir()
    home.mkdir()
    index = sh.Index()
    segments: list[machine.Stored] = []
    with machine.folder(home) as home_fd:
        index.save(home_fd, "index")
        for generation in range(8):
            for _ in range(rng.choice([1, 3, 40])):
                oracle.edit(root, rng)
            options = {"segment_bytes": rng.choice([1, 100_000, 1 << 25]), "threads": rng.choice([1, 2, 4])}
            segments += machine.commit(root, index, b"g%d" % generation, **options)
            seen = oracle.read(root)
            dest = tmp_path / f"restored-{generation}"
            restored = machine.restore(dest, segments)
            assert oracle.read(dest) == seen
            listed = machine.listing(segments)
            assert machine.entries(index) == machine.entries(listed) == machine.entries(restored)
            assert [e.path for e in index.entries()] == sorted(seen)
            if rng.random() < 0.5:
                index = sh.Index.open(home_fd, "index")
                assert (index.meta, index.pending_meta) == (b"g%d" % generation, None)
                assert machine.entries(index) == machine.entries(listed)
            with machine.folder(dest) as fd:
                assert sh.differences(fd, restored) == []
            packing, stored = machine.pack(dest, restored)
            assert (packing.empty, packing.moved, packing.incomplete, stored) == (True, False, [], [])
