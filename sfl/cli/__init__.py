"""The `sfl` command."""

from sfl.cli.app import main

__all__ = ["main"]
