"""Where queries of stored state run on this machine: in folders and control groups of their own beside the bot's."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from typing import Final

from the0 import files, names
from the0.documents import Bot
from the0.errors import clip
from the0.orchestrate import groups
from the0.orchestrate.data import BotFolders, Data
from the0.orchestrate.place import Place
from the0.orchestrate.process_place import Places

CLEARING_S: Final = 2.0
"""What is not dead by then is beyond anybody's reach; it can start nothing any more."""
_LOOK_S: Final = 0.005


class QueryPlaces:
    """Of one platform. For one bot, one query process at a time: they share its folders."""

    def __init__(self, data: Data, places: Places) -> None:
        self._data = data
        self._places = places
        for left in places.query_groups():
            _clear((left,))  # those of an `up` that was killed, whose questions nobody waits for

    def folders(self, bot: Bot) -> BotFolders:
        """The bot's code stays there from one query to the next."""
        return BotFolders(os.path.join(self._all_of(bot), bot.config_hash))

    def make(self, bot: Bot, told: Mapping[str, str]) -> Place:
        """For one process; `told` is its environment beyond what every query of this bot has. Raises Fault (LOCAL_DISK)."""
        common = {
            names.BOT_ID: bot.id,
            names.RUNTIME: bot.runtime,
            names.ENTRYPOINT: bot.entrypoint,
            names.QUERY_ENTRYPOINT: bot.query_entrypoint or "",
            names.CODE_FILE: bot.file_path,
            names.BOT_CONFIG: bot.config_json,
            names.BOT_TYPE: bot.kind,
        }
        try:
            self._remove_former(bot)
            limited = self._places.groups_for_queries(names.encode_id(bot.id), bot.limits)
            return self._places.place(self.folders(bot), {**common, **told}, groups=limited)
        except OSError as reason:
            raise files.disk_fault(reason, f"preparing a query of bot {clip(bot.id)}") from reason

    def clear(self, place: Place) -> None:
        """Ends whatever is left of a process that had this place."""
        _clear(place.groups)

    def _all_of(self, bot: Bot) -> str:
        return os.path.join(self._data.bot(bot.id).path, "queries")

    def _remove_former(self, bot: Bot) -> None:
        folder = self._all_of(bot)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for name in os.listdir(folder):
            if name != bot.config_hash:
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)  # of another version; harms nobody


def _clear(folders: tuple[str, ...]) -> None:
    deadline = time.monotonic() + CLEARING_S
    while not groups.clear(folders) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    groups.remove(folders)
