import time


def main(bot_id, config):  # noqa: ARG001 - as bots are called
    now = time.monotonic_ns()
    print("first", now, flush=True)


if __name__ == "__main__":
    main("", {})
