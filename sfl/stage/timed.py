"""Passes timed for the cost model where one measurement holds several: devices, or parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from sfl.metrics.costs import Work
from sfl.metrics.snapshot import Phase
from sfl.metrics.stats import PhaseTimes
from sfl.stage.messages import Key

Task = tuple[Key, str, int]
"""A micro-batch, whose it is, and its tokens."""


def tokens_of(tasks: Sequence[Task]) -> int:
    """Of all."""
    return sum(tokens for _, _, tokens in tasks)


def count(
    phases: PhaseTimes, phase: Phase, tasks: Sequence[Task], work: Work, begin: float, end: float
) -> None:
    """A pass of these micro-batches together: each device has a share, by its tokens."""
    total = work.tokens
    for key, device, tokens in tasks:
        phases.passes.add(phase, key, device, work, end - begin, tokens / total)


@contextmanager
def forward_together(phases: PhaseTimes, tasks: Sequence[Task], work: Work) -> Iterator[None]:
    """A forward of these, as a pass."""
    begin = phases.now()
    yield
    count(phases, "forward", tasks, work, begin, phases.now())


@contextmanager
def end_backward(
    phases: PhaseTimes, tasks: Sequence[Task], blocks: int, output: torch.Tensor
) -> Iterator[None]:
    """Time the backward from a loss, apart for the head and for the blocks before it.

    `output` is what the head reads: a hook on it says when the head is done, and changes no bit. An
    accelerator computes behind the hooks, so that there both are one pass.
    """
    marks: list[float] = []
    if output.requires_grad and not output.is_cuda:
        output.register_hook(lambda gradient: marks.append(phases.now()))  # type: ignore[no-untyped-call]
    begin = phases.now()
    yield
    end, tokens = phases.now(), tokens_of(tasks)
    for key, device, _ in tasks:
        phases.share("backward", key, device, begin, end, len(tasks))
    if marks:
        count(phases, "backward", tasks, Work(tokens, head=True), begin, marks[0])
        count(phases, "backward", tasks, Work(tokens, blocks), marks[0], end)
    else:
        count(phases, "backward", tasks, Work(tokens, blocks, head=True), begin, end)
