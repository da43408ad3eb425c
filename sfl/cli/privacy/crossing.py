"""What an edge holds of a device's sequences: rows of the front's output, through its codec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfl.config import RunSettings
from sfl.data.batches import Batch, collate
from sfl.data.example import Example
from sfl.models.folder import ModelFolder
from sfl.models.span import SpanModel, build_span
from sfl.plan import TWO_TIERS
from sfl.stage.layout import pack_rows
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.stage.micro import MicroBatch, row_context
from sfl.transport.device.stream_codecs import StreamCodecs

BATCH = 16


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `[n, H]` of sequences one behind the other, and the token that each stands for."""

    values: Tensor
    tokens: Tensor
    lengths: tuple[int, ...]

    @property
    def first(self) -> Tensor:
        """Which rows begin a sequence: every attack knows those."""
        marks = torch.zeros(len(self.tokens), dtype=torch.bool)
        marks[torch.tensor((0, *self.lengths)).cumsum(0)[:-1]] = True
        return marks

    def and_of(self, other: Rows) -> Rows:
        """Both, one behind the other."""
        return Rows(
            torch.cat((self.values, other.values)),
            torch.cat((self.tokens, other.tokens)),
            self.lengths + other.lengths,
        )


class Front:
    """A device's embedding and first blocks as they are before training, which the edge knows too.

    Before its first step an adapter changes nothing. Raises ConfigError, ModelError.
    """

    def __init__(self, folder: ModelFolder, settings: RunSettings, device: str, cut: int) -> None:
        plan = settings.plan(device, folder.num_layers, cut)
        self._settings, self._device = settings, device
        self._model: SpanModel = build_span(
            folder,
            plan.front,
            task=settings.model.task,
            num_labels=len(settings.model.labels),
            dtype=torch.float32,
        )

    @property
    def vocabulary(self) -> int:
        """How many tokens the embedding has."""
        return self._model.vocab_size

    @torch.no_grad()
    def embedded(self) -> Tensor:
        """`[vocabulary, H]`: every token as the embedding alone gives it."""
        pieces = torch.split(torch.arange(self.vocabulary), 1024)
        return torch.cat(
            [self._model.embed(ids[:, None], torch.ones(len(ids)).long())[:, 0] for ids in pieces]
        ).float()

    def crossing(self, examples: Sequence[Example], pad_id: int, codec: str) -> Rows:
        """What the edge holds of these, each batch through `codec` and back. Raises ConfigError."""
        codecs = self._settings.codecs(self._device, 1, "none")
        codecs = codecs.model_copy(update={"activation": codec})
        ends = [
            StreamCodecs(side, self._device, self._settings.run.seed, True) for side in TWO_TIERS
        ]
        for end in ends:
            end.begin_round(codecs, 1)
        values: list[Tensor] = []
        tokens: list[Tensor] = []
        lengths: list[int] = []
        for micro, rows in self._batches(examples, pad_id):
            own = tuple(micro.batch.lengths.tolist())
            values.append(_carried(micro, rows, own, *ends))
            tokens.append(pack_rows(micro.batch.input_ids[:, :, None], own)[:, 0])
            lengths += own
        return Rows(torch.cat(values), torch.cat(tokens), tuple(lengths))

    @torch.no_grad()
    def _batches(
        self, examples: Sequence[Example], pad_id: int
    ) -> Iterator[tuple[MicroBatch, Tensor]]:
        for step, first in enumerate(range(0, len(examples), BATCH)):
            batch: Batch = collate(examples[first : first + BATCH], pad_id)
            hidden = self._model.blocks(
                self._model.embed(batch.input_ids, batch.lengths), batch.lengths
            )
            numbers = tuple(range(first, first + len(batch.lengths)))
            key = Key(Purpose.TRAINING, 1, step, 0)
            rows = pack_rows(hidden, batch.lengths.tolist())
            yield MicroBatch(key, 1, 0, batch, numbers), rows


def _carried(
    micro: MicroBatch,
    rows: Tensor,
    lengths: tuple[int, ...],
    device: StreamCodecs,
    edge: StreamCodecs,
) -> Tensor:
    """The rows as they come out at the edge."""
    message = TensorMessage(
        kind=Kind.ACTIVATION,
        key=micro.key,
        num_micro_batches=1,
        lengths=lengths,
        rows=rows,
        context=row_context(micro),
    )
    packet = device.encode(message)
    assert packet is not None
    arrived = edge.decode(packet, message, rows.shape[1]).rows
    assert arrived is not None
    return arrived.float()
