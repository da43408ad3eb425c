"""The `sfl` command."""

import sys


def main() -> None:
    """Entry point; Ctrl-C is no traceback, not even while the commands are being imported."""
    try:
        from sfl.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


__all__ = ["main"]
