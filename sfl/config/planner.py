"""Who decides cuts, codecs and participants of a round, and what for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sfl.config.base import Fraction, OneOf, Section
from sfl.node.plugins import Registry
from sfl.plan import TIERED, U_SHAPED

if TYPE_CHECKING:
    from sfl.config.sections import RunSections

MOVING = ("fleet", "scan", "mincut", "card", "open", "two_timescale", "random", "recorded")
"""Planners that may move cuts."""
STAYING = ("fixed", "ucb", "pairing")
OFF, ADVICE = "off", "advice"
ONCE = ("fleet", "scan")
"""Planners that choose the cuts of a run in three tiers, before it begins."""

POLICIES: Registry[object] = Registry(
    "sfl.planners", object, dict.fromkeys((OFF, ADVICE, *MOVING, *STAYING), "")
)
"""What `planner.policy` may be; a test holds that these are the planners that there are."""


class PlannerSettings(Section):
    """Who decides what devices do in a round, and what for (docs/planning.md)."""

    policy: Annotated[str, OneOf(POLICIES)] = OFF
    """The planner. `off`: every device keeps its cut. `advice`: `fleet` decides, and its decisions
    are only shown."""
    every_rounds: PositiveInt = 1
    """A decision holds for so many rounds."""
    hysteresis: Fraction = 0.03
    """A cut moves only for a gain of at least this share, beside what the move itself costs, and
    beside what the rounds of its device differ by where nothing changes."""
    pays_back: PositiveInt = 5
    """Rounds in which a move is to save what it costs; fewer where the run ends before. More: cuts
    follow changes that do not last so long."""
    weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """`card`: what delay counts against the edge's energy. 1: delay alone."""
    energy_budget: PositiveFloat | None = None
    """`open`: joules of all nodes in a round, in the long run. Default: no bound."""
    delay_value: PositiveFloat = 1.0
    """`open`: what a second counts for, against the energy that is overdrawn (V)."""
    select: NonNegativeInt = 0
    """`ucb`, `random`: devices that take part in a round. 0: all."""
    newcomers: PositiveInt = 1
    """`ucb`: devices never seen that are tried in one round, at most."""
    deadline: PositiveFloat | None = None
    """`ucb`: a device that takes longer than so many seconds has not succeeded. Default: any time
    will do."""
    device_watts: NonNegativeFloat = 5.0
    """`open`, `card`: of a device while it computes, where it cannot measure its power."""
    radio_watts: NonNegativeFloat = 1.0
    """`open`, `card`: of a device while it sends or receives, where it cannot measure its power."""
    edge_watts: NonNegativeFloat = 100.0
    """`open`, `card`: of an edge while it computes at its fastest clock, where it cannot measure
    its power."""
    edge_least_clock: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """`open`, `card`: the slowest clock of an edge, as a share of its fastest. A chosen clock is
    advice: no edge sets it."""
    slow_rounds: PositiveInt = 10
    """`two_timescale`: decisions between two in which cuts and codecs may change."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """`two_timescale`: the least share of values that a sparse codec may keep."""
    keep_bits: Annotated[int, Field(ge=1, le=8)] = 4
    """`two_timescale`: bits of each value that is kept."""
    plans: str = ""
    """`recorded`: the `plans.jsonl` of the run whose decisions are repeated."""
    costs: str = ""
    """`fleet`, `scan` in three tiers: the run that has shown what nodes cost, by its name or
    folder. `sfl run` chooses all cuts by that before it starts, and they stay
    (docs/three-tiers.md)."""

    @property
    def decides(self) -> bool:
        """Whether rounds are as a planner says."""
        return self.policy not in (OFF, ADVICE)

    @property
    def moves(self) -> bool:
        """Whether cuts may move; a plug-in's may."""
        return self.decides and self.policy not in STAYING


_READ_BY = {
    "weight": ("card",),
    "energy_budget": ("open",),
    "delay_value": ("open",),
    "select": ("ucb", "random"),
    "newcomers": ("ucb",),
    "deadline": ("ucb",),
    "device_watts": ("open", "card"),
    "radio_watts": ("open", "card"),
    "edge_watts": ("open", "card"),
    "edge_least_clock": ("open", "card"),
    "slow_rounds": ("two_timescale",),
    "keep": ("two_timescale",),
    "keep_bits": ("two_timescale",),
    "plans": ("recorded",),
    "costs": ONCE,
}
"""Settings that only some planners read; plug-ins may read all."""


def planner_problem(run: RunSections) -> str | None:
    """What does not fit together of a run's planner and its other settings, if anything."""
    return next((problem for rule in _RULES for problem in rule(run)), None)


def _settings_are_read(run: RunSections) -> Iterator[str]:
    own = run.planner
    for name, readers in _READ_BY.items():
        said = getattr(own, name) != type(own).model_fields[name].default
        if said and own.policy in POLICIES.built_in and own.policy not in readers:
            able = " or ".join(map(repr, readers))
            yield f"planner.{name}: policy {own.policy!r} does not read it; use {able}, or leave it"
    if own.policy == "recorded" and not own.plans:
        yield "planner.plans: name the plans.jsonl of the run to repeat (runs/ID/plans.jsonl)"


def _rounds_begin_together(run: RunSections) -> Iterator[str]:
    if run.planner.policy != OFF and run.run.mode == "asynchronous":
        problem = "a planner decides rounds, and those of an asynchronous run overlap"
        yield f'planner.policy: {problem}; set it to "off", or run.mode to "synchronous"'


def _enough_are_selected(run: RunSections) -> Iterator[str]:
    select, needed = run.planner.select, run.aggregation.fewest_devices
    if 0 < select < needed:
        problem = f"{run.aggregation.strategy} needs {needed} devices in every round"
        yield f"planner.select: {problem}; use at least as many, or 0 for all"
    if select > len(run.devices):
        yield f"planner.select: at most the number of devices ({len(run.devices)})"


def _costs_are_read(run: RunSections) -> Iterator[str]:
    if run.planner.costs and run.run.topology not in TIERED:
        problem = f"in topology {run.run.topology} a run itself shows what nodes cost"
        yield f"planner.costs: {problem}; leave it out"


def _stage_ranges_are_read(run: RunSections) -> Iterator[str]:
    for entry in run.devices:
        if entry.stage_cut_range is None:
            continue
        field, (least, most) = f"devices.{entry.name}.stage_cut_range", entry.stage_cut_range
        cuts = entry.stage_cuts or run.stages.cuts
        if run.run.topology not in TIERED:
            yield f"{field}: topology {run.run.topology} has no stage; leave it out"
        elif len(cuts) > 1:
            yield f"{field}: it is for one stage, and here are {len(cuts)}; leave it out"
        elif not all(least <= cut <= most for cut in cuts):
            yield f"{field}: {least} to {most} has to contain the stage's cut {list(cuts)}"


def _ranges_are_read(run: RunSections) -> Iterator[str]:
    for entry in run.devices:
        for name in ("cut_range", "tail_range"):
            given, at = getattr(entry, name), entry.cut_layer
            field = f"devices.{entry.name}.{name}"
            if given is None:
                continue
            if name == "tail_range":
                at = entry.tail_layers
                if run.run.topology not in U_SHAPED:
                    yield f"{field}: the device has no tail in this topology; leave it out"
            least, most = given
            if not least <= at <= most:
                own = "cut_layer" if name == "cut_range" else "tail_layers"
                yield f"{field}: {least} to {most} has to contain {own} ({at}); change either"


_RULES = (
    _settings_are_read,
    _rounds_begin_together,
    _enough_are_selected,
    _ranges_are_read,
    _stage_ranges_are_read,
    _costs_are_read,
)
