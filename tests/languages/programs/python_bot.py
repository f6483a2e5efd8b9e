"""Counts its runs in `<STATE_DIR>/k.json`, written in place; "mode" in its configuration says how it goes on."""

import json
import os
import sys
import time

import the0  # a copy of its own, under vendor/


def main(bot_id, config):
    assert (bot_id, config) == the0.parse()
    path = os.path.join(os.environ["STATE_DIR"], "k.json")
    count = 1
    if os.path.exists(path):
        with open(path) as file:
            count += json.load(file)["count"]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        json.dump({"count": count}, file)
    now = int(time.time() * 1000)
    print(json.dumps({"timestamp": now, "level": "info", "message": f"counted {count}"}, separators=(",", ":")))
    print(f"plain words of {bot_id}", file=sys.stderr)
    if config.get("mode") == "fail":
        sys.exit(3)
    if config.get("mode") == "wait":
        print("ready")
        time.sleep(60)
