"""`sfl run`: all processes of a run on this machine, started, watched and stopped together."""

from sfl.cli.launch.run import run_on_this_machine

__all__ = ["run_on_this_machine"]
