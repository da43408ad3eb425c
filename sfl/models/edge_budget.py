"""What an edge does to stay within its memory: decided once, from headers and settings alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sfl.config import EdgeConfig, RunSettings
from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder
from sfl.models.footprint import EdgeDevice, EdgeForecast, Footprint, Load
from sfl.plan import SplitPlan


@dataclass(frozen=True, slots=True)
class EdgeChoice:
    """For which devices blocks are computed again, and how many activations may lie decoded."""

    recompute: tuple[str, ...]
    in_flight: int

    def __str__(self) -> str:
        """What is done, in words."""
        again = f"computed again for {', '.join(self.recompute)}" if self.recompute else "kept"
        return f"graphs are {again}; up to {self.in_flight} activations lie decoded"

    def changes(self, settings: RunSettings) -> dict[str, object]:
        """The same as settings of an edge."""
        everybody = len(self.recompute) == len(settings.devices)
        return {
            "recompute": everybody or self.recompute or False,
            "in_flight": self.in_flight,
        }


def fit_edge(folder: ModelFolder, settings: RunSettings, own: EdgeConfig) -> EdgeChoice:
    """The quickest way to stay within `edge.memory`.

    Graphs are kept if they fit with fewer activations in flight; else blocks are computed again for
    as few devices as will do, those first that leave most blocks to the edge. What is left over
    bounds the activations in flight, up to `edge.in_flight`. Without a budget the settings
    themselves. Raises ConfigError, with the memory it would take, where nothing fits, and for a
    name in `edge.recompute` that no device has.
    """
    given = _given(settings, own)
    if own.memory is None:
        return EdgeChoice(given, own.in_flight)
    forecast = _forecast(folder, settings, own)
    least = given
    for least in _sets(folder, settings, given):
        again = _flags(settings, least)
        for in_flight in range(own.in_flight, 0, -1):
            if forecast.footprint(in_flight=in_flight, recompute=again).total <= own.memory:
                return EdgeChoice(least, in_flight)
    needed = needs(folder, settings, own, EdgeChoice(least, 1))
    raise ConfigError(
        "edge.memory",
        f"{own.memory / 1e6:,.0f} MB",
        f"this run takes {needed.total / 1e6:,.0f} MB at least ({_parts(needed)})",
        "Give more, hold fewer blocks on the edge (cut_layer), or use smaller batches (batch_size, "
        "micro_batches), a smaller model.max_length, edge.dtype or edge.quantised.",
    )


def needs(
    folder: ModelFolder, settings: RunSettings, own: EdgeConfig, choice: EdgeChoice
) -> Footprint:
    """What the edge takes, by parts."""
    forecast = _forecast(folder, settings, own)
    again = _flags(settings, choice.recompute)
    return forecast.footprint(in_flight=choice.in_flight, recompute=again)


def _given(settings: RunSettings, own: EdgeConfig) -> tuple[str, ...]:
    """Devices whose blocks the settings have computed again."""
    names = tuple(entry.name for entry in settings.devices)
    if isinstance(own.recompute, bool):
        return names if own.recompute else ()
    for name in own.recompute:
        if name not in names:
            raise ConfigError(
                "edge.recompute", name, "no device has this name", f"Known: {', '.join(names)}."
            )
    return tuple(name for name in names if name in own.recompute)


def _sets(
    folder: ModelFolder, settings: RunSettings, given: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    """Ever more devices whose blocks are computed again, from what is given."""
    names = [entry.name for entry in settings.devices]
    deepest = sorted(names, key=lambda name: -_plan(folder, settings, name).middle.num_blocks)
    chosen = set(given)
    yield given
    for name in deepest:
        if name not in chosen:
            chosen.add(name)
            yield tuple(other for other in names if other in chosen)


def _flags(settings: RunSettings, recompute: tuple[str, ...]) -> list[bool]:
    return [entry.name in recompute for entry in settings.devices]


def _plan(folder: ModelFolder, settings: RunSettings, name: str) -> SplitPlan:
    entry, topology = settings.device(name), settings.run.topology
    return SplitPlan(folder.num_layers, entry.cut_layer, entry.tail_layers, topology)


def _forecast(folder: ModelFolder, settings: RunSettings, own: EdgeConfig) -> EdgeForecast:
    training, u_shaped = settings.training, settings.run.topology == "u_shaped"
    micro = 1 if training.micro_batches == "auto" else training.micro_batches
    lean = settings.computation == "lean"
    devices = [
        EdgeDevice(
            _plan(folder, settings, entry.name).middle,
            Load(
                batch_size=-(-training.batch_size // micro),
                length=min(settings.model.max_length, folder.context_length),
                rank=settings.rank(entry.name),
                task=settings.model.task,
                num_labels=len(settings.model.labels),
                dtype=own.dtype or settings.model.dtype,
                quantised=own.quantised,
                target_modules=settings.lora.target_modules,
                lora_dropout=settings.lora.dropout,
            ),
            graphs=min(micro, settings.network.credits) if u_shaped else 0,
        )
        for entry in settings.devices
    ]
    # Only packed batches of whole training steps go together (sfl.stage.session).
    together = own.batch_devices if lean and not u_shaped else 1
    return EdgeForecast(
        folder, devices, lean=lean, together=together, residents=own.resident_adapters
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
