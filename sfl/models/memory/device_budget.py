"""What a device does to stay within its memory: decided once, before its weights are read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from sfl.config import LocalDevice, RunSettings
from sfl.config.node import Dtype, Quantised
from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder
from sfl.models.memory.footprint import Footprint, Load, Thrift, device_footprint, embedding_bytes
from sfl.plan import Plan

WORTH_A_DISK = 16_000_000
"""An embedding of so many bytes stays on disk even where nobody asked for less memory."""


def device_load(
    folder: ModelFolder, settings: RunSettings, rank: int, dtype: Dtype, quantised: Quantised
) -> Load:
    """What the run asks of a device with an adapter of this rank."""
    training, most = settings.training, settings.network.credits
    pieces = most if training.micro_batches == "auto" else training.micro_batches
    return Load(
        batch_size=training.batch_size,
        length=min(settings.model.max_length, folder.context_length),
        rank=rank,
        task=settings.model.task,
        num_labels=len(settings.model.labels),
        dtype=dtype,
        quantised=quantised,
        target_modules=settings.lora.target_modules,
        lora_dropout=settings.lora.dropout,
        lean=settings.computation == "lean",
        graphs=min(pieces, most, training.batch_size),
        anchored=settings.aggregation.proximal > 0.0,
    )


def fit_device(
    folder: ModelFolder,
    plan: Plan,
    load: Load,
    own: LocalDevice,
    base_bytes: int,
    returned: bool,
    open_dtype: bool = False,
) -> Thrift:
    """The first way to stay within `own.memory`; without it, what costs next to nothing.

    `base_bytes` is what the process takes without the model, `returned` whether freed memory goes
    back to the system, `open_dtype` whether bfloat16 may be chosen. Raises ConfigError, with the
    figure and what would fit, where nothing does.
    """
    ways = list(_ways(folder, plan, load, own, returned))
    if own.memory is None:
        return ways[0]
    if open_dtype and load.dtype != "bfloat16":
        ways += [replace(way, bfloat16=True) for way in ways]
    for way in ways:
        if _needs(folder, plan, load, base_bytes, way).total <= own.memory:
            return way
    least = _needs(folder, plan, load, base_bytes, ways[-1])
    pieces = ways[-1].micro_batches
    cut = f", cut into {pieces} pieces," if pieces > 1 else ""
    dtype = "bfloat16" if ways[-1].bfloat16 else load.dtype
    raise ConfigError(
        "device.memory",
        f"{own.memory / 1e6:,.0f} MB",
        f"cut_layer {plan.cut_layer}, batches of {load.batch_size} x {load.length} tokens{cut} in "
        f"{dtype} take {least.total / 1e6:,.0f} MB at least ({_parts(least)})",
        _what_fits(folder, plan, load, own.memory, base_bytes, ways[-1]),
    )


def left_on_disk(own: LocalDevice, num_bytes: int) -> bool:
    """Whether an embedding of so many bytes, 0 where a head needs it whole, is read by rows."""
    if own.embedding == "memory" or not num_bytes:
        return False
    return own.embedding == "disk" or num_bytes >= WORTH_A_DISK


def fit_plan(
    folder: ModelFolder,
    plans: Sequence[Plan],
    load: Load,
    own: LocalDevice,
    base_bytes: int,
    returned: bool,
    open_dtype: bool = False,
) -> tuple[Plan, Thrift]:
    """The first of these plans that stays within `own.memory`, and how; as `fit_device`.

    Raises ConfigError, about the first of them, where none does.
    """
    for plan in plans:
        with suppress(ConfigError):
            return plan, fit_device(folder, plan, load, own, base_bytes, returned, open_dtype)
    return plans[0], fit_device(folder, plans[0], load, own, base_bytes, returned, open_dtype)


def _ways(
    folder: ModelFolder, plan: Plan, load: Load, own: LocalDevice, returned: bool
) -> Iterator[Thrift]:
    """What changes no bit first, from the cheapest on in time; then smaller pieces of a batch."""
    way = Thrift(returned=returned, micro_batches=own.micro_batches)
    layout = folder.family.layout(folder.config, load.task)
    shared = layout.tied is not None and plan.tail is not None  # the head needs it whole
    size = 0 if shared or own.embedding == "memory" else embedding_bytes(folder, load)
    on_disk = left_on_disk(own, size)
    yield (way := replace(way, embedding_on_disk=on_disk))
    if size and not on_disk:
        yield (way := replace(way, embedding_on_disk=True))
    blocks = max(span.num_blocks for span in plan.device_spans)
    if blocks > 1:  # the one that runs again is held whole
        yield (way := replace(way, recompute=True))
    if blocks > 0:
        while way.micro_batches < load.batch_size:
            pieces = min(2 * way.micro_batches, load.batch_size)
            yield (way := replace(way, micro_batches=pieces))


def _needs(
    folder: ModelFolder, plan: Plan, load: Load, base_bytes: int, thrift: Thrift
) -> Footprint:
    return device_footprint(folder, plan.device_spans, load, base_bytes, thrift)


def _what_fits(
    folder: ModelFolder, plan: Plan, load: Load, room: int, base_bytes: int, way: Thrift
) -> str:
    """The least change of each single setting that would do."""

    def fits(plan: Plan, load: Load) -> bool:
        return _needs(folder, plan, load, base_bytes, way).total <= room

    found = []
    cuts = (plan.at(cut) for cut in range(plan.cut_layer - 1, -1, -1))
    if cut := next((cut for cut in cuts if fits(cut, load)), None):
        found.append(f"cut_layer {cut.cut_layer}")
    shorter = range(1, load.length)
    length = bisect_left(shorter, True, key=lambda n: not fits(plan, replace(load, length=n)))
    if length:
        found.append(f"model.max_length {length}")
    half = way.bfloat16 or load.dtype == "bfloat16"
    if load.dtype == "autocast" and not half and fits(plan, replace(load, dtype="float32")):
        found.append('dtype "float32"')
    elif not half and fits(plan, replace(load, dtype="bfloat16")):
        found.append('dtype "bfloat16"')
    if found:
        return f"It fits with {' or '.join(found)}."
    return (
        f"{base_bytes / 1e6:,.0f} MB are the process without a model; no smaller cut_layer, "
        "max_length or dtype alone fits, so give more."
    )


def _parts(footprint: Footprint) -> str:
    named = {
        "process": footprint.base,
        "weights": footprint.weights,
        "adapter and optimizer": footprint.adapter + footprint.optimizer,
        "activations": footprint.activations,
        "messages": footprint.messages,
    }
    return ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in named.items())
