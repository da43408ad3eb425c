"""Which cut layers fit the memory at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

from sfl.config import RunConfig
from sfl.config.run import DeviceEntry
from sfl.config.size import read_size as bytes_of
from sfl.doctor.report import Check, CutRow, size
from sfl.errors import ConfigError, SflError
from sfl.models.folder import ModelFolder
from sfl.models.footprint import Footprint, Load, device_footprint
from sfl.plan import SplitPlan


def read_size(field: str, text: str) -> int:
    """`512MB`, `1.5GiB` or plain bytes. Raises ConfigError."""
    try:
        return int(bytes_of(text))
    except ValueError:
        raise ConfigError(field, text, "is not a size", "Write e.g. 512MB or 2GB.") from None


def load_of(config: RunConfig, context_length: int) -> Load:
    """What the run asks of a device."""
    return Load(
        batch_size=config.training.batch_size,
        length=min(config.model.max_length, context_length),
        rank=config.lora.rank,
        task=config.model.task,
        num_labels=len(config.model.labels),
        dtype=config.model.dtype,
        target_modules=config.lora.target_modules,
        lora_dropout=config.lora.dropout,
    )


def cut_rows(
    folder: ModelFolder, load: Load, config: RunConfig | None, room: int, base: int
) -> list[CutRow]:
    """A row for every cut of the model, in the run's topology."""
    topology = "vanilla" if config is None else config.run.topology
    tail = 0 if config is None else max(entry.tail_layers for entry in config.devices)
    rows = []
    for cut in range(folder.num_layers - tail):
        plan = SplitPlan(folder.num_layers, cut, tail, topology)
        footprint = device_footprint(folder, plan.device_spans, load, base)
        rows.append(CutRow(cut, footprint, footprint.total <= room))
    return rows


def check_cuts(folder: ModelFolder, load: Load, rows: list[CutRow], room: int) -> Check:
    """One line over the table."""
    fitting = [row.cut_layer for row in rows if row.fits]
    form = load.dtype if load.quantised == "none" else f"{load.dtype}, {load.quantised}"
    what = (
        f"{folder.name} ({folder.num_layers} blocks, batch {load.batch_size} of {load.length} "
        f"tokens, rank {load.rank}, {form})"
    )
    figures = {"load": asdict(load), "room_bytes": room, "fitting_cut_layers": fitting}
    if fitting:
        text = f"cut_layer 0 to {max(fitting)} of {rows[-1].cut_layer} fit {size(room)}: {what}"
        return Check("cuts", "ok", text, figures=figures)
    text = f"no cut fits {size(room)}, cut_layer 0 needs {size(rows[0].footprint.total)}: {what}"
    fix = "Lower training.batch_size or model.max_length, or choose a smaller model."
    return Check("cuts", "problem", text, fix, figures)


def check_devices(
    config: RunConfig,
    load: Load,
    folder: ModelFolder,
    rows: list[CutRow],
    room: int,
    base: int,
) -> Iterator[Check]:
    """Each of the run's devices by itself, and all of them side by side."""
    together = 0
    for entry in config.devices:
        try:
            needed = _needs(config, entry, load, folder, base)
        except SflError:
            continue  # said where the file was checked
        together += needed.total
        fits = needed.total <= room
        figures = {**asdict(needed), "total": needed.total, "cut_layer": entry.cut_layer}
        yield Check(
            f"device {entry.name}",
            "ok" if fits else "problem",
            f"cut_layer {entry.cut_layer} needs {size(needed.total)} of {size(room)}",
            "" if fits else _smaller(entry, rows),
            {key if key == "cut_layer" else f"{key}_bytes": v for key, v in figures.items()},
        )
    if together > room and len(config.devices) > 1:
        yield Check(
            "sfl run",
            "warning",
            f"the devices need {size(together)} side by side, there are {size(room)}",
            "Start them on machines of their own: sfl cloud, sfl edge, sfl device.",
            {"devices_bytes": together},
        )


def _needs(
    config: RunConfig, entry: DeviceEntry, load: Load, folder: ModelFolder, base: int
) -> Footprint:
    plan = SplitPlan(folder.num_layers, entry.cut_layer, entry.tail_layers, config.run.topology)
    load = replace(
        load,
        rank=entry.rank or load.rank,
        dtype=entry.dtype or load.dtype,
        quantised=entry.quantised,
    )
    return device_footprint(folder, plan.device_spans, load, base)


def _smaller(entry: DeviceEntry, rows: list[CutRow]) -> str:
    fitting = [row.cut_layer for row in rows if row.fits and row.cut_layer < entry.cut_layer]
    if fitting:
        return f"Set devices.{entry.name}.cut_layer to {max(fitting)}, or a smaller batch_size."
    return "Lower training.batch_size or model.max_length, or choose a smaller model."
