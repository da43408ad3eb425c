"""A span in the middle of the model: whoever has the loss, and its labels, comes after it."""

from __future__ import annotations

from dataclasses import replace

import torch

from sfl.errors import ProtocolError
from sfl.plan import Toward
from sfl.stage.messages import Kind, Outgoing, Purpose, TensorMessage
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
        again = self.blocks.recompute
        boundary, output = self.blocks.forward(message, graph=not again)
        # Dropout is keyed and the adapter waits for the step: again gives the same bits.
        self._flights[message.key] = Flight(message, None if again else (boundary, output))
        return [self._onward(message, output)]

    def _pass_through(self, message: TensorMessage) -> list[Outgoing]:
        _, output = self.blocks.forward(message)
        return [self._onward(message, output)]

    def _onward(self, message: TensorMessage, output: torch.Tensor) -> Outgoing:
        rows = self.blocks.computation.rows(output.detach(), message.lengths)
        return Outgoing(Toward.LOSS, replace(message, rows=rows))

    def _land(self, message: TensorMessage) -> list[Outgoing]:
        flight = self._flights.pop(message.key, None)
        if flight is None or message.rows is None:
            raise ProtocolError(f"no micro-batch {message.key.micro_batch} waits for a gradient")
        if message.lengths != flight.message.lengths:
            raise ProtocolError(
                f"a gradient for sequences of {list(message.lengths)} tokens, not "
                f"{list(flight.message.lengths)}"
            )
        gradient = self.blocks.computation.hidden(message.rows, message.lengths)
        if message.arrived is None:  # it came from the stage behind, not from the device
            message = replace(message, arrived=flight.message.arrived)
        graph = flight.graph or self.blocks.forward(flight.message, again=True)
        self.blocks.backward(message, graph, gradient)
        return self.returned(self.blocks.cut_gradient(message, graph[0]))
