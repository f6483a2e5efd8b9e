"""`runtime completion bash|zsh|fish`: prints what a shell needs to complete commands, flags and bots. Made from the parser
itself, so that it is never behind."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

SHELLS: Final = ("bash", "zsh", "fish")
Words = dict[str, tuple[list[str], bool]]
"""By command ("" is `runtime` itself, "state show" a command within one): what may follow, and whether bots may, too."""


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    words = dict(_words(parser, ""))
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](words)


def _words(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, tuple[list[str], bool]]]:
    found: list[str] = []
    bots = False
    inner: list[tuple[str, argparse.ArgumentParser]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            inner += list(action.choices.items())
        elif action.option_strings:
            found += [option for option in action.option_strings if option.startswith("--")]
        elif action.metavar == "BOT":
            bots = True
        elif action.choices:
            found += [str(choice) for choice in action.choices]
    found += [inner_name for inner_name, _ in inner]
    yield name, (sorted(found), bots)
    for inner_name, inner_parser in inner:
        yield from _words(inner_parser, f"{name} {inner_name}".strip())


def _bash(words: Words) -> str:
    cases = "\n".join(
        f'    "{name}") words="{" ".join(found)}"{" bots=1" if bots else ""} ;;'
        for name, (found, bots) in words.items()
        if name
    )
    return f"""\
# bash completion for runtime: `source <(runtime completion bash)`
_runtime() {{
  local word command="" candidate words="{" ".join(words[""][0])}" bots="" at
  local known="{"|".join(name for name in words if name)}"
  for ((at = 1; at < COMP_CWORD; at++)); do
    word="${{COMP_WORDS[at]}}"
    candidate="${{command:+$command }}$word"
    [[ "|$known|" == *"|$candidate|"* ]] && command="$candidate"
  done
  case "$command" in
{cases}
  esac
  [[ -n "$bots" && "${{COMP_WORDS[COMP_CWORD]}}" != -* ]] && words="$(runtime completion bots 2>/dev/null)"
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
  [[ "$command" == deploy ]] && COMPREPLY+=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o filenames -F _runtime runtime the0-runtime
"""


def _zsh(words: Words) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + _bash(words).replace(
        "# bash completion for runtime: `source <(runtime completion bash)`",
        "# zsh completion for runtime: `source <(runtime completion zsh)`",
    )


def _fish(words: Words) -> str:
    lines = ["# fish completion for runtime: `runtime completion fish | source`", "complete -c runtime -f"]
    lines += [f"complete -c runtime -n __fish_use_subcommand -a {word}" for word in words[""][0] if word[0] != "-"]
    for name, (found, bots) in words.items():
        if not name:
            continue
        seen = " ; and ".join(f"__fish_seen_subcommand_from {part}" for part in name.split())
        for word in found:
            what = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c runtime -n '{seen}' {what}")
        if bots:
            lines.append(f"complete -c runtime -n '{seen}' -a '(runtime completion bots 2>/dev/null)'")
    lines.append("complete -c runtime -n '__fish_seen_subcommand_from deploy' -F")
    return "\n".join(lines) + "\n"
