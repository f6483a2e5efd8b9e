"""`sleep`: as long as it says, and woken by a request to stop."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from sdk.bots import BotFolder

FLAG = """
    import os, signal, sys, threading, time
    from the0 import sleep
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    """


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def ended(process: subprocess.Popen[str], *, within_s: float = 5.0) -> list[str]:
    started = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < within_s, "the sleep was not woken"
    assert err == ""
    return out.splitlines()


def test_it_sleeps_as_long_as_it_says(bot: BotFolder) -> None:
    run = bot.run(
        """
        import time
        from the0 import sleep
        for seconds in (0, 0.0004, 0.05, 0.2):
            before = time.monotonic()
            woken = sleep(seconds)
            took = time.monotonic() - before
            assert not woken and seconds <= took < seconds + 2, (seconds, took)
        """
    )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ("-1", "ValueError: cannot sleep for -1 seconds: give 0 or more"),
        ("float('nan')", "ValueError: cannot sleep for nan seconds"),
        ("'5'", "TypeError: sleep takes a number of seconds, unlike '5'"),
        ("None", "TypeError: sleep takes a number of seconds, unlike None"),
    ],
)
def test_it_refuses_nonsense(bot: BotFolder, seconds: str, said: str) -> None:
    run = bot.run(f"from the0 import sleep\nsleep({seconds})")
    assert said in run.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_bot_with_a_handler_wakes(bot: BotFolder, number: signal.Signals) -> None:
    process = bot.start(
        FLAG
        + f"""
    signal.signal({int(number)}, lambda *_: asked.append(1))
    print("ready", flush=True)
    woken = sleep(float("inf"))
    print(woken, asked)
    """
    )
    ready(process)
    process.send_signal(number)
    assert ended(process) == ["True [1]"]


def test_a_bot_without_a_handler_is_ended(bot: BotFolder) -> None:
    process = bot.start("from the0 import sleep\nprint('ready', flush=True)\nsleep(1000)")
    ready(process)
    process.terminate()
    assert ended(process) == []
    assert process.returncode == -signal.SIGTERM


def test_a_handler_that_raises_ends_the_sleep(bot: BotFolder) -> None:
    process = bot.start(
        """
        import signal, sys
        from the0 import sleep
        def stop(*_):
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        try:
            print("ready", flush=True)
            sleep(1000)
        finally:
            print("cleaned up")
        """
    )
    ready(process)
    process.terminate()
    assert ended(process) == ["cleaned up"]
    assert process.returncode == 0


def test_a_request_between_two_sleeps_wakes_the_next_one_and_no_more(bot: BotFolder) -> None:
    process = bot.start(
        FLAG
        + """
    print("ready", flush=True)
    while not asked:
        time.sleep(0.01)
    before = time.monotonic()
    print(sleep(1000), sleep(0.2), time.monotonic() - before >= 0.2)
    """
    )
    ready(process)
    process.terminate()
    assert ended(process) == ["True False True"]


def test_other_signals_do_not_wake(bot: BotFolder) -> None:
    process = bot.start(
        FLAG
        + """
    signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"usr1\\n"))
    print("ready", flush=True)
    print(sleep(1000))
    """
    )
    ready(process)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert process.stdout.readline() == "usr1\n"
    assert process.poll() is None
    process.terminate()
    assert ended(process) == ["True"]


def test_every_sleeping_thread_wakes(bot: BotFolder) -> None:
    process = bot.start(
        FLAG
        + """
    def worker(n):
        sleep(0.01)  # so that each of them has been the one that reads the pipe
        started.wait()
        print("woken", n, sleep(1000), flush=True)
    started = threading.Barrier(6)
    workers = [threading.Thread(target=worker, args=(n,)) for n in range(5)]
    [w.start() for w in workers]
    started.wait()
    print("ready", flush=True)
    [w.join() for w in workers]
    """
    )
    ready(process)
    process.terminate()
    assert sorted(ended(process)) == [f"woken {n} True" for n in range(5)]


def test_threads_wake_while_the_main_thread_sleeps_too(bot: BotFolder) -> None:
    process = bot.start(
        FLAG
        + """
    workers = [threading.Thread(target=lambda: print(sleep(1000), flush=True)) for _ in range(2)]
    [w.start() for w in workers]
    print("ready", flush=True)
    print(sleep(1000), flush=True)
    [w.join() for w in workers]
    """
    )
    ready(process)
    process.terminate()
    assert ended(process) == ["True"] * 3


def test_a_request_at_any_moment_reaches_every_thread(bot: BotFolder) -> None:
    run = bot.run(
        FLAG
        + """
    woken, start = [], threading.Barrier(4)
    def rounds(ask):
        for n in range(200):
            start.wait()
            if ask:
                os.kill(os.getpid(), signal.SIGTERM)
            woken.append(sleep(20))
    workers = [threading.Thread(target=rounds, args=(False,)) for _ in range(3)]
    [w.start() for w in workers]
    rounds(True)
    [w.join() for w in workers]
    print(len(woken), all(woken), len(asked))
    """
    )
    assert (run.stdout, run.stderr) == ("800 True 200\n", "")


def test_a_forked_child_wakes_by_itself_only(bot: BotFolder) -> None:
    process = bot.start(
        FLAG
        + """
    child = os.fork()
    if child == 0:
        print("ready", flush=True)
        print("child", sleep(1000), flush=True)
        os._exit(0)
    signal.signal(signal.SIGCHLD, lambda *_: os.write(1, b"child ended\\n"))
    print("parent", sleep(1.0), flush=True)
    os.kill(child, signal.SIGTERM)
    print("parent", sleep(0.5), flush=True)
    os.waitpid(child, 0)
    """
    )
    ready(process)
    assert sorted(ended(process)) == ["child True", "child ended", "parent False", "parent False"]


def test_asyncio_keeps_its_own_signal_handling(bot: BotFolder) -> None:
    process = bot.start(
        """
        import asyncio, os, signal, threading, time
        from the0 import sleep, stops
        def ask():
            while not stops.WATCH._reading:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
        async def main():
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            sleep(0.05)
            threading.Thread(target=ask).start()
            print(sleep(1000), flush=True)
            await asyncio.wait_for(stop.wait(), 10)
            print("stopped")
        asyncio.run(main())
        print(sleep(0.01))
        """
    )
    assert ended(process) == ["True", "stopped", "False"]
