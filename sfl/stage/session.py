"""What an edge remembers about one device, and the work it does for it.

All of this runs on the edge's one compute thread. A session knows nothing of sockets: messages
in, messages out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import torch

from sfl.adapters.lora import LoraBank
from sfl.config import RunSettings
from sfl.errors import ProtocolError, SflError
from sfl.metrics.stats import Measurement, NodeStats, Phase
from sfl.metrics.timeline import watched_step
from sfl.models.span import ForwardKey, SpanModel
from sfl.plan import SplitPlan
from sfl.stage.base import begin_adapter
from sfl.stage.computation import COMPUTATIONS, Labels
from sfl.stage.messages import (
    GradientNorm,
    Key,
    Kind,
    Purpose,
    RoundStart,
    TensorMessage,
)
from sfl.stage.optimizer import Optimizer
from sfl.stage.resting import Residence

Reply = TensorMessage | GradientNorm


@dataclass(slots=True)
class Flight:
    """A micro-batch whose gradient is still to come, with the graph between its two ends.

    Without a graph the forward is computed again from the message when the gradient comes.
    """

    message: TensorMessage
    graph: tuple[torch.Tensor, torch.Tensor] | None


class Session(ABC):
    """One device's adapter, optimizer and graphs in flight over the shared base.

    With `recompute` blocks keep their input only and run again for their backward, and no graph
    waits for a gradient that has yet to come: the input of all blocks does. With
    a `residence` its tensors may rest in a file while it has nothing to do.
    """

    def __init__(
        self,
        device: str,
        plan: SplitPlan,
        model: SpanModel,
        bank: LoraBank,
        settings: RunSettings,
        stats: NodeStats,
        recompute: bool = False,
        residence: Residence | None = None,
    ) -> None:
        self.device = device
        self.recompute = recompute
        self.plan = plan
        self.model = model
        self.bank = bank
        self.settings = settings
        self.stats = stats
        self.computation = COMPUTATIONS[settings.computation]
        aggregation = settings.aggregation
        self.adapter = bank.add(
            device, plan.middle, settings.rank(device), freeze_a=aggregation.traits.freezes_a
        )
        self.optimizer = Optimizer(self.adapter.trained.values(), settings.training, aggregation)
        self.start: RoundStart | None = None
        self.step = 0
        self.served_seconds = 0.0
        """The compute thread's time it has had in this round."""
        self._backward_done = 0
        self._own_norm: float | None = None
        self._flights: dict[Key, Flight] = {}
        self.residence = residence
        """What decides whether its tensors are in memory, if anything does."""
        enter(self)

    # -- a round ---------------------------------------------------------------------------

    def begin_round(self, start: RoundStart, values: Mapping[str, np.ndarray]) -> None:
        """Take the global adapter's part; the optimizer's moments stay where they mean the same."""
        enter(self)
        begin_adapter(self.adapter, values, self.settings, start.round)
        self.optimizer.begin_round()
        self.start = start
        self.stats.phases.timeline.watch(self.device, start.round, watched_step(start.num_steps))
        self.step = 0
        # Shallow cuts ask for more in every round; carried over, that debt would never be paid.
        self.served_seconds = 0.0
        self._backward_done = 0
        self._own_norm = None
        self._flights.clear()

    def end_round(self) -> dict[str, np.ndarray]:
        """This side's part of the adapter. Raises ProtocolError unless every step was taken."""
        enter(self)
        assert self.start is not None
        if self.step != self.start.num_steps:
            raise ProtocolError(f"round ends at step {self.step} of {self.start.num_steps}")
        self.optimizer.check_finite()
        return self.adapter.state()

    def close(self) -> None:
        """Give everything back: graphs, optimizer, adapter, and the file where they rest."""
        self._flights.clear()
        if self.residence is not None:
            self.residence.leave(self.device)
        self.bank.remove(self.device)

    # -- at rest (sfl.stage.resting.Sleeper) -------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no gradient is there or to come: between two steps, or between rounds."""
        return (
            not self._flights
            and self._own_norm is None
            and all(p.grad is None for p in self.adapter.parameters.values())
        )

    def held(self) -> dict[str, torch.Tensor]:
        """Adapter, moments and anchors."""
        adapter = {f"adapter/{n}": p.detach() for n, p in self.adapter.parameters.items()}
        return adapter | {f"optimizer/{n}": t for n, t in self.optimizer.held().items()}

    def let_go(self) -> None:
        """Give up their memory; the parameters stay the objects that bank and optimizer know."""
        for parameter in self.adapter.parameters.values():
            parameter.data = parameter.data.new_empty(0)
        self.optimizer.let_go()

    def take_back(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Have them again."""
        parts: dict[str, dict[str, torch.Tensor]] = {"adapter": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            kind, _, own = name.partition("/")
            parts[kind][own] = tensor
        for name, parameter in self.adapter.parameters.items():
            parameter.data = parts["adapter"][name]
        self.optimizer.take_back(parts["optimizer"])

    # -- messages ----------------------------------------------------------------------------

    def handle(self, message: TensorMessage | GradientNorm) -> list[Reply]:
        """Do the work a message asks for; the replies are in order. Raises ProtocolError."""
        enter(self)
        if isinstance(message, GradientNorm):
            return self._on_norm(message)
        self._check(message)
        return self._handlers()[message.key.purpose, message.kind](message)

    def group(self, message: TensorMessage | GradientNorm) -> Hashable:
        """What messages must share to go through the base as one batch; None where none may."""
        return None

    @abstractmethod
    def _handlers(self) -> dict[tuple[Purpose, Kind], Callable[[TensorMessage], list[Reply]]]:
        """What this topology does for each kind of tensor."""

    def _check(self, message: TensorMessage) -> None:
        start, key = self.start, message.key
        if start is None or key.round != start.round:
            raise ProtocolError(f"round {key.round} is not open")
        if (key.purpose, message.kind) not in self._handlers():
            raise ProtocolError(
                f"a {message.kind.name} tensor has no meaning in topology "
                f"{self.settings.run.topology}"
            )
        if key.purpose is Purpose.TRAINING and key.step != self.step:
            raise ProtocolError(f"step {key.step} arrived, step {self.step} was due")
        endless = bool(start.rehearse)
        if key.purpose is Purpose.TRAINING and self.step >= start.num_steps and not endless:
            raise ProtocolError(f"step {key.step} is beyond the round's {start.num_steps}")

    # -- the blocks -----------------------------------------------------------------------------

    def _forward(
        self, message: TensorMessage, graph: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the middle span: (boundary, output), each `[B, T, H]`; with a graph in training."""
        assert message.rows is not None
        training = message.key.purpose is Purpose.TRAINING
        self.bank.activate(self.adapter)
        self.model.recompute = self.recompute
        if self.model.training != training:
            self.model.train(training)
        span = self.plan.middle
        with (
            self.stats.phases.measure("forward", message.key, self.device),
            torch.set_grad_enabled(training and graph),
        ):
            boundary = self.computation.hidden(message.rows, message.lengths)
            # Its gradient will lie where it does: there the codec takes it.
            boundary = boundary.to(self.model.device_of(span.first))
            # Without this mark a boundary behind frozen layers would get no gradient.
            boundary.requires_grad_(training and self.plan.cut_layer > 0)
            output = self.model.blocks(
                boundary,
                torch.tensor(message.lengths),
                first=span.first,
                last=span.last,
                key=self.forward_key(message.key),
            )
            _wait_for(output)
        return boundary, output

    def forward_key(self, key: Key) -> ForwardKey | None:
        """What dropout is keyed by; None in evaluation."""
        if key.purpose is Purpose.EVALUATION:
            return None
        seed = self.settings.run.seed
        return ForwardKey(seed, self.device, key.round, key.step, key.micro_batch)

    def _cut_gradient(self, message: TensorMessage, boundary: torch.Tensor) -> TensorMessage:
        """The reply that carries the boundary's gradient; empty where nothing waits for it."""
        rows = None
        if boundary.grad is not None:
            rows = self.computation.rows(boundary.grad, message.lengths)
        return replace(message, kind=Kind.GRADIENT, rows=rows, labels=None)

    # -- the step -----------------------------------------------------------------------------

    def _after_backward(self, message: TensorMessage) -> list[Reply]:
        """Count a micro-batch; after the last one step, or exchange norms and step then."""
        self._backward_done += 1
        if self._backward_done < message.num_micro_batches:
            return []
        if self.settings.training.max_grad_norm is None:
            self._apply(None)
            return []
        with self._stepping():
            self.optimizer.pull()
            self._own_norm = self.optimizer.squared_norm()
        return [GradientNorm(message.key.round, self.step, self._own_norm)]

    def _on_norm(self, message: GradientNorm) -> list[Reply]:
        if self._own_norm is None or message.step != self.step:
            raise ProtocolError(f"a gradient norm of step {message.step} was not due")
        # Both sides must add in the same order: the device's first.
        squared = message.squared + self._own_norm
        self._own_norm = None
        self._apply(squared)
        return []

    def _apply(self, squared: float | None) -> None:
        """Take the step, clipped by both sides' squared norm where there is one."""
        assert self.start is not None
        if self.start.rehearse:
            self.optimizer.forget()
        else:
            with self._stepping():
                if squared is None:
                    self.optimizer.pull()
                else:
                    self.optimizer.clip(squared)
                self.optimizer.step(self.start.first_step + self.step, self.start.total_steps)
        self._backward_done = 0
        self.step += 1

    def _stepping(self) -> Measurement:
        """The time of what is done once a step."""
        assert self.start is not None
        here = Key(Purpose.TRAINING, self.start.round, self.step, 0)
        return self.stats.phases.measure("step", here, self.device)


def _wait_for(result: torch.Tensor) -> None:
    """Until an accelerator has computed what lies on it.

    So its time is that of the phase it belongs to, and the codec may read on a stream of its own.
    """
    if result.is_cuda:
        torch.cuda.current_stream(result.device).synchronize()


def enter(session: Session) -> None:
    """Have a session's tensors in memory. Raises DiskError where they cannot be read back."""
    for error in enter_each([session]).values():
        raise error


def enter_each(sessions: Sequence[Session]) -> dict[str, SflError]:
    """Have those of several, of one edge, in memory at once; by device, those that cannot be."""
    residence = sessions[0].residence if sessions else None
    return {} if residence is None else residence.enter(*sessions)


class VanillaSession(Session):
    """Labels come along: loss, backward and the cut gradient in one round trip."""

    def group(self, message: TensorMessage | GradientNorm) -> Hashable:
        """Training over the same blocks, with lengths alike; dropout is each device's own.

        A GPU's attention pads a batch to its longest sequence: less than twice a message's longest.
        """
        if isinstance(message, GradientNorm) or message.key.purpose is not Purpose.TRAINING:
            return None
        if not self.computation.packed or self.model.drops:
            return None
        return self.plan.middle, max(message.lengths).bit_length()

    def _handlers(self) -> dict[tuple[Purpose, Kind], Callable[[TensorMessage], list[Reply]]]:
        return {
            (Purpose.TRAINING, Kind.ACTIVATION): self._train,
            (Purpose.EVALUATION, Kind.ACTIVATION): self._evaluate,
        }

    def _labels(self, message: TensorMessage) -> Labels:
        per_token = self.settings.model.task == "causal_lm"
        count = sum(message.lengths) if per_token else len(message.lengths)
        classes = len(self.settings.model.labels) or self.model.vocab_size
        packed = message.labels
        if packed is None or packed.shape != (count,):
            raise ProtocolError(f"{count} labels were due")
        if not np.all((packed < classes) & ((packed >= 0) | (packed == -100))):
            raise ProtocolError(f"a label lies outside of 0..{classes - 1}")
        return packed

    def _train(self, message: TensorMessage) -> list[Reply]:
        labels = self._labels(message)
        boundary, output = self._forward(message)
        with self.stats.phases.measure("forward", message.key, self.device):
            loss = self.computation.loss(
                self.model,
                output,
                message.lengths,
                labels,
                message.normalizer or None,
                self.forward_key(message.key),
            )
        with self.stats.phases.measure("backward", message.key, self.device):
            loss.backward()  # type: ignore[no-untyped-call]
            mean = float(loss.detach())
            _wait_for(boundary)
        reply = replace(self._cut_gradient(message, boundary), loss=mean)
        return [reply, *self._after_backward(message)]

    def _evaluate(self, message: TensorMessage) -> list[Reply]:
        labels = self._labels(message)
        _, output = self._forward(message)
        score = self.computation.score(self.model, output, message.lengths, labels)
        return [replace(message, kind=Kind.SCORE, rows=None, labels=None, score=score)]


class UShapedSession(Session):
    """Hidden states go back; loss and labels stay on the device."""

    def _handlers(self) -> dict[tuple[Purpose, Kind], Callable[[TensorMessage], list[Reply]]]:
        return {
            (Purpose.TRAINING, Kind.ACTIVATION): self._launch,
            (Purpose.TRAINING, Kind.GRADIENT): self._land,
            (Purpose.EVALUATION, Kind.ACTIVATION): self._pass_through,
        }

    def _launch(self, message: TensorMessage) -> list[Reply]:
        boundary, output = self._forward(message, graph=not self.recompute)
        # Dropout is keyed and the adapter waits for the step: again gives the same bits.
        graph = None if self.recompute else (boundary, output)
        self._flights[message.key] = Flight(message, graph)
        return [self._hidden(message, output)]

    def _pass_through(self, message: TensorMessage) -> list[Reply]:
        _, output = self._forward(message)
        return [self._hidden(message, output)]

    def _hidden(self, message: TensorMessage, output: torch.Tensor) -> TensorMessage:
        rows = self.computation.rows(output.detach(), message.lengths)
        return replace(message, kind=Kind.HIDDEN, rows=rows)

    def _land(self, message: TensorMessage) -> list[Reply]:
        flight = self._flights.pop(message.key, None)
        if flight is None or message.rows is None:
            raise ProtocolError(f"no micro-batch {message.key.micro_batch} waits for a gradient")
        if message.lengths != flight.message.lengths:
            raise ProtocolError(
                f"a gradient for sequences of {list(message.lengths)} tokens, not "
                f"{list(flight.message.lengths)}"
            )
        gradient = self.computation.hidden(message.rows, message.lengths)
        boundary, output = flight.graph or self._forward(flight.message)
        self.bank.activate(self.adapter)  # for blocks that are computed again
        with self.stats.phases.measure("backward", message.key, self.device):
            output.backward(gradient.to(output.device))  # type: ignore[no-untyped-call]
            _wait_for(boundary)
        return [self._cut_gradient(message, boundary), *self._after_backward(message)]


def handle_together(
    tasks: Sequence[tuple[Session, TensorMessage | GradientNorm]],
) -> list[list[Reply] | SflError]:
    """Messages of one group through the base as one batch, each row with its device's LoRA.

    Losses, gradients and steps are each device's own, equal to those alone up to rounding: sums
    run over other shapes. A message that breaks the contract fails alone, and so does a device
    whose tensors cannot be read back.
    """
    results: list[list[Reply] | SflError] = []
    sound: list[tuple[int, VanillaSession, TensorMessage, Labels]] = []
    for number, (session, message) in enumerate(tasks):
        assert isinstance(session, VanillaSession) and isinstance(message, TensorMessage)
        results.append([])
        try:
            session._check(message)
            sound.append((number, session, message, session._labels(message)))
        except ProtocolError as error:
            results[number] = error
    lost = enter_each([session for _, session, *_ in sound])
    for number, session, *_ in sound:
        if session.device in lost:
            results[number] = lost[session.device]
    sound = [item for item in sound if item[1].device not in lost]
    if sound:
        answers = _train_together([item[1:] for item in sound])
        for (number, *_), replies in zip(sound, answers, strict=True):
            results[number] = replies
    return results


def _train_together(
    items: Sequence[tuple[VanillaSession, TensorMessage, Labels]],
) -> list[list[Reply]]:
    lead = items[0][0]
    model, bank, computation = lead.model, lead.bank, lead.computation
    counts = [sum(message.lengths) for _, message, _ in items]
    parts = [(session.adapter, count) for (session, *_), count in zip(items, counts, strict=True)]
    boundaries = []
    for session, message, _ in items:
        assert message.rows is not None
        boundary = message.rows.to(model.device_of(lead.plan.middle.first))
        boundaries.append(boundary.requires_grad_(session.plan.cut_layer > 0))
    if not model.training:
        model.train(True)
    model.recompute = any(session.recompute for session, *_ in items)
    with _shared("forward", items):
        bank.activate_parts(parts)
        output = model.blocks(
            torch.cat(boundaries)[None],
            torch.tensor([length for _, message, _ in items for length in message.lengths]),
            first=lead.plan.middle.first,
            last=lead.plan.middle.last,
        )
        losses = []
        for (session, message, labels), own in zip(
            items, torch.split(output, counts, 1), strict=True
        ):
            bank.activate(session.adapter)  # a classifier's head is each device's own
            losses.append(
                computation.loss(
                    model, own, message.lengths, labels, message.normalizer or None, None
                )
            )
    with _shared("backward", items):
        bank.activate_parts(parts)  # for blocks that are computed again
        each = torch.stack(losses)
        each.sum().backward()  # type: ignore[no-untyped-call]
        means = each.tolist()
        _wait_for(boundaries[0])
    replies: list[list[Reply]] = []
    for (session, message, _), boundary, mean in zip(items, boundaries, means, strict=True):
        rows = boundary.grad
        answer = replace(message, kind=Kind.GRADIENT, rows=rows, labels=None, loss=mean)
        replies.append([answer, *session._after_backward(message)])
    return replies


@contextmanager
def _shared(
    phase: Phase, items: Sequence[tuple[VanillaSession, TensorMessage, Labels]]
) -> Iterator[None]:
    """Book work for several devices to each: when it was, and an equal share of its seconds."""
    clock = items[0][0].stats.phases
    begin = clock.now()
    try:
        yield
    finally:
        end = clock.now()
        for session, message, _ in items:
            phases = session.stats.phases
            phases.share(phase, message.key, session.device, begin, end, len(items))


class Sessions(TypedDict):
    """One class for each `run.topology`."""

    vanilla: type[Session]
    u_shaped: type[Session]


SESSIONS: Sessions = {"vanilla": VanillaSession, "u_shaped": UShapedSession}
