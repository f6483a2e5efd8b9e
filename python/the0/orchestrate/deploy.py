"""`runtime deploy`: from a folder or zip to a stored bot. First a plan, whole and checked; then the archive, then the document,
so that whatever goes wrong before leaves all as it was."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from the0 import canonical, documents, names
from the0.documents import KINDS, BadBot, Bot, Kind
from the0.errors import ExitCode, Fatal, clip
from the0.objects.store import ObjectStore
from the0.orchestrate import archive as archives
from the0.orchestrate import hints, manifest, schedule
from the0.orchestrate.archive import Archive
from the0.orchestrate.bots import BotStore, Document
from the0.plain import plain

KEYS_BELOW: Final = "local"
"""Archives are `local/<bot>/<version>-<digest>` in the code bucket."""
_VERSION = re.compile(r"[A-Za-z0-9._+-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line says; None and () where it says nothing."""

    source: str
    bot_id: str | None = None
    config: Sequence[str] = ()
    """`K=V` each."""
    unset: Sequence[str] = ()
    kind: str | None = None
    runtime: str | None = None
    entrypoint: str | None = None
    query_entrypoint: str | None = None
    schedule: str | None = None
    version: str | None = None
    memory: str | None = None
    cpu: str | None = None
    start: bool = True
    """Of a new bot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    bot: Bot
    former: Document | None
    config: Mapping[str, Any]
    custom: Mapping[str, Any]
    changes: list[str]
    """What differs from what is stored, in words; empty: nothing does."""
    warnings: list[str] = field(default_factory=list)
    start: bool = True

    @property
    def action(self) -> str:
        if self.former is None:
            return "new"
        return "update" if self.changes else "nothing changed"

    def as_json(self, *, dry_run: bool) -> dict[str, Any]:
        return {
            "id": self.bot.id,
            "type": self.bot.kind,
            "action": self.action,
            "enabled": self.bot.enabled,
            "version": self.bot.version,
            "runtime": self.bot.runtime,
            "entrypoint": self.bot.entrypoint,
            "query_entrypoint": self.bot.query_entrypoint,
            "schedule": self.bot.schedule,
            "code": self.bot.file_path,
            "changes": self.changes,
            "warnings": self.warnings,
            "dry_run": dry_run,
        }


def make_plan(wanted: Wanted, archive: Archive, bots: BotStore, *, now: datetime | None = None) -> Plan:
    """Changes nothing. Raises Fatal in one sentence for whatever keeps the bot from running: USAGE, LANGUAGE, ENTRYPOINT."""
    about, folder = _about(archive)
    bot_id = wanted.bot_id or about.name or _name_of(wanted.source)
    former = bots.get(bot_id)
    settled = _settled(wanted, about)
    config = _config(wanted, about, manifest.read_config(folder), former, settled.schedule)
    manifest.check_config(config, about.schema)
    custom = _custom(settled, about, archive, bot_id)
    enabled = wanted.start if former is None else documents.is_enabled({**former.body, "config": config})
    whole = {"id": bot_id, "enabled": enabled, "config": config, "custom": custom}
    bot = documents.read(whole, kind=settled.kind)
    if isinstance(bot, BadBot):
        raise Fatal(bot.reason, code=ExitCode.USAGE)
    if bot.schedule is not None:
        schedule.parse(bot.schedule, timezone=bot.policies.timezone)
    _check_files(bot, archive)
    changes = _changes(former, bot, config, custom)
    stamp = (now or datetime.now(UTC)).isoformat(timespec="seconds").replace("+00:00", "Z")
    created = _custom_of(former).get("createdAt", stamp)
    return Plan(
        bot=bot,
        former=former,
        config=config,
        custom={**custom, "createdAt": created, "updatedAt": stamp},
        changes=changes,
        warnings=[*archive.warnings, *hints.hints(bot, archive), *_misspelled(config)],
        start=wanted.start,
    )


def carry_out(plan: Plan, archive: Archive, *, bots: BotStore, store: ObjectStore, bucket: str) -> None:
    """Idempotent; does nothing where nothing changed and the archive is in its place."""
    key = plan.bot.file_path
    if store.head(bucket, key) is None:
        store.put_file(bucket, key, archive.file.fileno())
    if plan.former is not None and not plan.changes:
        return
    if plan.former is None:
        body = {"id": plan.bot.id, "enabled": plan.start, "config": dict(plan.config), "custom": dict(plan.custom)}
        if not bots.insert(Document(plan.bot.id, plan.bot.kind, body)):
            raise Fatal(
                f"Bot {clip(plan.bot.id)} was deployed by somebody else meanwhile: look at it, and deploy again.",
                code=ExitCode.USAGE,
            )
    else:
        bots.update(plan.bot.id, plan.bot.kind, config=plan.config, custom=plan.custom)
    _forget_old(plan, store=store, bucket=bucket)


def code_prefix(bot_id: str) -> str:
    return f"{KEYS_BELOW}/{names.encode_id(bot_id)}/"


def parse_value(text: str, *, as_text: bool = False) -> Any:
    """A flag's value: JSON where it is JSON, else the text itself."""
    if as_text:
        return text
    try:
        return plain(canonical.loads_object(f'{{"v": {text}}}')["v"])
    except (ValueError, KeyError):
        return text


# --- what the bot is ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settled:
    kind: Kind
    runtime: str
    version: str
    entrypoints: Mapping[str, str]
    schedule: str | None


def _about(archive: Archive) -> tuple[manifest.Manifest, str]:
    """The manifest, and the folder that it and config.json are in."""
    for folder in dict.fromkeys((archive.folder, os.path.join(archive.folder, archive.top))):
        found = manifest.read_manifest(folder)
        if found is not None:
            return found, folder
    return manifest.Manifest(entrypoints={}, rest={}), archive.folder


def _name_of(source: str) -> str:
    last = os.path.basename(os.path.realpath(source))
    return last[:-4] if last.lower().endswith(".zip") else last


def _settled(wanted: Wanted, about: manifest.Manifest) -> _Settled:
    cron = wanted.schedule if wanted.schedule is not None else about.schedule
    kind = wanted.kind or about.kind or ("scheduled" if cron else "realtime")
    runtime = wanted.runtime or about.runtime
    entrypoints = {name: str(file) for name, file in about.entrypoints.items() if file}
    if wanted.entrypoint:
        entrypoints["bot"] = wanted.entrypoint
    if wanted.query_entrypoint is not None:
        entrypoints["query"] = wanted.query_entrypoint
    for what, value, flag in (
        ("which language runtime it needs", runtime, "--runtime"),
        ("which file to run", entrypoints.get("bot"), "--entrypoint"),
    ):
        if not value:
            raise Fatal(
                f"Nothing says of {clip(wanted.source)} {what}: add a {manifest.NAMES[0]}, or give {flag}.",
                code=ExitCode.USAGE,
            )
    if runtime not in documents.RUNTIMES:
        raise Fatal(
            f"The runtime {clip(runtime)!r} is unknown: use one of {', '.join(sorted(documents.RUNTIMES))}.",
            code=ExitCode.LANGUAGE,
        )
    version = wanted.version or about.version or "0"
    if kind == "realtime" and wanted.schedule is not None:
        raise Fatal(
            "A realtime bot has no schedule: leave --schedule out, or add --type scheduled.", code=ExitCode.USAGE
        )
    return _Settled(
        kind=KINDS[0] if kind == "realtime" else KINDS[1],
        runtime=runtime,
        version=version,
        entrypoints=entrypoints,
        schedule=cron if kind == "scheduled" else None,
    )


def _config(
    wanted: Wanted,
    about: manifest.Manifest,
    of_folder: Mapping[str, Any],
    former: Document | None,
    cron: str | None,
) -> dict[str, Any]:
    """What is stored stays where neither the folder nor a flag says otherwise."""
    before = former.body.get("config") if former is not None else None
    config: dict[str, Any] = {**(plain(before) if isinstance(before, Mapping) else {}), **of_folder}
    if cron is not None:
        config["schedule"] = cron
    if wanted.memory is not None:
        config["memory_limit"] = wanted.memory
    if wanted.cpu is not None:
        config["cpu_limit"] = wanted.cpu
    for text in wanted.config:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise Fatal(
                f"--config {clip(text.partition('=')[0])!r} has no value: write --config NAME=VALUE.",
                code=ExitCode.USAGE,
            )
        holder, last = _place(config, name)
        holder[last] = parse_value(value, as_text=holder is config and manifest.wants_text(about.schema, last))
    for name in wanted.unset:
        holder, last = _place(config, name)
        holder.pop(last, None)
    return manifest.with_defaults(config, about.schema)


def _place(config: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Policies of ours are named `the0.x`; every other name is the bot's own, dots and all."""
    first, dot, rest = name.partition(".")
    if not (first == "the0" and dot and rest):
        return config, name
    ours = config.get("the0")
    config["the0"] = dict(ours) if isinstance(ours, Mapping) else {}
    return config["the0"], rest


def _custom(settled: _Settled, about: manifest.Manifest, archive: Archive, bot_id: str) -> dict[str, Any]:
    label = settled.version if _VERSION.fullmatch(settled.version) else "version"
    return {
        "version": settled.version,
        "filePath": f"{code_prefix(bot_id)}{label}-{archive.digest[:16]}",
        "config": {
            **about.rest,
            "name": about.name or bot_id,
            "type": settled.kind,
            "runtime": settled.runtime,
            "version": settled.version,
            "entrypoints": dict(settled.entrypoints),
        },
    }


def _check_files(bot: Bot, archive: Archive) -> None:
    for entrypoint in (bot.entrypoint, bot.query_entrypoint):
        file, jar, _ = (entrypoint or "").partition(".jar:")
        path = f"{file}.jar" if jar else file
        if path and not archives.holds(archive, path):
            raise Fatal(
                f"The entrypoint {clip(path)!r} is not among the {len(archive.names)} files of the bot: "
                f"{hints.missing(bot, path, archive)}.",
                code=ExitCode.ENTRYPOINT,
            )


def _misspelled(config: Mapping[str, Any]) -> list[str]:
    ours = config.get("the0")
    unknown = sorted(set(ours) - documents.POLICY_NAMES) if isinstance(ours, Mapping) else []
    return [f"config.the0.{clip(name)} is no policy that this version knows, and does nothing." for name in unknown]


# --- what changes ---------------------------------------------------------------------------------


def _changes(former: Document | None, bot: Bot, config: Mapping[str, Any], custom: Mapping[str, Any]) -> list[str]:
    """Names only: a config's values may be secrets."""
    if former is None:
        return ["new"]
    found = []
    if former.kind != bot.kind:
        found.append(f"type: {former.kind} → {bot.kind}")
    before = _custom_of(former)
    if before.get("filePath") != custom["filePath"]:
        found.append("code")
    if before.get("version") != custom["version"]:
        found.append(f"version: {clip(str(before.get('version')))} → {clip(bot.version)}")
    told, tells = before.get("config"), custom["config"]
    told = told if isinstance(told, Mapping) else {}
    found += [name for name in sorted({*told, *tells} - {"version", "type"}) if told.get(name) != tells.get(name)]
    values = former.body.get("config")
    values = plain(values) if isinstance(values, Mapping) else {}
    changed = sorted(name for name in {*values, *config} if _differ(values, config, name))
    return found + [f"config.{clip(name)}" for name in changed]


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    return (name in one) != (name in other) or canonical.dumps(one.get(name)) != canonical.dumps(other.get(name))


def _custom_of(document: Document | None) -> Mapping[str, Any]:
    custom = document.body.get("custom") if document is not None else None
    return custom if isinstance(custom, Mapping) else {}


def _forget_old(plan: Plan, *, store: ObjectStore, bucket: str) -> None:
    """Archives that `deploy` made for this bot, but for the new one and the former one, which may be starting right now."""
    kept = (plan.bot.file_path, _custom_of(plan.former).get("filePath"))
    for info in list(store.list(bucket, code_prefix(plan.bot.id))):
        if info.key not in kept:
            store.delete(bucket, info.key)
