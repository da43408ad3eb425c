"""U-shaped: hidden states go back to the device; loss and labels stay there."""

from __future__ import annotations

from dataclasses import replace

import torch

from sfl.errors import ProtocolError
from sfl.stage.messages import Kind, Purpose, TensorMessage
from sfl.stage.session import Reply
from sfl.stage.training.session import Flight, Handlers, TrainingSession


class UShapedSession(TrainingSession):
    """Neither end of the model is here: two round trips a micro-batch."""

    def _handlers(self) -> Handlers:
        return {
            (Purpose.TRAINING, Kind.ACTIVATION): self._launch,
            (Purpose.TRAINING, Kind.GRADIENT): self._land,
            (Purpose.EVALUATION, Kind.ACTIVATION): self._pass_through,
        }

    def _launch(self, message: TensorMessage) -> list[Reply]:
        again = self.blocks.recompute
        boundary, output = self.blocks.forward(message, graph=not again)
        # Dropout is keyed and the adapter waits for the step: again gives the same bits.
        self._flights[message.key] = Flight(message, None if again else (boundary, output))
        return [self._hidden(message, output)]

    def _pass_through(self, message: TensorMessage) -> list[Reply]:
        _, output = self.blocks.forward(message)
        return [self._hidden(message, output)]

    def _hidden(self, message: TensorMessage, output: torch.Tensor) -> TensorMessage:
        rows = self.blocks.computation.rows(output.detach(), message.lengths)
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
        gradient = self.blocks.computation.hidden(message.rows, message.lengths)
        graph = flight.graph or self.blocks.forward(flight.message)
        self.blocks.backward(message.key, graph, gradient)
        return [self.blocks.cut_gradient(message, graph[0]), *self.after_backward(message)]
