"""A span's tensors into transformers' own modules: what is not wanted goes, the rest is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfl.config.node import Quantised
from sfl.errors import ModelError
from sfl.models.families.family import Layout
from sfl.models.folder import ModelFolder, TensorEntry
from sfl.models.quantised import is_linear, read_quantised
from sfl.models.rows import RowsOnDisk
from sfl.models.weights import read_tensor


def saved_modules(
    layout: Layout, shapes: Mapping[str, Tensor], entries: Mapping[str, TensorEntry]
) -> tuple[str, ...]:
    """Head modules that are trained whole: the classifier, and what the checkpoint lacks."""
    lacking = tuple(
        module
        for module in layout.saved_if_missing
        if not all(
            fits(shapes[name], entries.get(name)) for name in shapes if name.startswith(module)
        )
    )
    return lacking + layout.saved


def fits(tensor: Tensor, entry: TensorEntry | None) -> bool:
    """Whether the checkpoint has this tensor, in this shape."""
    return entry is not None and entry.shape == tuple(tensor.shape)


def keep_only(module: nn.Module, wanted: frozenset[str], path: str = "") -> None:
    """Drop every module with parameters of which none is wanted."""
    for name, child in list(module.named_children()):
        inner = f"{path}{name}."
        if not list(child.state_dict()):
            continue  # activations, dropout, rotary positions
        if any(key.startswith(inner) for key in wanted):
            keep_only(child, wanted, inner)
        else:
            delattr(module, name)


def load_tensors(
    model: nn.Module,
    folder: ModelFolder,
    wanted: Mapping[str, Tensor],
    entries: Mapping[str, TensorEntry],
    saved: tuple[str, ...],
    dtype: torch.dtype,
) -> None:
    """Read what is wanted in that dtype; what the checkpoint lacks of `saved` modules holds zeros.

    Raises ModelError for any other tensor that is not there in its shape.
    """
    tensors: dict[str, Tensor] = {}  # by checkpoint name: tied weights are read once
    for name, empty in wanted.items():
        entry = entries.get(name)
        if fits(empty, entry):
            assert entry is not None
            if entry.name not in tensors:
                tensors[entry.name] = read_tensor(entry, dtype)
            place(model, name, tensors[entry.name])
        elif name.startswith(tuple(f"{module}." for module in saved)):
            place(model, name, torch.zeros(empty.shape, dtype=dtype))
        else:
            raise _misfit(folder, name, empty, entry)


def quantise_blocks(
    model: nn.Module,
    layout: Layout,
    wanted: Mapping[str, Tensor],
    entries: Mapping[str, TensorEntry],
    quantised: Quantised,
) -> dict[str, Tensor]:
    """Replace the blocks' linear layers by quantised ones; returns what is left to be loaded."""
    left = dict(wanted)
    for name, module in list(model.named_modules()):
        weight = f"{name}.weight"
        entry = entries.get(weight)
        inside = name.startswith(f"{layout.blocks}.") and is_linear(module)
        if inside and weight in left and fits(left[weight], entry):
            assert entry is not None
            path, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(path), attribute, read_quantised(module, entry, quantised))
            del left[weight]
    return left


def leave_on_disk(
    model: Any, wanted: Mapping[str, Tensor], entries: Mapping[str, TensorEntry], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Replace the token embedding by one that reads its rows; returns what is left to be loaded."""
    embedding = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is embedding)
    weight = f"{path}.weight"
    entry = entries.get(weight)
    if not fits(wanted[weight], entry):
        return dict(wanted)  # which is an error where it is loaded
    assert entry is not None
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, RowsOnDisk(embedding, entry, dtype))
    return {name: tensor for name, tensor in wanted.items() if name != weight}


def place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where the model's modules have the one of that name."""
    path, _, attribute = name.rpartition(".")
    owner: Any = model.get_submodule(path)
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)


def _misfit(folder: ModelFolder, name: str, empty: Tensor, entry: TensorEntry | None) -> ModelError:
    problem, fix = f"its weights lack {name}", "Fetch the model again."
    tail = name.partition(".")[2]
    if entry is None and (alike := [other for other in folder.tensors if other.endswith(tail)]):
        problem += f"; it has {min(alike)}"
        fix = "The weights are of another kind of model than config.json says; fetch both again."
    if entry is not None:
        problem = f"{entry.name} is {list(entry.shape)}, config.json asks for {list(empty.shape)}"
    return ModelError("model.path", str(folder.path), problem, fix)
