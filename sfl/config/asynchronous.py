"""Rounds that overlap: how many updates an average takes, and what an old one counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveInt

from sfl.config.base import Section

if TYPE_CHECKING:
    from sfl.config.sections import RunSections

Mode = Literal["synchronous", "asynchronous"]


class StalenessSettings(Section):
    """What becomes of an update whose round is not the latest any more."""

    late_updates: Literal["drop", "weighted"] = "drop"
    """Synchronous runs: what happens to an update that comes after its round has closed. `drop`: it
    does not count, and its device begins with the next round. `weighted`: the device finishes its
    round, and the update counts in a later average, with a staleness weight."""
    staleness_exponent: NonNegativeFloat = 0.5
    """The change of an update that began s adapters ago counts for (1 + s) to the minus this. 0: it
    counts in full."""
    max_staleness: PositiveInt | None = None
    """Most adapters that may have been made since an update began. An older update does not count,
    and that is told as a fault. Default: no bound."""
    buffer_size: PositiveInt | None = None
    """Asynchronous runs: updates of different devices that make the next adapter. Default: half of
    the devices, or as many as `aggregation.strategy` needs."""

    def staleness_weight(self, staleness: int) -> float:
        """What a change counts for, so many adapters after it began; 1 for a fresh one."""
        return float((1.0 + staleness) ** -self.staleness_exponent)


def problem_of(run: RunSections) -> str | None:
    """What does not fit together of a run's mode and its other settings, if anything."""
    return next((problem for rule in _RULES for problem in rule(run)), None)


def _mode_is_read(run: RunSections) -> Iterator[str]:
    own, mode = run.aggregation, run.run.mode
    if mode == "asynchronous":
        if own.late_updates != "drop":
            yield "aggregation.late_updates: it is for synchronous runs; leave it out"
        return
    if own.buffer_size is not None:
        fix = 'set run.mode = "asynchronous", or leave it out'
        yield f"aggregation.buffer_size: it is for asynchronous runs; {fix}"
    for name in ("staleness_exponent", "max_staleness") if own.late_updates == "drop" else ():
        if getattr(own, name) != type(own).model_fields[name].default:
            fix = 'set aggregation.late_updates = "weighted", or leave it out'
            yield f"aggregation.{name}: a late update does not count in this run; {fix}"


def _waits_are_read(run: RunSections) -> Iterator[str]:
    for name in ("straggler_factor", "straggler_seconds"):
        default = type(run.network).model_fields[name].default
        if run.run.mode == "asynchronous" and getattr(run.network, name) != default:
            problem = "nobody waits for a slow device in an asynchronous run"
            yield f"network.{name}: {problem}; leave it out"


def _changes_can_be_carried(run: RunSections) -> Iterator[str]:
    own, late = run.aggregation, run.aggregation.late_updates == "weighted"
    if own.traits.changes_basis and (late or run.run.mode == "asynchronous"):
        field = "aggregation.late_updates" if late else "run.mode"
        problem = f"strategy {own.strategy!r} gives components another meaning in every round"
        yield f"{field}: {problem}, so that no older change can be added; use another strategy"


def _buffer_can_be_filled(run: RunSections) -> Iterator[str]:
    own, count = run.aggregation, len(run.devices)
    size, least = own.buffer_size, run.run.min_devices
    if size is None:
        return
    if size > count:
        yield f"aggregation.buffer_size: at most the number of devices ({count})"
    if size < own.fewest_devices:
        needed = f"{own.strategy} needs {own.fewest_devices} devices in every average"
        yield f"aggregation.buffer_size: {needed}; use at least as many"
    if least is not None and least > size:
        yield f"run.min_devices: at most aggregation.buffer_size ({size}); lower it, or raise that"


def _sums_are_of_one_round(run: RunSections) -> Iterator[str]:
    own = run.aggregation
    if own.sums == "flat":
        return
    problem = f'aggregation.sums = "{own.sums}": the devices of a sum begin from one adapter'
    if run.run.mode == "asynchronous":
        yield f'{problem}, and in an asynchronous run they do not; leave it at "flat"'
    elif own.late_updates == "weighted":
        fix = 'use aggregation.late_updates = "drop", or leave sums at "flat"'
        yield f"{problem}, and a late update does not; {fix}"


_RULES = (
    _mode_is_read,
    _waits_are_read,
    _changes_can_be_carried,
    _buffer_can_be_filled,
    _sums_are_of_one_round,
)
