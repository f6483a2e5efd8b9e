"""A bot that leads those who ask beside it astray."""

import os
import time

from tools import STATE, remember, stored


def main(_, config):
    remember(1)
    stored()
    planted = f"{STATE}/{config['planted']}"
    if os.path.lexists(planted):
        os.rename(planted, f"{STATE}/moved")
    os.symlink(config["victim"], planted)
    if config["planted"] == ".the0":
        os.symlink(".", f"{config['victim']}/queries")
    print("planted", flush=True)
    while True:
        time.sleep(60)
