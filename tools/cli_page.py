"""`docs/reference/cli.md`, from the commands themselves: `python -m tools.cli_page`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from sfl.cli.app import app

INTRO = """\
# Commands

<!-- Written by `python -m tools.cli_page > docs/reference/cli.md`; a test holds it in step. -->

Every command prints its options with `--help`. Commands that read a file take
`--set section.key=value`, as often as you like. [Configuration](../configuration.md) lists the
settings.

## Exit codes

| code | meaning | what a service manager should do |
|---|---|---|
| 0 | it did what it was asked to | nothing |
| 1 | it failed: the run, a peer, the network, a disk, memory | look at the message |
| 2 | you can fix it: a setting, a file, a model, an option | do not start it again as it is |
| 70 | a node met a bug in sfl; its log has the traceback | report it |
| 71 | a node had too little memory | the message names settings that need less |
| 75 | too early: its certificate is not valid yet, or a server does not answer | try again later |
| 130 | Ctrl-C or SIGTERM | nothing |

`sfl doctor` exits with 1 where it found a problem, and with 0 where it found warnings only.

Every error is one line. It names the field or the peer, says what is wrong, and says what to do.
[Troubleshooting](../troubleshooting.md) lists them.
"""

SHELL = ("install_completion", "show_completion")
"""Options that typer adds, worded by the shell that it finds."""

KINDS = {"Path": "PATH", "str": "TEXT", "int": "INTEGER", "bool": "", "float": "NUMBER"}


def document() -> str:
    """The whole page."""
    commands = _commands(typer.main.get_command(app), "sfl")
    return "\n".join([INTRO, *(_section(name, command) for name, command in commands)])


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that is not hidden, groups before what is in them."""
    if not command.hidden:
        yield name, command
        for child in sorted(getattr(command, "commands", {})):
            yield from _commands(command.commands[child], f"{name} {child}")


def _section(name: str, command: Any) -> str:
    params = [param for param in command.params if not param.hidden and param.name not in SHELL]
    arguments = [param for param in params if param.param_type_name == "argument"]
    options = [param for param in params if param.param_type_name == "option"]
    usage = " ".join([name, *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
    if hasattr(command, "commands"):
        usage = f"{name} COMMAND"
    rows = [*map(_row, arguments), *map(_row, options)]
    head = ["| argument or option | meaning | default |", "|---|---|---|"] if rows else []
    parts = [f"## {name}", "", (command.help or "").strip(), "", "```", usage, "```", ""]
    return "\n".join([*parts, *head, *rows, *([""] if rows else [])])


def _argument(param: Any) -> str:
    return param.name.upper() if param.required else f"[{param.name.upper()}]"


def _row(param: Any) -> str:
    if param.param_type_name == "argument":
        shown = f"`{param.name.upper()}`"
    else:
        shown = f"`{' '.join([', '.join(param.opts), _kind(param)]).strip()}`"
    return f"| {shown} | {_meaning(param)} | {_default(param)} |".replace("|  |", "| |")


def _kind(param: Any) -> str:
    """What an option takes, as its help shows it; nothing for a flag."""
    if param.metavar:
        return str(param.metavar)
    annotation = param.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return " or ".join(annotation)
    return KINDS[annotation.__name__]


def _meaning(param: Any) -> str:
    said = (param.help or "").replace("|", "\\|")
    variable = f" Environment: `{param.envvar}`." if param.envvar else ""
    return f"{said}{variable}".strip()


def _default(param: Any) -> str:
    """A default that says something: no flag's, and not that there is none."""
    if param.required:
        return "required"
    return "" if param.default in (None, False, "") else f"`{_plain(param.default)}`"


def _plain(value: Any) -> str:
    return value.as_posix() if isinstance(value, Path) else str(value)


if __name__ == "__main__":
    sys.stdout.write(document())
