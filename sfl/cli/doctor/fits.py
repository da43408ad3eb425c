"""Which cut layers fit the available memory, decided as a device itself decides it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from sfl.cli.doctor.report import Check, CutRow, Mark
from sfl.config import LocalDevice, RunConfig
from sfl.config.devices import DeviceEntry
from sfl.config.node import certain
from sfl.config.ranges import plans_to_fit
from sfl.config.size import read_size as bytes_of
from sfl.config.size import size
from sfl.errors import ConfigError, SflError
from sfl.models.folder import ModelFolder
from sfl.models.memory.device_budget import device_load, fit_device
from sfl.models.memory.footprint import BASE_BYTES, Footprint, Load, Thrift, device_footprint
from sfl.plan import Plan, without_stages

TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Base:
    """A device process before its model: resident bytes, and whether freed memory goes back."""

    num_bytes: int
    returned: bool
    measured: bool = True


def measure_base(package: str) -> Base:
    """In a process of its own, with the code of `package`'s model.

    Where that cannot be done, say on a machine that is too busy, what another machine measured.
    """
    command = [sys.executable, "-m", "sfl.cli.doctor.base_child", package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        found = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return Base(BASE_BYTES, returned=True, measured=False)
    return Base(found["base_bytes"], found["returned"])


def decided(
    folder: ModelFolder, plan: Plan, load: Load, own: LocalDevice, base: Base
) -> tuple[Footprint, Thrift, ConfigError | None]:
    """What a device of these settings would take and do to take less, and why it would refuse.

    Where it refuses, the footprint is without a budget.
    """
    open_dtype, refusal = load.dtype == "auto", None
    returned = base.returned and own.heap != "keep"
    try:
        thrift = fit_device(folder, plan, load, own, base.num_bytes, returned, open_dtype)
    except ConfigError as error:
        free, refusal = own.model_copy(update={"memory": None}), error
        thrift = fit_device(folder, plan, load, free, base.num_bytes, returned)
    needed = device_footprint(folder, plan.device_spans, load, base.num_bytes, thrift)
    return needed, thrift, refusal


def read_size(field: str, text: str) -> int:
    """`512MB`, `1.5GiB` or plain bytes. Raises ConfigError."""
    try:
        return int(bytes_of(text))
    except ValueError:
        raise ConfigError(field, text, "is not a size", "Write e.g. 512MB or 2GB.") from None


def load_of(config: RunConfig, folder: ModelFolder) -> Load:
    """What the run asks of a device that has nothing of its own."""
    name = config.devices[0].name
    load = device_load(folder, config.settings, config.rank(name), config.model.dtype, "none")
    return replace(load, rank=config.lora.rank)


def cut_rows(
    folder: ModelFolder,
    load: Load,
    config: RunConfig | None,
    room: int,
    base: Base,
    own: LocalDevice,
) -> list[CutRow]:
    """A row for every cut of the model, in the run's topology, for a device with settings `own`."""
    topology = "vanilla" if config is None else without_stages(config.run.topology)
    tail = 0 if config is None else max(entry.tail_layers for entry in config.devices)
    rows = []
    for cut in range(folder.num_layers - tail):
        plan = Plan.split(folder.num_layers, cut, tail, topology)
        footprint, _, refusal = decided(folder, plan, load, own, base)
        rows.append(CutRow(cut, footprint, refusal is None and footprint.total <= room))
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
    base: Base,
) -> Iterator[Check]:
    """Each of the run's devices by itself, and all of them side by side."""
    together = 0
    for entry in config.devices:
        own = _own_load(config, entry, load, folder)
        try:
            plan = config.plan(entry.name, folder.num_layers)
        except SflError:
            continue  # said where the file was checked
        ways = plans_to_fit(config.settings, entry.name, plan)
        found = [(way, *decided(folder, way, own, entry, base)) for way in ways]
        good = [one for one in found if one[3] is None and one[1].total <= room]
        joins, needed, thrift, refusal = (good or found)[0]
        together += needed.total
        fits = bool(good)
        figures = {f"{name}_bytes": value for name, value in asdict(needed).items()}
        figures |= {"total_bytes": needed.total, "cut_layer": joins.cut_layer}
        text = f"cut_layer {joins.cut_layer} needs {size(needed.total)} of {size(room)} ({thrift})"
        if joins != plan:
            text += f"; cut_layer {plan.cut_layer} takes more, so it joins with {joins.cut_layer}"
        fix = "" if fits else _smaller(entry, rows)
        if refusal is not None:
            text, fix = f"{refusal.field} = {refusal.value!r}: {refusal.problem}", refusal.fix
        mark: Mark = "ok" if fits else "problem"
        yield Check(f"device {entry.name}", mark, text, fix, {**figures, "saves": asdict(thrift)})
    if together > room and len(config.devices) > 1:
        yield Check(
            "sfl run",
            "warning",
            f"the devices need {size(together)} together, and there are {size(room)}",
            "Start them on separate machines: sfl cloud, sfl edge, sfl device.",
            {"devices_bytes": together},
        )


def _own_load(config: RunConfig, entry: DeviceEntry, load: Load, folder: ModelFolder) -> Load:
    """What the run asks of a device, at the batch, length and rank that were asked about."""
    dtype = entry.dtype or config.model.dtype
    own = device_load(
        folder, config.settings, config.rank(entry.name), dtype, certain(entry.quantised)
    )
    rank = entry.rank or load.rank
    return replace(own, batch_size=load.batch_size, length=load.length, rank=rank)


def _smaller(entry: DeviceEntry, rows: list[CutRow]) -> str:
    fitting = [row.cut_layer for row in rows if row.fits and row.cut_layer < entry.cut_layer]
    if fitting:
        return f"Set devices.{entry.name}.cut_layer to {max(fitting)}, or a smaller batch_size."
    return "Lower training.batch_size or model.max_length, or choose a smaller model."
