"""From a proposal to a decision: what is illegal is refused, and a move is made only where it pays.

The one place for hysteresis and for the cost of moving, whatever the planner. A move pays where the
share of the score that it saves is above the sum of three: `hysteresis`; what the movers' rounds
differ by where nothing changes, because among many plans one always looks better by chance; and the
seconds that the move takes, as a share of the rounds in which it is to pay itself back. So whoever
stays is never worse than 1 / (1 - that sum) times the proposal, and whoever moves is foretold to be
better off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, isinf
from statistics import median
from typing import TYPE_CHECKING

from sfl.planners.decision import Choice, Decision, Memory, Why
from sfl.planners.seconds import alone_seconds, moving_seconds, step_of
from sfl.planners.state import DeviceState, State, foretold

if TYPE_CHECKING:
    from sfl.planners.planner import Planner, Proposal

Choices = Mapping[str, Choice]


@dataclass(frozen=True, slots=True)
class _Settled:
    """Choices that hold, and how they compare."""

    devices: Choices
    memory: Memory
    moved: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    staying: float | None = None
    needed: float = 0.0
    moving: float = 0.0


def settle(planner: Planner, state: State) -> Decision:
    """A decision with its reasons. Raises ValueError for a proposal that is not legal."""
    proposal = planner.propose(state)
    _check(state, proposal.devices)
    settled = _Settled(proposal.devices, proposal.memory, _moved(state, proposal.devices))
    if planner.alone or planner.together:
        weigh = _each_alone if planner.alone else _together
        settled = weigh(planner, state, proposal)
    chosen = _complete(state, settled.devices)
    return Decision(
        round=state.round,
        policy=planner.name,
        devices=chosen,
        order=_order(state, chosen),
        memory=settled.memory,
        why=_why(planner, state, settled, proposal.note),
    )


def score(planner: Planner, state: State, choices: Choices) -> float:
    """What the planner makes small: its own measure of all devices, or its sum over each."""
    if planner.together is not None:
        return planner.together(state, choices)
    if planner.alone is None:
        return 0.0
    alone = planner.alone
    return sum(alone(state, device, choices[device.name]) for device in state.able)


def _check(state: State, choices: Choices) -> None:
    able, layers = {device.name: device for device in state.able}, state.workload.num_layers
    if choices.keys() != able.keys():
        raise ValueError(f"a choice is needed for each of {sorted(able)}, not {sorted(choices)}")
    for name, choice in choices.items():
        own = able[name]
        if choice.at not in {cut.at for cut in own.legal}:
            raise ValueError(f"{name}: {choice.at} is no legal cut")
        ways = {one.stage_cuts for one in own.choices(layers) if one.at == choice.at}
        if choice.stage_cuts not in ways:
            raise ValueError(f"{name}: {choice.stage_cuts} is no place of its stage")


def _moved(state: State, choices: Choices) -> tuple[str, ...]:
    return tuple(d.name for d in state.able if d.at is not None and choices[d.name].at != d.at)


def _gain(staying: float, going: float) -> float:
    """The share that is saved."""
    if isinf(staying):
        return 1.0
    return (staying - going) / staying if staying > 0.0 else 0.0


def _needed(state: State, noise: float, moving: float, round_seconds: float) -> float:
    """The share from which on a move pays."""
    aims = state.aims
    held = max(aims.every_rounds, aims.pays_back) * round_seconds
    return aims.hysteresis + noise + (moving / held if held > 0.0 else 0.0)


def _each_alone(planner: Planner, state: State, proposal: Proposal) -> _Settled:
    """Each device moves, or not, by its own score."""
    assert planner.alone is not None
    go = proposal.devices
    stay = {device.name: _staying(device, go[device.name]) for device in state.able}
    chosen, kept, moving, needed = dict(go), [], 0.0, 0.0
    for device in state.able:
        name = device.name
        if go[name].at == stay[name].at:
            continue
        cost = moving_seconds(device, go[name], state.workload.num_layers)
        least = _needed(state, device.noise, cost, alone_seconds(state, device, stay[name]))
        before = planner.alone(state, device, stay[name])
        if _gain(before, planner.alone(state, device, go[name])) > least:
            moving, needed = max(moving, cost), max(needed, least)
        else:
            chosen[name] = stay[name]
            kept.append(name)
    staying, moved = score(planner, state, stay), _moved(state, chosen)
    return _Settled(chosen, proposal.memory, moved, tuple(kept), staying, needed, moving)


def _staying(device: DeviceState, choice: Choice) -> Choice:
    """The same at the present cut, where that is legal."""
    present = device.at if device.at in {cut.at for cut in device.legal} else None
    cut_layer, tail_layers = present or choice.at
    return replace(choice, cut_layer=cut_layer, tail_layers=tail_layers)


def _together(planner: Planner, state: State, go: Proposal) -> _Settled:
    """All move, or none does that need not; what goes with the present cuts is proposed anew."""
    assert planner.together is not None
    stay = planner.propose(state.staying())
    going, staying = go.devices, stay.devices
    movers = [device for device in state.able if going[device.name].at != staying[device.name].at]
    before, after = (planner.together(state, choices) for choices in (staying, going))
    layers = state.workload.num_layers
    moving = max((moving_seconds(one, going[one.name], layers) for one in movers), default=0.0)
    noise = median(device.noise for device in movers) if movers else 0.0
    needed = _needed(state, noise, moving, foretold(state, staying).bound) if movers else 0.0
    if movers and _gain(before, after) <= needed:
        names = tuple(device.name for device in movers)
        moved = _moved(state, staying)
        return _Settled(staying, stay.memory, moved, names, before, needed)
    return _Settled(going, go.memory, _moved(state, going), (), before, needed, moving)


def _complete(state: State, choices: Choices) -> dict[str, Choice]:
    """With those who have no legal cut, who take no part."""
    return {
        device.name: choices.get(device.name) or Choice(*(device.at or (0, 0)), takes_part=False)
        for device in state.devices
    }


def _order(state: State, choices: Choices) -> tuple[str, ...]:
    """Who has most to do after the edge's answer first."""
    tails = {}
    for device in state.able:
        choice = choices[device.name]
        if choice.takes_part:
            step = step_of(state, device, choice)
            tails[device.name] = step.backward + step.legs[-1].down
    return tuple(sorted(tails, key=lambda name: (-tails[name], name)))


def _why(planner: Planner, state: State, settled: _Settled, note: str) -> Why:
    told = foretold(state, settled.devices)
    slowest = told.slowest
    found = score(planner, state, settled.devices)
    rival, rival_score = _runner_up(planner, state, settled)
    return Why(
        seconds=told.seconds,
        bound=told.bound,
        slowest=slowest,
        parts=told.devices[slowest].alone if slowest else {},
        joules=told.energy.joules,
        energy_source=told.energy.source,
        score=found,
        staying=None if settled.staying is None or isinf(settled.staying) else settled.staying,
        runner_up=rival,
        runner_up_score=rival_score,
        gain=0.0 if settled.staying is None else _gain(settled.staying, found),
        needed=settled.needed,
        moving_seconds=settled.moving,
        moved=settled.moved,
        kept=settled.kept,
        note=note,
    )


def _runner_up(planner: Planner, state: State, settled: _Settled) -> tuple[str, float | None]:
    """The best of what is simple: to stay, all with the fewest blocks, all with the most."""
    if not (planner.alone or planner.together):
        return "", None
    chosen = settled.devices
    rivals: dict[str, float] = {}
    if settled.staying is not None and settled.moved:
        rivals["stay"] = settled.staying
    for name, index in (("fewest blocks", 0), ("most blocks", -1)):
        layers = state.workload.num_layers
        other = {device.name: _at_end(chosen, device, index, layers) for device in state.able}
        if any(other[name].at != chosen[name].at for name in other):
            rivals[name] = score(planner, state, other)
    best = min(rivals, key=lambda name: rivals[name], default="")
    value = rivals.get(best, inf)
    return best, None if isinf(value) else value


def _at_end(chosen: Choices, device: DeviceState, index: int, num_layers: int) -> Choice:
    end = device.choices(num_layers)[index]
    return replace(
        chosen[device.name],
        cut_layer=end.cut_layer,
        tail_layers=end.tail_layers,
        stage_cuts=end.stage_cuts,
    )
