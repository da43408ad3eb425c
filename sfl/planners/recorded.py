"""What another run chose: its own decisions, round by round."""

from __future__ import annotations

from sfl.planners.decision import Choice
from sfl.planners.fixed import present
from sfl.planners.planner import Planner, Proposal
from sfl.planners.state import DeviceState, State


def propose(state: State) -> Proposal:
    """The recorded choices; a device without one, or whose cut is not legal now, stays."""
    unknown = tuple(device.name for device in state.able if not _holds(state, device))
    chosen = {
        device.name: present(device) if device.name in unknown else state.recorded[device.name]
        for device in state.able
    }
    note = f"nothing recorded that holds for {', '.join(unknown)}" if unknown else ""
    return Proposal(chosen, state.memory, note)


def _holds(state: State, device: DeviceState) -> bool:
    choice: Choice | None = state.recorded.get(device.name)
    return choice is not None and choice.at in {cut.at for cut in device.legal}


RECORDED = Planner("recorded", propose)
