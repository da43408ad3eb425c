"""Rounds: who takes part, when a round closes, what happens when somebody is lost.

Round r (1..R) sends out the adapter of round r-1, evaluates it where that is due, and trains; a
last one, R+1, only evaluates. A device lost within a round is left out of it and may join again
with the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import singledispatchmethod
from typing import assert_never

from sfl.config import RunSettings
from sfl.errors import ConfigError
from sfl.rounds.agreement import Agreement
from sfl.rounds.messages import (
    AdapterReady,
    Aggregate,
    Cause,
    Command,
    DeviceJoined,
    DeviceLost,
    DeviceMoved,
    DeviceOffended,
    DeviceReady,
    EdgeLost,
    EdgeReady,
    Event,
    Evict,
    Fault,
    FinishRun,
    Refuse,
    RefuseEdge,
    Rehearse,
    Rehearsed,
    Report,
    ReportReceived,
    Side,
    StartRound,
    Steps,
    TextForm,
    Tick,
    UpdateReceived,
    UpdatesRefused,
    UseModel,
    UseTextForm,
    Welcome,
)
from sfl.rounds.rehearsal import Rehearsal
from sfl.rounds.stragglers import Stragglers
from sfl.rounds.strikes import Strikes
from sfl.rounds.work import cannot_take, steps_of

OTHER_MODEL = (
    "it has another model than most of the run's edges: give all edges the same model, and the "
    "cloud as well, which then decides"
)


class Phase(StrEnum):
    """Where a run is."""

    WAITING = "waiting for devices"
    REHEARSAL = "timing steps"
    ROUND = "training"
    FINAL = "evaluating"
    AGGREGATING = "aggregating"
    OVER = "over"


@dataclass(slots=True)
class Device:
    """What is known of a connected device."""

    edge: str
    num_examples: int = 0
    ready: bool = False


@dataclass(slots=True)
class Progress:
    """What a participant has delivered in the open round."""

    steps: Steps
    num_examples: int
    final_steps: dict[Side, int] = field(default_factory=dict)
    reported: bool = False

    @property
    def trained(self) -> bool:
        """Both parts are in, and carry the same final step."""
        both = set(self.final_steps) == {"device", "edge"}
        return both and set(self.final_steps.values()) == {self.steps.count}

    @property
    def done(self) -> bool:
        """Nothing more is to come in this round."""
        return self.reported and (self.steps.count == 0 or self.trained)


class Coordinator:
    """The run's state machine; `handle` is its only door, `now` its only clock (seconds)."""

    def __init__(self, settings: RunSettings, now: float) -> None:
        self.settings = settings
        self.phase = Phase.WAITING
        self.round = 0
        self.devices: dict[str, Device] = {}
        self.progress: dict[str, Progress] = {}
        self.num_layers: int | None = None
        self.models = Agreement[tuple[int, str]](max(1, len(settings.run.edges)))
        self.forms = Agreement[TextForm](len(settings.devices))
        self._form_used = False
        self.strikes = Strikes(settings.aggregation.strikes)
        self.stragglers = Stragglers(settings.network, settings.min_devices)
        self._cannot_compute: dict[str, str] = {}  # with the open round's adapter, and why
        self._rehearsal: Rehearsal | None = None
        self._losses: dict[str, str] = {}  # why who is not there now was lost
        self._no_edge = False  # no device can come any more
        self._deadline = now + settings.network.join_timeout
        self._grace_ends = math.inf  # for those who are not there when enough are
        self._now = now

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event; return what is to be done, in order."""
        self._now = now
        return [] if self.phase is Phase.OVER else list(self._on(event))

    @singledispatchmethod
    def _on(self, event: Event) -> list[Command]:
        raise TypeError(event)

    @_on.register
    def _(self, event: EdgeReady) -> list[Command]:
        self._no_edge = False
        self._losses.pop(f"edge {event.edge}", None)
        self.models.say(event.edge, (event.num_layers, event.model))
        return self._agree()

    @_on.register
    def _(self, event: EdgeLost) -> list[Command]:
        self._no_edge = event.final
        return self._lose_edge(event.edge, event.reason) + self._advance()

    @_on.register
    def _(self, event: DeviceJoined) -> list[Command]:
        known = [entry.name for entry in self.settings.devices]
        if event.device not in known:
            reason = f"no device {event.device!r} in this run; known: {', '.join(known)}"
            return [Refuse(event.device, event.edge, reason)]
        if reason := self.strikes.out.get(event.device, ""):
            return [Refuse(event.device, event.edge, reason)]
        if event.device in self.devices:
            at = self.devices[event.device].edge
            reason = f"a device named {event.device!r} is connected already, at edge {at}"
            return [Refuse(event.device, event.edge, reason, in_use=True)]
        self.devices[event.device] = Device(event.edge)
        self._losses.pop(event.device, None)
        return [Welcome(event.device)]

    @_on.register
    def _(self, event: DeviceReady) -> list[Command]:
        if event.device not in self.devices:
            return []
        if (problem := cannot_take(self.settings, event.num_examples)) is not None:
            reason = self.strikes.put_out(event.device, problem)
            return [*self._send_away(event.device, reason, "link"), *self._advance()]
        device = self.devices[event.device]
        device.num_examples, device.ready = event.num_examples, True
        if event.form is not None:
            self.forms.say(event.device, event.form)
        return self._one_form() + self._advance()

    @_on.register
    def _(self, event: DeviceLost) -> list[Command]:
        return self._lose(event.device, event.reason, event.cause) + self._advance()

    @_on.register
    def _(self, event: UpdateReceived) -> list[Command]:
        progress = self._progress_of(event.device, event.round)
        if progress is None:
            return []
        if event.final_step != progress.steps.count:
            reason = (
                f"its {event.side} part ends at step {event.final_step}, not {progress.steps.count}"
            )
            return [*self._send_away(event.device, reason, "offence"), *self._advance()]
        progress.final_steps[event.side] = event.final_step
        return self._advance()

    @_on.register
    def _(self, event: DeviceOffended) -> list[Command]:
        if event.device not in {*self.devices, *self.progress}:
            return []
        return [*self._send_away(event.device, event.reason, "offence"), *self._advance()]

    @_on.register
    def _(self, event: UpdatesRefused) -> list[Command]:
        if self.phase is not Phase.AGGREGATING or event.round != self.round:
            return []
        commands: list[Command] = []
        for name, reason in sorted(event.reasons.items()):
            commands += self._send_away(name, reason, "offence")
        return [*commands, *self._merge()]

    @_on.register
    def _(self, event: ReportReceived) -> list[Command]:
        progress = self._progress_of(event.device, event.round)
        if progress is None:
            return []
        progress.reported = True
        return self._advance()

    @_on.register
    def _(self, event: DeviceMoved) -> list[Command]:
        self.stragglers.moved(event.device, event.count, event.resting, self._now)
        return []

    @_on.register
    def _(self, event: Rehearsed) -> list[Command]:
        if self._rehearsal is not None:
            self._rehearsal.note(event.device, event.seconds, event.value_bits)
        return self._advance()

    @_on.register
    def _(self, event: AdapterReady) -> list[Command]:
        if self.phase is not Phase.AGGREGATING:
            return []
        for name in self.progress:
            self.strikes.seen_through(name)
        self.phase = Phase.WAITING
        self._deadline = self._now + self.settings.network.join_timeout
        return self._advance()

    @_on.register
    def _(self, event: Tick) -> list[Command]:
        due = self._now >= min(self._deadline, self._grace_ends)
        return self._advance() if due or self.phase in (Phase.ROUND, Phase.FINAL) else []

    def _progress_of(self, device: str, round_: int) -> Progress | None:
        return self.progress.get(device) if round_ == self.round else None

    def _agree(self) -> list[Command]:
        """Use the model that was chosen, if one was, and go on without the edges of another."""
        if self.models.chosen is None:
            return []
        commands: list[Command] = []
        num_layers, model = self.models.chosen
        if self.num_layers is None:
            self.num_layers = num_layers
            if (problem := self._cannot_be_cut(num_layers)) is not None:
                return self._finish(False, problem)
            commands.append(UseModel(model))
        for edge in self.models.others:
            commands += [RefuseEdge(edge, OTHER_MODEL), *self._lose_edge(edge, OTHER_MODEL)]
        return commands

    def _one_form(self) -> list[Command]:
        """Have all rows become text as was chosen, if it was; whose do not is told so and ends."""
        if (chosen := self.forms.chosen) is None:
            return []
        commands: list[Command] = [] if self._form_used else [UseTextForm(chosen)]
        self._form_used = True
        for name in self.forms.others:
            reason = self.forms.said(name).unlike(chosen)
            # Started again with other data it may join.
            commands += [Evict(name, reason, final=True), *self._lose(name, reason)]
        return commands

    def _cannot_be_cut(self, num_layers: int) -> str | None:
        """Why a model of so many blocks cannot be cut as the settings say."""
        for entry in self.settings.devices:
            try:
                self.settings.plan(entry.name, num_layers)
            except ConfigError as error:
                return str(error)
        return None

    def _lose_edge(self, edge: str, reason: str) -> list[Command]:
        """Forget an edge and its devices."""
        self.models.forget(edge)
        commands: list[Command] = [Fault(self.round, "", f"edge {edge}: {reason}")]
        for name in sorted(n for n, device in self.devices.items() if device.edge == edge):
            commands += self._lose(name, f"its edge {edge} was lost")
            del self._losses[name]  # for the edge's reason
        self._losses[f"edge {edge}"] = reason
        return commands

    def _lose(self, name: str, reason: str, cause: Cause = "link") -> list[Command]:
        """Forget a device and, unless it had delivered everything, its part in the open round."""
        self.forms.forget(name)
        if self.devices.pop(name, None) is None:
            return []
        if cause == "adapter":
            self._cannot_compute[name] = reason
        if name in self.progress and not self.progress[name].done:
            del self.progress[name]
        self._losses[name] = said = self.strikes.note(name, cause, reason)
        told = [self._evict(name, said)] if name in self.strikes.out else []
        return [*told, Fault(self.round, name, said)]

    def _send_away(self, name: str, reason: str, cause: Cause) -> list[Command]:
        """Leave a device out of the open round, whatever it delivered, and close its stream."""
        self._losses[name] = said = self.strikes.note(name, cause, reason)
        self.progress.pop(name, None)
        self.devices.pop(name, None)
        self.forms.forget(name)
        return [self._evict(name, said), Fault(self.round, name, said)]

    def _evict(self, name: str, said: str) -> Evict:
        """Tell a device why it is left out now: when it comes back the run may be over."""
        return Evict(name, said, final=name in self.strikes.out)

    def _because(self) -> str:
        """Who is missing, and why, as the end of a sentence."""
        lost = self._losses.items()
        return "".join(f"; {who}: {why}" for who, why in lost if who not in self._cannot_compute)

    def _advance(self) -> list[Command]:
        """Do what the state allows: begin a round, close it, or give up."""
        match self.phase:
            case Phase.WAITING:
                return self._while_waiting()
            case Phase.REHEARSAL:
                return self._while_rehearsing()
            case Phase.ROUND:
                return self._while_training()
            case Phase.FINAL:
                return self._while_evaluating()
            case Phase.AGGREGATING:
                return self._while_aggregating()
            case Phase.OVER:
                return []
            case unknown:
                assert_never(unknown)

    def _while_waiting(self) -> list[Command]:
        ready = sorted(name for name, device in self.devices.items() if device.ready)
        out = self.strikes.out
        absent = [e.name for e in self.settings.devices if e.name not in {*ready, *out}]
        if len(ready) + len(absent) < self.settings.min_devices:
            return self._finish(False, self._too_many_out())
        enough = len(ready) >= self.settings.min_devices
        self._grace_ends = self._grace(enough)
        late = self._now >= min(self._deadline, self._grace_ends)
        # The first round waits for everybody; later ones go on with whoever is there.
        if not absent or (enough and (late or self.round > 0)):
            if self.models.chosen is None:
                self.models.settle([self.devices[name].edge for name in ready])
                if commands := self._agree():
                    return commands + self._advance()  # some devices may have gone with their edge
            self.forms.settle()
            if commands := self._one_form():
                return commands + self._advance()
            first = self.round == 0
            missed = [
                Fault(1, name, "did not join in time")
                for name in absent
                if first and not self.settings.device(name).optional
            ]
            if first and (rehearsal := Rehearsal.for_run(self.settings, ready)):
                self._rehearsal = rehearsal
                return [*missed, self._rehearse(rehearsal)]
            return [*missed, self._start(ready)]
        if self._no_edge:
            return self._finish(False, f"no edge is left{self._because()}")
        if late:
            waited = self.settings.network.join_timeout
            slow = "; where a model takes longer to read, raise network.join_timeout"
            return self._finish(
                False,
                f"{len(ready)} of at least {self.settings.min_devices} devices were "
                f"ready after {waited:g} s; missing: {', '.join(absent)}"
                f"{self._because() or slow}",
            )
        return [Report(f"waiting for {', '.join(absent)}")]

    def _too_many_out(self) -> str:
        """Why the run can't go on without those that are out for good."""
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(self.strikes.out.items()))
        return f"fewer than {self.settings.min_devices} devices are left: {reasons}"

    def _grace(self, enough: bool) -> float:
        """When waiting for the rest ends; it begins anew where somebody it counted on is lost."""
        grace = self.settings.network.join_grace
        if grace is None or not enough or self.round > 0:
            return math.inf
        return min(self._grace_ends, self._now + grace)

    def _rehearse(self, rehearsal: Rehearsal) -> Command:
        self.phase = Phase.REHEARSAL
        self._deadline = self._now + self.settings.network.round_timeout
        return Rehearse(rehearsal.devices, rehearsal.counts, rehearsal.codec)

    def _while_rehearsing(self) -> list[Command]:
        """Once every device that is still there has timed its steps: choose, and begin."""
        rehearsal = self._rehearsal
        assert rehearsal is not None
        rehearsal.keep(self.devices)
        if rehearsal.late and self._now < self._deadline:
            return []
        reason = f"not done within round_timeout ({self.settings.network.round_timeout:g} s)"
        commands: list[Command] = []
        for name in rehearsal.late:
            commands += self._send_away(name, reason, "silence")
        rehearsal.keep(self.devices)
        there = len(rehearsal.devices)
        if there < self.settings.min_devices:
            least = self.settings.min_devices
            reason = f"{there} of at least {least} devices timed their steps{self._because()}"
            return [*commands, *self._finish(False, reason + self._who_cannot_compute())]
        if rehearsal.try_next():
            return [*commands, self._rehearse(rehearsal)]
        self._rehearsal = None
        return [*commands, rehearsal.choose(), self._start(list(rehearsal.devices))]

    def _start(self, ready: list[str]) -> Command:
        self.round += 1
        self._grace_ends = math.inf
        training = self.round <= self.settings.run.rounds
        self.phase = Phase.ROUND if training else Phase.FINAL
        self._deadline = self._now + self.settings.network.round_timeout
        self._cannot_compute = {}
        self.stragglers.begin(self._now)
        settings, devices = self.settings, self.devices
        steps = {n: steps_of(settings, devices[n].num_examples, self.round) for n in ready}
        self.progress = {n: Progress(steps[n], devices[n].num_examples) for n in ready}
        due = settings.evaluation.extent(self.round - 1, settings.run.rounds)
        return StartRound(self.round, steps, due)

    def _while_training(self) -> list[Command]:
        left_out = self._leave_out_late()
        few = self._cannot_compute and len(self.progress) < self.settings.min_devices
        if not few and not all(progress.done for progress in self.progress.values()):
            return left_out
        return [*left_out, *self._merge()]

    def _merge(self) -> list[Command]:
        """Have what the round brought merged, if enough did."""
        trained = sorted(self.progress)
        if len(trained) < self.settings.min_devices:
            reason = (
                f"round {self.round} closed with {len(trained)} of at least "
                f"{self.settings.min_devices} devices{self._because()}"
            )
            return self._finish(False, reason + self._who_cannot_compute())
        self.phase = Phase.AGGREGATING
        self._deadline = self._now + self.settings.network.round_timeout
        return [Aggregate(self.round, {n: self.progress[n].num_examples for n in trained})]

    def _who_cannot_compute(self) -> str:
        """Who cannot do so with the round's adapter, to be put behind another reason."""
        reasons = sorted(self._cannot_compute.items())
        if not reasons:
            return ""
        whose = (
            f"; nobody can compute with what comes of round {max(0, self.round - 1)}'s adapter: "
        )
        return whose + "; ".join(f"{name}: {reason}" for name, reason in reasons)

    def _while_evaluating(self) -> list[Command]:
        left_out = self._leave_out_late()
        if not all(progress.done for progress in self.progress.values()):
            return left_out
        evaluated, least = len(self.progress), self.settings.min_devices
        if self._cannot_compute and not evaluated:
            reason = "nobody could evaluate the last adapter" + self._who_cannot_compute()
            return [*left_out, *self._finish(False, reason)]
        if evaluated < least:
            reason = (
                f"every round closed, but {evaluated} of at least {least} devices evaluated "
                f"the last adapter{self._because()}{self._who_cannot_compute()}"
            )
            return [*left_out, *self._finish(False, reason)]
        return [*left_out, *self._finish(True, "every round closed")]

    def _while_aggregating(self) -> list[Command]:
        """Averaging ends with an event of its own; a disk that never answers ends the run."""
        if self._now < self._deadline:
            return []
        waited = self.settings.network.round_timeout
        reason = f"round {self.round} was not averaged within round_timeout ({waited:g} s)"
        return self._finish(False, reason)

    def _leave_out_late(self) -> list[Command]:
        done = [name for name, progress in self.progress.items() if progress.done]
        rest = sorted(set(self.progress).difference(done))
        late = self.stragglers.late(done, rest, self._now)
        if over := self._now >= self._deadline:
            waited = self.settings.network.round_timeout
            late = dict.fromkeys(rest, f"not done within round_timeout ({waited:g} s)")
        commands: list[Command] = []
        for name, reason in late.items():
            excused = self.stragglers.rests(name) and not over
            commands += self._send_away(name, reason, "link" if excused else "silence")
        return commands

    def _finish(self, ok: bool, reason: str) -> list[Command]:
        self.phase = Phase.OVER
        return [FinishRun(ok, reason)]
