"""Counts its runs in `<STATE_DIR>/k.json`; "mode" in its configuration says how it goes on."""

import sys
import time

import the0  # a copy of its own, under vendor/


def main(bot_id, config):
    assert (bot_id, config) == the0.parse()
    count = the0.get_state("k", {"count": 0})["count"] + 1
    the0.set_state("k", {"count": count})
    the0.log(f"counted {count}")
    the0.metric("count", count)
    print(f"plain words of {bot_id}", file=sys.stderr)
    if config.get("mode") == "fail":
        sys.exit(3)
    if config.get("mode") == "wait":
        print("ready")
        time.sleep(60)
