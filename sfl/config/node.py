"""What is local to one node: addresses, data, limits. Nothing here changes a run's arithmetic but
`threads`, `dtype`, `device` and `quantised`; the effective config fixes what was `auto` of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from sfl.config.base import NodeName, OneOf, Seconds, Section
from sfl.config.pausing import PauseSettings
from sfl.config.serving import ServeSettings
from sfl.config.size import Size
from sfl.plan import Topology
from sfl.stage.orders import ORDERS
from sfl.urls import has_password

Port = Annotated[int, Field(ge=0, le=65535)]
Threads = PositiveInt | Literal["auto"]
Dtype = Literal["float32", "bfloat16", "autocast", "auto"]
Quantised = Literal["none", "nf4", "int8"]
QuantisedSetting = Quantised | Literal["auto"]


def certain(quantised: QuantisedSetting) -> Quantised:
    """What a forecast counts with before anything was tried: `auto` may come to `none`."""
    return "none" if quantised == "auto" else quantised


class TlsSettings(Section):
    """A node's certificate, as `sfl ca issue` writes it (docs/security.md). With it every link of
    the node is TLS 1.3 with certificates on both ends."""

    ca: Path
    """The CA's certificate. Peers must have theirs from it."""
    cert: Path
    """The node's certificate, with its role and name."""
    key: Path
    """Its private key. Only the node's user should be able to read the file."""


class MetricsSettings(Section):
    """Where a node serves `/metrics` for Prometheus."""

    enabled: bool = True
    """Whether to serve `/metrics`."""
    host: str = "127.0.0.1"
    """Address to bind: loopback, or a LAN address for a Prometheus on another machine."""
    port: Port = 0
    """TCP port. 0 takes a free one and logs it."""
    cert: Path | None = None
    """Serve over TLS with this certificate. Needs `key`."""
    key: Path | None = None
    """Its private key."""
    username: str | None = None
    """Ask for this name and a password (HTTP basic auth). Needs `password_file`."""
    password_file: Path | None = None
    """File with the password, so that it is in no setting and no process list."""

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        for one, other in (("cert", "key"), ("username", "password_file")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one}: give it and {other}, or neither")
        return self


class TracingSettings(Section):
    """Where the cloud sends the timeline of one step of each round, as OpenTelemetry traces."""

    endpoint: str = Field(default="", pattern=r"^(https?://.+)?$")
    """A collector's address for OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`. Empty:
    no traces are sent. Needs the extra `otel` (docs/monitoring.md)."""


POSTGRES = r"^(postgresql(\+psycopg)?://.+)?$"
PLACE = r"^(s3://[^/].*|file:///.+)?$"


def without_secret(url: str) -> str:
    """A URL whose password, if there is one, is a variable of the environment."""
    if has_password(url):
        raise ValueError(
            "has a password, which every copy of the settings would have; write ${NAME} in its "
            "place, and set NAME in the environment"
        )
    return url


JournalUrl = Annotated[str, Field(pattern=POSTGRES), AfterValidator(without_secret)]
ArtifactsUrl = Annotated[str, Field(pattern=PLACE), AfterValidator(without_secret)]


class CloudNode(Section):
    """The cloud process."""

    listen: str = "127.0.0.1:0"
    """`host:port` that edges connect to. Port 0 takes a free one."""
    tls: TlsSettings | None = None
    """The cloud's certificate."""
    metrics: MetricsSettings = MetricsSettings()
    """Prometheus endpoint of the cloud."""
    tracing: TracingSettings = TracingSettings()
    """Traces of the run's steps."""
    journal: JournalUrl = ""
    """Where the run's events are kept. Empty: in `run.sqlite` in the run's folder. A PostgreSQL
    server: `postgresql+psycopg://USER:${NAME}@HOST/DATABASE`, where `NAME` is a variable of the
    environment with the password. Without `:${NAME}` the password is that of `PGPASSWORD` or
    `~/.pgpass`. Needs the extra `postgres` (docs/storage.md)."""
    artifacts: ArtifactsUrl = ""
    """Where a second copy is kept of all files that a run goes on from: `s3://BUCKET/PREFIX` or
    `file:///FOLDER`. Empty: they are in the run's folder only. With this and `journal` a run whose
    machine is gone goes on elsewhere (docs/storage.md). `s3://` needs the extra `s3`."""


class EdgeConfig(Section):
    """An edge server: one frozen base shared by all of its devices."""

    name: NodeName = "edge"
    """Name of this edge, unique in the run."""
    listen: str = "127.0.0.1:0"
    """`host:port` that devices connect to. Port 0 takes a free one."""
    advertise: str = ""
    """`host:port` at which devices find this edge, as the cloud tells it to devices of other edges.
    Default: `listen`, unless that stands for all addresses of this machine (`0.0.0.0`, `::`)."""
    cloud: str = ""
    """`host:port` of the cloud."""
    model: str | None = None
    """Model folder or hub name on this machine. Default: the run's `model.path`."""
    teacher: str | None = None
    """Folder or hub name of the teacher on this machine. Default: the run's `distil.teacher`."""
    threads: Threads = "auto"
    """Torch threads of the compute thread. `auto`: all cores. It changes bits, so it is
    recorded."""
    dtype: Dtype | None = None
    """Precision of this node, if it is not the run's `model.dtype`."""
    device: str | tuple[str, ...] = "cpu"
    """Where the blocks are computed: `cpu`, `cuda:0`, or several as `["cuda:0", "cuda:1"]`. Several
    share the blocks in ranges, by the memory that is free (docs/precision.md)."""
    quantised: QuantisedSetting = "none"
    """Hold the frozen linear layers of this node's blocks in `nf4` (4.5 bits a weight) or `int8`.
    It is slower on a CPU, and needs the extra `quantised` (docs/precision.md). `auto`: the first of
    these that runs here, otherwise `none`, with a warning that says why."""
    order: Annotated[str, OneOf(ORDERS)] = "first_come"
    """Which waiting device the edge serves next: the first to come, the one that has most of its
    own work left, or the one served least. Changes no bit of the result (docs/edge.md)."""
    batch_devices: PositiveInt = 1
    """Most devices whose waiting jobs are computed as one batch. The jobs have the same cut and
    similar lengths, and each row has its own device's LoRA. With more than 1 a run no longer
    repeats bit for bit, because which jobs wait depends on timing. Where the loss is further on,
    a batch runs again for its backward. Refused with computation `reference` and with dropout
    (docs/edge.md)."""
    memory: Size | None = None
    """Most memory that this process may take, such as `4GB`. To stay within it, the edge lowers
    `in_flight` and `credits`, and switches `recompute` on for as many devices as needed. A run that
    still does not fit is refused before it starts (docs/memory.md)."""
    in_flight: PositiveInt = 8
    """Most decoded activations on this edge at once, over all devices. Others wait as bytes."""
    credits: Annotated[int, Field(gt=0, le=4096)] | None = None
    """Micro-batches of one device that may be in flight at once at this edge, if fewer than
    `network.credits`. The edge tells its devices. Changes no bit."""
    recompute: bool | tuple[str, ...] = False
    """Keep only a block's input, and run the block again for its backward. U-shaped: keep only the
    input of all blocks between the two halves of a step. It takes less memory and a third more
    computing, and changes no bit. `true`, or the names of the devices to do it for."""
    resident_adapters: PositiveInt | None = None
    """Most devices whose LoRA and optimizer state stay in memory: the last used ones. Those of the
    others are swapped to files in `swap_dir` between their steps. A device in the middle of a step
    stays, so it saves little where a step is several messages: with micro-batches, `max_grad_norm`
    or topology `u_shaped`. Changes no bit. Default: all stay."""
    swap_dir: Path = Path("~/.cache/sfl/swapped")
    """Folder of the swapped adapters. The files have no name, and are gone when the edge ends, even
    if it is killed."""
    cache_dir: Path = Path("~/.cache/sfl")
    """Folder for what `delta(sample)` remembers of devices' examples. The files have no name, and
    are gone with their stream. Use a disk with space: it is a row for each token."""
    snapshots: ArtifactsUrl = ""
    """A store that all edges of the run share: `s3://BUCKET/PREFIX` or `file:///FOLDER`. The edge
    keeps its snapshots there as well, so that a device finds its own at whichever edge it comes to
    next (docs/edges.md). Empty: on this machine's disk only. `s3://` needs the extra `s3`."""
    swap_to: Literal["disk", "memory"] = "disk"
    """Where adapters are swapped to. `memory`: to this machine's memory, if `device` is CUDA."""
    connect_timeout: Seconds = 60.0
    """Seconds to keep trying to reach the cloud. 15 under `sfl run`, unless given."""
    next: str = ""
    """Three tiers: `host:port` of the stage behind this one (docs/three-tiers.md)."""
    proxy: bool = False
    """Connect to the cloud through the proxy that `grpc_proxy`, `https_proxy` or `http_proxy` names
    in the environment. Without it these variables are ignored."""
    service: str = ""
    """`host:port` of a service of runs. The edge stays attached to it, computes the runs that it is
    given, and relays its devices (docs/service.md)."""
    max_runs: PositiveInt = 2
    """Most runs of a service that the edge computes at once."""
    tls: TlsSettings | None = None
    """The edge's certificate, shown to its devices and to the cloud."""
    metrics: MetricsSettings = MetricsSettings()
    """Prometheus endpoint of the edge. It also shows its devices' series."""
    serve: ServeSettings | None = None
    """Serve conversations over the same base while the run trains, by the keys of `[serve]`. They
    are computed first. It changes no bit of the run (docs/serving.md). Default: only train."""

    @model_validator(mode="after")
    def _devices_make_sense(self) -> Self:
        for device in self.devices:
            if re.fullmatch(r"cpu|cuda:\d+", device) is None:
                raise ValueError(
                    f"device: {device!r} is not a device; use cpu, cuda or cuda:NUMBER"
                )
            if self.devices.count(device) > 1:
                raise ValueError(f"device: {device} is given twice")
        if self.swap_to == "memory" and self.devices == ("cpu",):
            raise ValueError('swap_to: on the CPU this frees nothing; leave it at "disk"')
        if not self.devices or "cpu" in self.devices[1:] + self.devices[:-1]:
            raise ValueError('device: "cpu", or one or more CUDA devices, not both')
        return self

    @property
    def devices(self) -> tuple[str, ...]:
        """`device` as a list; `cuda` is its first."""
        names = (self.device,) if isinstance(self.device, str) else self.device
        return tuple("cuda:0" if name == "cuda" else name for name in names)


NOT_OF_STAGES = {
    "cloud": "a stage dials no cloud: edges tell it of the run",
    "service": "a stage is attached to no service of runs",
    "max_runs": "a stage is in one run",
    "advertise": "edges dial the address in their own edge.next",
    "snapshots": "a stage keeps its snapshots in cache_dir",
    "connect_timeout": "a stage waits for edges, without an end",
    "serve": "devices that serve dial an edge",
    "teacher": "the teacher is on an edge",
}
"""Keys of an edge that a stage does not read, and why."""


class StageConfig(EdgeConfig):
    """A stage server (docs/three-tiers.md). It takes the keys of `[edge]` as well, but for `cloud`,
    `service`, `max_runs`, `advertise`, `snapshots` and `connect_timeout`."""

    name: NodeName = "stage"
    """Name of this stage, unique in the run."""
    before: tuple[NodeName, ...] = ()
    """Names of the servers that may come to this stage: the run's edges, or the stage before it.
    Empty: the edges of the first run that comes (docs/security.md). Under `sfl run` it is set."""

    @model_validator(mode="after")
    def _all_is_read(self) -> Self:
        for key, why in NOT_OF_STAGES.items():
            if getattr(self, key) != EdgeConfig.model_fields[key].default:
                raise ValueError(f"{key}: {why}; leave it out")
        return self


class LocalDevice(Section):
    """What only a device knows: its data, its caches, its limits."""

    train: Path | str | None = None
    """Training data: a JSONL, CSV, TSV, text or Parquet file, or a Hugging Face dataset."""
    eval: Path | str | None = None
    """Held-out data of this device. Default: `eval_split`, or `data.eval_fraction` of `train`."""
    split: str | None = None
    """Split of this device's own `train`, if it is not `data.split`."""
    eval_split: str | None = None
    """Split of this device's own `eval` or `train` to evaluate on."""
    subset: str | None = None
    """Subset of this device's own datasets, if it is not `data.subset`."""
    model: str | None = None
    """Model folder on this device. Without it the edge sends the weights of this device's
    blocks."""
    teacher: str | None = None
    """Folder of the teacher on this device, where the run's `distil.input` is `blocks:N`."""
    cache_dir: Path = Path("~/.cache/sfl")
    """Where weights and the tokenizer received from an edge are kept, by content hash."""
    threads: Threads = "auto"
    """Torch threads. `auto`: the machine's cores, divided among the nodes under `sfl run`."""
    dtype: Dtype | None = None
    """Precision of this node, if it is not the run's `model.dtype`."""
    quantised: QuantisedSetting = "none"
    """Hold the frozen linear layers of this node's blocks in `nf4` (4.5 bits a weight) or `int8`.
    It is slower on a CPU, and needs the extra `quantised` (docs/precision.md). `auto`: the first of
    these that runs here, otherwise `none`, with a warning that says why."""
    memory: Size | None = None
    """Most memory that this process may take, such as `450MB`. It is forecast before anything is
    loaded. As far as needed, the embedding then stays on disk and blocks run again for their
    backward, which changes no bit. Next, batches are cut into `micro_batches`. Last, if dtype is
    `auto`, bfloat16 is used. If that is not enough, the device refuses to join (docs/memory.md)."""
    micro_batches: PositiveInt = 1
    """More than 1: cut a batch into at least this many pieces, and hold one at a time. The result
    equals the run's `micro_batches` to rounding. The number is raised where `memory` needs it, and
    then recorded."""
    embedding: Literal["auto", "disk", "memory"] = "auto"
    """Where the token embedding is: in `memory`, or on `disk`, from which rows are read when they
    are used. `auto`: on disk from 16 MB on. If a U-shaped device trains and its head shares it, it
    is always in memory."""
    heap: Literal["auto", "keep", "return"] = "auto"
    """When freed tensors go back to the system. `return`: at once, which is smaller. `keep`: when a
    round ends, which is faster. `auto`: `keep` under `sfl run` on a machine with memory to spare
    and no `memory` here, otherwise `return`. Changes no bit."""
    connect_timeout: Seconds = 60.0
    """Seconds to keep trying to reach the edge, and seconds that the edge may be silent before it
    admits the device. 15 under `sfl run`, unless given."""
    proxy: bool = False
    """Connect to the edge through the proxy that `grpc_proxy`, `https_proxy` or `http_proxy` names
    in the environment. Without it these variables are ignored."""
    tls: TlsSettings | None = None
    """The device's certificate, by which its edge knows it."""
    metrics: MetricsSettings = MetricsSettings(enabled=False)
    """Prometheus endpoint of the device. Off, because its edge shows its series."""
    pause: PauseSettings = PauseSettings()
    """When the device pauses: too hot, battery low, outside hours, on a metered link."""


class ConsentSettings(Section):
    """What a device agrees to. It refuses a run that asks for anything else, and says why
    (docs/security.md)."""

    min_cut_layer: NonNegativeInt = 1
    """Fewest blocks that this device holds itself. At 0 it sends embeddings, which reveal its
    text."""
    topologies: tuple[Topology, ...] = get_args(Topology)
    """Topologies in which it takes part. With `["u_shaped"]` its labels never leave it."""
    teacher: bool = False
    """Whether it sends what a teacher reads (`[distil]`): that reveals its texts to the edge."""
    codecs: tuple[str, ...] = ()
    """Codecs that it uses, as a run writes them, e.g. `["compact", "fine"]`. An adapter may always
    be sent in full. Empty: every codec."""
    data_dirs: tuple[Path, ...] = ()
    """Folders in which its data files must be. A file elsewhere is refused at the start. Empty: any
    folder."""


class DeviceConfig(LocalDevice):
    """A device agent's own file."""

    name: NodeName
    """Name of this device, one of the run's `[[devices]]`."""
    edge: str = ""
    """`host:port` of the edge that it dials first. Default: the first one of `edges`."""
    edges: dict[NodeName, str] = Field(default_factory=dict)
    """The edges that it may go to, each with its `host:port`: `{ north = "10.0.0.5:7001" }`. It
    dials another one when its own is gone, and goes to those of them that the cloud names.
    Default: the cloud tells it of the run's edges, and where they are (docs/edges.md)."""
    service: str = ""
    """`host:port` of its edge or of the cloud, where that is a service of runs. The device stays
    attached, and computes the runs that it is given (docs/service.md)."""
    max_runs: PositiveInt = 1
    """Most runs of a service that the device computes at once."""
    shared_train: Path | str | None = None
    """A training file with the rows of all devices, if the device has no `train`. This device takes
    its part of it, by the run's `data.partition`."""
    shared_eval: Path | str | None = None
    """The same for held-out data, if the device has no `eval`."""
    consent: ConsentSettings = ConsentSettings()
    """What this device agrees to."""
