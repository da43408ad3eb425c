"""What an edge would take for its devices, whatever machine they are on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from sfl.cli.doctor.report import Check, problem
from sfl.cli.doctor.serving import said_of_rows
from sfl.config import EdgeConfig, RunConfig, RunSettings
from sfl.config.devices import DeviceEntry
from sfl.config.size import size
from sfl.errors import ConfigError, SflError
from sfl.models.folder import ModelFolder
from sfl.models.memory.beside import check_beside
from sfl.models.memory.edge_budget import fit_edge, needs, residents
from sfl.models.memory.footprint import Load
from sfl.plan import SERVERS, Holder
from sfl.transport.serve.rows import serve_codec

ASSUMED = (1,)
"""Cuts of an edge's devices where nothing says."""


def read_cuts(field: str, text: str) -> tuple[int, ...]:
    """`1,1,2`: the cut layer of each device. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(field, text, "is not a list of cut layers", "Write e.g. 1,1,2.")
    return tuple(int(part) for part in parts)


def settings_of(folder: ModelFolder, load: Load, cuts: tuple[int, ...]) -> RunSettings:
    """A run of devices with these cuts, for an edge's file, which knows neither."""
    labels = [str(number) for number in range(max(2, load.num_labels))]
    return RunSettings.model_validate(
        {
            "model": {
                "path": str(folder.path),
                "task": load.task,
                "labels": labels if load.task == "sequence_classification" else [],
                "max_length": load.length,
            },
            "lora": {"rank": load.rank},
            "training": {"batch_size": load.batch_size},
            "devices": [{"name": f"d{n}", "cut_layer": cut} for n, cut in enumerate(cuts)],
        }
    )


def check_edge(
    settings: RunSettings,
    own: EdgeConfig,
    load: Load,
    folder: ModelFolder,
    room: int,
    option: str = "",
    holder: Holder = "edge",
) -> Check:
    """A stage server of these settings, at the load's batch; within its `memory`, or `room` bytes.

    `option` is what the cuts came from, where it was not the file.
    """
    section = "edge" if holder == "edge" else "stage"
    settings = _at(settings, load)
    try:
        for entry in settings.devices:
            _check_cut(settings, folder, entry, option)
        check_beside(folder, settings, own)
        choice = fit_edge(folder, settings, own, holder)
    except SflError as error:
        return problem(holder, error)
    needed = needs(folder, settings, own, choice, holder)
    room = room if own.memory is None else min(room, own.memory)
    layers = folder.num_layers
    plans = [settings.plan(entry.name, layers) for entry in settings.devices]
    cuts = [plan.span_of(holder).first for plan in plans]
    cut = "cut_layer" if holder == "edge" else "stage_cuts"
    each = (needed.adapter + needed.optimizer) // residents(settings, own, holder)
    how = f", blocks computed again for {len(choice.recompute)}" if choice.recompute else ""
    text = (
        f"{len(cuts)} device{'s' * (len(cuts) != 1)} ({cut} {', '.join(map(str, cuts))}) need "
        f"{size(needed.total)} of {size(room)} on {_an(section)}: process {size(needed.base)}, "
        f"weights {size(needed.weights)}, adapters and optimizers "
        f"{size(needed.adapter + needed.optimizer)} ({size(each)} a device in memory), "
        f"one job {size(needed.activations)}, messages {size(needed.messages)}{how}"
    )
    if own.serve is not None:
        codec = serve_codec(settings.codec.serve)
        text += f", and conversations beside them {size(needed.serving)}; "
        text += said_of_rows(codec, folder.hidden_size)
    figures = {f"{name}_bytes": value for name, value in asdict(needed).items()}
    figures |= {
        "total_bytes": needed.total,
        "room_bytes": room,
        "cut_layers": cuts,
        "in_flight": choice.in_flight,
        "credits": choice.credits,
        "recompute": list(choice.recompute),
    }
    if needed.total <= room:
        return Check(holder, "ok", text, figures=figures)
    fix = (
        f"Set {section}.memory = {size(room).replace(' ', '')!r} to see what fits, or lower "
        f"training.batch_size, model.max_length or {section}.resident_adapters."
    )
    if own.serve is not None:
        fix = fix.replace("or lower ", "or lower edge.serve.kv_memory, ")
    return Check(holder, "problem", text, fix, figures)


def _an(section: str) -> str:
    return f"{'an' if section == 'edge' else 'a'} {section}"


def check_stages(config: RunConfig, load: Load, folder: ModelFolder, room: int) -> Iterator[Check]:
    """The stages behind a run's edge, where it has any."""
    for holder, own in zip(SERVERS[1:], config.stage_nodes, strict=False):
        yield check_edge(config.settings, own, load, folder, room, holder=holder)


def check_own_edge(
    config: RunConfig | EdgeConfig,
    load: Load,
    folder: ModelFolder,
    cuts: tuple[int, ...],
    room: int,
) -> Check:
    """A run's edge with the run's devices, or an edge's own file with devices of these cuts."""
    if isinstance(config, RunConfig):
        return check_edge(config.settings, config.edge, load, folder, room)
    settings = settings_of(folder, load, cuts or ASSUMED)
    return check_edge(settings, config, load, folder, room, "--cuts" if cuts else "")


def _at(settings: RunSettings, load: Load) -> RunSettings:
    """With the load's batch, length and rank, where the question gave others than the file."""
    training = settings.training.model_copy(update={"batch_size": load.batch_size})
    model = settings.model.model_copy(update={"max_length": load.length})
    lora = settings.lora.model_copy(update={"rank": load.rank})
    return settings.model_copy(update={"training": training, "model": model, "lora": lora})


def _check_cut(settings: RunSettings, folder: ModelFolder, entry: DeviceEntry, option: str) -> None:
    """Raises ConfigError for a cut that the model does not have, by the option that gave it."""
    try:
        settings.plan(entry.name, folder.num_layers)
    except ConfigError as error:
        raise ConfigError(option or error.field, error.value, error.problem, error.fix) from None
