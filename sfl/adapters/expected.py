"""What an edge says of the run's adapter, held against the settings and the model's own headers.

No torch: the cloud asks, which makes the first values of all that an edge names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sfl.adapters.manifest import AdapterManifest, ParameterSpec
from sfl.adapters.names import is_lora_a, is_lora_b, lora_names, saved_name
from sfl.config import RunSettings
from sfl.errors import ProtocolError
from sfl.models.folder import ModelFolder, checkpoint_tensors
from sfl.models.layers import ends_in, linear_names

MOST_SAVED = 16
"""Parameters of head modules that are trained whole."""


def check_manifest(
    manifest: AdapterManifest, settings: RunSettings, folder: ModelFolder | None
) -> None:
    """Raise ProtocolError unless it may be that of the run's model.

    Where `folder` has weights, by their headers: their layers, at the run's rank, and its head's.
    Else no more values than `aggregation.max_parameters`.
    """
    if folder is not None and manifest.num_layers != folder.num_layers:
        raise ProtocolError(
            f"num_layers = {manifest.num_layers} of its model, and {folder.name} has "
            f"{folder.num_layers} at the cloud: give both the same model"
        )
    lora = {p.name: p for p in manifest.parameters if is_lora_a(p.name) or is_lora_b(p.name)}
    if folder is not None and folder.tensors:
        _check_lora(lora, settings, folder)
        _check_saved([p for p in manifest.parameters if p.name not in lora], settings, folder)
        return
    for spec in lora.values():
        _check_rank(spec, settings.lora.rank)
    count = sum(math.prod(spec.shape) for spec in manifest.parameters)
    if count > settings.aggregation.max_parameters:
        raise ProtocolError(
            f"its adapter has {count} values; aggregation.max_parameters is "
            f"{settings.aggregation.max_parameters}"
        )


def _check_rank(spec: ParameterSpec, rank: int) -> None:
    ranks = spec.shape[:1] if is_lora_a(spec.name) else spec.shape[-1:]
    if len(spec.shape) != 2 or ranks != (rank,):
        raise ProtocolError(f"{spec.name} has shape {list(spec.shape)}, and lora.rank is {rank}")


def _check_lora(said: dict[str, ParameterSpec], settings: RunSettings, folder: ModelFolder) -> None:
    known = dict(_pairs(settings, folder))
    wanted = {name for module in known for name in lora_names(module)}
    if odd := sorted(wanted.symmetric_difference(said)):
        what = "names" if odd[0] in said else "does not name"
        raise ProtocolError(
            f"its adapter {what} {odd[0]}, by its model and lora.target_modules; {folder.name} at "
            "the cloud says otherwise: give both the same model"
        )
    rank = settings.lora.rank
    for module, (rows, columns) in known.items():
        a, b = (said[name] for name in lora_names(module))
        # GPT-2 stores [in, out], all others [out, in].
        if (a, b) not in (_lora(module, rank, columns, rows), _lora(module, rank, rows, columns)):
            raise ProtocolError(
                f"{b.name} x {a.name} are {list(b.shape)} x {list(a.shape)}; by {folder.name} at "
                f"the cloud {module} is [{rows}, {columns}], and lora.rank is {rank}"
            )


def _pairs(settings: RunSettings, folder: ModelFolder) -> Iterator[tuple[str, Sequence[int]]]:
    """(layer, shape of its weight) of all that get LoRA."""
    ends = settings.lora.target_modules or folder.family.targets(folder.model_type)
    layout = folder.family.layout(folder.config, settings.model.task)
    entries = checkpoint_tensors(folder, layout)
    for name in linear_names(folder, settings.model.task):
        if ends_in(name, ends):
            yield name, entries[f"{name}.weight"].shape


def _lora(module: str, rank: int, inputs: int, outputs: int) -> tuple[ParameterSpec, ParameterSpec]:
    a, b = lora_names(module)
    return (
        ParameterSpec(a, (rank, inputs), "kaiming", inputs),
        ParameterSpec(b, (outputs, rank), "zeros", rank),
    )


def _check_saved(
    saved: Sequence[ParameterSpec], settings: RunSettings, folder: ModelFolder
) -> None:
    """Head modules that are trained whole: those of the family, no wider than model and labels."""
    layout = folder.family.layout(folder.config, settings.model.task)
    modules = tuple(f"{saved_name(m)}." for m in (*layout.saved, *layout.saved_if_missing))
    widest = max(folder.hidden_size, len(settings.model.labels))
    for spec in saved:
        fits = len(spec.shape) <= 2 and max(spec.shape, default=1) <= widest
        if not spec.name.startswith(modules) or not fits or len(saved) > MOST_SAVED:
            raise ProtocolError(
                f"its adapter has {spec.name} of shape {list(spec.shape)}, which {folder.name} at "
                "the cloud has no place for"
            )
