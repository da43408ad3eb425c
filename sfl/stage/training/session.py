"""What an edge remembers about a device that trains, and the work it does for it.

All of this runs on the edge's one compute thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sfl.adapters.lora import Adapter, LoraBank
from sfl.config import RunSettings
from sfl.errors import ProtocolError, SflError
from sfl.metrics.stats import NodeStats
from sfl.metrics.timeline import watched_step
from sfl.models.span import SpanModel
from sfl.plan import Holder, Plan, Span, Toward, given_by
from sfl.rounds.values import Assignment
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.distil.lessons import Lessons, School
from sfl.stage.messages import TEACHER, GradientNorm, Key, Kind, Outgoing, Purpose, TensorMessage
from sfl.stage.optimizer import NO_MOMENTS, Optimizer
from sfl.stage.remembered import IN_MEMORY, GoOn, Within
from sfl.stage.session import Group, Request
from sfl.stage.swapping import Residence
from sfl.stage.training.blocks import Blocks
from sfl.stage.training.stepper import Stepper
from sfl.stage.training.trained import Trained

Handlers = dict[tuple[Purpose, Kind], Callable[[TensorMessage], list[Outgoing]]]


@dataclass(frozen=True, slots=True)
class Flight:
    """A micro-batch whose gradient is still to come, with the graph between its two ends.

    Without a graph the forward is computed again from the message when the gradient comes.
    """

    message: TensorMessage
    graph: tuple[torch.Tensor, torch.Tensor] | None


class TrainingSession(ABC):
    """One device's adapter, optimizer and open round over the shared base.

    With `recompute` blocks keep their input only and run again for their backward, and no graph
    waits for a gradient that has yet to come: the input of all blocks does. With a `residence` its
    tensors may be swapped to a file while it has nothing to do.
    """

    def __init__(
        self,
        device: str,
        assignment: Assignment,
        model: SpanModel,
        bank: LoraBank,
        settings: RunSettings,
        stats: NodeStats,
        recompute: bool = False,
        residence: Residence | None = None,
        holder: Holder = "edge",
        school: School | None = None,
    ) -> None:
        """`holder` is the stage server that this is on, `school` what teaches its devices there."""
        self.device = device
        self.holder = holder
        self.assignment = assignment
        """What the session is built for: the open round's, or what joining asked for."""
        self.settings = settings
        self.stats = stats
        self.residence = residence
        """What decides whether its tensors are in memory, if anything does."""
        self.trained = self._made(model, bank)
        self.blocks = Blocks(
            device,
            self.span,
            model,
            bank,
            self.adapter,
            COMPUTATIONS[settings.computation],
            stats,
            settings.run.seed,
            recompute,
            wants_gradient=self.span.first > 0,
        )
        self.stepper = self._stepper()
        self.lessons = None if school is None else Lessons(device, school, stats, self.check_lesson)
        """What a teacher says of its messages, where there is one."""
        self.is_open = False
        """Whether a round has begun."""
        self.served_seconds = 0.0
        self._flights: dict[Key, Flight] = {}
        enter(self)

    def _made(self, model: SpanModel, bank: LoraBank) -> Trained:
        """This device's adapter, made anew."""
        own = adapter_of(self.device, self.assignment, self.span, model, bank, self.settings)
        return Trained(own, self.settings)

    def _stepper(self) -> Stepper:
        return Stepper(self.device, self.optimizer, self.stats, self.span.num_blocks)

    @property
    def plan(self) -> Plan:
        """Who computes what."""
        return self.assignment.plan

    @property
    def span(self) -> Span:
        """The blocks of it that are computed here."""
        return self.plan.span_of(self.holder)

    @property
    def model(self) -> SpanModel:
        """The shared base."""
        return self.blocks.model

    @property
    def adapter(self) -> Adapter:
        """This side's part of the device's adapter."""
        return self.trained.adapter

    @property
    def optimizer(self) -> Optimizer:
        """AdamW over that part."""
        return self.trained.optimizer

    @property
    def step(self) -> int:
        """Steps taken in the open round."""
        return self.stepper.step

    @property
    def steps_left(self) -> int:
        """Steps that the open round has yet to take; 1 where none is open."""
        return self.assignment.steps.count - self.step if self.is_open else 1

    # -- a round ---------------------------------------------------------------------------

    def begin_round(
        self,
        assignment: Assignment,
        values: Mapping[str, np.ndarray],
        moments: Mapping[str, torch.Tensor] = NO_MOMENTS,
        go_on: GoOn = IN_MEMORY,
    ) -> None:
        """Take the global adapter's part; the optimizer's moments stay where they mean the same.

        What it does not have in memory of the point that it goes on from is in `go_on`.

        Adapter and optimizer are made anew only where the span or the rank is another. Moments of
        blocks that stay are kept by name. Those of blocks that come from the device are `moments`.
        Raises ProtocolError, before anything has changed, where the assignment is none for this
        base.
        """
        enter(self)
        if go_on.moments is not None:
            self.optimizer.let_go()
        if not assignment.same_adapter(self.assignment):
            self._rebuild(assignment)
        self.optimizer.adopt(go_on.moments or NO_MOMENTS)
        self.optimizer.adopt(moments)
        self.trained.begin_round(values, assignment.round)
        if go_on.step:
            self.trained.resume(go_on)
        self.open(assignment, go_on.step)

    def open(self, assignment: Assignment, step: int) -> None:
        """A round begins after so many of its steps; its adapter is there."""
        self.assignment, self.is_open = assignment, True
        steps = watched_step(assignment.steps.count)
        self.stats.phases.timeline.watch(self.device, assignment.round, steps)
        self.stepper.begin_round(step)
        # Shallow cuts ask for more in every round; carried over, that debt would never be paid.
        self.served_seconds = 0.0
        self._flights.clear()

    def _rebuild(self, assignment: Assignment) -> None:
        """Another span, or another rank: the adapter that it asks for, with what is remembered."""
        blocks, span = self.blocks, assignment.plan.span_of(self.holder)
        model, bank = blocks.model, blocks.bank
        adapter = adapter_of(self.device, assignment, span, model, bank, self.settings)
        self.trained = Trained(adapter, self.settings, self.optimizer.held())
        gradient = span.first > 0
        self.blocks = replace(blocks, span=span, adapter=adapter, wants_gradient=gradient)
        self.stepper = Stepper(self.device, self.optimizer, self.stats, span.num_blocks)

    def given(self, go_on: GoOn) -> dict[str, torch.Tensor]:
        """The moments of the blocks that the device gets with the round that begins; a copy."""
        blocks = given_by(self.holder, go_on.moves)
        moments = go_on.of_blocks(blocks, self.moments()) if blocks else {}
        return {name: tensor.detach().clone() for name, tensor in moments.items()}

    def end_round(self) -> dict[str, np.ndarray]:
        """This side's part of the adapter. Raises ProtocolError unless every step was taken."""
        enter(self)
        due = self._open.steps.count
        if self.step != due:
            raise ProtocolError(f"round ends at step {self.step} of {due}")
        return self.trained.state()

    def moments(self) -> dict[str, torch.Tensor]:
        """The optimizer's, by name, as they are now."""
        enter(self)
        return self.optimizer.moments()

    def within(self) -> Within:
        """What there is after the steps taken, to go on from it."""
        enter(self)
        return self.trained.within(self.assignment.point(self.step))

    def close(self) -> None:
        """Give everything back: graphs, optimizer, adapter, and the file they are swapped to."""
        self._flights.clear()
        if self.residence is not None:
            self.residence.leave(self.device)
        self.blocks.bank.remove(self.device)

    @property
    def _open(self) -> Assignment:
        if not self.is_open:
            raise ProtocolError("no round is open")
        return self.assignment

    # -- swapping (sfl.stage.swapping.Swappable) ---------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no gradient is there or to come: between two steps, or between rounds."""
        waits = bool(self._flights) or self.stepper.waits_for_norm
        return not waits and not self.trained.has_gradients

    def held(self) -> dict[str, torch.Tensor]:
        """Adapter, moments and anchors."""
        return self.trained.held()

    def let_go(self) -> None:
        """Give up their memory."""
        self.trained.let_go()

    def take_back(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Have them again."""
        self.trained.take_back(tensors)

    # -- messages ----------------------------------------------------------------------------

    def handle(self, message: Request) -> list[Outgoing]:
        """Do the work a message asks for; what to send then, in order. Raises ProtocolError."""
        enter(self)
        if isinstance(message, GradientNorm):
            norms = self.stepper.take_norm(self._open, message)
            return [Outgoing(norm.toward, norm) for norm in norms if self._has_neighbour(norm)]
        self.check(message)
        return self._handlers()[message.key.purpose, message.kind](message)

    def group(self, message: Request) -> Group | None:
        """What messages must share to go through the base as one batch; None where none may."""
        return None

    @abstractmethod
    def _handlers(self) -> Handlers:
        """What this topology does for each kind of tensor."""

    def check(self, message: TensorMessage) -> None:
        """Raise ProtocolError where a tensor is not due."""
        own, key = self.assignment, message.key
        if not self.is_open or key.round != own.round:
            raise ProtocolError(f"round {key.round} is not open")
        if message.named and (self.lessons is None or message.named.keys() != {TEACHER}):
            raise ProtocolError("a session that trains takes no tensors beside the rows")
        if (key.purpose, message.kind) not in self._handlers():
            raise ProtocolError(
                f"a {message.kind.name} tensor has no meaning in topology "
                f"{self.settings.run.topology}"
            )
        if key.purpose is Purpose.TRAINING and key.step != self.step:
            raise ProtocolError(f"step {key.step} arrived, step {self.step} was expected")
        endless = bool(own.rehearse)
        if key.purpose is Purpose.TRAINING and self.step >= own.steps.count and not endless:
            raise ProtocolError(f"step {key.step} is beyond the round's {own.steps.count}")

    def check_lesson(self, message: TensorMessage) -> None:
        """Raise ProtocolError where no teacher is due to be asked.

        That may be before the gradients of the last step: a job order may put it there.
        """
        own, key = self.assignment, message.key
        trains = key.purpose is Purpose.TRAINING and message.kind is Kind.ACTIVATION
        if not trains or not self.is_open or key.round != own.round:
            raise ProtocolError(f"no teacher is asked in round {key.round} here")

    def said(self, message: TensorMessage) -> torch.Tensor | None:
        """What the teacher says of a message, if there is one. Raises ProtocolError."""
        if self.lessons is None or message.taught is not None:
            return message.taught
        if message.key.purpose is Purpose.EVALUATION:
            return None
        return self.lessons.handle(message)

    def returned(self, answer: TensorMessage) -> list[Outgoing]:
        """A micro-batch's gradients are there: its `answer`, and the norm that a last one takes."""
        is_last = self.plan.next_of(self.holder) is None
        norms = self.stepper.after_backward(self._open, answer.num_micro_batches, is_last)
        return [Outgoing(Toward.INPUT, answer), *(Outgoing(Toward.INPUT, norm) for norm in norms)]

    def _has_neighbour(self, norm: GradientNorm) -> bool:
        """Whether another stage server is behind this one, to be told a norm."""
        return norm.toward is Toward.INPUT or self.plan.next_of(self.holder) is not None


def adapter_of(
    device: str,
    assignment: Assignment,
    own: Span,
    model: SpanModel,
    bank: LoraBank,
    settings: RunSettings,
) -> Adapter:
    """A device's part of the adapter, in the span that is computed here.

    Raises ProtocolError where the base lacks a block of it.
    """
    base = model.span
    if not base.first <= own.first <= own.last <= base.last or (own.head and not base.head):
        raise ProtocolError(
            f"assignment.plan = blocks {own.first} to {own.last - 1} for this server: it has "
            f"loaded {base.first} to {base.last - 1}; choose cuts within them"
        )
    bank.remove(device)
    freezes = settings.aggregation.traits.freezes_a
    return bank.add(device, own, assignment.rank, freeze_a=freezes)


def enter(session: TrainingSession) -> None:
    """Have a session's tensors in memory. Raises DiskError where they cannot be read back."""
    for error in enter_each([session]).values():
        raise error


def enter_each(sessions: Sequence[TrainingSession]) -> dict[str, SflError]:
    """Have those of several, of one edge, in memory at once; by device, those that cannot be."""
    residence = sessions[0].residence if sessions else None
    return {} if residence is None else residence.enter(*sessions)
