"""The `sfl` command."""

import signal
import sys

from sfl.node.swallowed import heard

INTERRUPTED = "interrupted"


def main() -> None:
    """Entry point; Ctrl-C and SIGTERM are one line, also while the commands are being imported."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with heard():
            from sfl.cli.app import main as run

            run()
    except KeyboardInterrupt:
        sys.stderr.write(f"{INTERRUPTED}\n")
        sys.exit(130)


def interrupt(signum: int, frame: object) -> None:
    """What SIGTERM does until a command says otherwise: the same as Ctrl-C."""
    raise KeyboardInterrupt


__all__ = ["INTERRUPTED", "interrupt", "main"]
