"""What an edge does to stay within its memory: decided once, from headers and settings alone."""

from __future__ import annotations

from dataclasses import dataclass

from sfl.config import EdgeConfig, RunSettings
from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder
from sfl.models.footprint import Footprint, Load, edge_footprint
from sfl.plan import SplitPlan


@dataclass(frozen=True, slots=True)
class EdgeChoice:
    """Whether blocks are computed again, and how many activations may lie decoded."""

    recompute: bool
    in_flight: int


def fit_edge(folder: ModelFolder, settings: RunSettings, own: EdgeConfig) -> EdgeChoice:
    """The quickest way to stay within `edge.memory`: keep graphs if they fit, else compute again.

    What is left over bounds the activations in flight, up to `edge.in_flight`. Without a budget the
    settings themselves. Raises ConfigError, with the memory it would take, where nothing fits.
    """
    if own.memory is None:
        return EdgeChoice(own.recompute, own.in_flight)
    ways = (True,) if own.recompute else (False, True)
    for recompute in ways:
        for in_flight in range(own.in_flight, 0, -1):
            if needs(folder, settings, own, in_flight, recompute).total <= own.memory:
                return EdgeChoice(recompute, in_flight)
    least = needs(folder, settings, own, 1, recompute=True)
    raise ConfigError(
        "edge.memory",
        f"{own.memory / 1e6:,.0f} MB",
        f"this run takes {least.total / 1e6:,.0f} MB at least ({_parts(least)})",
        "Give more, hold fewer blocks on the edge (cut_layer), or use smaller batches (batch_size, "
        "micro_batches), a smaller model.max_length, edge.dtype or edge.quantised.",
    )


def needs(
    folder: ModelFolder, settings: RunSettings, own: EdgeConfig, in_flight: int, recompute: bool
) -> Footprint:
    """What the edge takes, by parts."""
    training, u_shaped = settings.training, settings.run.topology == "u_shaped"
    micro = 1 if training.micro_batches == "auto" else training.micro_batches
    load = Load(
        batch_size=-(-training.batch_size // micro),
        length=min(settings.model.max_length, folder.context_length),
        rank=settings.lora.rank,
        task=settings.model.task,
        num_labels=len(settings.model.labels),
        dtype=own.dtype or settings.model.dtype,
        quantised=own.quantised,
        target_modules=settings.lora.target_modules,
        lora_dropout=settings.lora.dropout,
    )
    plans = [
        SplitPlan(folder.num_layers, entry.cut_layer, entry.tail_layers, settings.run.topology)
        for entry in settings.devices
    ]
    return edge_footprint(
        folder,
        [plan.middle for plan in plans],
        load,
        in_flight=in_flight,
        lean=settings.computation == "lean",
        recompute=recompute,
        waiting_graphs=len(plans) * min(micro, settings.network.credits) if u_shaped else 0,
        residents=own.resident_adapters,
    )


def _parts(footprint: Footprint) -> str:
    named = {
        "process": footprint.base,
        "weights": footprint.weights,
        "adapters and optimizers": footprint.adapter + footprint.optimizer,
        "one job": footprint.activations,
        "messages": footprint.messages,
    }
    return ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in named.items())
