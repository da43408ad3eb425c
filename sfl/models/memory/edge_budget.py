"""What an edge does to stay within its memory: decided once, from headers and settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from sfl.codec.stages import is_exact
from sfl.config import EdgeConfig, RunSettings
from sfl.config.node import certain
from sfl.config.ranges import largest_span
from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder
from sfl.models.memory.beside import beside_training
from sfl.models.memory.footprint import EdgeDevice, EdgeForecast, Footprint, Load, Teaching
from sfl.models.teacher import teacher_folder, teacher_span
from sfl.plan import Holder

SUM_COPIES = 5
"""Whole adapters in float32 of an edge that adds up: the round's first one, the sum in float64, and
that as it is sent. Updates that it keeps are those that count as delivered."""


@dataclass(frozen=True, slots=True)
class EdgeChoice:
    """For which devices blocks are computed again, how many activations may be decoded over all
    devices, and how many micro-batches of one may be in flight.
    """

    recompute: tuple[str, ...]
    in_flight: int
    credits: int

    def __str__(self) -> str:
        """What is done, in words."""
        again = f"computed again for {', '.join(self.recompute)}" if self.recompute else "kept"
        return (
            f"graphs are {again} (recompute), up to {self.in_flight} activations are decoded "
            f"(in_flight), up to {self.credits} of one device are in flight (credits)"
        )

    def changes(self, settings: RunSettings) -> dict[str, object]:
        """The same as settings of an edge."""
        everybody = len(self.recompute) == len(settings.devices)
        return {
            "recompute": everybody or self.recompute or False,
            "in_flight": self.in_flight,
            "credits": self.credits,
        }


def fit_edge(
    folder: ModelFolder, settings: RunSettings, own: EdgeConfig, holder: Holder = "edge"
) -> EdgeChoice:
    """The quickest way to stay within `edge.memory`.

    Graphs are kept if they fit with fewer activations decoded, or fewer in flight but two of each
    device; else blocks are computed again for as few devices as will do, those first that leave
    most blocks to the edge. One in flight at a time comes last: device, link and edge then take
    turns. Without a budget the settings themselves. Raises ConfigError, with the memory it would
    take, where nothing fits, and for a name in `edge.recompute` that no device has.
    """
    given = _given(settings, own)
    most = min(own.credits or settings.network.credits, settings.network.credits)
    if own.memory is None:
        return EdgeChoice(given, own.in_flight, most)
    forecast, room = _forecast(folder, settings, own, holder), own.memory

    def fits(again: tuple[str, ...], in_flight: int, allowance: int) -> bool:
        flags = _flags(settings, again)
        needed = forecast.footprint(in_flight=in_flight, allowance=allowance, recompute=flags)
        return needed.total <= room

    sets = list(_sets(folder, settings, given, holder))
    for fewest in (min(2, most), 1):
        for again in sets:
            if not fits(again, 1, fewest):
                continue
            ways = product(range(most, fewest - 1, -1), range(own.in_flight, 0, -1))
            return next(
                EdgeChoice(again, in_flight, allowance)
                for allowance, in_flight in ways
                if fits(again, in_flight, allowance)
            )
    needed = needs(folder, settings, own, EdgeChoice(sets[-1], 1, 1), holder)
    section, cut = ("edge", "cut_layer") if holder == "edge" else ("stage", "stages.cuts")
    raise ConfigError(
        f"{section}.memory",
        f"{own.memory / 1e6:,.0f} MB",
        f"this run takes {needed.total / 1e6:,.0f} MB at least ({_parts(needed)})",
        f"Give more, hold fewer blocks there ({cut}), or use smaller batches (batch_size, "
        f"micro_batches), a smaller model.max_length, {section}.dtype or {section}.quantised.",
    )


def needs(
    folder: ModelFolder,
    settings: RunSettings,
    own: EdgeConfig,
    choice: EdgeChoice,
    holder: Holder = "edge",
) -> Footprint:
    """What a stage server takes, by parts."""
    forecast = _forecast(folder, settings, own, holder)
    again = _flags(settings, choice.recompute)
    return forecast.footprint(in_flight=choice.in_flight, allowance=choice.credits, recompute=again)


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
    folder: ModelFolder, settings: RunSettings, given: tuple[str, ...], holder: Holder
) -> Iterator[tuple[str, ...]]:
    """Ever more devices whose blocks are computed again, from what is given."""
    names = [entry.name for entry in settings.devices]
    layers = folder.num_layers
    blocks = {name: largest_span(settings, name, layers, holder).num_blocks for name in names}
    deepest = sorted(names, key=lambda name: -blocks[name])
    chosen = set(given)
    yield given
    for name in deepest:
        if name not in chosen:
            chosen.add(name)
            yield tuple(other for other in names if other in chosen)


def _flags(settings: RunSettings, recompute: tuple[str, ...]) -> list[bool]:
    return [entry.name in recompute for entry in settings.devices]


def _coded_value_bytes(settings: RunSettings, device: str, holder: Holder) -> int:
    """Of a hidden state as it arrives, at most: a codec that is not exact takes 16 bits or less.

    It comes from the device, or over the hop from the server before a stage. Evaluations, which may
    be coded otherwise, count too.
    """
    at_edge = holder == "edge"
    given = settings.device(device).dtype if at_edge else None
    if (given or settings.model.dtype) == "bfloat16":
        return 2
    rounds = {1, *(step.from_round for step in settings.codec.schedule)}
    codecs = [settings.codecs(device, number, auto="none") for number in rounds]
    specs = {own.activation if at_edge else own.stage_activation for own in codecs}
    exact = any(map(is_exact, specs.union(own.evaluation for own in codecs)))
    return 4 if exact else 2


def _forecast(
    folder: ModelFolder, settings: RunSettings, own: EdgeConfig, holder: Holder
) -> EdgeForecast:
    training = settings.training
    ends = {name: _has_loss(settings, name, folder.num_layers, holder) for name in settings.names}
    micro = 1 if training.micro_batches == "auto" else training.micro_batches
    lean = settings.computation == "lean"
    devices = [
        EdgeDevice(
            largest_span(settings, entry.name, folder.num_layers, holder),
            Load(
                batch_size=-(-training.batch_size // micro),
                length=min(settings.model.max_length, folder.context_length),
                rank=settings.rank(entry.name),
                task=settings.model.task,
                num_labels=len(settings.model.labels),
                dtype=own.dtype or settings.model.dtype,
                quantised=certain(own.quantised),
                target_modules=settings.lora.target_modules,
                lora_dropout=settings.lora.dropout,
                anchored=settings.aggregation.proximal > 0.0,
            ),
            graphs=0 if ends[entry.name] else micro,
            coded_value_bytes=_coded_value_bytes(settings, entry.name, holder),
        )
        for entry in settings.devices
    ]
    return EdgeForecast(
        folder,
        devices,
        lean=lean,
        together=_together(settings, own, holder),
        residents=residents(settings, own, holder),
        shared=_versions(settings, holder),
        sums=SUM_COPIES if settings.sums_at_edges and holder == "edge" else 0,
        serving=_serving(folder, own, devices),
        teacher=_teaching(settings, own, devices[0].load) if holder == "edge" else None,
    )


def _teaching(settings: RunSettings, own: EdgeConfig, load: Load) -> Teaching | None:
    """A teacher's needs, where the run has one. Raises ModelError, ConfigError."""
    if not settings.distil.is_on:
        return None
    folder = teacher_folder(settings, own)
    lean = settings.computation == "lean"
    load = replace(load, quantised=settings.distil.quantised, lean=lean)
    return Teaching(folder, teacher_span(settings, folder), load)


def _serving(folder: ModelFolder, own: EdgeConfig, devices: Sequence[EdgeDevice]) -> int:
    """Bytes of conversations, where the edge serves as well."""
    if own.serve is None:
        return 0
    spans = [device.middle for device in devices]
    return beside_training(folder, own.serve, devices[0].load, spans)


def _has_loss(settings: RunSettings, device: str, num_layers: int, holder: Holder) -> bool:
    """Whether a server computes a device's loss, so that no graph of it waits."""
    return largest_span(settings, device, num_layers, holder).head


def _versions(settings: RunSettings, holder: Holder) -> int:
    """Of a shared adapter: its values at each step of a round are kept (`training/team.py`)."""
    shared = settings.stages.adapters == "shared" and settings.loss_server == holder
    return 1 + (settings.training.local_steps or 0) if shared else 0


def _together(settings: RunSettings, own: EdgeConfig, holder: Holder) -> int:
    """Devices in one batch: only packed ones, each with an adapter of its own."""
    shared = settings.stages.adapters == "shared" and settings.loss_server == holder
    return own.batch_devices if settings.computation == "lean" and not shared else 1


def residents(settings: RunSettings, own: EdgeConfig, holder: Holder = "edge") -> int:
    """Devices whose LoRA and optimizer may be in this machine's memory at once.

    Who is amid a step stays (`Session.idle`). Where a step is one message, nobody is between two
    jobs; where it takes several, all may be, and no limit helps.
    """
    everybody, limit = len(settings.devices), own.resident_adapters
    if limit is None or own.swap_to == "memory" or _waits_within_steps(settings, holder):
        return everybody
    return min(everybody, max(limit, _together(settings, own, holder)))


def _waits_within_steps(settings: RunSettings, holder: Holder) -> bool:
    """Whether an edge waits for a device's next message before a step of it is done."""
    training = settings.training
    return (
        settings.loss_server != holder
        or training.micro_batches != 1
        or training.max_grad_norm is not None
        # A device may cut its batches by itself, to stay within its memory.
        or any(entry.micro_batches > 1 or entry.memory for entry in settings.devices)
    )


def _parts(footprint: Footprint) -> str:
    named = {
        "process": footprint.base,
        "weights": footprint.weights,
        "adapters and optimizers": footprint.adapter + footprint.optimizer,
        "one job": footprint.activations,
        "messages": footprint.messages,
        "conversations": footprint.serving,
    }
    said = {name: size for name, size in named.items() if size or name != "conversations"}
    return ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in said.items())
