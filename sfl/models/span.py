"""The blocks of one span on one node: frozen weights, run by transformers' own code.

Knows nothing of adapters, links or losses. Which device a forward is for enters only as the key
that dropout is drawn by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfl.config.node import Quantised
from sfl.keys import derive_seed
from sfl.models.families.family import Family, Layout, Padding, Task
from sfl.models.filling import (
    keep_only,
    leave_on_disk,
    load_tensors,
    quantise_blocks,
    saved_modules,
)
from sfl.models.folder import ModelFolder, belongs_to_span, checkpoint_tensors
from sfl.models.fused import fuse_activations
from sfl.models.kv.attention import CachedMask, Extension, make_room
from sfl.models.packed import accept_packed, packed_positions, packing_of
from sfl.models.placement import Stretch
from sfl.models.skeleton import build_skeleton, fill_buffers
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
    transformers' own. `drops` says whether a training forward draws random numbers, `packed`
    whether embedding and blocks take sequences one behind the other (sfl.models.packed). Hidden
    states come out in `dtype`, that of the weights, and go in in any; with `autocast` products
    are taken in bfloat16. With `recompute` a block keeps its input only and runs once more for its
    backward, with the same result to the last bit; mode and active adapter must then be those of
    its forward.
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
        packed: bool = False,
        dtype: torch.dtype = torch.float32,
        autocast: bool = False,
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
        self.drops = family.drops(folder.config)
        self.packed = packed
        self.dtype = dtype
        self.autocast = autocast
        self.recompute = False
        self._stretches: tuple[Stretch, ...] = ()
        if packed:
            accept_packed(model)
            fuse_activations(model)

    def lay_over(self, stretches: Sequence[Stretch]) -> None:
        """Move the blocks to their devices, and what follows them to the last one.

        Hidden states go along from block to block, their gradients back; those that come out of
        `blocks` are where the last block is. Before there is an adapter.
        """
        self._stretches = tuple(stretches)
        last = stretches[-1].device
        for stretch in stretches:
            for index in range(stretch.first, stretch.last):
                self.model.get_submodule(f"{self.layout.blocks}.{index}").to(stretch.device)
        blocks = set(self.model.get_submodule(self.layout.blocks).modules())
        for module in self.model.modules():
            if module not in blocks:
                # Each by itself: what stands above the blocks would take them along.
                module._apply(lambda tensor: tensor.to(last), recurse=False)  # type: ignore[no-untyped-call]

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """How `lay_over` has laid it out; nothing where all is on the CPU."""
        return self._stretches

    def held_bytes(self) -> tuple[list[int], int]:
        """Bytes of each block's weights, and of all others, which are where the head is."""
        indices = range(self.span.first, self.span.last)
        paths = [f"{self.layout.blocks}.{index}" for index in indices]
        blocks = [_tensor_bytes(self.model.get_submodule(path)) for path in paths]
        return blocks, _tensor_bytes(self.model) - sum(blocks)

    def _ranges(self, first: int, last: int, hidden: Tensor) -> Iterator[tuple[str, int, int]]:
        """(device, first, last) of the blocks `first..last-1`."""
        if not self._stretches:
            yield str(hidden.device), first, last
        for stretch in self._stretches:
            begin, end = max(first, stretch.first), min(last, stretch.last)
            if begin < end:
                yield stretch.device, begin, end

    def device_of(self, block: int) -> torch.device:
        """Where a block computes; past the last one, where the head does."""
        for stretch in self._stretches:
            if stretch.first <= block < stretch.last:
                return torch.device(stretch.device)
        return torch.device(self._stretches[-1].device if self._stretches else "cpu")

    def _at_head(self, hidden: Tensor) -> Tensor:
        """In the dtype and on the device of the head."""
        if self._stretches:
            hidden = hidden.to(self._stretches[-1].device)
        return hidden.to(self.dtype)

    def embed(self, input_ids: Tensor, lengths: Tensor, key: ForwardKey | None = None) -> Tensor:
        """Token ids [B, T], right-padded, to hidden states [B, T, H]; or [1, n] to [1, n, H]."""
        assert self.span.embedding
        self._seed_dropout(key, "embedding")
        with self._precision(input_ids):
            embedded = self.family.embed(self.model, input_ids, self._padding(lengths, input_ids))
        return embedded.to(self.dtype)

    def blocks(
        self,
        hidden: Tensor,
        lengths: Tensor,
        first: int | None = None,
        last: int | None = None,
        key: ForwardKey | None = None,
    ) -> Tensor:
        """[B, T, H] -> [B, T, H] through blocks `first..last-1`, by default all of the span's.

        In a packed model B is 1 and T the number of tokens of all sequences.
        """
        first = self.span.first if first is None else first
        last = self.span.last if last is None else last
        assert self.span.first <= first <= last <= self.span.last
        return self._through(hidden, first, last, partial(self._padding, lengths), key)

    @torch.no_grad()
    def extend(
        self,
        inputs: Tensor,
        extensions: Sequence[Extension],
        first: int | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Rows `[n, H]` behind blocks `first..last-1`, of tokens that follow what there is.

        `inputs` are those tokens, one conversation's behind the other's: their ids `[n]` where the
        span has the embedding, else their rows `[n, H]`. Each cache has them then; if anything
        raises it is as it was. A cache appears once, always with the same blocks. Raises NoPages.
        """
        first = self.span.first if first is None else first
        last = self.span.last if last is None else last
        assert self.span.first <= first <= last <= self.span.last
        assert self.packed and self.family.causal and not self.training
        make_room(extensions)
        cached = CachedMask(tuple(extensions))
        hidden = inputs[None]
        if self.span.embedding:
            with self._precision(hidden):
                hidden = self.family.embed(self.model, hidden, cached_padding(cached, hidden))
        padding_of = partial(cached_padding, cached)
        hidden = self._through(hidden, first, last, padding_of, None)
        for extension in extensions:
            extension.cache.advance(extension.count)
        return hidden[0]

    def _through(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        padding_of: Callable[[Tensor], Padding],
        key: ForwardKey | None,
    ) -> Tensor:
        hidden = hidden.to(self.dtype)
        if first == last:
            return hidden
        for device, begin, end in self._ranges(first, last, hidden):
            hidden = hidden.to(device)
            # Masks and positions anew on each device; they are little beside a block.
            context = self.family.context(self.model, hidden, padding_of(hidden))
            for index in range(begin, end):
                if self.recompute and torch.is_grad_enabled():
                    # Its random numbers are seeded within: there is no state to be kept for them.
                    hidden = checkpoint(
                        self._block,
                        index,
                        hidden,
                        context,
                        key,
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                else:
                    hidden = self._block(index, hidden, context, key)
        return hidden.to(self.dtype)

    def _block(self, index: int, hidden: Tensor, context: Any, key: ForwardKey | None) -> Tensor:
        name = f"{self.layout.blocks}.{index}"
        self._seed_dropout(key, name)
        with self._precision(hidden):
            return self.family.block(self.model.get_submodule(name), index, hidden, context)

    def head(self, hidden: Tensor, lengths: Tensor, key: ForwardKey | None = None) -> Tensor:
        """[B, T, H] -> logits: [B, T, V] of a language model, [B, C] of a classifier."""
        assert self.span.head
        self._seed_dropout(key, "head")
        hidden = self._at_head(hidden)
        with self._precision(hidden):
            return self.family.head(self.model, hidden, make_padding(lengths, hidden), self.task)

    def logits(self, rows: Tensor) -> Tensor:
        """[m, H] -> [m, V]: a language model's head at single positions."""
        assert self.span.head and self.task == "causal_lm"
        rows = self._at_head(rows)
        padding = make_padding(torch.tensor([len(rows)]), rows[None])
        with self._precision(rows):
            return self.family.head(self.model, rows[None], padding, self.task)[0]

    def _precision(self, like: Tensor) -> AbstractContextManager[object]:
        if not self.autocast:
            return nullcontext()
        return torch.autocast(like.device.type, torch.bfloat16)

    def _padding(self, lengths: Tensor, like: Tensor) -> Padding:
        if not self.packed:
            return make_padding(lengths, like)
        packing = packing_of(lengths, like.device)
        positions = packed_positions(lengths).to(like.device)
        lengths = lengths.to(like.device)
        mask = None
        if packing.index is not None and not self.family.causal:
            places = torch.arange(packing.width, device=like.device)
            mask = (places[None] < lengths[:, None]).to(torch.int64)
        return Padding(lengths, mask, positions, packing)

    def _seed_dropout(self, key: ForwardKey | None, part: str) -> None:
        """Let this part draw the numbers that are its own, wherever it runs."""
        if not (self.training and self.drops):
            return
        assert key is not None, "a training forward with dropout needs its key"
        torch.manual_seed(
            derive_seed(key.seed, key.device, key.round, key.step, key.micro_batch, part, "dropout")
        )


def _tensor_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def make_padding(lengths: Tensor, like: Tensor) -> Padding:
    """Mask and positions of a right-padded batch; `like` is [B, T] or [B, T, H]."""
    lengths = lengths.to(like.device)
    positions = torch.arange(like.shape[1], device=like.device)[None]
    mask = (positions < lengths[:, None]).to(torch.int64)
    return Padding(lengths, mask, positions)


def cached_padding(cached: CachedMask, like: Tensor) -> Padding:
    """Positions of tokens that follow what conversations have; on the device of `like`."""
    lengths = torch.tensor(cached.counts, device=like.device)
    return Padding(lengths, None, cached.positions.to(like.device), cached=cached)


def build_span(
    folder: ModelFolder,
    span: Span,
    *,
    task: Task,
    num_labels: int,
    dtype: torch.dtype,
    packed: bool = False,
    autocast: bool = False,
    quantised: Quantised = "none",
    embedding_on_disk: bool = False,
) -> SpanModel:
    """Load the tensors of `span`, and no other, into transformers' own modules.

    Weights are frozen; `eval()` mode. Head modules that the checkpoint lacks, or has for another
    number of classes, hold zeros: their values come with the adapter. With `quantised` the linear
    layers of the blocks are read and quantised one by one. With `embedding_on_disk` the rows of the
    token embedding are read as they are used. Raises ConfigError for a task the family cannot do,
    ModelError for a checkpoint that lacks a tensor.
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
    keep_only(model, frozenset(wanted))
    fill_buffers(model)
    if quantised != "none":
        wanted = quantise_blocks(model, layout, wanted, entries, quantised)
    if embedding_on_disk and span.embedding:
        wanted = leave_on_disk(model, wanted, entries, dtype)
    load_tensors(model, folder, wanted, entries, saved, dtype)
    return SpanModel(
        model,
        family=family,
        layout=layout,
        span=span,
        task=task,
        saved=saved,
        folder=folder,
        packed=packed,
        dtype=dtype,
        autocast=autocast,
    ).eval()
