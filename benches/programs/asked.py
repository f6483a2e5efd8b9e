"""A bot that answers one query with the SDK."""

import sys
import time

from the0 import query


@query.handler("/price")
def price(req):  # noqa: ARG001 - as handlers are called
    return {"price": 101.25}


def main(bot_id, config):  # noqa: ARG001 - as bots are called
    while True:
        time.sleep(3600)


if __name__ == "__main__" and sys.argv:
    query.run()
