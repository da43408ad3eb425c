"""Cuts and participants drawn by a key: a baseline that anything has to beat."""

from __future__ import annotations

from dataclasses import replace

from sfl.keys import derive_seed
from sfl.planners.planner import Planner, Proposal
from sfl.planners.state import DeviceState, State


def propose(state: State) -> Proposal:
    """Each legal cut is equally likely, and so is each set of `select` devices."""
    chosen = {}
    selected = drawn(state, len(state.able))
    if state.aims.select:
        selected = selected[: state.aims.select]
    for device in state.able:
        legal = device.legal
        cut = legal[_key(state, device, "cut") % len(legal)]
        chosen[device.name] = replace(device.choice(cut), takes_part=device.name in selected)
    return Proposal(chosen, state.memory)


def drawn(state: State, count: int) -> list[str]:
    """So many of the devices that are able, in an order that the seed and the round give."""
    ranked = sorted(state.able, key=lambda device: (_key(state, device, "select"), device.name))
    return [device.name for device in ranked[:count]]


def _key(state: State, device: DeviceState, purpose: str) -> int:
    return derive_seed(state.seed, "planner", purpose, state.round, device.name)


RANDOM = Planner("random", propose)
