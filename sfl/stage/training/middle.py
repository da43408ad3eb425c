"""A span in the middle of the model: whoever has the loss, and its labels, comes after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from sfl.errors import ProtocolError, SflError
from sfl.metrics.costs import Work
from sfl.plan import Span, Toward
from sfl.stage.messages import TEACHER, Kind, Outgoing, Purpose, TensorMessage
from sfl.stage.session import Group, Request, Session
from sfl.stage.timed import count, forward_together, tokens_of
from sfl.stage.training.batched import Item, alike, run_sound, shared, through
from sfl.stage.training.blocks import wait_for
from sfl.stage.training.session import Flight, Handlers, TrainingSession


class MiddleSession(TrainingSession):
    """Neither end of the model is here: two visits a micro-batch.

    Where labels came along, they go on with the rows.
    """

    def _handlers(self) -> Handlers:
        return {
            (Purpose.TRAINING, Kind.ACTIVATION): self._launch,
            (Purpose.TRAINING, Kind.GRADIENT): self._land,
            (Purpose.EVALUATION, Kind.ACTIVATION): self._pass_through,
        }

    def _launch(self, message: TensorMessage) -> list[Outgoing]:
        again, beside = self.blocks.recompute, self.beside(message)
        message = message.untaught()
        boundary, output = self.blocks.forward(message, graph=not again)
        # Dropout is keyed and the adapter waits for the step: again gives the same bits.
        self._flights[message.key] = Flight(message, None if again else (boundary, output))
        return [self._onward(replace(message, named=beside), output)]

    def beside(self, message: TensorMessage) -> Mapping[str, torch.Tensor]:
        """What a teacher says of a message, for whoever has the loss. Raises ProtocolError."""
        said = self.said(message)
        if self.lessons is None or said is None:
            return {}
        return {TEACHER: self.lessons.school.told(said)}

    def _pass_through(self, message: TensorMessage) -> list[Outgoing]:
        _, output = self.blocks.forward(message)
        return [self._onward(message, output)]

    def _onward(self, message: TensorMessage, output: torch.Tensor) -> Outgoing:
        rows = self.blocks.computation.rows(output.detach(), message.lengths)
        return Outgoing(Toward.LOSS, replace(message, rows=rows))

    def group(self, message: Request) -> Group | None:
        """Training over the same blocks, with lengths alike, the same way.

        A gradient whose graph is kept goes alone: nothing is to be computed again for it.
        """
        number = alike(self, message)
        if number is None or not isinstance(message, TensorMessage):
            return None
        flight = self._flights.get(message.key)
        if message.kind is Kind.GRADIENT and (flight is None or flight.graph is not None):
            return None
        return MiddleGroup(self.blocks.span, message.kind, number)

    def launched(self, message: TensorMessage) -> None:
        """Its forward was part of a batch, which left no graph: it will be computed again."""
        self._flights[message.key] = Flight(message, None)

    def landing(self, message: TensorMessage) -> Flight:
        """What waits for this gradient. Raises ProtocolError."""
        flight = self._flights.pop(message.key, None)
        if flight is None or message.rows is None:
            raise ProtocolError(f"no micro-batch {message.key.micro_batch} waits for a gradient")
        if message.lengths != flight.message.lengths:
            raise ProtocolError(
                f"a gradient for sequences of {list(message.lengths)} tokens, not "
                f"{list(flight.message.lengths)}"
            )
        return flight

    def _land(self, message: TensorMessage) -> list[Outgoing]:
        flight = self.landing(message)
        assert message.rows is not None
        gradient = self.blocks.computation.hidden(message.rows, message.lengths)
        message = _arrived(message, flight)
        graph = flight.graph or self.blocks.forward(flight.message, again=True)
        self.blocks.backward(message, graph, gradient)
        return self.returned(self.blocks.cut_gradient(message, graph[0]))


def _arrived(message: TensorMessage, flight: Flight) -> TensorMessage:
    """A gradient of which nothing else is known is of when its rows came."""
    if message.arrived is not None:
        return message
    return replace(message, arrived=flight.message.arrived)


@dataclass(frozen=True, slots=True)
class MiddleGroup:
    """Training over the same span the same way, with lengths alike (in powers of two).

    A graph of several devices could be gone through only once all of their gradients are there. So
    a batch leaves none: it is computed again for those whose gradients come together.
    """

    span: Span
    kind: Kind
    length_bits: int

    def run(self, tasks: Sequence[tuple[Session, Request]]) -> list[list[Outgoing] | SflError]:
        """Forward, or backward, as one batch."""
        if self.kind is Kind.ACTIVATION:
            return run_sound(tasks, _beside, _launch_together)
        return run_sound(tasks, _flight, _land_together)


def _beside(session: TrainingSession, message: TensorMessage) -> Mapping[str, torch.Tensor]:
    return _middle(session).beside(message)


def _flight(session: TrainingSession, message: TensorMessage) -> Flight:
    return _middle(session).landing(message)


def _middle(session: TrainingSession) -> MiddleSession:
    assert isinstance(session, MiddleSession)  # only these hand out such a group
    return session


def _launch_together(items: Sequence[Item[Mapping[str, torch.Tensor]]]) -> list[list[Outgoing]]:
    phases, tasks = items[0].session.stats.phases, [item.task for item in items]
    work = Work(tokens_of(tasks), items[0].session.blocks.span.num_blocks)
    rows = [item.leaf(item.message) for item in items]
    lengths = [length for item in items for length in item.message.lengths]
    with (
        torch.no_grad(),
        shared("forward", items),
        forward_together(phases, tasks, work),
    ):
        output = through(items, rows, lengths)
        wait_for(output)
    outputs = torch.split(output[0], [item.count for item in items])
    for item in items:
        _middle(item.session).launched(item.message.untaught())
    return [
        [Outgoing(Toward.LOSS, replace(item.message.untaught(), rows=own, named=item.beside))]
        for item, own in zip(items, outputs, strict=True)
    ]


def _land_together(items: Sequence[Item[Flight]]) -> list[list[Outgoing]]:
    phases, tasks = items[0].session.stats.phases, [item.task for item in items]
    work = Work(tokens_of(tasks), items[0].session.blocks.span.num_blocks)
    boundaries = [item.leaf(item.beside.message) for item in items]
    gradients = [item.message.rows for item in items if item.message.rows is not None]
    lengths = [length for item in items for length in item.message.lengths]
    with shared("backward", items):
        begin = phases.now()
        output = through(items, boundaries, lengths)
        output.backward(torch.cat(gradients)[None].to(output.device))  # type: ignore[no-untyped-call]
        wait_for(boundaries[0])
        count(phases, "backward", tasks, work, begin, phases.now())
    return [_landed(item, own) for item, own in zip(items, boundaries, strict=True)]


def _landed(item: Item[Flight], boundary: torch.Tensor) -> list[Outgoing]:
    message = _arrived(item.message, item.beside)
    answer = replace(message, kind=Kind.GRADIENT, rows=boundary.grad, labels=None)
    return item.session.returned(answer)
