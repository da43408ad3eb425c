"""The inside of a child process of `sfl run`.

The edge and the devices are forked from one process that has imported what all of them need
(`prepare_nursery`), so that five processes do not read torch and transformers five times: on two
cores that is most of the time to the first step. Nothing but imports has happened there: no
thread, no channel, no tensor.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import psutil
import setproctitle
import typer

from sfl.node.process import quiet_environment

NICE = 10
NURSERY = "sfl.cli.launch.nursery"
PACKAGE = "SFL_MODEL_PACKAGE"
"""Environment variable that tells the nursery which model's code to import."""


def prepare_nursery(model_package: str) -> None:
    """Start the process that edge and devices are forked from: it imports what they need."""
    quiet_environment()
    os.environ[PACKAGE] = model_package
    multiprocessing.set_forkserver_preload([NURSERY])
    with deaf_children():
        forkserver.ensure_running()  # it imports while the cloud starts


def end_nursery() -> None:
    """End what `prepare_nursery` started, also amid its imports, and wait for it.

    It has done nothing but import, so it is killed; once its forks have ended.
    """
    nursery: Any = forkserver._forkserver
    pid = nursery._forkserver_pid
    if pid is None or not _is_child(pid):
        return
    os.kill(pid, signal.SIGKILL)
    nursery._stop()


def _is_child(pid: int) -> bool:
    """Whether the process is one that this one started, and waits for."""
    try:
        return psutil.Process(pid).ppid() == os.getpid()
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started in here hear no Ctrl-C: the launcher tells them when to end."""
    resource_tracker.ensure_running()  # it blocks SIGINT for its own start, and then unblocks it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hear_again() -> None:
    """Of one's own session; what came of the terminal's before that is forgotten."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_child(kind: str, name: str, arguments: Sequence[str], log: Path) -> None:
    """Run a node's command here, its output in `log`; ends when the launcher is gone."""
    os.setsid()
    _hear_again()
    setproctitle.setproctitle(f"sfl {kind} {name} {' '.join(arguments)}")
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if kind == "device":
        # On one machine all wait for the edge: its threads do not wait for a device's.
        os.nice(NICE)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(_command(kind))
    app(args=list(arguments))


def _command(kind: str) -> Callable[..., None]:
    """The node's command; each is imported only where it runs."""
    if kind == "cloud":
        from cloud_aggregator.command import cloud

        return cloud
    if kind == "edge":
        from edge_server.command import edge

        return edge
    if kind == "stage":
        from edge_server.stage_command import stage

        return stage
    from device_agent.command import device

    return device


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
