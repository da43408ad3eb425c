"""Which thread of a process computes with how many cores: one with all of them, the others alone.

libgomp counts the threads of all teams in a process. Where they come to more than the cores, every
barrier of every team becomes a sleep and a wake-up: some thousands in each step. A thread that
codes, reads or answers therefore opens no team of its own.
"""

from __future__ import annotations

import threading

import torch

from sfl.codec.compiled.calls import use_threads


def compute_here(threads: int) -> None:
    """The calling thread computes with `threads` cores; every other thread, from now on, with one.

    A thread that computed before this call keeps the number it had then.
    """
    use_threads(threads)  # its threads are no team of OpenMP's, and live for a call only
    _set(threads)
    # torch has one number for all threads that have not computed yet: the last that was set.
    others = threading.Thread(target=_set, args=(1,), name="one-core", daemon=True)
    others.start()
    others.join()


def _set(threads: int) -> None:
    torch.set_num_threads(threads)
    # A thread takes the number up when it is first asked for, not when it is set.
    torch.get_num_threads()
