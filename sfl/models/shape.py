"""A model's matrices by part, from headers and config.json: what `sfl.cost.work` counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sfl.config import RunSettings
from sfl.cost.work import Batch, Linear, ModelShape, PartShape
from sfl.models.families.family import Layout, Task
from sfl.models.folder import ModelFolder, TensorEntry, belongs_to_span, checkpoint_tensors
from sfl.models.memory.footprint import attention_width
from sfl.plan import Span
from sfl.planners.outset import ModelFacts

READS_INPUT = (
    "q_proj",
    "k_proj",
    "v_proj",
    "c_attn",
    "query",
    "key",
    "value",
    "q_lin",
    "k_lin",
    "v_lin",
)
"""Layers whose input is the block's own, perhaps after a norm."""


def model_shape(
    folder: ModelFolder,
    task: Task,
    *,
    num_labels: int = 0,
    target_modules: tuple[str, ...] = (),
) -> ModelShape:
    """Of a model whose headers were read. With empty `target_modules` the family's default counts.

    Head modules that are trained whole count even where the checkpoint lacks them.
    """
    layout = folder.family.layout(folder.config, task)
    tensors = checkpoint_tensors(folder, layout)
    targets = target_modules or folder.family.targets(folder.model_type)
    blocks = tuple(
        _block(folder, layout, tensors, targets, number) for number in range(folder.num_layers)
    )
    last = folder.num_layers
    front = _entries(layout, tensors, Span(0, 0, embedding=True, head=False))
    head = _entries(layout, tensors, Span(last, last, embedding=False, head=True))
    return ModelShape(
        hidden_size=folder.hidden_size,
        blocks=blocks,
        head=PartShape(
            tuple(_head(folder, layout, tensors, num_labels)),
            num_bytes=sum(entry.nbytes for entry in head.values()),
        ),
        embedding_bytes=sum(entry.nbytes for entry in front.values()),
    )


def facts_from_headers(settings: RunSettings, folder: ModelFolder) -> ModelFacts:
    """What a planner needs of a run's model, for its longest batches."""
    shape = model_shape(
        folder,
        settings.model.task,
        num_labels=len(settings.model.labels),
        target_modules=settings.lora.target_modules,
    )
    length = min(settings.model.max_length, folder.context_length)
    return ModelFacts.of(shape, Batch(settings.training.batch_size, length), settings.lora.rank)


def _entries(
    layout: Layout, tensors: Mapping[str, TensorEntry], span: Span
) -> dict[str, TensorEntry]:
    return {name: one for name, one in tensors.items() if belongs_to_span(name, layout, span)}


def _block(
    folder: ModelFolder,
    layout: Layout,
    tensors: Mapping[str, TensorEntry],
    targets: tuple[str, ...],
    number: int,
) -> PartShape:
    span = Span(number, number + 1, embedding=False, head=False)
    entries = _entries(layout, tensors, span)
    return PartShape(
        tuple(
            _linear(folder, name, entry, targets)
            for name, entry in entries.items()
            if len(entry.shape) == 2
        ),
        attention_width(folder.config, folder.hidden_size)[1],
        sum(entry.nbytes for entry in entries.values()),
    )


def _linear(folder: ModelFolder, name: str, entry: TensorEntry, targets: tuple[str, ...]) -> Linear:
    inputs, outputs = entry.shape if folder.family.transposed else reversed(entry.shape)
    module = name.removesuffix(".weight")
    return Linear(
        inputs,
        outputs,
        lora=module.endswith(tuple(f".{target}" for target in targets)),
        reads_input=module.rpartition(".")[2] in READS_INPUT,
    )


def _head(
    folder: ModelFolder, layout: Layout, tensors: Mapping[str, TensorEntry], num_labels: int
) -> Iterator[Linear]:
    """A language model's last matrix; a classifier's dense layers, and the one with the classes."""
    hidden = folder.hidden_size
    if not layout.saved:
        yield Linear(hidden, folder.vocab_size)
        return
    pooled = not folder.family.causal
    for module in layout.saved_if_missing:
        missing = not any(name.startswith(f"{module}.") for name in tensors)
        yield Linear(hidden, hidden, trained=missing, pooled=True)
    for _ in range(layout.saved_dense):
        yield Linear(hidden, hidden, trained=True, pooled=True)
    yield Linear(hidden, num_labels, trained=True, pooled=pooled)
