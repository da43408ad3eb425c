"""A device's own stage: its front blocks, its tail where it has one, and their adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sfl.adapters.lora import Adapter, LoraBank, build_manifest
from sfl.adapters.names import belongs_to
from sfl.config import RunSettings
from sfl.errors import ProtocolError
from sfl.models.folder import ModelFolder
from sfl.models.memory.footprint import NOTHING_SAVED, Thrift
from sfl.models.piecewise import compute_in_pieces
from sfl.models.rows import RowsOnDisk
from sfl.models.span import SpanModel, build_span
from sfl.plan import Plan, Span
from sfl.rounds.values import Assignment
from sfl.stage.base import BaseForm, begin_adapter
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.kept_updates import KeptUpdates


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
        assignment: Assignment,
        folder: ModelFolder,
        settings: RunSettings,
        form: BaseForm | None = None,
        thrift: Thrift = NOTHING_SAVED,
        cache: Path | None = None,
    ) -> None:
        """What rounds add to the base is kept under `cache` where blocks may come later."""
        self.settings = settings
        self.micro_batches = thrift.micro_batches
        """Over 1: cut a batch into at least so many pieces, and hold one at a time."""
        self.assignment = assignment
        """What the stage is built for."""
        self._device = device
        self._folder = folder
        self._form = form or BaseForm(settings.model.dtype)
        self._thrift = thrift
        self._folded = 0  # rounds whose sums are in the base
        self._kept = KeptUpdates(cache)
        self.parts = self._built(assignment)

    @property
    def plan(self) -> Plan:
        """Who computes what."""
        return self.assignment.plan

    @property
    def front(self) -> Part:
        """The embedding, and the first blocks."""
        return self.parts[0]

    @property
    def tail(self) -> Part | None:
        """The last blocks and the head, where the device holds them."""
        return self.parts[1] if len(self.parts) > 1 else None

    def take(self, assignment: Assignment) -> bool:
        """Hold what an assignment asks for; whether the adapter is another one now.

        Blocks are read again only where a span changed, and get what rounds have added to them so
        far. The adapter is made anew only where span or rank changed. Raises ModelError where this
        device's folder lacks a block.
        """
        if assignment.same_adapter(self.assignment):
            self.assignment = assignment
            return False
        if assignment.plan.device_spans == self.plan.device_spans:
            self.parts = [self._at_rank(part, assignment.rank) for part in self.parts]
        else:
            self.parts = []  # their memory is needed
            self.parts = self._built(assignment)
            for base_update in self._kept:
                self._add(base_update)
        self.assignment = assignment
        return True

    def _built(self, assignment: Assignment) -> list[Part]:
        check_blocks(assignment.plan, self._folder)
        parts = [
            self._at_rank(
                _loaded(span, self._folder, self.settings, self._form, self._thrift),
                assignment.rank,
            )
            for span in assignment.plan.device_spans
        ]
        if len(parts) > 1:
            share_tied_weights(parts[0].model, parts[1].model)
        return parts

    def _at_rank(self, part: Part, rank: int) -> Part:
        """The same blocks with a new adapter."""
        freezes = self.settings.aggregation.traits.freezes_a
        part.bank.remove(self._device)
        adapter = part.bank.add(self._device, part.span, rank, freeze_a=freezes)
        part.bank.activate(adapter)
        return replace(part, adapter=adapter)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Every trainable tensor of this device, by PEFT's names."""
        return {name: p for part in self.parts for name, p in part.adapter.trained.items()}

    def shapes_of(self, assignment: Assignment) -> list[tuple[int, ...]]:
        """Of every tensor of the adapter that a round of this assignment sends this device.

        The model's own configuration tells those of blocks that the device has not read yet.
        """
        if assignment.same_adapter(self.assignment):
            return [tuple(p.shape) for part in self.parts for p in part.adapter.parameters.values()]
        settings, spans = self.settings, assignment.plan.device_spans
        lora = settings.lora.model_copy(update={"rank": assignment.rank})
        num_labels = len(settings.model.labels)
        manifest = build_manifest(self._folder, settings.model.task, num_labels, lora)
        return [
            spec.shape
            for spec in manifest.parameters
            if any(belongs_to(spec.name, span) for span in spans)
        ]

    def load(self, values: Mapping[str, np.ndarray], round_: int) -> None:
        """Begin a round with this device's part of the global adapter, in place."""
        for part in self.parts:
            mine = {name: array for name, array in values.items() if belongs_to(name, part.span)}
            begin_adapter(part.adapter, mine, self.settings, round_)

    def whole(self) -> dict[str, np.ndarray]:
        """Every tensor of the adapter, as it is now; they share its memory."""
        return {
            name: parameter.detach().numpy()
            for part in self.parts
            for name, parameter in part.adapter.parameters.items()
        }

    def resume(self, values: Mapping[str, np.ndarray]) -> None:
        """Have, within a round, the values that `whole` had. Raises ProtocolError."""
        for part in self.parts:
            own = part.adapter.parameters.keys() & values.keys()
            part.adapter.load({name: values[name] for name in own})

    def fold(self, base_update: Mapping[str, np.ndarray], round_: int) -> None:
        """Add what a round gave, for good and once. Raises ProtocolError."""
        if round_ <= self._folded:
            return  # the edge doesn't know what a device that came back has
        if round_ != self._folded + 1:
            raise ProtocolError(f"the sum of round {round_} came after that of {self._folded}")
        self._folded = round_
        if self.settings.planner.moves:
            self._kept.add(base_update)
        self._add(base_update)

    def _add(self, base_update: Mapping[str, np.ndarray]) -> None:
        for part in self.parts:
            own = {n: array for n, array in base_update.items() if belongs_to(n, part.span)}
            part.bank.fold(own)

    def state(self) -> dict[str, np.ndarray]:
        """This device's part of the adapter under PEFT's names."""
        return {name: array for part in self.parts for name, array in part.adapter.state().items()}

    def train(self, training: bool) -> None:
        """Switch dropout on or off."""
        for part in self.parts:
            part.model.train(training)


def check_blocks(plan: Plan, folder: ModelFolder) -> None:
    """Raise ProtocolError where a plan is of another model than the folder's."""
    if plan.num_layers != folder.num_layers:
        raise ProtocolError(
            f"assignment.plan = {plan.num_layers} blocks: the model of this device has "
            f"{folder.num_layers}; use the run's model"
        )


def _loaded(
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
    return Part(span, model, bank, Adapter("", {}))


def share_tied_weights(front: SpanModel, tail: SpanModel) -> None:
    """Where the head is the embedding, hold its values once; the front may hold none."""
    if front.layout.tied is None:
        return
    head, embedding = front.layout.tied
    if isinstance(front.model.get_submodule(embedding.rpartition(".")[0]), RowsOnDisk):
        return
    owner = tail.model.get_submodule(head.rpartition(".")[0])
    owner.weight = front.model.get_parameter(embedding)
