"""A device's own stage: its front blocks, its tail where it has one, and their adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sfl.adapters.lora import Adapter, LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import RunSettings
from sfl.models.folder import ModelFolder
from sfl.models.memory.footprint import NOTHING_SAVED, Thrift
from sfl.models.piecewise import compute_in_pieces
from sfl.models.span import SpanModel, build_span
from sfl.plan import Plan, Span
from sfl.stage.base import BaseForm, begin_adapter
from sfl.stage.computation import COMPUTATIONS


@dataclass(frozen=True, slots=True)
class Part:
    """One span on the device, with the adapter that is active in it for good."""

    span: Span
    model: SpanModel
    bank: LoraBank
    adapter: Adapter


class DeviceStage:
    """The spans of one device; it never holds more than these."""

    def __init__(
        self,
        device: str,
        plan: Plan,
        folder: ModelFolder,
        settings: RunSettings,
        form: BaseForm | None = None,
        thrift: Thrift = NOTHING_SAVED,
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.micro_batches = thrift.micro_batches
        """Over 1: cut a batch into at least so many pieces, and hold one at a time."""
        form = form or BaseForm(settings.model.dtype)
        self.front, *tail = (
            _build(device, span, folder, settings, form, thrift) for span in plan.device_spans
        )
        self.tail = tail[0] if tail else None
        if self.tail is not None:
            _share_tied_weights(self.front.model, self.tail.model)
        self.parts = [self.front] if self.tail is None else [self.front, self.tail]

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Every trainable tensor of this device, by PEFT's names."""
        return {name: p for part in self.parts for name, p in part.adapter.trained.items()}

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of every tensor of the adapter that a round sends this device."""
        return [tuple(p.shape) for part in self.parts for p in part.adapter.parameters.values()]

    def load(self, values: Mapping[str, np.ndarray], round_: int) -> None:
        """Begin a round with this device's part of the global adapter, in place."""
        for part in self.parts:
            mine = {name: array for name, array in values.items() if belongs_to(name, part.span)}
            begin_adapter(part.adapter, mine, self.settings, round_)

    def fold(self, base_update: Mapping[str, np.ndarray]) -> None:
        """Add a base update, for good. Raises ProtocolError."""
        for part in self.parts:
            part.bank.fold(base_update)

    def state(self) -> dict[str, np.ndarray]:
        """This device's part of the adapter under PEFT's names."""
        return {name: array for part in self.parts for name, array in part.adapter.state().items()}

    def train(self, training: bool) -> None:
        """Switch dropout on or off."""
        for part in self.parts:
            part.model.train(training)


def _build(
    device: str,
    span: Span,
    folder: ModelFolder,
    settings: RunSettings,
    form: BaseForm,
    thrift: Thrift,
) -> Part:
    model = build_span(
        folder,
        span,
        task=settings.model.task,
        num_labels=len(settings.model.labels),
        dtype=form.weights,
        packed=COMPUTATIONS[settings.computation].packed,
        autocast=form.autocast,
        quantised=form.quantised,
        embedding_on_disk=thrift.embedding_on_disk,
    )
    model.recompute = thrift.recompute
    if thrift.returned:
        compute_in_pieces(model.model)
    bank = LoraBank(model, settings.lora, settings.lora.target_modules)
    rank, frozen = settings.rank(device), settings.aggregation.traits.freezes_a
    adapter = bank.add(device, span, rank, freeze_a=frozen)
    bank.activate(adapter)
    return Part(span, model, bank, adapter)


def _share_tied_weights(front: SpanModel, tail: SpanModel) -> None:
    """Where the head is the embedding, hold its values once."""
    if front.layout.tied is None:
        return
    head, embedding = front.layout.tied
    owner = tail.model.get_submodule(head.rpartition(".")[0])
    owner.weight = front.model.get_parameter(embedding)
