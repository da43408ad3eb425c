"""Edges and devices come and go."""

from __future__ import annotations

from itertools import islice

from sfl.config import RunSettings
from sfl.errors import ConfigError
from sfl.rounds import reducing
from sfl.rounds.asynchronous import begin_idle
from sfl.rounds.away import come_back, go_away, loads, takes_part, too_few_without
from sfl.rounds.changed import changed
from sfl.rounds.messages import (
    Cause,
    DeviceJoined,
    DeviceReady,
    EdgeReady,
    Evict,
    Fault,
    Refuse,
    RefuseEdge,
    Report,
    UseModel,
    UseTextForm,
    Welcome,
)
from sfl.rounds.ordered import Ordered
from sfl.rounds.placing import elsewhere, settled_at
from sfl.rounds.planning import keep_to_memory
from sfl.rounds.state import Phase, RunState
from sfl.rounds.turn import NAMED, Turn
from sfl.rounds.values import EdgeBase
from sfl.rounds.work import cannot_take

MOST_VAIN = 10
"""Times that a device may be lost before it delivers a part again: one that never does so would
hold up a round for ever."""
OTHER_MODEL = (
    "it has another model than most of the run's edges: give all edges the same model, and the "
    "cloud as well, which then decides"
)


def edge_ready(turn: Turn, event: EdgeReady) -> None:
    """An edge is here, and has a say in what the model is."""
    state = turn.state
    models = state.models.say(event.edge, (event.num_layers, event.model))
    losses = state.losses.without(f"edge {event.edge}")
    base = EdgeBase(event.num_layers, event.credits, event.address, event.store)
    bases = state.bases.put(event.edge, base)
    turn.state = changed(state, models=models, bases=bases, losses=losses, no_edge=False)
    one_model(turn)


def lose_edge(
    turn: Turn, edge: str, reason: str, returns: bool = False, elsewhere: bool = False
) -> None:
    """Forget an edge and its devices; those of one that `returns` are waited for, and those that
    may come back `elsewhere`.

    One that is lost again and again before its sum is there is waited for no more.
    """
    turn.state = changed(turn.state, models=turn.state.models.forget(edge))
    seconds = turn.settings.network.rejoin_timeout
    said = f"edge {edge}: {reason}"
    if returns and (often := reducing.times_lost(turn, edge)) > MOST_VAIN:
        said = f"{said}; it was lost {often} times while its sum was waited for"
        if reducing.too_few_without(turn, edge):
            turn.stop(said)
            return
        returns = False
    if returns and seconds and _is_under_way(turn):  # a fault only if it is not back in time
        turn.do(Report(f"{said}; waiting {seconds:g} s for it"))
    else:
        turn.do(Fault(turn.state.round, "", said))
    reducing.edge_lost(turn, edge, reason, seconds if returns else 0.0)
    names = turn.state.roster.at(edge)
    tired = [name for name in names if turn.state.vain.get(name, 0) >= MOST_VAIN]
    if returns and too_few_without(turn, tired):
        turn.stop(f"{said}; it was lost {MOST_VAIN + 1} times, and its devices came no further")
        return
    for name in names:
        cause: Cause = "link" if returns or elsewhere else "left"
        device_lost(turn, name, f"its edge {edge} was lost: {reason}", cause, with_edge=True)
    losses = turn.state.losses
    for name in names:
        losses = losses.without(name)  # for the edge's reason
    turn.state = changed(turn.state, losses=losses.put(f"edge {edge}", reason))


def device_lost(
    turn: Turn, name: str, reason: str, cause: Cause = "link", with_edge: bool = False
) -> None:
    """A device is gone: who takes part and may come back is waited for.

    One that fell silent may too; it is a strike, and after the last one nobody waits. So it is for
    one that comes back again and again and delivers nothing, but where its edge was lost. One that
    is here, and that others waited for, is out of the round at once; who rests has no strike.
    """
    state, seconds = turn.state, turn.settings.network.rejoin_timeout
    if cause == "stuck" and state.open.stragglers.rests(name):
        cause = "left"
    strikes, said = state.strikes.note(name, cause, reason)
    returns = cause in ("link", "silence") and name not in strikes.out
    if not (returns and seconds and name in state.roster.devices and takes_part(state, name)):
        turn.lose(name, reason, cause)
    elif (often := state.vain.get(name, 0) + 1) > MOST_VAIN:
        again = f"{reason}; lost {often} times without a part delivered"
        turn.state = changed(state, vain=state.vain.without(name))
        turn.lose(name, again, "link" if with_edge else "silence")
    else:
        turn.state = changed(state, strikes=strikes, vain=state.vain.put(name, often))
        go_away(turn, name, said, seconds)


def _is_under_way(turn: Turn) -> bool:
    """Whether who is lost is waited for: before that, nobody counts on anybody."""
    return turn.state.round > 0 or turn.state.phase in (Phase.REHEARSAL, Phase.PLANNING)


def restarted(turn: Turn) -> None:
    """Everybody is to come back, and has the time of those that start; so has a next restart.

    Before the first round the run begins anew.
    """
    state, network = turn.state, turn.settings.network
    if state.round == 0:
        turn.state = changed(RunState.begin(turn.settings, state.now), strikes=state.strikes)
        return
    seconds = max(network.rejoin_timeout, network.join_timeout)
    turn.state = state = changed(state, vain=Ordered())
    if state.phase in (Phase.WAITING, Phase.PLANNING):  # the planner is asked again
        deadline = max(state.deadline, state.now + seconds)
        turn.state = changed(state, phase=Phase.WAITING, deadline=deadline)
    for name in sorted({*state.roster.devices, *state.away}):
        go_away(turn, name, "the cloud was away", seconds)
    reducing.restarted(turn, seconds)


def one_model(turn: Turn) -> None:
    """Use the model that was chosen, if one was, and go on without the edges of another."""
    if (chosen := turn.state.models.chosen) is None:
        return
    num_layers, model = chosen
    if turn.state.num_layers is None:
        turn.state = changed(turn.state, num_layers=num_layers)
        if (problem := _cannot_be_cut(turn.settings, num_layers)) is not None:
            turn.finish(False, problem)
            return
        turn.do(UseModel(model))
    for edge in turn.state.models.others:
        turn.do(RefuseEdge(edge, OTHER_MODEL))
        lose_edge(turn, edge, OTHER_MODEL)


def _cannot_be_cut(settings: RunSettings, num_layers: int) -> str | None:
    """Why a model of so many blocks cannot be cut as the settings say."""
    # A device of each cut: the others are cut as it is.
    first: dict[tuple[int, int, tuple[int, ...]], str] = {}
    for entry in settings.devices:
        cuts = entry.cut_layer, entry.tail_layers, tuple(entry.stage_cuts)
        first.setdefault(cuts, entry.name)
    for name in first.values():
        try:
            settings.plan(name, num_layers)
        except ConfigError as error:
            return str(error)
    return None


def device_joined(turn: Turn, event: DeviceJoined) -> None:
    """A device asks to take part: admit it, or say why not."""
    reason, in_use = _refusal(turn, event.device)
    if reason:
        turn.do(Refuse(event.device, event.edge, reason, in_use))
        return
    if there := elsewhere(turn, event):
        reason = f"it is to be at edge {there[0]}" if len(there) == 1 else "the nearest edge is its"
        turn.do(Refuse(event.device, event.edge, reason, elsewhere=there))
        return
    state = turn.state
    roster, losses = state.roster.join(event.device, event.edge), state.losses.without(event.device)
    turn.state = changed(state, roster=roster, losses=losses)
    loads(turn, event.device)
    turn.do(Welcome(event.device))


def _refusal(turn: Turn, device: str) -> tuple[str, bool]:
    """(why a device is not let in, whether its name is in use); no reason where it is."""
    roster, out = turn.state.roster, turn.state.strikes.out
    if device in out:
        return out[device], False
    if not roster.knows(device):
        return f"no device {device!r} in this run; known: {_known(turn.settings)}", False
    if device in roster.devices:
        at = roster.devices[device].edge
        return f"a device named {device!r} is connected already, at edge {at}", True
    return "", False


def _known(settings: RunSettings) -> str:
    names = [entry.name for entry in islice(settings.devices, NAMED)]
    more = len(settings.devices) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def device_ready(turn: Turn, event: DeviceReady) -> None:
    """A device has its span and its data, if those can take part."""
    if (problem := cannot_take(turn.settings, event.num_examples)) is not None:
        turn.put_out(event.device, problem)
        return
    state = turn.state
    roster = state.roster.make_ready(event.device, event.num_examples)
    forms = state.forms if event.form is None else state.forms.say(event.device, event.form)
    turn.state = changed(state, roster=roster, forms=forms)
    reducing.moved_on(turn, event.device)
    settled_at(turn, event.device, roster.devices[event.device].edge)
    keep_to_memory(turn, event.device, event.facts)
    come_back(turn, event)
    one_form(turn)
    begin_idle(turn, [event.device])


def one_form(turn: Turn) -> None:
    """Have all rows become text as was chosen, if it was; whose do not is told so and ends."""
    forms = turn.state.forms
    if forms.chosen is None:
        return
    if not turn.state.form_used:
        turn.state = changed(turn.state, form_used=True)
        turn.do(UseTextForm(forms.chosen))
    for name in forms.others:
        reason = forms.said[name].unlike(forms.chosen)
        # Started again with other data it may join.
        turn.do(Evict(name, reason, final=True))
        turn.lose(name, reason)
