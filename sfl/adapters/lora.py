"""All adapters of one node over one frozen base: LoRA (Hu et al., 2106.09685) and whole modules.

Every target layer is wrapped once, with a slot for each adapter. To switch adapters changes which
one the next forward uses and nothing else: graphs of other adapters in flight stay valid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sfl.adapters.folding import fold
from sfl.adapters.initial import fresh_lora
from sfl.adapters.manifest import AdapterManifest, Init, ParameterSpec
from sfl.adapters.names import belongs_to, is_lora_a, lora_names, saved_name
from sfl.adapters.slots import Active, LoraLinear, Pair, SavedModule
from sfl.adapters.stacked import Rows
from sfl.adapters.targets import (
    Target,
    check_targets,
    find_targets,
    peft_selector,
    uses_transposed_weights,
)
from sfl.config import LoraSettings
from sfl.errors import ProtocolError
from sfl.models.families.family import Task
from sfl.models.filling import fits, saved_modules
from sfl.models.folder import ModelFolder, checkpoint_tensors
from sfl.models.skeleton import build_skeleton
from sfl.models.span import SpanModel
from sfl.models.weights import read_tensor
from sfl.plan import Span

_TASKS: dict[str, Task] = {"CAUSAL_LM": "causal_lm", "SEQ_CLS": "sequence_classification"}
"""Tasks by PEFT's names."""


class Adapter:
    """One device's tensors on this node, float32, by PEFT's names; `trained` are not frozen."""

    def __init__(self, name: str, parameters: Mapping[str, nn.Parameter]) -> None:
        self.name = name
        self.parameters: dict[str, nn.Parameter] = dict(sorted(parameters.items()))
        self.trained = {n: p for n, p in self.parameters.items() if p.requires_grad}

    def load(self, values: Mapping[str, npt.NDArray[Any] | Tensor]) -> None:
        """Take over `values` in place, so that an optimizer's moments keep their tensors.

        Raises ProtocolError unless names and shapes are exactly this adapter's.
        """
        if values.keys() != self.parameters.keys():
            different = sorted(values.keys() ^ self.parameters.keys())
            raise ProtocolError(f"the adapter does not fit this span: {', '.join(different[:3])}")
        tensors = {name: torch.as_tensor(value) for name, value in values.items()}
        for name, parameter in self.parameters.items():
            if tensors[name].shape != parameter.shape:
                raise ProtocolError(
                    f"{name} is {list(tensors[name].shape)}, not {list(parameter.shape)}"
                )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])

    def start_afresh(
        self, values: Mapping[str, npt.NDArray[Any] | Tensor], seed: int, round_: int
    ) -> None:
        """Load a round's own fresh LoRA, and `values` of what is trained whole."""
        shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        self.load({**fresh_lora(shapes, seed, round_), **values})

    def state(self) -> dict[str, npt.NDArray[np.float32]]:
        """A copy of all trained values."""
        return {
            name: parameter.detach().to("cpu", torch.float32).numpy().copy()
            for name, parameter in self.trained.items()
        }


class LoraBank:
    """Wraps the span's target layers and saved modules, and holds the adapters in them.

    With empty `target_modules` the family's default counts. Names that match nothing here are no
    error: `build_manifest` has checked them against the whole model.
    """

    def __init__(
        self, model: SpanModel, settings: LoraSettings, target_modules: Sequence[str] = ()
    ) -> None:
        names = target_modules or model.family.targets(_model_type(model.model))
        self._span = model.span
        self._settings = settings
        self._active = Active()
        self._rows: Rows | None = None  # the last ones: steps often have the same
        self._targets = find_targets(model.model, model.layout, names)
        self._linear = {target.name: self._wrap(model, target) for target in self._targets}
        self._saved = {name: self._wrap_saved(model, name) for name in model.saved}
        model.drops = model.drops or settings.dropout > 0.0

    def manifest_specs(self, rank: int | None = None) -> list[ParameterSpec]:
        """What an adapter over the whole span consists of, sorted by name."""
        modules = {name: slot.base_layer for name, slot in self._saved.items()}
        return _specs(self._targets, modules, rank or self._settings.rank)

    def add(
        self,
        name: str,
        span: Span,
        rank: int | None = None,
        freeze_a: bool = False,
        *,
        names: Collection[str] | None = None,
        scaling: float | None = None,
    ) -> Adapter:
        """A new adapter over the blocks in `span`, all zeros until values are loaded.

        Each tensor is on the device of the layer that it belongs to. Its rank may be another than
        the settings', and A may stay as it is loaded. It may have some of the layers only, by the
        `names` of its parameters, and a `scaling` of its own.
        """
        assert name, "an adapter needs a name"
        homes = self._homes()
        parameters = {
            spec.name: nn.Parameter(
                torch.zeros(spec.shape, dtype=torch.float32, device=homes[spec.name]),
                requires_grad=not (freeze_a and is_lora_a(spec.name)),
            )
            for spec in self.manifest_specs(rank)
            if belongs_to(spec.name, span) and (names is None or spec.name in names)
        }
        if scaling is None:
            scaling = self._settings.alpha / (rank or self._settings.rank)
        for module, slot in self._linear.items():
            a, b = lora_names(module)
            if a in parameters:
                slot.pairs[name] = Pair(parameters[a], parameters[b], scaling)
        for module, saved in self._saved.items():
            if span.head:
                names = [inner for inner, _ in saved.base_layer.named_parameters()]
                saved.copies[name] = {
                    inner: parameters[saved_name(f"{module}.{inner}")] for inner in names
                }
        return Adapter(name, parameters)

    def activate(self, adapter: Adapter | None) -> None:
        """Let the next forwards use `adapter`, or the base alone."""
        self._active.adapter = None if adapter is None else adapter.name
        self._active.parts, self._active.rows = (), None

    def activate_parts(self, parts: Sequence[tuple[Adapter, int]]) -> None:
        """Let runs of so many rows of the next packed forwards use an adapter each."""
        self._active.parts = tuple((adapter.name, count) for adapter, count in parts)
        self._active.rows = None

    def stack(self, adapters: Sequence[Adapter]) -> None:
        """Let `activate_rows` use these, from now on no others; their values stay where they are
        found, once. None of them is trained."""
        names = [adapter.name for adapter in adapters]
        for slot in self._linear.values():
            slot.stack(names)

    def activate_rows(self, adapters: Sequence[Adapter | None]) -> None:
        """Let each row of the next packed forwards use an adapter of its own, or the base alone.

        Equal to `activate` for each row by itself, to rounding.
        """
        if len({adapter and adapter.name for adapter in adapters}) == 1:
            self.activate(adapters[0])
            return
        names = tuple(adapter.name if adapter else "" for adapter in adapters)
        if self._rows is None or self._rows.each != names:
            self._rows = Rows.of(names)
        self._active.parts, self._active.rows = (), self._rows

    def fold(self, base_update: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add a base update below all adapters, for good. Raises ProtocolError."""
        fold(self._targets, base_update)

    def remove(self, name: str) -> None:
        """Forget an adapter; graphs in flight keep their tensors."""
        for slot in self._linear.values():
            slot.pairs.pop(name, None)
        for saved in self._saved.values():
            saved.copies.pop(name, None)

    def _homes(self) -> dict[str, torch.device]:
        """The device of each parameter of an adapter, by its name."""
        homes: dict[str, torch.device] = {}
        for module, slot in self._linear.items():
            homes |= dict.fromkeys(lora_names(module), _device_of(slot.base_layer))
        for module, saved in self._saved.items():
            for inner, parameter in saved.base_layer.named_parameters():
                homes[saved_name(f"{module}.{inner}")] = parameter.device
        return homes

    def _wrap(self, model: SpanModel, target: Target) -> LoraLinear:
        slot = LoraLinear(target.module, self._active, self._settings.dropout, model.packed)
        _replace(model.model, target.name, slot)
        return slot

    def _wrap_saved(self, model: SpanModel, name: str) -> SavedModule:
        slot = SavedModule(model.model.get_submodule(name), self._active)
        _replace(model.model, name, slot)
        return slot


def build_manifest(
    folder: ModelFolder, task: Task, num_labels: int, lora: LoraSettings
) -> AdapterManifest:
    """What the complete model's adapter consists of; holds no weights.

    Raises ConfigError for an impossible task or an unknown name in lora.target_modules.
    """
    family = folder.family
    folder.check_task(task)
    layout = family.layout(folder.config, task)
    model = build_skeleton(folder, layout, task, num_labels, torch.float32)
    names = lora.target_modules or family.targets(folder.model_type)
    check_targets(model, layout, names)
    targets = find_targets(model, layout, names)
    entries = checkpoint_tensors(folder, layout)
    saved = saved_modules(layout, model.state_dict(), entries)
    modules = {name: model.get_submodule(name) for name in saved}
    kept = {name for name, tensor in model.state_dict().items() if fits(tensor, entries.get(name))}
    selector = peft_selector(model, layout, names)
    return AdapterManifest(
        parameters=tuple(_specs(targets, modules, lora.rank, kept)),
        num_layers=folder.num_layers,
        peft_config=_peft_config(
            lora, task, selector, saved, uses_transposed_weights(targets), folder.name
        ),
    )


def given_values(
    folder: ModelFolder, manifest: AdapterManifest
) -> dict[str, npt.NDArray[np.float32]]:
    """The checkpoint's own values of parameters whose init is `given`. Raises ModelError."""
    task = _TASKS[manifest.peft_config["task_type"]]
    entries = checkpoint_tensors(folder, folder.family.layout(folder.config, task))
    wanted = {saved_name(name): entry for name, entry in entries.items()}
    return {
        spec.name: read_tensor(wanted[spec.name], torch.float32).numpy()
        for spec in manifest.parameters
        if spec.init == "given"
    }


def _specs(
    targets: Sequence[Target],
    saved: Mapping[str, nn.Module],
    rank: int,
    kept: frozenset[str] | set[str] = frozenset(),
) -> list[ParameterSpec]:
    specs = []
    for target in targets:
        a, b = lora_names(target.name)
        specs.append(ParameterSpec(a, (rank, target.num_inputs), "kaiming", target.num_inputs))
        specs.append(ParameterSpec(b, (target.num_outputs, rank), "zeros", rank))
    for module, root in saved.items():
        for inner, parameter in root.named_parameters():
            name = f"{module}.{inner}"
            init: Init = "given" if name in kept else _first_values(inner, parameter)
            shape = tuple(parameter.shape)
            specs.append(ParameterSpec(saved_name(name), shape, init, math.prod(shape[1:])))
    return sorted(specs, key=lambda spec: spec.name)


def _first_values(name: str, parameter: Tensor) -> Init:
    """As transformers initialises new layers: matrices normal, biases zero, norms one."""
    if parameter.dim() > 1:
        return "normal"
    return "zeros" if name.endswith("bias") else "ones"


def _peft_config(
    lora: LoraSettings,
    task: Task,
    target_modules: list[str] | str,
    saved: Sequence[str],
    transposed: bool,
    base: str,
) -> dict[str, Any]:
    # The edge only: 55 MB that no device pays.
    from peft import LoraConfig

    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    config: dict[str, Any] = LoraConfig(
        task_type={task: kind for kind, task in _TASKS.items()}[task],
        base_model_name_or_path=base,
        inference_mode=True,
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=target_modules,
        modules_to_save=list(saved) or None,
        fan_in_fan_out=transposed,
    ).to_dict()
    return {name: _plain(value) for name, value in config.items()}


def _plain(value: Any) -> Any:
    """A value as JSON has it: enums by value, sets sorted."""
    if isinstance(value, set):
        return sorted(value)
    return getattr(value, "value", value)


def _device_of(module: nn.Module) -> torch.device:
    """Where a layer's tensors are; a quantised one has buffers only."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next(tensor.device for tensor in tensors)


def _replace(model: nn.Module, name: str, slot: nn.Module) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, slot)


def _model_type(model: nn.Module) -> str:
    config: Any = model.config
    model_type: str = config.model_type
    return model_type
