"""The blocks of one span on one node: frozen weights, run by transformers' own code.

Knows nothing of adapters, links or losses. Which device a forward is for enters only as the key
that dropout is drawn by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfl.errors import ModelError
from sfl.keys import derive_seed
from sfl.models.family import Family, Layout, Padding, Task
from sfl.models.folder import ModelFolder, TensorEntry, belongs_to_span, checkpoint_tensors
from sfl.models.skeleton import build_skeleton, fill_buffers
from sfl.models.weights import read_tensor
from sfl.plan import Span


@dataclass(frozen=True, slots=True)
class ForwardKey:
    """What the dropout of one forward is drawn by, together with the block's name."""

    seed: int
    device: str
    round: int
    step: int
    micro_batch: int


class SpanModel(nn.Module):
    """Embedding, blocks and head of one span, as far as it has them; see `build_span`.

    `saved` names the head modules that are trained whole. Module names under `model` are
    transformers' own. `drops` says whether a training forward draws random numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        family: Family,
        layout: Layout,
        span: Span,
        task: Task,
        saved: tuple[str, ...],
        folder: ModelFolder,
    ) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.layout = layout
        self.span = span
        self.task: Task = task
        self.saved = saved
        self.num_layers = folder.num_layers
        self.hidden_size = folder.hidden_size
        self.vocab_size = folder.vocab_size
        self.drops = family.drops(model.config)

    def embed(self, input_ids: Tensor, lengths: Tensor, key: ForwardKey | None = None) -> Tensor:
        """Token ids [B, T], right-padded, to hidden states [B, T, H]."""
        assert self.span.embedding
        self._seed_dropout(key, "embedding")
        padding = make_padding(lengths, input_ids)
        return self.family.embed(self.model, input_ids, padding)

    def blocks(
        self,
        hidden: Tensor,
        lengths: Tensor,
        first: int | None = None,
        last: int | None = None,
        key: ForwardKey | None = None,
    ) -> Tensor:
        """[B, T, H] -> [B, T, H] through blocks `first..last-1`, by default all of the span's."""
        first = self.span.first if first is None else first
        last = self.span.last if last is None else last
        assert self.span.first <= first <= last <= self.span.last
        if first == last:
            return hidden
        context = self.family.context(self.model, hidden, make_padding(lengths, hidden))
        for index in range(first, last):
            name = f"{self.layout.blocks}.{index}"
            self._seed_dropout(key, name)
            block = self.model.get_submodule(name)
            hidden = self.family.block(block, index, hidden, context)
        return hidden

    def head(self, hidden: Tensor, lengths: Tensor, key: ForwardKey | None = None) -> Tensor:
        """[B, T, H] -> logits: [B, T, V] of a language model, [B, C] of a classifier."""
        assert self.span.head
        self._seed_dropout(key, "head")
        return self.family.head(self.model, hidden, make_padding(lengths, hidden), self.task)

    def _seed_dropout(self, key: ForwardKey | None, part: str) -> None:
        """Let this part draw the numbers that are its own, wherever it runs."""
        if not (self.training and self.drops):
            return
        assert key is not None, "a training forward with dropout needs its key"
        torch.manual_seed(
            derive_seed(key.seed, key.device, key.round, key.step, key.micro_batch, part, "dropout")
        )


def make_padding(lengths: Tensor, like: Tensor) -> Padding:
    """Mask and positions of a right-padded batch; `like` is [B, T] or [B, T, H]."""
    lengths = lengths.to(like.device)
    positions = torch.arange(like.shape[1], device=like.device)[None]
    mask = (positions < lengths[:, None]).to(torch.int64)
    return Padding(lengths, mask, positions)


def build_span(
    folder: ModelFolder, span: Span, *, task: Task, num_labels: int, dtype: torch.dtype
) -> SpanModel:
    """Load the tensors of `span`, and no other, into transformers' own modules.

    Weights are frozen; `eval()` mode. Head modules that the checkpoint lacks, or has for another
    number of classes, hold zeros: their values come with the adapter. Raises ConfigError for a
    task the family cannot do, ModelError for a checkpoint that lacks a tensor.
    """
    family = folder.family
    layout = family.layout(folder.config, task)
    model = build_skeleton(folder, layout, task, num_labels, dtype)
    entries = checkpoint_tensors(folder, layout)
    wanted = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if belongs_to_span(name, layout, span)
    }
    saved = saved_modules(layout, wanted, entries) if span.head else ()
    _prune(model, frozenset(wanted))
    fill_buffers(model)
    _load(model, folder, wanted, entries, saved, dtype)
    return SpanModel(
        model, family=family, layout=layout, span=span, task=task, saved=saved, folder=folder
    ).eval()


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


def _prune(module: nn.Module, wanted: frozenset[str], path: str = "") -> None:
    """Drop every module with parameters of which none is wanted."""
    for name, child in list(module.named_children()):
        inner = f"{path}{name}."
        if not list(child.state_dict()):
            continue  # activations, dropout, rotary positions
        if any(key.startswith(inner) for key in wanted):
            _prune(child, wanted, inner)
        else:
            delattr(module, name)


def _load(
    model: nn.Module,
    folder: ModelFolder,
    wanted: Mapping[str, Tensor],
    entries: Mapping[str, TensorEntry],
    saved: tuple[str, ...],
    dtype: torch.dtype,
) -> None:
    tensors: dict[str, Tensor] = {}  # by checkpoint name: tied weights are read once
    for name, empty in wanted.items():
        entry = entries.get(name)
        if fits(empty, entry):
            assert entry is not None
            if entry.name not in tensors:
                tensors[entry.name] = read_tensor(entry, dtype)
            _place(model, name, tensors[entry.name])
        elif name.startswith(tuple(f"{module}." for module in saved)):
            _place(model, name, torch.zeros(empty.shape, dtype=dtype))
        else:
            raise _misfit(folder, name, empty, entry)


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    owner: Any = model.get_submodule(path)
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)


def _misfit(folder: ModelFolder, name: str, empty: Tensor, entry: TensorEntry | None) -> ModelError:
    problem = f"its weights lack {name}"
    if entry is not None:
        problem = f"{entry.name} is {list(entry.shape)}, config.json asks for {list(empty.shape)}"
    return ModelError("model.path", str(folder.path), problem, "Fetch the model again.")
