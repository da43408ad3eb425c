"""Stages behind the edge: the deeper tiers of a run (docs/three-tiers.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveInt

from sfl.config.base import Section
from sfl.plan import TIERED

if TYPE_CHECKING:
    from sfl.config.sections import RunSections


class StagesSettings(Section):
    """The stages behind the edge (topologies `three_tier` and `three_tier_u_shaped`)."""

    cuts: tuple[PositiveInt, ...] = ()
    """Blocks before each stage, counted from the front of the model. One number for three tiers,
    two for four, and so on. The edge holds the blocks from a device's `cut_layer` to the first."""
    adapters: Literal["per_device", "shared"] = "per_device"
    """The last stage's LoRA: one with its optimizer for each device, or one for all of a round,
    whose steps take the mean of their gradients. `shared` is for `three_tier`."""
    up_mbit: NonNegativeFloat = 0.0
    """Megabits a second from an edge to the stage behind it, over all its devices. 0: no limit."""
    down_mbit: NonNegativeFloat = 0.0
    """Megabits a second from the stage to an edge, over all its devices. 0: no limit."""
    delay_ms: NonNegativeFloat = 0.0
    """Milliseconds added to each message between an edge and the stage behind it, each way."""


NO_STAGE = 'has no stage behind the edge; leave it out, or set run.topology to "three_tier"'


def stages_problem(run: RunSections) -> Iterator[str]:
    """What does not fit together in a run of three tiers or more; nothing where all does."""
    tiered = run.run.topology in TIERED
    counts = {len(entry.stage_cuts or run.stages.cuts) for entry in run.devices}
    if not tiered:
        given = {"cuts"} if counts != {0} else set()
        given |= {name for name, value in StagesSettings() if getattr(run.stages, name) != value}
        for name in sorted(given):
            yield f"stages.{name}: topology {run.run.topology} {NO_STAGE}"
        return
    if counts == {0}:
        yield "stages.cuts: give the blocks before each stage behind the edge, such as [6]"
    if len(counts) > 1:
        yield "devices.stage_cuts: all devices have as many stages; give as many numbers for each"
    if run.aggregation.traits.folds:
        yield (
            f"aggregation.strategy: {run.aggregation.strategy} adds to the base of every node, and "
            "a stage behind an edge does not take that; choose another one, or two tiers"
        )
    yield from _shared_problems(run)
    if run.planner.moves:
        yield (
            "planner.policy: a cut does not move in topology "
            f'{run.run.topology}; use "off", "fixed", "pairing" or "advice". Only `sfl run` '
            'chooses cuts, once, with "fleet" or "scan" and planner.costs'
        )


def _shared_problems(run: RunSections) -> Iterator[str]:
    """What a shared adapter does not go with."""
    if run.stages.adapters != "shared":
        return
    needs = 'stages.adapters: "shared" needs'
    if run.run.topology != "three_tier":
        yield f'{needs} the loss at the last stage: run.topology "three_tier"'
    if run.run.mode != "synchronous":
        yield f'{needs} rounds that begin together: run.mode "synchronous"'
    if run.aggregation.late_updates != "drop":
        yield f'{needs} everybody in the same round: aggregation.late_updates "drop"'
    if run.training.local_steps is None:
        yield f"{needs} as many steps of every device: set training.local_steps"
    if run.training.max_grad_norm is not None:
        yield f"{needs} gradients of all devices before it steps: leave training.max_grad_norm out"
    if run.recovery.snapshot_steps:
        yield f"{needs} to go on from rounds' ends: set recovery.snapshot_steps to 0"
    if "auto" in (run.training.micro_batches, run.codec.activation):
        yield f'{needs} nothing to be rehearsed: training.micro_batches and codecs without "auto"'
    yield from _unlike_parts(run, needs)


def _unlike_parts(run: RunSections, needs: str) -> Iterator[str]:
    """The adapter has the same parameters for all."""
    if any(device.rank not in (None, run.lora.rank) for device in run.devices):
        yield f"{needs} one rank: leave devices.rank out"
    last = {(entry.stage_cuts or run.stages.cuts)[-1:] for entry in run.devices}
    if len(last) > 1 or any(entry.stage_cut_range is not None for entry in run.devices):
        yield f"{needs} one place of the last stage: leave stage_cuts and stage_cut_range out"
