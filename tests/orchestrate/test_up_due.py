"""Many scheduled bots due at once, with real bots under a real `runtime up`."""

from __future__ import annotations

import time

from orchestrate.due import Crowd, most_at_once, overtaken
from orchestrate.platform_place import Platform, eventually

BOTS = 40
AT_ONCE = 32
STARTS = 4


def test_all_that_are_due_run_once_in_the_order_of_their_slots(platform: Platform) -> None:
    crowd = Crowd(platform, BOTS, int(time.time()) + 4, 3)
    crowd.put()
    up = platform.up()
    eventually(lambda: len(up.news("ended")) >= BOTS, "their ends", within_s=120)
    eventually(lambda: all(not run.is_open for run in crowd.records()), "their records", within_s=60)
    assert up.stop() == 0
    runs = crowd.records()
    assert [run.bot_id for run in sorted(runs, key=lambda run: run.bot_id)] == crowd.ids, "each once"
    assert {run.result for run in runs} == {"ok"}
    assert crowd.lines() == BOTS
    assert overtaken(runs, starts=STARTS) == []
    assert most_at_once(runs) <= AT_ONCE
    assert not up.news("trouble")
