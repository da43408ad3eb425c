"""What can be known before anything starts: the same for `sfl run` and for `sfl doctor FILE`.

Settings first, then the model, then what each device is given: in seconds, and without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sfl.config import DeviceEntry, RunConfig
from sfl.config.codec import CodecChange
from sfl.config.node import EdgeConfig
from sfl.config.planner import OFF
from sfl.config.ranges import check_ranges, plans_to_fit
from sfl.data.examine import examine
from sfl.data.same_tokens import other_tokens
from sfl.data.sources import sources
from sfl.errors import ConfigError, ModelError
from sfl.models.classes import check_class_order
from sfl.models.complete import check_weights
from sfl.models.folder import ModelFolder, local_folder, open_model
from sfl.models.hub import hub_name
from sfl.models.layers import check_rank, check_target_names
from sfl.models.memory.batching import check_batching
from sfl.models.memory.beside import check_beside
from sfl.models.memory.device_budget import device_load, fit_plan
from sfl.models.teacher import FIELD as TEACHER
from sfl.models.teacher import teacher_folder, teacher_span
from sfl.models.vocabulary import check_tokenizer
from sfl.node.certificates.own import load_own
from sfl.node.extras import require_bitsandbytes
from sfl.plan import SERVERS
from sfl.report.plans import recorded_plans

OF_ONE_STEP = {"none", "fp16", "bf16", "int8", "fine"}
KNOWN_CODECS = {*OF_ONE_STEP, "compact", "sft", "extreme", "auto", None}
"""Settings that are codecs without a look at them, which would take torch; the first ones are
codecs of conversations, too."""

LARGE = 20_000_000  # bytes that take a second or more to read
Say = Callable[[str], None]


def check_before_start(config: RunConfig, folder: ModelFolder, say: Say) -> None:
    """All of it; `say` hears what takes a while. Raises ConfigError, ModelError, DataError."""
    check_settings(config, folder)
    _check_own_models(config)
    check_teacher(config, folder)
    check_budgets(config, folder)
    _check_hub_data(config)
    if _data_bytes(config) > LARGE:
        say("checking the data")
    examine(config.settings, folder.path)


def check_teacher(config: RunConfig, folder: ModelFolder) -> None:
    """The run's teacher is there, fits, and has the model's tokens. Raises ConfigError, ModelError.

    One that is still to be fetched is looked at by the edge.
    """
    own = config.distil
    where = config.edge.teacher or own.teacher
    if not own.is_on or local_folder(where) is None:
        return
    require_bitsandbytes("distil.quantised", own.quantised)
    teacher = teacher_folder(config.settings, config.edge)
    teacher_span(config.settings, teacher)
    problem = other_tokens(teacher, folder)
    if problem is not None:
        raise ConfigError(TEACHER, where, problem, "Choose a larger model of the same family.")


def _data_bytes(config: RunConfig) -> int:
    """What the files of the run's data come to, each counted once."""
    found = [sources(entry, entry.name, config.settings) for entry in config.devices]
    paths = {source.path for pair in found for source in pair if source is not None}
    return sum(path.stat().st_size for path in paths if path.is_file())


def check_budgets(config: RunConfig, folder: ModelFolder) -> None:
    """No device has a budget that its part of the model alone exceeds. Raises ConfigError.

    What its process takes by itself is known to the device alone, and left out.
    """
    if not folder.tensors:  # a model that is still to be fetched
        return
    for entry in config.devices:
        if entry.memory is not None:
            _check_budget(config, folder, entry)


def _check_budget(config: RunConfig, folder: ModelFolder, entry: DeviceEntry) -> None:
    plan = config.plan(entry.name, folder.num_layers)
    dtype = entry.dtype or config.model.dtype
    quantised = "nf4" if entry.quantised == "auto" else entry.quantised
    load = device_load(folder, config.settings, config.rank(entry.name), dtype, quantised)
    try:
        plans = plans_to_fit(config.settings, entry.name, plan)
        fit_plan(folder, plans, load, entry, 0, returned=True, open_dtype=dtype == "auto")
    except ConfigError as error:
        field = f"devices.{entry.name}.memory"
        raise ConfigError(field, error.value, error.problem, error.fix) from None


def _codecs(config: RunConfig) -> Iterator[str | None]:
    changes = [config.codec, *(d.codec for d in config.devices), *config.codec.schedule]
    for change in changes:
        yield from change.model_dump(include=set(CodecChange.model_fields)).values()


def check_settings(config: RunConfig, folder: ModelFolder) -> None:
    """The settings by themselves and against the model: cuts, codecs, layers, what is installed.

    Raises ConfigError, ModelError.
    """
    folder.check_task(config.model.task)
    _check_models(config, folder)
    check_class_order(folder, config.model.labels)
    check_batching(folder, config.settings, config.edge)
    check_beside(folder, config.settings, config.edge)
    for holder, stage in zip(SERVERS[1:], config.stage_nodes, strict=False):
        check_batching(folder, config.settings, stage, holder)
    check_names(config)
    check_ports(config)
    check_certificates(config)
    require_bitsandbytes("edge.quantised", config.edge.quantised)
    check_planner(config, folder.num_layers)
    for entry in config.devices:
        config.plan(entry.name, folder.num_layers)
        require_bitsandbytes(f"devices.{entry.name}.quantised", entry.quantised)
    check_target_names(folder, config.model.task, config.lora.target_modules)
    check_rank(folder, config.model.task, config.lora.rank)
    known = all(spec in KNOWN_CODECS for spec in _codecs(config))
    if not known or config.codec.serve not in OF_ONE_STEP:
        from sfl.transport.device.stream_codecs import (
            check_codecs,
        )  # with torch, a second and 200 MB

        check_codecs(config)


def check_planner(config: RunConfig, num_layers: int) -> None:
    """Who decides can be had, and so can what it may choose. Raises ConfigError."""
    check_decisions(config)
    check_ranges(config, num_layers)


def check_decisions(config: RunConfig) -> None:
    """The planner can be had, and what it repeats can be read. Raises ConfigError."""
    own = config.planner
    if own.policy == OFF:
        return
    from sfl.planners.situation import planner_of  # only where somebody decides

    planner_of(own.policy)
    recorded_plans(own.policy, own.plans)


def check_names(config: RunConfig) -> None:
    """The edges that are started are of the run, and each node's files have a name of their own.

    Raises ConfigError.
    """
    own = config.edge.name
    if "name" in config.edge.model_fields_set and own not in config.edges:
        raise ConfigError(
            "run.edges", config.run.edges, f"edge.name is {own!r}", f"Add {own!r}, or leave it out."
        )
    edges, stages = config.edges, tuple(stage.name for stage in config.stage_nodes)
    servers = ("cloud", *edges, *stages)
    for field, name, taken in (
        *(("run.edges" if config.run.edges else "edge.name", e, ("cloud",)) for e in edges),
        *(("stage.name", stage, ("cloud", *edges)) for stage in stages),
        *((f"devices.{e.name}.name", e.name, servers) for e in config.devices),
    ):
        if name in taken:
            what = {"cloud": "the cloud", **dict.fromkeys(edges, "an edge")}.get(name, "a stage")
            raise ConfigError(field, name, f"{what} has this name", "Choose another name.")


def check_ports(config: RunConfig) -> None:
    """Edges on one machine take a port each, and so do stages. Raises ConfigError."""
    _check_ports("edge", config.edge, len(config.edges))
    _check_ports("stage", config.stage, len(config.stage_nodes))


def _check_ports(kind: str, node: EdgeConfig, count: int) -> None:
    """Of several nodes with the same settings. Raises ConfigError."""
    metrics = node.metrics
    for field, value, port in (
        (f"{kind}.listen", node.listen, node.listen.rpartition(":")[2]),
        (f"{kind}.metrics.port", metrics.port, str(metrics.port if metrics.enabled else 0)),
    ):
        if port != "0" and count > 1:
            problem = f"sfl run starts {count} {kind}s here, and each needs a port"
            raise ConfigError(field, value, problem, "Use port 0, so that each takes a free one.")


def _check_models(config: RunConfig, folder: ModelFolder) -> None:
    """Weights, by their headers, and tokenizer: of the run's model, the edge's, each device's."""
    check_tokenizer(folder.path, folder.config)
    check_weights(folder, config.model.task)
    servers = {config.edge.model, *(stage.model for stage in config.stage_nodes)}
    own = {entry.model for entry in config.devices} | {config.model.path} | servers
    for name in sorted(name for name in own if name is not None):
        if (path := local_folder(name)) is None:
            continue  # on the hub, and not here yet: the nodes fetch it
        opened = open_model(path, weights=hub_name(name) is None)
        if name != folder.name and name not in servers:
            check_tokenizer(opened.path, opened.config)


def _check_own_models(config: RunConfig) -> None:
    """What a node names as its own model and is not here is on the hub, for the node to fetch.

    Raises ModelError, naming the setting.
    """
    named = {"edge.model": config.edge.model}
    if config.is_tiered:
        named["stage.model"] = config.stage.model
    named |= {f"devices.{entry.name}.model": entry.model for entry in config.devices}
    for field, name in named.items():
        if name is None or name == config.model.path or local_folder(name) is not None:
            continue
        try:
            open_model(name, weights=False)
        except ModelError as error:
            raise ModelError(field, error.value, error.problem, error.fix) from None


def _check_hub_data(config: RunConfig) -> None:
    """Names of data that are not here are datasets of the hub. Raises DataError."""
    found = [sources(entry, entry.name, config.settings) for entry in config.devices]
    names = {str(s.name): s for pair in found for s in pair if s is not None and not s.is_here}
    if names:
        from sfl.data.hub import find_on_hub

        for name, source in names.items():
            find_on_hub(name, source.field)


def check_certificates(config: RunConfig) -> None:
    """Every certificate that the file names is in order. Raises ConfigError."""
    if config.cloud.tls is not None:
        load_own("cloud.tls", config.cloud.tls, "cloud", None)
    if config.edge.tls is not None:
        load_own("edge.tls", config.edge.tls, "edge", config.edge.name)
    for stage in config.stage_nodes:
        if stage.tls is not None:
            load_own("stage.tls", stage.tls, "edge", stage.name)
    for entry in config.devices:
        if entry.tls is not None:
            load_own(f"devices.{entry.name}.tls", entry.tls, "device", entry.name)
