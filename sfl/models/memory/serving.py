"""What a node needs that answers with a model, foretold from headers: no torch, no weights read.

Weights, adapters and the budget of keys and values are exact. What a forward works with is an
estimate from above: tensors of the widest block for the tokens that are computed at once, and one
conversation's keys and values that are gathered, since its pages may be in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sfl.config import LocalDevice
from sfl.config.serve import AnswerSettings
from sfl.config.serving import ServeSettings
from sfl.config.size import size
from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder
from sfl.models.kv.size import keeping_of, kv_width, page_bytes
from sfl.models.memory.device_budget import left_on_disk
from sfl.models.memory.footprint import (
    ATTENTION_CAP,
    NOTHING_SAVED,
    ROW_COPIES,
    WARM_UP_BYTES,
    Load,
    Thrift,
    attention_width,
    device_footprint,
    embedding_bytes,
)
from sfl.plan import Span
from sfl.serving.steps import chunk_tokens

HIDDEN_TENSORS, WIDE_TENSORS = 10, 4
"""Tensors of the hidden width and of the MLP's that a block has at once, for each token."""
SAMPLING_COPIES = 4
"""Of one row of logits, in float64, where a token is drawn."""


@dataclass(frozen=True, slots=True)
class Answering:
    """`pages` of keys and values over `spans`; `chunk` tokens of a prompt, or the next ones of
    `batch` conversations of `context` tokens are computed at once."""

    spans: tuple[Span, ...]
    load: Load
    pages: int
    chunk: int
    batch: int
    context: int
    without_embedding: bool = False


def answering_of(folder: ModelFolder, serve: ServeSettings, load: Load, first: int) -> Answering:
    """What an edge's settings come to, over its blocks from `first` on and the head."""
    span = Span(first, folder.num_layers, embedding=False, head=True)
    pages = serve.kv_memory // page_bytes(folder.config, span.num_blocks, load.item_bytes)
    chunk = chunk_tokens(serve.prefill_chunk, folder.hidden_size)
    return Answering((span,), load, pages, chunk, serve.batch, folder.context_length)


def longest_answer(folder: ModelFolder, serve: ServeSettings) -> int:
    """Tokens of the longest one."""
    return min(serve.max_tokens, folder.context_length)


def pages_of_answer(folder: ModelFolder, serve: ServeSettings, own: Answering) -> int:
    """What the longest answer costs."""
    keeping = keeping_of(folder, own.spans[0], own.chunk)
    return keeping.cost(longest_answer(folder, serve))


def check_cut(folder: ModelFolder, serve: ServeSettings, section: str) -> None:
    """Raises ConfigError where the edge would have no block."""
    if serve.cut_layer >= folder.num_layers:
        raise ConfigError(
            f"{section}.cut_layer",
            serve.cut_layer,
            f"the model has {folder.num_layers} blocks",
            f"Choose 0 to {folder.num_layers - 1}.",
        )


def check_room(folder: ModelFolder, serve: ServeSettings, own: Answering, section: str) -> None:
    """Raises ConfigError where one answer has no room among keys and values."""
    each = kv_bytes(folder, own.spans, 1, own.load.item_bytes)
    wanted = pages_of_answer(folder, serve, own)
    if own.pages < wanted:
        raise ConfigError(
            f"{section}.kv_memory",
            serve.kv_memory,
            f"an answer of {section}.max_tokens = {serve.max_tokens} takes {wanted} pages of "
            f"{size(each)}, and there is room for {own.pages}: it can never fit",
            f"Give {size(wanted * each).replace(' ', '')} and room for prompts, or lower "
            f"{section}.max_tokens.",
        )


@dataclass(frozen=True, slots=True)
class ServingFootprint:
    """Bytes by what they are for. `kv` is the whole budget, `working` a forward's own.

    `draft` is what guesses: its weights, keys and values.
    """

    base: int
    weights: int
    adapters: int
    kv: int
    working: int
    draft: int = 0

    @property
    def total(self) -> int:
        """Peak resident size."""
        return self.base + self.weights + self.adapters + self.kv + self.working + self.draft


def serving_footprint(
    folder: ModelFolder, own: Answering, base_bytes: int, adapters: int, draft: int = 0
) -> ServingFootprint:
    """Peak memory of a node whose process takes `base_bytes` before its model."""
    thrift = Thrift(embedding_on_disk=own.without_embedding)
    return ServingFootprint(
        base=base_bytes + WARM_UP_BYTES,
        weights=_weights(folder, own.spans, own.load, thrift),
        adapters=adapters,
        kv=kv_bytes(folder, own.spans, own.pages, own.load.item_bytes),
        working=_working(folder, own),
        draft=draft,
    )


def exit_bytes(folder: ModelFolder, own: Answering) -> int:
    """An exit over a device's blocks: one of its own, a norm, and the head where the device has it
    neither as embedding nor as head. It is not quantised."""
    last, load = folder.num_layers, replace(own.load, quantised="none")
    block = Span(last - 1, last, embedding=False, head=False)
    end = Span(last, last, embedding=False, head=True)
    more = _weights(folder, (*own.spans, end), load) - _weights(folder, own.spans, load)
    norm = 0 if more else folder.hidden_size * load.item_bytes  # the device's own is another
    kv = kv_bytes(folder, (block,), own.pages, load.item_bytes)
    return _weights(folder, (block,), load) + more + norm + kv


def small_model_bytes(small: ModelFolder, own: Answering) -> int:
    """A small model that guesses beside a device's blocks: all of it."""
    whole = Span(0, small.num_layers, embedding=True, head=True)
    answering = replace(own, spans=(whole,))
    kv = kv_bytes(small, (whole,), own.pages, own.load.item_bytes)
    return _weights(small, (whole,), own.load) + kv + _working(small, answering)


def _weights(
    folder: ModelFolder, spans: Iterable[Span], load: Load, thrift: Thrift = NOTHING_SAVED
) -> int:
    return device_footprint(folder, spans, load, thrift=thrift).weights


def reads_rows(folder: ModelFolder, own: LocalDevice, load: Load) -> bool:
    """Whether a device that answers leaves its embedding on the disk, and reads rows of it."""
    return left_on_disk(own, embedding_bytes(folder, load))


def without_embedding(
    folder: ModelFolder, own: LocalDevice, serve: AnswerSettings, load: Load
) -> bool:
    """Whether none of its values are in memory: no head with the same ones is on the device.

    It has one in the U-shape, and with an exit.
    """
    tied = folder.family.layout(folder.config, load.task).tied is not None
    heads = serve.topology == "u_shaped" or serve.draft_source[0] == "exit"
    return not (tied and heads) and reads_rows(folder, own, load)


def kv_bytes(folder: ModelFolder, spans: Iterable[Span], pages: int, itemsize: int) -> int:
    """Of so many pages in each of the spans."""
    return sum(pages * page_bytes(folder.config, span.num_blocks, itemsize) for span in spans)


def _working(folder: ModelFolder, own: Answering) -> int:
    """What a forward adds, at its largest."""
    item, hidden = own.load.item_bytes, folder.hidden_size
    heads, width = attention_width(folder.config, hidden)
    tokens = max(own.chunk, own.batch)
    each = HIDDEN_TENSORS * max(hidden, width) + WIDE_TENSORS * _widest(folder)
    scores = 2 * 4 * heads if folder.config.get(ATTENTION_CAP) else 1  # else a mask of bytes
    total = tokens * (each * item + scores * own.context)
    total += 2 * own.context * kv_width(folder.config) * item
    total += ROW_COPIES * 4 * tokens * hidden
    if any(span.head for span in own.spans):
        total += folder.vocab_size * (2 * item * own.batch + 8 * SAMPLING_COPIES)
    return total


def _widest(folder: ModelFolder) -> int:
    """The MLP's width."""
    config = folder.config
    named = config.get("intermediate_size") or config.get("n_inner")
    return int(named or 4 * folder.hidden_size)
