"""What the commands of `sfl` take."""

from __future__ import annotations

from typing import Any

import typer.main

from sfl.cli.app import app


def options_of(*names: str) -> set[str]:
    """The options of a command of `sfl`."""
    command: Any = typer.main.get_command(app)
    for name in names:
        command = command.commands[name]
    return {option for parameter in command.params for option in parameter.opts}
