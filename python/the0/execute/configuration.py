"""BOT_CONFIG where it is too large for an environment: from a file, or from an object in the store."""

from __future__ import annotations

from collections.abc import Mapping

from the0 import names, settings
from the0.errors import ExitCode, Fatal, clip

DEADLINE_S = 10.0


def resolved(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment with BOT_CONFIG in it, read from where BOT_CONFIG_FILE or BOT_CONFIG_KEY says if it is not there itself.
    Fatal (USAGE) where there is nothing, store faults as they are. The object is fetched in a child that exits."""
    if environ.get(names.BOT_CONFIG) or not environ.get(names.BOT_CONFIG_KEY):
        return settings.with_config_file(environ)
    key = environ[names.BOT_CONFIG_KEY]
    store = settings.read_store(environ)
    bucket = settings.read_buckets(environ).state

    def fetch() -> str:
        from the0.objects.open import open_store

        found = open_store(store, deadline_s=DEADLINE_S).get(bucket, key, limit_bytes=settings.LONGEST_CONFIG_BYTES)
        # What is no UTF-8 is refused where the text is read.
        return found.data.decode("utf-8", "surrogateescape")

    from the0.objects.in_child import in_child
    from the0.objects.store import Missing, TooLarge

    try:
        text = in_child(fetch, doing=f"fetching {clip(key)}", timeout_s=2 * DEADLINE_S)
    except (Missing, TooLarge) as reason:
        raise Fatal(
            f"The configuration cannot be fetched: {reason.sentence.rstrip('.')}; correct {names.BOT_CONFIG_KEY}, or write the object.",
            code=ExitCode.USAGE,
        ) from reason
    return {**environ, names.BOT_CONFIG: text}
