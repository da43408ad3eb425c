"""Where edges add up what their devices trained: who adds what, and what becomes of lost updates.

An update stays at its edge from its device's report until the next round (`aggregation.sums` is
`at_edges`). Once a round closes, each edge is asked for one sum. The order has a number and names
the devices that count, so that asking again gives the same. Where devices are left out meanwhile,
all edges are asked anew.

An edge that is lost may come back with all that it keeps: it says so as it is ready. What it does
not keep any more, its devices train again. So a round that had closed may open once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sfl.rounds.away import go_away
from sfl.rounds.changed import changed
from sfl.rounds.messages import Aggregate, Evict, Fault, Reduce, SumReceived
from sfl.rounds.open_round import Reduction
from sfl.rounds.ordered import Ordered
from sfl.rounds.state import Away, Phase, RunState
from sfl.rounds.turn import Turn
from sfl.rounds.values import BEGINNING


def begin(turn: Turn) -> None:
    """Ask every edge for the sum over its devices of the open round."""
    state = turn.state
    found: dict[str, list[str]] = {}
    for name, own in state.open.progress.items():
        found.setdefault(own.edge, []).append(name)
    edges = {edge: tuple(sorted(names)) for edge, names in sorted(found.items())}
    _put(turn, Reduction(state.open.reduction.number + 1, edges))
    _ask(turn, edges)


def _ask(turn: Turn, edges: Iterable[str]) -> None:
    state = turn.state
    own = state.open.reduction
    asked = {edge: own.edges[edge] for edge in edges}
    turn.do(Reduce(state.round, own.number, asked, _examples(state)))


def _examples(state: RunState) -> dict[str, int]:
    return {name: own.num_examples for name, own in sorted(state.open.progress.items())}


def sum_received(turn: Turn, event: SumReceived) -> None:
    """An edge's sum is in the spool; with the last one the round is averaged."""
    state = turn.state
    own = state.open.reduction
    asked = state.phase is Phase.AGGREGATING and event.round == state.round
    if asked and event.number == own.number and event.edge in own.missing:
        _put(turn, changed(own, there=(*own.there, event.edge)))
        average(turn)


def average(turn: Turn) -> None:
    """Have the sums merged, once all are there."""
    state = turn.state
    if state.open.reduction.complete:
        turn.do(Aggregate(state.round, _examples(state), state.open.reduction.number))


def is_void(state: RunState) -> bool:
    """Whether edges add up devices that are not in the round any more."""
    own = state.open.reduction
    return bool(own.edges) and own.devices != state.open.progress.keys()


# -- edges that are lost ----------------------------------------------------------------------


def kept_at(state: RunState, edge: str) -> list[str]:
    """Devices whose updates this edge keeps, and is still to add up."""
    if state.phase not in (Phase.ROUND, Phase.AGGREGATING) or state.open.reduction.complete:
        return []
    parts = state.open.progress.items()
    return [name for name, own in parts if own.edge == edge and own.steps.count and own.trained]


def edge_back(turn: Turn, edge: str, keeps: Mapping[str, int]) -> bool:
    """An edge is here, and keeps updates of these rounds; whether something may follow."""
    state = turn.state
    if not turn.settings.sums_at_edges:
        return False
    turn.state = changed(state, sums_away=state.sums_away.without(edge))
    gone = [name for name in kept_at(state, edge) if keeps.get(name) != state.round]
    own = state.open.reduction
    if gone:
        train_again(turn, edge, gone, f"edge {edge} has come back without its update")
    elif state.phase is Phase.AGGREGATING and edge in own.missing:
        _ask(turn, [edge])
    return bool(gone)


def edge_lost(turn: Turn, edge: str, reason: str, seconds: float) -> None:
    """What an edge keeps is waited for as long as the edge itself is; 0: it will not be back."""
    if not turn.settings.sums_at_edges or not (names := kept_at(turn.state, edge)):
        return
    if not seconds:
        train_again(turn, edge, names, f"edge {edge} was lost with its update: {reason}")
        return
    state = turn.state
    away = Away(reason, state.now, state.now + seconds)
    turn.state = changed(state, sums_away=state.sums_away.put(edge, away))


def times_lost(turn: Turn, edge: str) -> int:
    """How often an edge was lost by now while its sum was waited for; 0 where it is not."""
    state, key = turn.state, f"edge {edge}"
    if state.phase is not Phase.AGGREGATING or edge not in state.open.reduction.missing:
        return 0
    often = state.vain.get(key, 0) + 1
    turn.state = changed(state, vain=state.vain.put(key, often))
    return often


def too_few_without(turn: Turn, edge: str) -> bool:
    """Whether a round could not be averaged without what this edge keeps."""
    progress = turn.state.open.progress
    return len(progress) >= turn.least > len(progress) - len(kept_at(turn.state, edge))


def averaged(turn: Turn) -> None:
    """A round is averaged: nobody of it was lost in vain, nor were its edges."""
    state = turn.state
    vain = state.vain
    for key in (*state.open.progress, *(f"edge {edge}" for edge in state.open.reduction.edges)):
        vain = vain.without(key)
    turn.state = changed(state, vain=vain, sums_away=Ordered())


def restarted(turn: Turn, seconds: float) -> None:
    """The cloud goes on: edges are to be back with what they keep."""
    for edge in sorted({own.edge for own in turn.state.open.progress.values()}):
        edge_lost(turn, edge, "the cloud was away", seconds)


def give_up(turn: Turn) -> None:
    """Go on without what edges kept that were not back in time."""
    now = turn.state.now
    for edge, away in turn.state.sums_away.items():
        if now >= away.until:
            turn.state = changed(turn.state, sums_away=turn.state.sums_away.without(edge))
            why = f"edge {edge} was lost with its update, and is not back: {away.reason}"
            train_again(turn, edge, kept_at(turn.state, edge), why)


def moved_on(turn: Turn, name: str) -> None:
    """A device is ready at one edge while another one, which is lost, keeps its update: it does not
    wait for that."""
    state = turn.state
    own = state.open.progress.get(name)
    if own is None or own.edge not in state.sums_away:
        return
    if state.roster.devices[name].edge != own.edge and name in kept_at(state, own.edge):
        turn.state = _undone(turn, name)
        _reopen(turn)


def train_again(turn: Turn, edge: str, names: Iterable[str], reason: str) -> None:
    """Updates are lost with their edge: who can still be counted on trains them again.

    Others are left out of the round. One that is at another edge by now joins there again, and so
    says what it can go on from.
    """
    for name in names:
        state, network = turn.state, turn.settings.network
        device = state.roster.devices.get(name)
        if device is None and name not in state.away:
            turn.state = changed(state, open=state.open.without(name, network))
            turn.do(Fault(state.round, name, reason))
            continue
        turn.state = _undone(turn, name)
        if device is not None and device.edge != edge:
            go_away(turn, name, reason, network.rejoin_timeout or network.join_timeout)
            turn.do(Evict(name, reason))
    _reopen(turn)


def _undone(turn: Turn, name: str) -> RunState:
    """Nothing is delivered of a device's part, and it goes on from what it says next."""
    state = turn.state
    left = state.open.undone(name, turn.settings.network)
    furthest = state.furthest.put(name, state.reached.get(name, BEGINNING))
    return changed(state, open=left, reached=state.reached.without(name), furthest=furthest)


def _reopen(turn: Turn) -> None:
    """A round that had closed is open again, where something of it is still to come."""
    state = turn.state
    if state.phase is Phase.AGGREGATING and not state.open.all_done:
        deadline = state.now + turn.settings.network.round_timeout
        turn.state = changed(state, phase=Phase.ROUND, deadline=deadline)


def _put(turn: Turn, reduction: Reduction) -> None:
    state = turn.state
    turn.state = changed(state, open=changed(state.open, reduction=reduction))
