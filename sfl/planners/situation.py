"""The state of a run as a planner takes it: settings, who is there, and what all of it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sfl.config import RunSettings
from sfl.config.planner import ADVICE, OFF, ONCE
from sfl.config.ranges import cuts_of, ways_of
from sfl.cost.values import DeviceCost, EdgeCost, StageCost, Workload
from sfl.errors import SflError
from sfl.node.text import plain
from sfl.planners.decision import Choice, Decision, Memory
from sfl.planners.planner import Planner
from sfl.planners.registry import PLANNERS
from sfl.planners.state import Aims, DeviceState, EdgeState, StageState, State
from sfl.planners.told import Cut, Outcome

GUESSED = "nothing is measured yet, so that the seconds are a guess"
STAYS = "cuts stay until something is"
NO_STAGES: Mapping[str, StageCost] = {}


@dataclass(frozen=True, slots=True)
class Present:
    """A device that is there. `told` are its cuts with their memory, as it has foretold it itself;
    () where it has not. `memory` is its budget in bytes. `at` is None before it has a cut."""

    name: str
    edge: str
    cost: DeviceCost
    at: tuple[int, int] | None
    told: tuple[Cut, ...] = ()
    memory: int | None = None
    success: float = 1.0
    outcome: Outcome | None = None
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Remembered:
    """What comes from before: the planner's memory, and the choices of another run."""

    memory: Memory
    recorded: Mapping[str, Choice]


def state_of(
    settings: RunSettings,
    round_: int,
    workload: Workload,
    devices: Sequence[Present],
    edges: Mapping[str, EdgeCost],
    before: Remembered,
    stages: Mapping[str, StageCost] = NO_STAGES,
) -> State:
    """All that a decision on this round depends on; `edges` are all that are there, and `stages`
    those behind them, the first one first."""
    found = tuple(
        DeviceState(
            own.name,
            own.edge,
            own.cost,
            legal(settings, own.name, workload.num_layers, own.told),
            own.at,
            own.memory,
            own.success,
            own.outcome,
            settings.stage_cuts(own.name),
            own.noise,
            stage_range(settings, own.name),
        )
        for own in devices
    )
    return State(
        round_,
        workload,
        found,
        tuple(EdgeState(name, edges[name]) for name in sorted(edges)),
        aims_of(settings, round_),
        settings.run.seed,
        before.memory,
        before.recorded,
        tuple(StageState(name, cost) for name, cost in stages.items()),
    )


def legal(
    settings: RunSettings, device: str, num_layers: int, told: Sequence[Cut] = ()
) -> tuple[Cut, ...]:
    """The cuts that the settings allow, of those that the device has `told`, with their memory."""
    advises = settings.planner.policy == ADVICE
    ways = (ways_of if advises else cuts_of)(settings, device, num_layers)
    if not told:
        return tuple(Cut(*way) for way in ways)
    known = {cut.at: cut for cut in told}
    return tuple(known[way] for way in ways if way in known)


def stage_range(settings: RunSettings, device: str) -> tuple[int, int] | None:
    """The blocks that there may be before the stage behind a device's edge, where these may be
    chosen."""
    chooses = settings.planner.policy in (ADVICE, *ONCE)
    return settings.device(device).stage_cut_range if chooses else None


def aims_of(settings: RunSettings, round_: int = 1) -> Aims:
    """What `[planner]` wants, from this round on."""
    own, left = settings.planner, settings.run.rounds - round_ + 1
    return Aims(
        hysteresis=own.hysteresis,
        every_rounds=own.every_rounds,
        pays_back=max(1, min(own.pays_back, left)),
        slow_rounds=own.slow_rounds,
        weight=own.weight,
        energy=own.energy_budget,
        delay_value=own.delay_value,
        select=own.select,
        newcomers=own.newcomers,
        deadline=own.deadline,
        keep=own.keep,
        keep_bits=own.keep_bits,
    )


def planner_of(policy: str) -> Planner | None:
    """Who decides, with that policy; None where nobody does. Raises ConfigError for a plug-in that
    cannot be had."""
    return None if policy == OFF else PLANNERS["fleet" if policy == ADVICE else policy]


def decide(planner: Planner, state: State, measured: bool) -> tuple[Decision, State]:
    """The decision, and the state that it was taken from. Raises ValueError for an illegal one.

    Where nothing was `measured`, a planner that moves cuts for a gain knows of none: then only
    those devices get another cut whose present one is not legal.
    """
    if measured:
        return planner.decide(state), state
    weighs = planner.alone is not None or planner.together is not None
    known = state.staying() if weighs else state
    decision = planner.decide(known)
    said = (decision.why.note, GUESSED, STAYS if weighs else "")
    note = "; ".join(part for part in said if part)
    return replace(decision, why=replace(decision.why, note=note)), known


def unfit(state: State) -> dict[str, str]:
    """Devices that no cut fits, and why."""
    return {device.name: _misfit(device) for device in state.devices if not device.legal}


def _misfit(device: DeviceState) -> str:
    if not device.cuts:
        return "takes no part: it has no cut of its range"
    least, room = min(cut.memory for cut in device.cuts), device.memory or 0
    return (
        f"takes no part: the least of its cuts takes {least / 1e6:,.0f} MB, and device.memory is "
        f"{room / 1e6:,.0f} MB"
    )


def failure(policy: str, error: Exception) -> str:
    """What a run is told where its planner has raised this."""
    kind = "" if isinstance(error, SflError | ValueError) else f"{type(error).__name__}: "
    return f"planner {policy!r} failed, so that cuts stay: {kind}{plain(str(error))}"
