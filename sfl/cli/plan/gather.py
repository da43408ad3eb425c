"""From a run's file to what a planner is asked: cuts with their memory, costs, and aims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sfl.cli.doctor.files import NotHere, open_local
from sfl.cli.launch.preflight import check_planner
from sfl.cli.launch.run import bounded
from sfl.cli.plan.asked import Asked
from sfl.cli.plan.shown import NOTHING, Shown, shown_by
from sfl.config import RunConfig
from sfl.config.devices import DeviceEntry
from sfl.config.node import certain
from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder
from sfl.models.memory.cuts import told_cuts
from sfl.models.memory.device_budget import device_load, fit_device
from sfl.models.memory.edge_budget import fit_edge, needs
from sfl.models.memory.footprint import BASE_BYTES
from sfl.models.shape import facts_from_headers
from sfl.node.machine import cores
from sfl.plan import SERVERS
from sfl.planners import Cut, State
from sfl.planners.costs import Costs, Speeds
from sfl.planners.plans import recorded_for
from sfl.planners.situation import Present, Remembered, state_of
from sfl.report.plans import recorded_plans

STEPS = 10
"""Of a round, where the file leaves them to the data and no run shows them."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Gathered:
    """A planner's state, and what is to be known of it.

    `measured` are devices whose costs a run has shown. `edge_bytes` is what the edge needs at most,
    whatever is chosen. `notes` say what was assumed.
    """

    config: RunConfig
    state: State
    measured: frozenset[str]
    edge_bytes: int
    notes: tuple[str, ...]
    stage_bytes: tuple[int, ...] = ()
    """What each stage behind the edge needs at most."""


def gather(asked: Asked, tell: Tell) -> Gathered:
    """Nothing runs, and nothing is fetched. Raises ConfigError, ModelError, DiskError."""
    return gather_for(asked.load(), asked, tell)


def gather_for(config: RunConfig, asked: Asked, tell: Tell) -> Gathered:
    """The same of these settings, whatever file is asked for."""
    folder = _model(config)
    config = bounded(config, folder.context_length)
    check_planner(config, folder.num_layers)
    tell("reading what a run has shown" if asked.run else "counting the model's work")
    shown = shown_by(asked.run, asked.output_dir)
    speeds, notes = _speeds(asked, shown, tell)
    steps = config.training.local_steps or shown.steps
    if not steps:
        steps = STEPS
        notes += (f"A round is {STEPS} steps here: its real ones depend on the data.",)
    if config.is_tiered and config.planner.moves:
        notes += ("A run of three tiers keeps its cuts: those of the plan are for its file.",)
    settings, edge_of = config.settings, _edges_of(config, shown)
    facts = facts_from_headers(settings, folder)
    costs = Costs.of(settings, facts, shown.costs, config.names, config.edges, speeds)
    devices = [_present(config, folder, entry, edge_of, costs) for entry in config.devices]
    plans = recorded_plans(config.planner.policy, config.planner.plans)
    state = state_of(
        settings,
        1,
        costs.workload(steps),
        devices,
        costs.edges,
        Remembered({}, recorded_for(plans, 1)),
        costs.stages,
    )
    way = fit_edge(folder, settings, config.edge)
    edge_bytes = needs(folder, settings, config.edge, way).total
    return Gathered(config, state, costs.seen, edge_bytes, notes, _stage_bytes(config, folder))


def _stage_bytes(config: RunConfig, folder: ModelFolder) -> tuple[int, ...]:
    """What each stage behind the edge needs at most."""
    settings, found = config.settings, []
    for holder, own in zip(SERVERS[1:], config.stage_nodes, strict=False):
        way = fit_edge(folder, settings, own, holder)
        found.append(needs(folder, settings, own, way, holder).total)
    return tuple(found)


def _model(config: RunConfig) -> ModelFolder:
    try:
        folder = open_local(config.model.path)
    except NotHere:
        fix = "Fetch it first, or give a folder: --model PATH."
        raise ConfigError("model.path", config.model.path, "is not on this machine", fix) from None
    folder.check_task(config.model.task)
    return folder


def _edges_of(config: RunConfig, shown: Shown) -> dict[str, str]:
    """As a run had them, else dealt in turn."""
    edges = config.edges
    return {
        name: found if (found := shown.edges.get(name)) in edges else edges[number % len(edges)]
        for number, name in enumerate(config.names)
    }


def _speeds(asked: Asked, shown: Shown, tell: Tell) -> tuple[Speeds, tuple[str, ...]]:
    """Of nodes that have shown nothing."""
    stage = None if asked.stage_speed is None else 1e9 * asked.stage_speed
    if shown is not NOTHING:
        return Speeds(stage=stage), ()
    device, edge = asked.speeds
    usual = 0.0
    if device is None or edge is None:
        tell("measuring this machine")
        usual = _this_machine()
    found = Speeds(1e9 * (device or usual), 1e9 * (edge or usual), stage)
    said = f"a device does {found.device / 1e9:.3g} GFLOP/s, and an edge {found.edge / 1e9:.3g}"
    said += "" if stage is None else f", and a stage {stage / 1e9:.3g}"
    where = " (this machine's speed)" if usual else ""
    fix = "Give --device-gflops and --edge-gflops, or costs that were measured: --from RUN."
    return found, (f"No run shows what nodes cost: {said}{where}. {fix}",)


def _this_machine() -> float:
    """GFLOP/s of a frozen layer, in float32."""
    from sfl.stage.precision import fastest_dtype  # torch, only where it is asked

    return fastest_dtype(cores().usable).float32_gflops


def _present(
    config: RunConfig,
    folder: ModelFolder,
    entry: DeviceEntry,
    edge_of: dict[str, str],
    costs: Costs,
) -> Present:
    name = entry.name
    return Present(
        name,
        edge_of[name],
        costs.devices[name],
        None,  # nothing moves: no run has begun
        _cuts(config, folder, entry),
        entry.memory,
    )


def _cuts(config: RunConfig, folder: ModelFolder, entry: DeviceEntry) -> tuple[Cut, ...]:
    """With the memory of each, as the device itself would foretell it."""
    settings, dtype = config.settings, entry.dtype or config.model.dtype
    load = device_load(folder, settings, settings.rank(entry.name), dtype, certain(entry.quantised))
    plan = settings.plan(entry.name, folder.num_layers)
    free = entry.model_copy(update={"memory": None})
    thrift = fit_device(folder, plan, load, free, BASE_BYTES, returned=True)
    return told_cuts(folder, settings, entry.name, load, BASE_BYTES, thrift)
