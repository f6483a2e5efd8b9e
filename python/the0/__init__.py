"""What a bot imports: `parse`, `success`, `error`, `result`, `metric`, `log`, `sleep`, `state`, `query`.

Names load on first use, from the standard library only; nothing of the runtime is imported here.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as checkers read it; importing `typing` would cost a bot more than all else here
__version__ = "0.1.0"

if TYPE_CHECKING:
    from the0 import query, state
    from the0.bot import error, log, metric, parse, result, sleep, success

_BOT_NAMES = frozenset({"parse", "success", "error", "result", "metric", "log", "sleep"})
_MODULES = frozenset({"state", "query"})

__all__ = ["error", "log", "metric", "parse", "query", "result", "sleep", "state", "success"]


def __getattr__(name: str) -> object:
    if name in _BOT_NAMES:
        from the0 import bot

        return getattr(bot, name)
    if name in _MODULES:
        import importlib

        return importlib.import_module(f"the0.{name}")
    raise AttributeError(f"module 'the0' has no attribute {name!r}")
