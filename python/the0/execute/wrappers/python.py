"""Runs a Python bot: `python.py WORD_FD CODE_PATH ENTRYPOINT SDK_FOLDER`, its environment is the bot's.

Started before the bot's code is there: imports what it needs from the standard library, waits on WORD_FD for one
byte, and only then opens anything below CODE_PATH. Then it imports ENTRYPOINT as the module `main`, calls its
`main(bot_id, config)` if it has one, and writes `<CODE_PATH>/result.json` unless the bot did.
"""

import atexit
import faulthandler
import importlib
import importlib.machinery
import importlib.util
import json
import logging
import os
import signal
import sys
import threading

RESULT = "result.json"
MESSAGE_CHARACTERS = 10_000
SUCCESS = (0, "success", "The bot has ended.")
NO_MAIN = (0, "success", "The file was run to its end: it has no main(bot_id, config) that could be called.")
TERMINATED = (0, "terminated", "The bot was asked to stop.")
IMPORT_MACHINERY = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


class Terminated(SystemExit):
    """Raised in the main thread by SIGTERM. A SystemExit: an event loop lets it through, `except Exception` too."""


def terminate(_number, _frame):
    raise Terminated(0)


def raise_again(unraisable):
    # Where Python cannot raise (`__del__`, callbacks of weak references) it would swallow the request to stop.
    if isinstance(unraisable.exc_value, Terminated):
        # A little later: raised from within this hook, it would be swallowed again.
        again = threading.Timer(0.02, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


def wait_for_word(fd):
    if not os.read(fd, 1):
        os._exit(0)
    os.close(fd)


def set_paths(code_path, entrypoint, sdk_folder):
    """As if the bot's folders had been in PYTHONPATH when the interpreter started."""
    bots = [os.path.join(code_path, "vendor"), code_path]
    # The bot's own children find the SDK too; in this process it comes after everything else.
    os.environ["PYTHONPATH"] = os.pathsep.join([*bots, sdk_folder])
    beside = os.path.dirname(os.path.join(code_path, entrypoint))
    if beside not in bots:
        bots.append(beside)
    sys.path[:] = [*bots, *sys.path[1:], sdk_folder]
    sys.argv[:] = [os.path.join(code_path, entrypoint)]
    importlib.invalidate_caches()
    sys.path_importer_cache.clear()
    if importlib.machinery.PathFinder.find_spec("sitecustomize", bots) is not None:
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")


def load(path):
    """The entrypoint as module `main`, whatever its file's suffix."""
    loader = importlib.machinery.SourceFileLoader("main", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("main", path, loader=loader))
    sys.modules["main"] = module
    loader.exec_module(module)
    return module


def config_text():
    """BOT_CONFIG. Where it was too large for a variable it is in a file, and code that looks for the variable finds it, too."""
    path = os.environ.get("BOT_CONFIG_FILE")
    if path and "BOT_CONFIG" not in os.environ:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        # Not into the process's own environment: no program could be started with so large a one.
        os.environ._data[os.environ.encodekey("BOT_CONFIG")] = os.environ.encodevalue(text)
    return os.environ["BOT_CONFIG"]


def call(module):
    """Whether there is a `main`."""
    main = getattr(module, "main", None)
    if not callable(main):
        return False
    returned = main(os.environ["BOT_ID"], json.loads(config_text()))
    if hasattr(returned, "__await__"):
        import asyncio

        async def awaited():
            await returned

        asyncio.run(awaited())
    return True


def run(code_path, entrypoint, sdk_folder):
    """(exit code, status, message) of the bot. What it raised was printed."""
    try:
        set_paths(code_path, entrypoint, sdk_folder)
        config_text()
        called = call(load(os.path.join(code_path, entrypoint)))
    except Terminated:
        return TERMINATED
    except SystemExit as asked:
        return exit_code(asked)
    except BaseException as failure:  # noqa: BLE001 - whatever a bot raises, it is told and has an exit code
        show(failure)
        return (130 if isinstance(failure, KeyboardInterrupt) else 1), "error", describe(failure)
    return SUCCESS if called else NO_MAIN


def exit_code(asked):
    if asked.code is None or asked.code == 0:
        return SUCCESS
    if isinstance(asked.code, int):
        return asked.code & 0xFF, "error", f"The bot ended with exit code {asked.code & 0xFF}."
    print(asked.code, file=sys.stderr)
    return 1, "error", str(asked.code)[:MESSAGE_CHARACTERS]


def describe(failure):
    try:
        told = f"{type(failure).__name__}: {failure}"[:MESSAGE_CHARACTERS]
    except Exception:  # noqa: BLE001 - the bot's own __str__ failed
        told = type(failure).__name__
    return f"{told}. {advice}" if (advice := remedy(failure)) else told


def remedy(failure):
    """What to do about the two mistakes that concern how bots are run; "" for all others."""
    if failure.__traceback__ is None and isinstance(failure, TypeError):
        return "The runtime calls main(bot_id, config): define it with these two parameters."
    if not isinstance(failure, ModuleNotFoundError) or not isinstance(failure.name, str):
        return ""
    package = failure.name.partition(".")[0]
    try:
        if package in sys.modules or importlib.util.find_spec(package) is not None:
            return ""  # a part of it is missing: it is there, though in another version than was meant
    except Exception:  # noqa: BLE001 - the bot's own finders
        return ""
    return (
        f"The bot's archive does not bring {package!r} along: install the package that has it into the bot's folder "
        "(pip install --target vendor PACKAGE), and deploy again."
    )


def show(failure):
    """The traceback, beginning with the bot's own frames."""
    trace = failure.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, *IMPORT_MACHINERY):
        trace = trace.tb_next
    sys.excepthook(type(failure), failure.with_traceback(trace), trace)
    if advice := remedy(failure):
        print(advice, file=sys.stderr)


def remove_former(path):
    """A result of an earlier run, or one that came with the archive, is not this run's."""
    try:
        os.unlink(path)
    except OSError:
        pass  # there is none, or it is not ours to remove; then the bot's word stands


def write_result(path, status, message):
    if os.path.lexists(path):
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "x", encoding="ascii") as file:
            json.dump({"status": status, "message": message}, file)
        os.replace(temporary, path)
    except OSError as failure:
        print(f"{path} cannot be written: {failure}", file=sys.stderr)


def start():
    word_fd, code_path, entrypoint, sdk_folder = int(sys.argv[1]), *sys.argv[2:5]
    result = os.path.join(code_path, RESULT)
    faulthandler.enable()
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    outcome = TERMINATED
    try:
        signal.signal(signal.SIGTERM, terminate)
        wait_for_word(word_fd)
        sys.unraisablehook = raise_again
        remove_former(result)
        # Registered first, hence run last: threads and callbacks of the bot's may still write a result of their own.
        atexit.register(lambda: write_result(result, *outcome[1:]))
        outcome = run(code_path, entrypoint, sdk_folder)
    except Terminated:
        pass  # it came before or after the bot's own code; `outcome` says which

    def ended(_number, _frame):
        # Threads of the bot's are still at work: a bot without them would have ended before.
        finish(result, TERMINATED if outcome in (SUCCESS, NO_MAIN) else outcome)

    if signal.getsignal(signal.SIGTERM) is terminate:
        signal.signal(signal.SIGTERM, ended)
    if outcome is TERMINATED:
        finish(result, outcome)
    sys.exit(outcome[0])


def finish(result, outcome):
    """Ends at once, as SIGTERM would have without us: threads that the bot left running are not waited for."""
    write_result(result, *outcome[1:])
    for step in (atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        try:
            step()
        except BaseException:  # noqa: BLE001, S110
            pass  # a pipe that nobody reads, a callback of the bot's that fails: the end comes all the same
    os._exit(outcome[0])


if __name__ == "__main__":
    start()
