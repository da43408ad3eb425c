"""How much memory a device needs for its spans, foretold from headers: no torch, no weights read.

Everything is in bytes. Sizes of weights and adapters are exact, from safetensors headers and LoRA's
definition. What training adds was counted with `torch.autograd.graph.saved_tensors_hooks` and
fitted to peak resident sizes of real processes (x86-64, glibc, torch 2.13 CPU, 2 threads, float32):
GPT-2 124M, a Llama of hidden size 768, BERT base and stories260k, 1 to 6 blocks, 64 to 2048 tokens,
six steps each, with and without dropout. Totals were foretold 0 to 9 % too high, most of them
below 6 %. Two `sfl device` processes on stories260k (cut_layer 1 and 4, 4 x 128 tokens) took 419
and 434 MB, against 421 and 438 MB. Under `sfl run` a device is forked from a process that has
imported everything, and takes about 60 MB less. That is `computation = "reference"`; `lean` keeps
less, so that the same totals were 7 % (GPT-2, 3 blocks; NF4 6 %, int8 5 %) and 16 % (Llama, 5
blocks) too high. bfloat16 was looked at once (+3 %), accelerators never. Autocast's copies of
weights were measured by GPT-2's shape, 6 blocks, 1 x 32 tokens; attention without padding, which
joins the results of ragged batches, by what autograd keeps (tests/models/test_forecast.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from sfl.config.node import Dtype, Quantised
from sfl.models.families.family import Layout, Task
from sfl.models.folder import ModelFolder, TensorEntry, belongs_to_span, checkpoint_tensors
from sfl.plan import Span

BASE_BYTES = 378_000_000
"""A device process that has imported all it needs and loaded nothing: Python 3.11, torch (227 MB),
transformers with one model's code (100 MB), gRPC, pydantic. Measure it where you can."""
EDGE_BASE_BYTES = 434_000_000
"""The same of an edge, which imports peft and transformers' compiler too. One started by hand, on
stories260k and batches of 2 x 128 tokens, took 470 MB at its peak, of which 17 were the model and
the job; one that `sfl run` forks takes about 100 MB less."""
WARM_UP_BYTES = 30_000_000
"""What a model and the first steps add for good: modules, kernels paged in, threads' stacks."""
HEAP_FACTOR = 1.9
"""Resident bytes for each byte that autograd keeps. glibc keeps freed tensors in a heap that
fragments; with MALLOC_MMAP_THRESHOLD_=1000000 it is 1.1, and a step takes 1.6 times as long."""
WIDE_TRANSIENTS = 12
"""Tensors of the MLP's width that a block has at once beside what is kept."""
EDGE_WIDE_TRANSIENTS = 24
"""The same on an edge, whose heap is kept. On stories260k with 96 x 128 tokens and blocks computed
again a job came to 431 to 516 MB over six runs; this foretells 465."""
RETURNED_WARM_UP_BYTES = 95_000_000
"""The same where freed memory goes back at once (`process.return_memory`): tensors of less than
1 MB do not, and their heap stays. Set, with the two below, by GPT-2's shape at cuts 1 and 3 and
8 x 128 tokens, and at cut 1 in halves and quarters: 513, 725, 463 and 463 MB measured, 1 to 9 %
more foretold."""
RETURNED_HEAP_FACTOR = 1.05
"""Of `HEAP_FACTOR` there; and everywhere of autocast's copies of weights."""
RETURNED_WIDE_TRANSIENTS = 2
"""Of `WIDE_TRANSIENTS` there."""
LOGIT_COPIES = 3
"""Logits, their log-softmax and their gradient."""
PIECE_LOGITS = 1 << 22
"""Logits that `lean` computes at once, or `PIECE_ROWS` rows of them if those are more."""
PIECE_ROWS = 64
"""Fewer rows would make the head's product slow."""
AUTOCAST_BYTES = 2
"""Of a value that autocast computes with."""
ROW_COPIES = 4
"""Of the tensor at the cut: packed, coded, received, unpacked."""
ADAPTER_COPIES = 2
"""Of an adapter on its way: as arrays, and as bytes."""

ATTENTION_DROPOUT = ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob")
ATTENTION_CAP = "attn_logit_softcapping"
"""Gemma 2's: scores are then written down, before their cap and after their softmax."""
HEADS = ("num_attention_heads", "n_head", "n_heads")

QUANTISER_BYTES = 47_000_000
"""bitsandbytes, imported after torch."""
NF4_BLOCK = 64
"""Weights that share a float32 scale in NF4."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a device trains with. `length` is the longest sequence of a batch, in tokens.

    With empty `target_modules` the family's default counts. The batch is a whole optimizer
    step's: its micro-batches are in flight together, `graphs` of them at most. With `lean` logits
    are taken in pieces and sequences are packed. `autocast` and `auto` count as float32, which they
    need at most but for autocast's copies of weights. `anchored`: FedProx's copy of the adapter is
    kept beside it.
    """

    batch_size: int
    length: int
    rank: int = 8
    task: Task = "causal_lm"
    num_labels: int = 0
    dtype: Dtype = "float32"
    quantised: Quantised = "none"
    target_modules: tuple[str, ...] = ()
    lora_dropout: float = 0.0
    lean: bool = False
    graphs: int = 1
    anchored: bool = False

    @property
    def optimizer_copies(self) -> int:
        """Of an adapter: its gradient, AdamW's two moments, FedProx's anchor."""
        return 3 + self.anchored

    @property
    def tokens(self) -> int:
        """Positions of one step, padding included."""
        return self.batch_size * self.length

    @property
    def item_bytes(self) -> int:
        """Bytes of one value, of a weight or of a hidden state."""
        return 2 if self.dtype == "bfloat16" else 4


@dataclass(frozen=True, slots=True)
class Thrift:
    """What a device does to take less memory.

    `embedding_on_disk`: rows of the token embedding are read as they are used. `recompute`: a block
    keeps its input only. `returned`: freed memory goes back at once, and activation functions are
    computed in pieces. None of these changes a bit. `micro_batches` over 1: a batch is cut into at
    least so many pieces, one in memory at a time; equal to rounding. `bfloat16`: weights and
    hidden states are, whatever the load says.
    """

    embedding_on_disk: bool = False
    recompute: bool = False
    returned: bool = False
    micro_batches: int = 1
    bfloat16: bool = False

    def __str__(self) -> str:
        """What is done, in words."""
        said = {
            "embedding on disk": self.embedding_on_disk,
            "blocks computed again": self.recompute,
            "freed memory returned": self.returned,
            f"batches in {self.micro_batches} pieces": self.micro_batches > 1,
            "bfloat16": self.bfloat16,
        }
        return ", ".join(words for words, done in said.items() if done) or "nothing is saved"


NOTHING_SAVED = Thrift()


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one device process, by what they are for.

    `base`: the process itself. `weights`: frozen tensors, at the load's dtype. `adapter`: LoRA and
    head modules that are trained whole, float32. `optimizer`: their gradients, AdamW's two moments
    and FedProx's anchors. `activations`: what a step keeps and works with. `messages`: tensors on
    their way. `serving`: conversations at an edge that serves beside a run.
    """

    base: int
    weights: int
    adapter: int
    optimizer: int
    activations: int
    messages: int
    serving: int = 0

    @property
    def total(self) -> int:
        """Peak resident size."""
        return (
            self.base
            + self.weights
            + self.adapter
            + self.optimizer
            + self.activations
            + self.messages
            + self.serving
        )


def piece_rows(vocab_size: int) -> int:
    """Rows whose logits `lean` computes at once."""
    return max(PIECE_ROWS, PIECE_LOGITS // vocab_size)


def logit_bytes(rows: int, vocab_size: int, hidden_size: int, autocast: bool) -> int:
    """What a language model's head works with beside its weights: logits of so many rows.

    Autocast has the head once more in its own dtype.
    """
    copied = AUTOCAST_BYTES * vocab_size * hidden_size if autocast else 0
    return LOGIT_COPIES * 4 * rows * vocab_size + copied


def device_footprint(
    folder: ModelFolder,
    spans: Iterable[Span],
    load: Load,
    base_bytes: int = BASE_BYTES,
    thrift: Thrift = NOTHING_SAVED,
) -> Footprint:
    """Peak memory of a device that holds `spans` (`Plan.device_spans`) and trains with `load`.

    `base_bytes` is the resident size of a process that has imported what a device needs.

    What a block keeps, in values a token: twice its norms' widths (input and output), four times
    the attention's width (q, k, v, result), the family's `mlp_tensors` of the MLP's width, `rank`
    for each LoRA and a row of the mask, or where sequences are packed the results that are joined,
    whichever is wider; three rows of scores a head where attention has dropout, two where it caps
    them. Times `HEAP_FACTOR`, and `WIDE_TRANSIENTS` once. With autocast also a copy of each frozen
    matrix for each graph.
    """
    spans = tuple(spans)
    if thrift.micro_batches > 1:
        batch = -(-load.batch_size // thrift.micro_batches)
        load = replace(load, batch_size=batch, graphs=1)
    if thrift.bfloat16:
        load = replace(load, dtype="bfloat16")
    layout = folder.family.layout(folder.config, load.task)
    tensors = checkpoint_tensors(folder, layout)
    parts = [_Part(folder, layout, tensors, span, load) for span in spans]
    adapter = 4 * sum(part.trained_values() for part in parts)
    blocks = sum(span.num_blocks for span in spans)
    warm_up = RETURNED_WARM_UP_BYTES if thrift.returned else WARM_UP_BYTES
    return Footprint(
        base=base_bytes + warm_up + (QUANTISER_BYTES if load.quantised != "none" else 0),
        weights=_held_bytes(parts, load)
        - (embedding_bytes(folder, load) if thrift.embedding_on_disk else 0),
        adapter=adapter,
        optimizer=load.optimizer_copies * adapter,
        activations=sum(part.activation_bytes(thrift) for part in parts),
        messages=ADAPTER_COPIES * adapter
        + (ROW_COPIES * 4 * load.tokens * folder.hidden_size if blocks else 0),
    )


def embedding_bytes(folder: ModelFolder, load: Load) -> int:
    """The token embedding as it is held; 0 where the folder does not have it."""
    layout = folder.family.layout(folder.config, load.task)
    sizes = [
        prod(entry.shape) * load.item_bytes
        for name, entry in checkpoint_tensors(folder, layout).items()
        if name.startswith(layout.embedding) and entry.shape[0] == folder.vocab_size
    ]
    return max(sizes, default=0)


@dataclass(frozen=True, slots=True)
class EdgeDevice:
    """A device as its edge has it: the blocks it leaves to the edge, and what one job of it is.

    `graphs` of its micro-batches may wait for gradients of their own (U-shaped). A value of a
    hidden state takes `coded_value_bytes` at most as it arrives.
    """

    middle: Span
    load: Load
    graphs: int = 0
    coded_value_bytes: int = 4


class EdgeForecast:
    """Peak memory of an edge that holds one base for `devices`, whatever it does to save some.

    Jobs run one after another, so activations are those of the largest; waiting graphs are held as
    well. Up to `together` devices of the same blocks are one job (`edge.batch_devices`), whose
    losses are taken one by one. `lean` holds a piece of the logits. Of all adapters only the
    largest `residents` count, where the others are swapped to files: as many as may be in memory
    at once. What each device and the edge delivered of a round, a whole adapter, is kept until the
    next one.
    """

    def __init__(
        self,
        folder: ModelFolder,
        devices: Iterable[EdgeDevice],
        *,
        lean: bool,
        together: int = 1,
        residents: int | None = None,
        shared: int = 0,
        sums: int = 0,
        serving: int = 0,
        teacher: Teaching | None = None,
    ) -> None:
        """One adapter for all is held in so many `shared` versions, with a gradient of each device.

        So are `sums` of a whole one. Who waits for others holds what has arrived of them. `serving`
        are bytes of conversations. A `teacher` reads what a device sends before the device's own
        blocks do.
        """
        self._serving = serving
        self._teacher = teacher
        self._devices = tuple(devices)
        self._together = together
        layout = folder.family.layout(folder.config, self._devices[0].load.task)
        tensors = checkpoint_tensors(folder, layout)
        self._parts = {
            device: _Part(folder, layout, tensors, device.middle, replace(device.load, lean=lean))
            for device in set(self._devices)
        }
        self._alike = Counter(device.middle for device in self._devices)
        load = self._devices[0].load
        self._weights = _held_bytes(self._parts.values(), load)
        self._quantised = load.quantised != "none"
        sizes = [4 * self._parts[device].trained_values() for device in self._devices]
        self._shared = bool(shared)
        own = max(sizes) if shared else sum(sorted(sizes, reverse=True)[:residents])
        self._adapter = own + shared * max(sizes)
        self._optimizer = load.optimizer_copies * own + (sum(sizes) if shared else 0)
        self._adapter_message = max(sizes)
        whole = Span(0, folder.num_layers, embedding=True, head=True)
        adapters = {
            device: 4 * _Part(folder, layout, tensors, whole, device.load).trained_values()
            for device in self._parts
        }
        self._delivered = sum(adapters[device] for device in self._devices)
        self._delivered += sums * max(adapters.values())
        self._rows = max(4 * d.load.tokens for d in self._devices) * folder.hidden_size
        coded = max(d.coded_value_bytes * d.load.tokens for d in self._devices)
        self._coded_rows = coded * folder.hidden_size
        self._graphs: dict[tuple[EdgeDevice, bool, int], int] = {}

    def footprint(self, *, in_flight: int, allowance: int, recompute: Sequence[bool]) -> Footprint:
        """With `allowance` micro-batches of each device in flight, so many of all of them decoded
        and the rest as they arrived, and blocks computed again for some of the devices.
        """
        arrived = len(self._devices) * allowance
        decoded = arrived if self._shared else min(in_flight, arrived)
        together = min(self._together, decoded)  # what is not decoded cannot go along
        chosen = list(zip(self._devices, recompute, strict=True))
        jobs = {
            self._graph(device, again, min(together, self._alike[device.middle]))
            for device, again in chosen
        }
        waiting = sum(
            min(device.graphs, allowance) * (self._rows if again else self._graph(device, again, 1))
            for device, again in chosen
        )
        widest = min(together, max(self._alike.values()))
        return Footprint(
            base=EDGE_BASE_BYTES + WARM_UP_BYTES + (QUANTISER_BYTES if self._quantised else 0),
            weights=self._weights + (0 if self._teacher is None else self._teacher.weights),
            adapter=self._adapter,
            optimizer=self._optimizer,
            activations=max(max(jobs) + waiting, self._taught(widest) + waiting),
            messages=(decoded + ROW_COPIES * widest) * self._rows
            + (arrived - decoded) * self._coded_rows
            + ADAPTER_COPIES * self._adapter_message
            + self._delivered,
            serving=self._serving,
        )

    def _taught(self, together: int) -> int:
        """A teacher's forward over what so many devices sent."""
        return 0 if self._teacher is None else self._teacher.activations(together)

    def _graph(self, device: EdgeDevice, again: bool, together: int) -> int:
        key = (device, again, together)
        if key not in self._graphs:
            self._graphs[key] = self._parts[device].edge_bytes(again, together)
        return self._graphs[key]


class Teaching:
    """A teacher on an edge: frozen, its forward alone is computed."""

    def __init__(self, folder: ModelFolder, span: Span, load: Load) -> None:
        layout = folder.family.layout(folder.config, load.task)
        self._part = _Part(folder, layout, checkpoint_tensors(folder, layout), span, load)
        self.weights = _held_bytes([self._part], load)

    def activations(self, together: int) -> int:
        """Over what so many devices sent; with the hidden states that come of it."""
        return self._part.forward_bytes(together)


class _Part:
    """One span under one load."""

    def __init__(
        self,
        folder: ModelFolder,
        layout: Layout,
        tensors: dict[str, TensorEntry],
        span: Span,
        load: Load,
    ) -> None:
        self.folder, self.layout, self.span, self.load = folder, layout, span, load
        self.entries = {
            name: entry for name, entry in tensors.items() if belongs_to_span(name, layout, span)
        }

    def trained_values(self) -> int:
        """Values of the adapter: A and B of each target, and head modules trained whole."""
        lora = sum(self.load.rank * sum(entry.shape) for entry in self._targets())
        return lora + (self._saved_values() if self.span.head else 0)

    def activation_bytes(self, thrift: Thrift) -> int:
        """Peak of a step beside weights, adapter and moments."""
        load, total = self.load, 0
        if self.span.num_blocks:
            mlp = self._mlp_tensors(fused=thrift.returned)
            kept = [
                self._kept_bytes(block, mlp) for block in range(self.span.first, self.span.last)
            ]
            held = sum(kept)
            if thrift.recompute:
                held = max(kept) + len(kept) * load.tokens * self.folder.hidden_size * 4
            total += self._copied_bytes(thrift.recompute, thrift.returned)
            factor = RETURNED_HEAP_FACTOR if thrift.returned else HEAP_FACTOR
            copies = RETURNED_WIDE_TRANSIENTS if thrift.returned else WIDE_TRANSIENTS
            wide = copies * load.tokens * self._mlp_width() * load.item_bytes
            total += int(factor * held) + wide
            total += self._restored_bytes()
        return total + self._logit_bytes()

    def edge_bytes(self, recompute: bool, together: int) -> int:
        """The same on an edge, for a job of so many devices.

        It may compute blocks again and takes the loss in pieces.
        """
        load, tokens = self.load, together * self.load.tokens
        mlp = self._mlp_tensors(fused=load.lean)
        kept = [self._kept_bytes(block, mlp) for block in range(self.span.first, self.span.last)]
        held = together * sum(kept)
        if recompute:
            inputs = tokens * self.folder.hidden_size * load.item_bytes
            held = len(kept) * inputs + together * max(kept, default=0)
        wide = EDGE_WIDE_TRANSIENTS * tokens * self._mlp_width() * load.item_bytes
        working = wide + self._restored_bytes() + self._logit_bytes()
        working += self._copied_bytes(recompute, returned=False)
        return int(HEAP_FACTOR * held) + working

    def forward_bytes(self, together: int) -> int:
        """Of a forward without a backward, for a job of so many devices."""
        load, tokens = self.load, together * self.load.tokens
        wide = EDGE_WIDE_TRANSIENTS * tokens * self._mlp_width() * load.item_bytes
        rows = ROW_COPIES * 4 * tokens * self.folder.hidden_size
        return wide + rows + self._restored_bytes() + self._logit_bytes()

    def _restored_bytes(self) -> int:
        """Quantised weights as they count: one layer's at a time."""
        if self.load.quantised == "none":
            return 0
        sizes = (prod(entry.shape) for entry in self.linear_layers())
        return max(sizes, default=0) * self.load.item_bytes

    def _copied_bytes(self, recompute: bool, returned: bool) -> int:
        """Copies of frozen matrices in bfloat16, which autocast makes in every forward anew.

        Its cache is for what is trained. A quantised layer is restored as it is used instead. A
        heap that is kept grows by one block's more: GPT-2's shape, 6 blocks, had 85 MB of them and
        took 103 MB more than in float32; computed again, 14 and 29 MB.
        """
        if self.load.dtype != "autocast" or self.load.quantised != "none":
            return 0
        each = [
            AUTOCAST_BYTES * sum(prod(e.shape) for _, e in self._in_block(n) if len(e.shape) == 2)
            for n in range(self.span.first, self.span.last)
        ]
        # A device's tail does a micro-batch at once; its front waits for the gradients of several.
        graphs = self.load.graphs if self.span.embedding else 1
        largest = max(each, default=0)
        copies = largest if recompute else graphs * sum(each)
        return int(RETURNED_HEAP_FACTOR * (copies + (0 if returned else largest)))

    def _logit_bytes(self) -> int:
        """A language model's logits, all of them or a piece."""
        if not self.span.head or self.load.task != "causal_lm":
            return 0
        vocab, tokens = self.folder.vocab_size, self.load.tokens
        rows = min(tokens, piece_rows(vocab)) if self.load.lean else tokens
        return logit_bytes(rows, vocab, self.folder.hidden_size, self.load.dtype == "autocast")

    def _mlp_tensors(self, fused: bool) -> int:
        family = self.folder.family
        return family.mlp_tensors_fused if fused else family.mlp_tensors

    def _kept_bytes(self, block: int, mlp_tensors: int) -> int:
        """What autograd keeps of one block."""
        load, config = self.load, self.folder.config
        heads, width = attention_width(config, self.folder.hidden_size)
        values = 2 * self._norm_widths(block, width // heads, width) + 4 * width
        values += mlp_tensors * self._mlp_width()
        values += max(load.length, width) if load.lean else load.length
        if any(config.get(name) for name in ATTENTION_DROPOUT):
            values += 3 * heads * load.length + 2 * self.folder.hidden_size
        targets = list(self._targets(block))
        per_token = values * load.item_bytes + 4 * load.rank * len(targets)
        if config.get(ATTENTION_CAP):
            per_token += 2 * 4 * heads * load.length
        # A LoRA's input is kept anew where it is not the layer's own: cast, or dropped and masked.
        copied = 5 if load.lora_dropout else 4 if load.item_bytes != 4 else 0
        per_token += copied * sum(self.inputs(entry) for entry in targets)
        return load.tokens * per_token

    def _in_block(self, block: int | None) -> Iterator[tuple[str, TensorEntry]]:
        start = f"{self.layout.blocks}." if block is None else f"{self.layout.blocks}.{block}."
        return ((name, entry) for name, entry in self.entries.items() if name.startswith(start))

    def linear_layers(self) -> list[TensorEntry]:
        """Weights of the blocks' linear layers, which are what can be quantised."""
        return [entry for _, entry in self._in_block(None) if len(entry.shape) == 2]

    def _targets(self, block: int | None = None) -> Iterator[TensorEntry]:
        """Weights of the linear layers that get LoRA, in one block or in all."""
        family = self.folder.family
        names = self.load.target_modules or family.targets(self.folder.model_type)
        ends = tuple(f".{name}.weight" for name in names)
        for name, entry in self._in_block(block):
            if len(entry.shape) == 2 and name.endswith(ends):
                yield entry

    def inputs(self, entry: TensorEntry) -> int:
        """Features that go into a linear layer."""
        return entry.shape[0 if self.folder.family.transposed else 1]

    def _mlp_width(self) -> int:
        """The widest side of a block's matrices, which is the MLP's."""
        return max((max(entry.shape) for entry in self.linear_layers()), default=0)

    def _norm_widths(self, block: int, head: int, width: int) -> int:
        """Features that a block normalises; a norm over a head's counts for all heads."""
        sizes = [
            entry.shape[0]
            for name, entry in self._in_block(block)
            if len(entry.shape) == 1 and name.endswith(".weight")
        ]
        return sum(width if size == head else size for size in sizes)

    def _saved_values(self) -> int:
        """Head modules that are trained whole: dense square ones, and the one that ends in classes.

        Their biases are left out.
        """
        if not self.layout.saved:
            return 0
        hidden = self.folder.hidden_size
        dense = self.layout.saved_dense + sum(
            not any(name.startswith(f"{module}.") for name in self.entries)
            for module in self.layout.saved_if_missing
        )
        return dense * hidden * hidden + hidden * self.load.num_labels


def _held_bytes(parts: Iterable[_Part], load: Load) -> int:
    """Frozen tensors of all parts; one that is in several is held once, hence by its name."""
    parts = tuple(parts)
    held = {entry.name: entry for part in parts for entry in part.entries.values()}
    outputs = {
        entry.name: prod(entry.shape) // part.inputs(entry)
        for part in parts
        for entry in part.linear_layers()
    }
    return sum(_weight_bytes(entry, outputs.get(entry.name), load) for entry in held.values())


def _weight_bytes(entry: TensorEntry, outputs: int | None, load: Load) -> int:
    """One frozen tensor as it is held. `outputs` are a linear layer's, None of what is none."""
    values = prod(entry.shape)
    if outputs is None or load.quantised == "none":
        return values * load.item_bytes
    if load.quantised == "nf4":
        return -(-values // 2) + 4 * -(-values // NF4_BLOCK)
    return values + 4 * outputs


def attention_width(config: Any, hidden_size: int) -> tuple[int, int]:
    """(heads, their width together)."""
    heads = next((int(config[name]) for name in HEADS if config.get(name)), 1)
    return heads, heads * int(config.get("head_dim") or hidden_size // heads)
