"""One device's way through the shared blocks: its span, with its adapter active."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sfl.adapters.lora import Adapter, LoraBank
from sfl.metrics.costs import Work
from sfl.metrics.stats import NodeStats, Phase
from sfl.models.span import ForwardKey, SpanModel
from sfl.plan import Span
from sfl.stage.computation import Computation, forward_key
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage


@dataclass(frozen=True, slots=True)
class Blocks:
    """`span` of the shared `model`, for one device.

    With `recompute` blocks keep their input only, and run again for their backward. The boundary
    gets a gradient where the device `wants_gradient`: where it has blocks of its own.
    """

    device: str
    span: Span
    model: SpanModel
    bank: LoraBank
    adapter: Adapter
    computation: Computation
    stats: NodeStats
    seed: int
    recompute: bool
    wants_gradient: bool

    def forward(
        self, message: TensorMessage, graph: bool = True, again: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the span: (boundary, output), each `[B, T, H]`; with a graph in training.

        `again`: it ran before, so that its time belongs to its backward.
        """
        training = message.key.purpose is Purpose.TRAINING
        self.bank.activate(self.adapter)
        self.model.recompute = self.recompute
        if self.model.training != training:
            self.model.train(training)
        phase: Phase = "backward" if again else "forward"
        work = self._work(message, passes=not again)
        with (
            self.stats.phases.measure("forward", message.key, self.device),
            self.stats.phases.part(phase, message.key, self.device, work),
            torch.set_grad_enabled(training and graph),
        ):
            boundary = self._boundary(message, training)
            output = self.model.blocks(
                boundary,
                torch.tensor(message.lengths),
                first=self.span.first,
                last=self.span.last,
                key=self.forward_key(message.key),
            )
            wait_for(output)
        return boundary, output

    def _work(self, message: TensorMessage, passes: bool = True) -> Work:
        return Work(sum(message.lengths), self.span.num_blocks, passes=int(passes))

    def _boundary(self, message: TensorMessage, training: bool) -> torch.Tensor:
        assert message.rows is not None
        boundary = self.computation.hidden(message.rows, message.lengths)
        # Its gradient will be where it is: there the codec takes it.
        boundary = boundary.to(self.model.device_of(self.span.first))
        # Without this mark a boundary behind frozen layers would get no gradient.
        return boundary.requires_grad_(training and self.wants_gradient)

    def backward(
        self,
        message: TensorMessage,
        graph: tuple[torch.Tensor, torch.Tensor],
        gradient: torch.Tensor,
    ) -> None:
        """Run the span's backward, from the gradient of its output to that of its boundary."""
        boundary, output = graph
        self.bank.activate(self.adapter)  # for blocks that are computed again
        work = self._work(message)
        with self.stats.phases.measure("backward", message.key, self.device, work):
            output.backward(gradient.to(output.device))  # type: ignore[no-untyped-call]
            wait_for(boundary)

    def cut_gradient(self, message: TensorMessage, boundary: torch.Tensor) -> TensorMessage:
        """The reply that carries the boundary's gradient; empty where nothing waits for it."""
        rows = None
        if boundary.grad is not None:
            rows = self.computation.rows(boundary.grad, message.lengths)
        return replace(message, kind=Kind.GRADIENT, rows=rows, labels=None)

    def forward_key(self, key: Key) -> ForwardKey | None:
        """What dropout is keyed by; None in evaluation."""
        return forward_key(self.seed, self.device, key)


def wait_for(result: torch.Tensor) -> None:
    """Until an accelerator has computed what is on it.

    So its time is that of the phase it belongs to, and the codec may read on a stream of its own.
    """
    if result.is_cuda:
        torch.cuda.current_stream(result.device).synchronize()
