"""`summary.json`: what a run came to, computed from its records; in bytes and seconds."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sfl
from sfl.config import DeviceEntry, RunSettings
from sfl.config.asynchronous import Mode
from sfl.data.example import DataNotes
from sfl.metrics.snapshot import ByteTotals, NodeKind, NodeSnapshot, Role, combine
from sfl.node.files import write_atomic
from sfl.planners.plans import Plan
from sfl.report.planned import At, PlanSummary, cuts_over_rounds, plan_summaries
from sfl.report.records import NodeRecord, Record, RoundRecord
from sfl.report.scores import Scores

TRAINING_ROLES: tuple[Role, ...] = ("activation", "gradient")
"""The roles that compression is about; a claim of reduction counts no others."""
NodeKey = tuple[NodeKind, str]

_NOTHING = DataNotes()


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that went wrong and that the run survived, or not."""

    round: int
    node: str
    problem: str

    def __str__(self) -> str:
        return f"round {self.round}, {self.node}: {self.problem}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """The inverse of `str`; what was never a fault's becomes one of round 0."""
        if (found := re.fullmatch(r"round (\d+), ([^:]*): (.*)", text, re.DOTALL)) is None:
            return cls(0, "", text)
        return cls(int(found[1]), found[2], found[3])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out quality over devices: loss weighted by targets, accuracy by examples.

    `accuracy` is None for plain text; `devices` are those that it is taken over.
    """

    loss: float | None
    accuracy: float | None
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Training activations and gradients of all devices, both ways.

    `wire` bytes were sent; the same values are `fp32` bytes at 4 a value of real tokens.
    """

    wire: int
    fp32: int

    @property
    def reduction_vs_fp32(self) -> float | None:
        """How many times fewer bytes than float32; None where nothing was sent."""
        return self.fp32 / self.wire if self.wire else None

    @property
    def reduction_vs_fp16(self) -> float | None:
        """How many times fewer bytes than float16; None where nothing was sent."""
        return self.fp32 / 2 / self.wire if self.wire else None


@dataclass(frozen=True, slots=True)
class ByteSummary:
    """Message bytes of one node's link towards the cloud, and the raw size of their tensors."""

    bytes_up: int
    bytes_down: int
    bytes_up_raw: int
    bytes_down_raw: int
    bytes_up_by_role: Mapping[Role, int]
    bytes_down_by_role: Mapping[Role, int]
    bytes_up_raw_by_role: Mapping[Role, int]
    bytes_down_raw_by_role: Mapping[Role, int]

    @classmethod
    def of(cls, totals: ByteTotals) -> ByteSummary:
        """The sums over roles, and the roles."""
        return cls(
            totals.total_up,
            totals.total_down,
            sum(totals.up_raw.values()),
            sum(totals.down_raw.values()),
            totals.up,
            totals.down,
            totals.up_raw,
            totals.down_raw,
        )


@dataclass(frozen=True, slots=True)
class Staleness:
    """How old a device's updates were that counted: adapters made since each began."""

    updates: int
    mean: float
    most: int

    @classmethod
    def of(cls, staleness: Mapping[int, int]) -> Staleness:
        """Of all its updates: how many were how old."""
        updates = sum(staleness.values())
        total = sum(age * often for age, often in staleness.items())
        return cls(updates, total / updates if updates else 0.0, max(staleness, default=0))

    def __str__(self) -> str:
        return f"{self.mean:.1f} ({self.most})" if self.updates else "–"


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """One device over the whole run; losses and accuracy are of the run's adapter, `*_before` the
    first ones; None where it did not evaluate that.

    `rounds` counts those that its part was taken into; `phases` are seconds by phase; `dtype` and
    `quantised` are what it settled on for its base. Where `joined` is false the run never heard
    from it, and its zeros are what nobody counted. `staleness` is None in a run without late
    updates.
    """

    name: str
    cut_layer: int
    tail_layers: int
    rank: int
    rounds: int
    num_examples: int
    eval_examples: int
    train_loss: float | None
    eval_loss_before: float | None
    eval_loss: float | None
    eval_accuracy_before: float | None
    eval_accuracy: float | None
    peak_rss_bytes: int
    accelerator_bytes: int
    tokens_trained: int
    train_seconds: float
    tokens_per_second: float
    phases: Mapping[str, float]
    traffic: ByteSummary
    dtype: str = ""
    quantised: str = ""
    joined: bool = True
    data: DataNotes = _NOTHING
    staleness: Staleness | None = None
    cuts: tuple[At, ...] = ()
    """Where a planner decided: rounds from which on it had another cut, and that."""


@dataclass(frozen=True, slots=True)
class ServerSummary:
    """An edge or the cloud over the whole run; the cloud opens no link and counts no bytes."""

    name: str
    peak_rss_bytes: int
    accelerator_bytes: int
    phases: Mapping[str, float]
    traffic: ByteSummary
    dtype: str = ""
    quantised: str = ""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as a whole. `failure` is None for a run that reached its end.

    `eval_*_before` and `_after` compare the same devices, before the first round and after the
    last: losses weighted by targets, accuracy by examples and None for plain text. `bytes_in_all`
    crossed the links of all devices, both ways, whatever for; `training_bytes` are the part of them
    that compression is about. `bytes_between_servers` crossed the hops between edges and the stages
    behind them, and are not in these. `plugins` are packages of others, with their versions.
    """

    run_id: str
    sfl_version: str
    failure: str | None
    model: str
    task: str
    topology: str
    codec_activation: str
    codec_gradient: str
    rounds: int
    rounds_planned: int
    best_round: int | None
    faults: tuple[Fault, ...]
    eval_devices: tuple[str, ...]
    eval_loss_before: float | None
    eval_loss_after: float | None
    eval_accuracy_before: float | None
    eval_accuracy_after: float | None
    tokens_trained: int
    train_seconds: float
    wall_seconds: float
    bytes_in_all: int
    training_bytes: int
    training_bytes_fp32: int
    reduction_vs_fp32: float | None
    reduction_vs_fp16: float | None
    adapter: str | None
    devices: tuple[DeviceSummary, ...]
    edges: tuple[ServerSummary, ...]
    cloud: ServerSummary
    plugins: tuple[str, ...] = ()
    mode: Mode = "synchronous"
    plans: tuple[PlanSummary, ...] = ()
    stages: tuple[ServerSummary, ...] = ()
    bytes_between_servers: int = 0

    @property
    def servers(self) -> tuple[ServerSummary, ...]:
        """Edges, the stages behind them, and the cloud."""
        return (*self.edges, *self.stages, self.cloud)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the keys of a node's traffic stand beside its other keys."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        servers = (*values["edges"], *values["stages"], values["cloud"])
        for node in (*values["devices"], *servers):
            node |= node.pop("traffic")
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSummary:
        """Read what `to_dict` wrote."""
        nested = {
            "faults": tuple(Fault(**fault) for fault in values["faults"]),
            "eval_devices": tuple(values["eval_devices"]),
            "plugins": tuple(values.get("plugins", ())),
            "plans": tuple(map(PlanSummary.from_dict, values.get("plans", ()))),
            "devices": tuple(DeviceSummary(**_with_notes(d)) for d in values["devices"]),
            "edges": tuple(ServerSummary(**_with_traffic(edge)) for edge in values["edges"]),
            "stages": tuple(ServerSummary(**_with_traffic(s)) for s in values.get("stages", ())),
            "cloud": ServerSummary(**_with_traffic(values["cloud"])),
        }
        return cls(**{**values, **nested})

    def write(self, path: Path) -> None:
        """Replace `path` by this summary as JSON, whole."""
        write_atomic(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> RunSummary:
        """The summary in `path`; raises OSError where there is none."""
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8-sig")))


def build_summary(
    settings: RunSettings,
    run_id: str,
    records: Sequence[Record],
    snapshots: Sequence[NodeSnapshot],
    *,
    train_seconds: float,
    wall_seconds: float,
    faults: Sequence[Fault] = (),
    failure: str | None = None,
    adapter: str | None = None,
    best_round: int | None = None,
    data: Mapping[str, DataNotes] = MappingProxyType({}),
    staleness: Mapping[str, Mapping[int, int]] = MappingProxyType({}),
    plans: Sequence[Plan] = (),
) -> RunSummary:
    """What the run came to.

    `snapshots` are the latest known of every node, `adapter` is the folder as a user would write
    it. Rounds that closed are those with a record of the cloud. Bytes and tokens are summed over
    the lives of a node that was restarted.
    """
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    rounds.sort(key=lambda record: record.round)
    last = max(_closed(records), default=0)
    nodes = _combined(records, snapshots)
    clouds = [node for node in nodes.values() if node.kind == "cloud"]
    cuts = cuts_over_rounds(plans)
    devices = tuple(
        replace(
            _device(entry, settings, rounds, nodes, last),
            data=data.get(entry.name, _NOTHING),
            staleness=Staleness.of(staleness.get(entry.name, {})) if staleness else None,
            **_last_cut(cuts.get(entry.name, ())),
        )
        for entry in settings.devices
    )
    before, after = _before_and_after(rounds, last)
    traffic = training_traffic(nodes.values())
    return RunSummary(
        run_id=run_id,
        sfl_version=sfl.__version__,
        failure=failure,
        model=settings.model.path,
        task=settings.model.task,
        topology=settings.run.topology,
        codec_activation=settings.codec.activation,
        codec_gradient=settings.codec.gradient,
        rounds=len(_closed(records)),
        rounds_planned=settings.run.rounds,
        best_round=best_round,
        faults=tuple(faults),
        eval_devices=after.devices,
        eval_loss_before=before.loss,
        eval_loss_after=after.loss,
        eval_accuracy_before=before.accuracy,
        eval_accuracy_after=after.accuracy,
        tokens_trained=sum(device.tokens_trained for device in devices),
        train_seconds=train_seconds,
        wall_seconds=wall_seconds,
        bytes_in_all=sum(d.traffic.bytes_up + d.traffic.bytes_down for d in devices),
        training_bytes=traffic.wire,
        training_bytes_fp32=traffic.fp32,
        reduction_vs_fp32=traffic.reduction_vs_fp32,
        reduction_vs_fp16=traffic.reduction_vs_fp16,
        adapter=adapter,
        devices=devices,
        edges=tuple(_server(node) for node in nodes.values() if node.kind == "edge"),
        cloud=_server(clouds[0] if clouds else NodeSnapshot("cloud", "cloud")),
        plugins=settings.run.plugins,
        mode=settings.run.mode,
        plans=plan_summaries(plans, rounds),
        stages=tuple(_server(node) for node in nodes.values() if node.kind == "stage"),
        bytes_between_servers=sum(
            node.stage_bytes.total_up + node.stage_bytes.total_down for node in nodes.values()
        ),
    )


def _last_cut(cuts: tuple[At, ...]) -> dict[str, Any]:
    """What a planner changed of a device."""
    if not cuts:
        return {}
    _, cut_layer, tail_layers = cuts[-1]
    return {"cut_layer": cut_layer, "tail_layers": tail_layers, "cuts": cuts}


def evaluate(records: Iterable[RoundRecord], devices: Iterable[str] | None = None) -> Evaluation:
    """Quality over the records of one round, over all of them or over `devices` only."""
    chosen = None if devices is None else set(devices)
    scored = [
        record
        for record in records
        if record.eval_targets and (chosen is None or record.device in chosen)
    ]
    if not scored:
        return Evaluation(None, None, ())
    targets = sum(record.eval_targets for record in scored)
    loss = math.fsum(record.eval_loss_sum for record in scored) / targets
    return Evaluation(loss, _accuracy(scored), tuple(record.device for record in scored))


def best_round(records: Iterable[RoundRecord]) -> int | None:
    """The best of all that these tell of."""
    scores = Scores()
    for record in records:
        scores.take(record)
    return scores.best()


def _accuracy(scored: Sequence[RoundRecord]) -> float | None:
    correct = [record.eval_correct for record in scored if record.eval_correct is not None]
    examples = sum(record.eval_examples for record in scored)
    return sum(correct) / examples if len(correct) == len(scored) and examples else None


def training_traffic(nodes: Iterable[NodeSnapshot]) -> Traffic:
    """Bytes of training activations and gradients over the links of all devices among `nodes`."""
    totals = [node.bytes for node in nodes if node.kind == "device"]
    wire = sum(_training(total.up) + _training(total.down) for total in totals)
    return Traffic(wire, sum(_training(t.up_raw) + _training(t.down_raw) for t in totals))


def _training(counts: Mapping[Role, int]) -> int:
    return sum(counts.get(role, 0) for role in TRAINING_ROLES)


def _closed(records: Iterable[Record]) -> set[int]:
    return {
        record.round
        for record in records
        if isinstance(record, NodeRecord) and record.snapshot.kind == "cloud" and record.round
    }


def _combined(
    records: Iterable[Record], snapshots: Iterable[NodeSnapshot]
) -> dict[NodeKey, NodeSnapshot]:
    """Every node's snapshots as one."""
    taken: dict[NodeKey, list[NodeSnapshot]] = {}
    for snapshot in (*(record.snapshot for record in records), *snapshots):
        taken.setdefault((snapshot.kind, snapshot.name), []).append(snapshot)
    return {key: combine(taken[key]) for key in sorted(taken)}


def _before_and_after(rounds: Sequence[RoundRecord], last: int) -> tuple[Evaluation, Evaluation]:
    """The evaluations of round 0 and of `last`, whose adapter it is, over the devices in both.

    Where no device is in both, each is over the devices that it has: an adapter that nobody has
    evaluated has no score, and not an older one's.
    """
    first = [record for record in rounds if record.round == 0]
    final = [record for record in rounds if record.round == last]
    both = set(evaluate(first).devices) & set(evaluate(final).devices)
    chosen = both or None
    return evaluate(first, chosen), evaluate(final, chosen)


def _device(
    entry: DeviceEntry,
    settings: RunSettings,
    rounds: Sequence[RoundRecord],
    nodes: Mapping[NodeKey, NodeSnapshot],
    closed: int,
) -> DeviceSummary:
    own = [record for record in rounds if record.device == entry.name]
    trained = [record for record in own if record.steps]
    scored = [record for record in own if record.eval_targets]
    first = next((record for record in scored if record.round == 0), None)
    last = next((record for record in scored if record.round == closed), None)
    tokens = sum(record.tokens for record in trained)
    seconds = math.fsum(record.seconds for record in trained)
    heard = nodes.get(("device", entry.name))
    node = heard or NodeSnapshot(entry.name, "device")
    return DeviceSummary(
        name=entry.name,
        cut_layer=entry.cut_layer,
        tail_layers=entry.tail_layers,
        rank=entry.rank or settings.lora.rank,
        rounds=len(trained),
        num_examples=own[-1].num_examples if own else 0,
        eval_examples=last.eval_examples if last else 0,
        train_loss=trained[-1].train_loss if trained else None,
        eval_loss_before=first.eval_loss if first else None,
        eval_loss=last.eval_loss if last else None,
        eval_accuracy_before=first.eval_accuracy if first else None,
        eval_accuracy=last.eval_accuracy if last else None,
        peak_rss_bytes=node.peak_resident_bytes,
        accelerator_bytes=node.accelerator_bytes,
        tokens_trained=tokens,
        train_seconds=seconds,
        tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
        phases=_phase_seconds(node),
        traffic=ByteSummary.of(node.bytes),
        dtype=node.dtype,
        quantised=node.quantised,
        joined=heard is not None,
    )


def _server(node: NodeSnapshot) -> ServerSummary:
    return ServerSummary(
        node.name,
        node.peak_resident_bytes,
        node.accelerator_bytes,
        _phase_seconds(node),
        ByteSummary.of(node.bytes),
        node.dtype,
        node.quantised,
    )


def _phase_seconds(node: NodeSnapshot) -> dict[str, float]:
    return {phase: totals.seconds for phase, totals in node.phases.items()}


def _with_traffic(values: Mapping[str, Any]) -> dict[str, Any]:
    """A node's values with those of its traffic put back in one place."""
    names = {field.name for field in dataclasses.fields(ByteSummary)}
    own = {name: value for name, value in values.items() if name not in names}
    return own | {"traffic": ByteSummary(**{name: values[name] for name in names})}


def _with_notes(values: Mapping[str, Any]) -> dict[str, Any]:
    """A device's values with what its data came to."""
    told = values.get("staleness")
    staleness = None if told is None else Staleness(**told)
    data = DataNotes(**values.get("data", {}))
    cuts = tuple(tuple(cut) for cut in values.get("cuts", ()))
    return _with_traffic(values) | {"data": data, "staleness": staleness, "cuts": cuts}


def _plain(value: Any) -> Any:
    """Tuples as lists, and null for what is not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
