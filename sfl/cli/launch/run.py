"""The order of things: check, start, watch and start again, stop."""

from __future__ import annotations

import contextlib
import logging
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from sfl.cli.launch.certificates import drop_certificates, prepare_certificates
from sfl.cli.launch.child import end_nursery, prepare_nursery
from sfl.cli.launch.node import (
    Node,
    cloud_node,
    device_node,
    edge_node,
    stage_node,
)
from sfl.cli.launch.patience import SAY_EVERY, Say
from sfl.cli.launch.preflight import check_before_start
from sfl.config import EdgeConfig, RunConfig
from sfl.config.plugins import with_packages
from sfl.errors import ConfigError, RunFailed, SflError
from sfl.models.families import FAMILIES
from sfl.models.folder import check_length, local_folder, open_model
from sfl.models.memory.edge_budget import fit_edge
from sfl.node import machine
from sfl.node.causes import in_words
from sfl.node.process import cores, quiet_environment, undisturbed
from sfl.node.restarts import Note, Restarts
from sfl.plan import SERVERS, Holder
from sfl.report.conclusion import conclude, has_finished, is_over
from sfl.report.elsewhere import check_storage
from sfl.report.resume import how_ended, reopened
from sfl.report.runs import INTERRUPTED, open_run_folder, stop_because
from sfl.report.status import RunStatus

log = logging.getLogger("sfl.run")

CONNECT_TIMEOUT = 15.0
KEPT_HEAP_BYTES = 2_000_000_000
"""Free memory for each device from which on devices keep their heaps while they train."""
LEAVE_TIMEOUT = 5.0
STOP_TIMEOUT = 10.0
VERDICT = 5.0  # seconds in which the cloud makes something of a node that was lost
POLL = 0.1

Watch = Callable[[RunStatus], None]


def run_on_this_machine(
    config: RunConfig,
    watch: Watch,
    started: Callable[[Path], None],
    tls: bool = False,
    note: Note = log.warning,
    resume: Path | None = None,
) -> Path:
    """Run everything to its end, and return the run's folder; with `resume` that is it.

    `started` is told the folder, `watch` each new status, `note` of each node that is started
    again. With `tls` the nodes get certificates of a CA that is made for this run, and gone once
    it has ended; a run that goes on has those that it had. Raises ConfigError, DataError,
    ModelError before or soon after the start, RunFailed where the run did not reach its end.
    """

    def say(message: str) -> None:
        watch(RunStatus(config.run.id, "starting", 0, config.run.rounds, message=message))

    model = open_model(config.model.path, weights=local_folder(config.model.path) is not None)
    config = bounded(config, model.context_length)
    config = with_packages(config, FAMILIES.package(model.model_type))
    check_before_start(config, model, say)
    if resume is None:
        check_storage(config)
    config = resolved(config) if resume is not None else budgeted(resolved(config))
    try:
        prepare_nursery(model.family.layout(model.config, config.model.task).package)
        restarts = Restarts(config.launch.restarts, note)
        return _run(config, watch, started, tls, restarts, resume)
    finally:
        with undisturbed(hear_later=False):
            end_nursery()


def _run(
    config: RunConfig,
    watch: Watch,
    started: Callable[[Path], None],
    tls: bool,
    restarts: Restarts,
    resume: Path | None,
) -> Path:
    """From the run's folder to its summary, without which no folder is left."""
    nodes: list[Node] = []
    began, reason = time.monotonic(), INTERRUPTED
    folder: Path | None = None
    try:
        with undisturbed(hear_later=True):
            folder = open_run_folder(config) if resume is None else reopened(resume)
        started(folder)
        prepare_certificates(config, folder, tls, resume is not None)
        _start(config, folder, nodes, watch, restarts, resume is not None)
        _await_end(config, folder, nodes, watch, restarts)
        _let_end(nodes)
    except Exception as error:
        reason = in_words(error)
        raise
    finally:
        if folder is not None:
            with undisturbed(hear_later=False):
                _stop(nodes, folder, reason)
                with contextlib.suppress(SflError):  # the disk is full: then it is the reason, too
                    conclude(folder, config, reason, time.monotonic() - began)
                    if how_ended(folder, config) is not None:
                        drop_certificates(folder)
    return folder


def resolved(config: RunConfig) -> RunConfig:
    """Every `auto` filled in, as it takes effect on this machine.

    The edge may use all cores, a device its share of them: they work in turns more than side by
    side, and waiting threads sleep.
    """
    quick = {"connect_timeout": CONNECT_TIMEOUT}
    edge = _resolved_server(config, config.edge, "edge")
    if edge.name not in config.edges:
        edge = edge.model_copy(update={"name": config.edges[0]})
    stage = _resolved_server(config, config.stage, "stage") if config.is_tiered else config.stage
    folds = _folds(config)
    devices = []
    for entry in config.devices:
        changes: dict[str, object] = {} if _given(entry) else dict(quick)
        if entry.threads == "auto":
            changes["threads"] = max(1, cores() // len(config.devices))
        # With a budget of its own a device has the last word, and says so when it joins.
        if (entry.dtype or config.model.dtype) == "auto" and entry.memory is None:
            changes["dtype"] = _fastest_dtype(changes.get("threads", entry.threads))
        if entry.quantised == "auto":
            dtype = changes.get("dtype", entry.dtype or config.model.dtype)
            name = f"devices.{entry.name}"
            changes["quantised"] = "none" if folds else _quantised(name, str(dtype))
        if entry.heap == "auto" and entry.memory is None and _memory_to_spare(len(config.devices)):
            changes["heap"] = "keep"
        if entry.model is None:
            changes["model"] = config.model.path
        devices.append(entry.model_copy(update=changes))
    nodes = {"edge": edge, "stage": stage, "devices": tuple(devices)}
    return config.model_copy(update=nodes)


def _resolved_server(config: RunConfig, own: EdgeConfig, field: str) -> EdgeConfig:
    """Every `auto` of an edge's or a stage's settings filled in."""
    dials = field == "edge" and not _given(own)
    changes: dict[str, object] = {"connect_timeout": CONNECT_TIMEOUT} if dials else {}
    if own.threads == "auto":
        changes["threads"] = cores()
    if (own.dtype or config.model.dtype) == "auto":
        changes["dtype"] = _fastest_dtype(changes.get("threads", own.threads), own.devices[0])
    if own.quantised == "auto":
        dtype, folds = changes.get("dtype", own.dtype or config.model.dtype), _folds(config)
        changes["quantised"] = "none" if folds else _quantised(field, str(dtype), own.devices[0])
    return own.model_copy(update=changes)


def _folds(config: RunConfig) -> bool:
    return config.settings.aggregation.traits.folds


def _memory_to_spare(num_devices: int) -> bool:
    """Whether this machine has room for devices that keep what they could free."""
    memory = machine.memory()
    room = memory.available
    if memory.limit is not None:
        room = min(room, memory.limit - memory.limit_used)
    return room >= num_devices * KEPT_HEAP_BYTES


def budgeted(config: RunConfig) -> RunConfig:
    """What servers will do to stay within their memory, as settings. Raises ConfigError."""
    edge = _budgeted(config, config.edge, "edge")
    stage: EdgeConfig = config.stage
    for holder, _ in zip(SERVERS[1:], config.stage_nodes, strict=False):
        stage = _budgeted(config, stage, holder)  # one table for all: what each of them needs
    return config.model_copy(update={"edge": edge, "stage": stage})


def _budgeted(config: RunConfig, own: EdgeConfig, holder: Holder) -> EdgeConfig:
    if own.memory is None:
        return own
    folder = open_model(own.model or config.model.path)
    choice = fit_edge(folder, config.settings, own, holder)
    return own.model_copy(update=choice.changes(config.settings))


def _fastest_dtype(threads: object, device: str = "cpu") -> str:
    """What `auto` comes to on `device`, measured before anything else runs. Raises RunFailed.

    In a process of its own: this one never loads torch.
    """
    done = _asked("dtype", str(threads), device)
    if done.returncode != 0:
        raise RunFailed(f"dtype auto could not be measured: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def _quantised(node: str, dtype: str, device: str = "cpu") -> str:
    """What `quantised = "auto"` comes to, with a line for the user where that is not NF4.

    Kernels that take their process with them are kernels that do not run.
    """
    done = _asked("quantised", dtype, device)
    found, why = done.stdout.strip(), done.stderr.strip()[-300:]
    if done.returncode != 0:
        found, why = "none", why or f"bitsandbytes ended its process with {done.returncode}"
    if why:
        sys.stderr.write(f"{node}.quantised auto is {found} here: {why}\n")
    return found


@cache
def _asked(question: str, given: str, device: str) -> subprocess.CompletedProcess[str]:
    quiet_environment()
    command = [sys.executable, "-m", "sfl.stage.base", question, given, device]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _given(settings: object) -> bool:
    return "connect_timeout" in getattr(settings, "model_fields_set", set())


def bounded(config: RunConfig, context_length: int) -> RunConfig:
    """`max_length` within the model's context. Raises ConfigError where more was asked for."""
    if "max_length" in config.model.model_fields_set:
        check_length(config.model.max_length, context_length)
        return config
    length = min(config.model.max_length, context_length)
    model = config.model.model_copy(update={"max_length": length})
    return config.model_copy(update={"model": model})


def _start(
    config: RunConfig,
    folder: Path,
    nodes: list[Node],
    watch: Watch,
    restarts: Restarts,
    resume: bool,
) -> None:
    def say(message: str) -> None:
        watch(RunStatus(folder.name, "starting", 0, config.run.rounds, message=message))

    cloud = cloud_node(folder, config, resume)
    nodes.append(cloud)
    cloud.start()
    # Another process of it goes on with the run, where this one is.
    cloud.resumes, cloud.returns = folder, True
    cloud_address = _address_of(cloud, nodes, restarts, say)
    cloud.stay_at(cloud_address)
    behind = _start_stages(config, folder, nodes, restarts, say)
    edges = [edge_node(folder, config, name, cloud_address, behind) for name in config.edges]
    for edge in edges:
        nodes.append(edge)
        edge.fork(say)
    addresses: dict[str, str] = {}
    for edge in edges:
        addresses[edge.name] = _address_of(edge, nodes, restarts, say)
        edge.stay_at(addresses[edge.name])
    for entry in config.devices:
        device = device_node(folder, config, entry.name, addresses)
        nodes.append(device)
        device.start()


def _start_stages(
    config: RunConfig, folder: Path, nodes: list[Node], restarts: Restarts, say: Say
) -> str:
    """Start the stages behind the edge, the last one first; the first one's address, if any."""
    behind = ""
    for own in reversed(config.stage_nodes):
        stage = stage_node(folder, config, own, behind)
        nodes.append(stage)
        stage.fork(say)
        behind = _address_of(stage, nodes, restarts, say)
        stage.stay_at(behind)
    return behind


def _of_kind(nodes: list[Node], *kinds: str) -> list[Node]:
    return [node for node in nodes if node.kind in kinds]


def _address_of(node: Node, nodes: list[Node], restarts: Restarts, say: Say) -> str:
    """Where a node listens; who dies before that is known is started again. Raises RunFailed."""

    def meanwhile() -> None:
        restarts.look(nodes, time.monotonic())

    while True:
        try:
            return node.await_address(say, meanwhile)
        except RunFailed:
            if not restarts.will_return(node):
                raise
            meanwhile()
            time.sleep(POLL)


def _await_end(
    config: RunConfig, folder: Path, nodes: list[Node], watch: Watch, restarts: Restarts
) -> None:
    """Watch until the cloud has ended. Raises RunFailed or what a node's mistake was."""
    (cloud,), devices = _of_kind(nodes, "cloud"), _of_kind(nodes, "device")
    servers = _of_kind(nodes, "edge", "stage")
    seen, began = 0, time.monotonic()
    given_up = math.inf
    status = RunStatus.read(folder / "status.json")
    while cloud.exit_code() is None or (
        not is_over(folder, status) and restarts.will_return(cloud)
    ):
        status = RunStatus.read(folder / "status.json")
        over = is_over(folder, status)
        if status is not None and status.sequence != seen and status.over == over:
            seen = status.sequence
            watch(with_wait(status, time.monotonic() - began))
        _raise_mistakes(nodes)
        if not over:  # who dies at the end is not needed any more
            restarts.look(nodes, time.monotonic())
        if (lost := _lost(config, servers, devices, restarts)) is not None:
            # The cloud sees it too; what it makes of it stands in all that it leaves behind.
            given_up = min(given_up, time.monotonic() + VERDICT)
            if time.monotonic() > given_up:
                raise RunFailed(lost)
        time.sleep(POLL)
    final = RunStatus.read(folder / "status.json")
    if final is not None:
        watch(final)
    if cloud.exit_code() != 0 and not has_finished(folder, final):
        # What the cloud says of the run speaks for itself; its own death needs its name.
        died = "" if cloud.error_file.exists() else "cloud: "
        raise RunFailed(f"{died}{cloud.failure()}{_killed([*servers, *devices])}")


def _killed(nodes: list[Node]) -> str:
    """Who could not say itself why it ended, as the end of a sentence."""
    return "".join(
        f"; {node.kind} {node.name}: {node.failure()}"
        for node in nodes
        if node.exit_code() not in (None, 0) and not node.error_file.exists()
    )


def with_wait(status: RunStatus, seconds: float) -> RunStatus:
    """The status with what the first round waits for, and for how long, once that is a while."""
    if status.phase != "waiting for devices" or status.round > 0 or seconds < SAY_EVERY:
        return status
    who = status.message or "edge and devices read model and data"
    waited = seconds // SAY_EVERY * SAY_EVERY
    return replace(status, message=f"{who}, {waited:.0f} s")


def _raise_mistakes(nodes: list[Node]) -> None:
    """A mistake in configuration or data ends the run at once, whichever node found it."""
    for node in nodes:
        if node.exit_code() == ConfigError.exit_code:
            raise Mistake(f"{node.kind} {node.name}: {node.failure()}")


def _lost(
    config: RunConfig, servers: list[Node], devices: list[Node], restarts: Restarts
) -> str | None:
    """Why the run cannot reach its end any more, since who has ended is not started again.

    Devices of an edge that is gone have the others.
    """

    def gone(node: Node) -> bool:
        return node.exit_code() not in (None, 0) and not restarts.will_return(node)

    edges = [server for server in servers if server.kind == "edge"]
    left_edges = [edge for edge in edges if not gone(edge)]
    for server in servers:
        if gone(server) and not (server in edges and left_edges):
            return f"{server.kind} {server.name}: {server.failure()}"
    ended = [device for device in devices if gone(device)]
    left = len(devices) - len(ended)
    if left >= config.min_devices:
        return None
    reasons = "; ".join(f"device {device.name}: {device.failure()}" for device in ended)
    return f"{left} of at least {config.min_devices} devices are left; {reasons}"


def _let_end(nodes: list[Node]) -> None:
    """Everybody has been told that the run is over: let them leave by themselves."""
    deadline = time.monotonic() + LEAVE_TIMEOUT
    while time.monotonic() < deadline and any(node.running for node in nodes):
        time.sleep(POLL)


def _stop(nodes: list[Node], folder: Path, reason: str) -> None:
    """The cloud first, which tells everybody why; then who is left. Nothing outlives this."""
    deadline = time.monotonic() + STOP_TIMEOUT
    if nodes and nodes[0].running:
        with contextlib.suppress(SflError):  # its disk is full
            stop_because(folder, reason)
        nodes[0].ask_to_stop()
        _let_end(nodes)
    for node in reversed(nodes):
        node.ask_to_stop()
    for node in reversed(nodes):
        node.await_end(deadline)


class Mistake(SflError):
    """A user's mistake that a node found; its text is the node's own."""

    exit_code = ConfigError.exit_code
