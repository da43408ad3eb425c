"""What is local to one node: addresses, data, limits. Nothing here changes a run's arithmetic but
`threads`, `dtype`, `device` and `quantised`; the effective config fixes what was `auto` of them."""

from __future__ import annotations

import re
from datetime import time
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from sfl.config.base import NodeName, Seconds, Section
from sfl.config.size import Size
from sfl.plan import Topology

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
    """The CA's certificate; peers must have theirs from it."""
    cert: Path
    """The node's certificate, with its role and name."""
    key: Path
    """Its private key; nobody but the node's user should be able to read the file."""


class MetricsSettings(Section):
    """Where a node serves `/metrics` for Prometheus."""

    enabled: bool = True
    """Serve `/metrics` at all."""
    host: str = "127.0.0.1"
    """Address to bind: loopback, or a LAN address to let a Prometheus elsewhere scrape."""
    port: Port = 0
    """TCP port; 0 takes a free one and logs it."""
    cert: Path | None = None
    """Serve over TLS with this certificate; with `key`."""
    key: Path | None = None
    """Its private key."""
    username: str | None = None
    """Ask for this name and a password (HTTP basic auth); with `password_file`."""
    password_file: Path | None = None
    """File with the password, so that it stands in no setting and no process list."""

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        for one, other in (("cert", "key"), ("username", "password_file")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one}: give it and {other}, or neither")
        return self


class TracingSettings(Section):
    """Where the cloud sends the timeline of a step of each round, as OpenTelemetry traces."""

    endpoint: str = Field(default="", pattern=r"^(https?://.+)?$")
    """A collector's address for OTLP over HTTP, as `http://127.0.0.1:4318/v1/traces`; empty: none
    is sent. Needs the extra `otel` (docs/monitoring.md)."""


def read_hours(text: str) -> tuple[time, time]:
    """`22:00-06:00` as two times of day. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)", text.replace(" ", ""))
    if match is None:
        raise ValueError("not a span of hours; write e.g. 22:00-06:00")
    numbers = [int(number) for number in match.groups()]
    if max(numbers[0], numbers[2]) > 23 or max(numbers[1], numbers[3]) > 59:
        raise ValueError("hours go from 00:00 to 23:59; a day's end is 00:00")
    begin, end = time(numbers[0], numbers[1]), time(numbers[2], numbers[3])
    if begin == end:
        raise ValueError("begins and ends at the same time; leave hours out to train all day")
    return begin, end


def _hours(text: str) -> str:
    read_hours(text)
    return text


Hours = Annotated[str, AfterValidator(_hours)]
Celsius = Annotated[float, Field(ge=-40.0, le=150.0)]
Percent = Annotated[float, Field(gt=0.0, le=100.0)]


class PauseSettings(Section):
    """When a device rests, between two steps and before it joins (docs/boards.md). It stays
    connected meanwhile; a round that does not wait so long goes on without it."""

    above_celsius: Celsius | None = None
    """Rest while the hottest sensor reads more than this."""
    cool_celsius: Celsius | None = None
    """Once hot, go on at this; default: 5 below `above_celsius`."""
    below_percent: Percent | None = None
    """Rest while the battery has less than this, on a charger or not."""
    charged_percent: Percent | None = None
    """Once low, go on at this; default: 5 above `below_percent`, at most 100."""
    hours: tuple[Hours, ...] = ()
    """Train in these spans of local time only, as `["22:00-06:00"]`; empty: always."""
    metered: bool = False
    """Rest while NetworkManager calls the link of the default route metered."""
    metered_interfaces: tuple[str, ...] = ()
    """Rest while the default route goes through one of these, as `["wwan*", "usb0"]`."""
    check_interval: Seconds = 5.0
    """Seconds between two looks at sensors and clock."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        hot, cool = self.above_celsius, self.cool_celsius
        if cool is not None and (hot is None or cool >= hot):
            raise ValueError("cool_celsius: goes with an above_celsius that is higher")
        low, charged = self.below_percent, self.charged_percent
        if charged is not None and (low is None or charged < low):
            raise ValueError("charged_percent: goes with a below_percent that is not higher")
        return self

    @property
    def cools_to(self) -> float:
        """Where a hot device goes on."""
        if self.cool_celsius is not None:
            return self.cool_celsius
        return 0.0 if self.above_celsius is None else self.above_celsius - 5.0

    @property
    def charges_to(self) -> float:
        """Where a device with a low battery goes on."""
        if self.charged_percent is not None:
            return self.charged_percent
        return 100.0 if self.below_percent is None else min(100.0, self.below_percent + 5.0)


class CloudNode(Section):
    """The cloud process."""

    listen: str = "127.0.0.1:0"
    """`host:port` that edges dial; port 0 takes a free one."""
    tls: TlsSettings | None = None
    """The cloud's certificate."""
    metrics: MetricsSettings = MetricsSettings()
    """Prometheus endpoint of the cloud."""
    tracing: TracingSettings = TracingSettings()
    """Traces of the run's steps."""


class EdgeConfig(Section):
    """An edge server: one frozen base shared by all of its devices."""

    name: NodeName = "edge"
    """Name of this edge, unique in the run."""
    listen: str = "127.0.0.1:0"
    """`host:port` that devices dial; port 0 takes a free one."""
    cloud: str = ""
    """`host:port` of the cloud."""
    model: str | None = None
    """Model folder or hub name on this machine; the run's `model.path` where it is not given."""
    threads: Threads = "auto"
    """Torch threads of the compute thread; `auto`: all cores. Changes bits, so it is recorded."""
    dtype: Dtype | None = None
    """Precision of this node, where it is not the run's `model.dtype`."""
    device: str | tuple[str, ...] = "cpu"
    """Where the blocks are computed: `cpu`, `cuda:0`, or several as `["cuda:0", "cuda:1"]`, over
    which blocks are laid in ranges, by the memory that is free (docs/precision.md)."""
    quantised: QuantisedSetting = "none"
    """Hold the frozen linear layers of this node's blocks in `nf4` (4.5 bits a weight) or `int8`;
    slower on a CPU, and it needs the extra `quantised` (docs/precision.md). `auto`: the first of
    these that runs here, else `none`, with a warning that says why."""
    order: Literal["first_come", "longest_tail", "fair_share"] = "first_come"
    """Which waiting device the edge serves next: the first to come, the one that has most left to
    do itself, or the one served least. Changes no bit of the result."""
    batch_devices: PositiveInt = 1
    """Compute waiting jobs of up to so many devices, with the same cut and like lengths, as one
    batch, each row with its own device's LoRA. What is waiting depends on timing, so more than 1
    gives up repeating a run bit for bit. Refused, by `sfl run` and by an edge that learns of the
    run, in topology `u_shaped`, with computation `reference` and where anything draws dropout."""
    memory: Size | None = None
    """Most memory this process may take, e.g. `4GB`. `in_flight` and `credits` are lowered, and
    `recompute` switched on for as many devices as it takes, to stay within it; where that does not
    do, the run is refused before it starts."""
    in_flight: PositiveInt = 8
    """Activations that may lie decoded on this edge at once, over all devices; others wait as the
    bytes they came in."""
    credits: Annotated[int, Field(gt=0, le=4096)] | None = None
    """Micro-batches of one device that may be in flight at once at this edge, where fewer than
    `network.credits`; the edge tells its devices. Changes no bit."""
    recompute: bool | tuple[str, ...] = False
    """Keep a block's input instead of all that its backward needs, and run it again then; U-shaped,
    between the two halves of a step, only the input of all blocks. Less memory, a third more
    computing, the same bits. Or the names of the devices for which to do so."""
    resident_adapters: PositiveInt | None = None
    """Devices whose LoRA and optimizer stay in memory, the last used ones; those of the others rest
    in files of `rest_dir` between their steps. Who is amid a step stays, so it saves little where
    a step is several messages: with micro-batches, `max_grad_norm` or topology `u_shaped`. Changes
    no bit. Default: all stay."""
    rest_dir: Path = Path("~/.cache/sfl/resting")
    """Where they rest, in unnamed files that are gone when the edge ends, even killed."""
    cache_dir: Path = Path("~/.cache/sfl")
    """Where what `delta(sample)` remembers of devices' examples lies, in unnamed files that go with
    their stream; a disk with room, as it is a row for each token."""
    rest_in: Literal["disk", "memory"] = "disk"
    """`memory`: they rest in this machine's memory instead, where `device` is CUDA."""
    connect_timeout: Seconds = 60.0
    """Seconds to go on trying to reach the cloud; 15 under `sfl run`, unless given."""
    proxy: bool = False
    """Dial the cloud through the proxy that `grpc_proxy`, `https_proxy` or `http_proxy` names in
    the environment. Without it these are not looked at."""
    tls: TlsSettings | None = None
    """The edge's certificate, shown to its devices and to the cloud."""
    metrics: MetricsSettings = MetricsSettings()
    """Prometheus endpoint of the edge; it also shows its devices' series."""

    @model_validator(mode="after")
    def _devices_make_sense(self) -> Self:
        for device in self.devices:
            if re.fullmatch(r"cpu|cuda:\d+", device) is None:
                raise ValueError(f"device: {device!r} is none; use cpu, cuda or cuda:NUMBER")
            if self.devices.count(device) > 1:
                raise ValueError(f"device: {device} stands twice")
        if self.rest_in == "memory" and self.devices == ("cpu",):
            raise ValueError('rest_in: on the CPU this frees nothing; leave it at "disk"')
        if not self.devices or "cpu" in self.devices[1:] + self.devices[:-1]:
            raise ValueError('device: "cpu", or one or more CUDA devices, not both')
        return self

    @property
    def devices(self) -> tuple[str, ...]:
        """`device` as a list; `cuda` is its first."""
        names = (self.device,) if isinstance(self.device, str) else self.device
        return tuple("cuda:0" if name == "cuda" else name for name in names)


class LocalDevice(Section):
    """What only a device knows: its data, its caches, its limits."""

    train: Path | str | None = None
    """Training data: a JSONL, CSV, TSV, text or Parquet file, or a Hugging Face dataset."""
    eval: Path | str | None = None
    """Held-out data of this device; without it `eval_split` or `data.eval_fraction` of `train`."""
    split: str | None = None
    """Split of this device's own `train`, where it is not `data.split`."""
    eval_split: str | None = None
    """Split of this device's own `eval` or `train` to evaluate on."""
    subset: str | None = None
    """Subset of this device's own datasets, where it is not `data.subset`."""
    model: str | None = None
    """Model folder on this device; without it the span's weights come from the edge."""
    cache_dir: Path = Path("~/.cache/sfl")
    """Where weights and the tokenizer received from an edge are kept, by content hash."""
    threads: Threads = "auto"
    """Torch threads; `auto`: the machine's cores, shared out under `sfl run`."""
    dtype: Dtype | None = None
    """Precision of this node, where it is not the run's `model.dtype`."""
    quantised: QuantisedSetting = "none"
    """Hold the frozen linear layers of this node's blocks in `nf4` (4.5 bits a weight) or `int8`;
    slower on a CPU, and it needs the extra `quantised` (docs/precision.md). `auto`: the first of
    these that runs here, else `none`, with a warning that says why."""
    memory: Size | None = None
    """Most memory this process may take, e.g. `450MB`. What it takes is foretold before anything is
    loaded; the embedding then stays on disk and blocks run again for their backward as far as is
    needed, which changes no bit; then batches are cut into `micro_batches`; last, where dtype is
    `auto`, bfloat16 is taken. Where that does not do, the device refuses to join."""
    micro_batches: PositiveInt = 1
    """More than 1: cut a batch into at least so many pieces and hold one at a time, which equals
    the run's `micro_batches` to rounding. Raised where `memory` needs it, and then recorded."""
    embedding: Literal["auto", "disk", "memory"] = "auto"
    """Where the token embedding is: in `memory`, or on `disk`, its rows read as they are used.
    `auto`: on disk from 16 MB on. Where a U-shaped device's head shares it, always in memory."""
    heap: Literal["auto", "keep", "return"] = "auto"
    """`return`: freed tensors go back to the system at once, which is smaller. `keep`: they go back
    when a round ends, which is faster. `auto`: `keep` under `sfl run` on a machine with memory to
    spare and no `memory` here, else `return`. Changes no bit."""
    connect_timeout: Seconds = 60.0
    """Seconds to go on trying to reach the edge, and seconds that the edge may be silent before it
    takes the device in; 15 under `sfl run`, unless given."""
    proxy: bool = False
    """Dial the edge through the proxy that `grpc_proxy`, `https_proxy` or `http_proxy` names in
    the environment. Without it these are not looked at."""
    tls: TlsSettings | None = None
    """The device's certificate, which its edge knows it by."""
    metrics: MetricsSettings = MetricsSettings(enabled=False)
    """Prometheus endpoint of the device: off, since its edge shows its series."""
    pause: PauseSettings = PauseSettings()
    """When the device rests: too hot, too little charge, outside hours, on a metered link."""


class ConsentSettings(Section):
    """What a device agrees to. It refuses a run that asks for anything else, and says why
    (docs/security.md)."""

    min_cut_layer: NonNegativeInt = 1
    """Fewest blocks that this device holds itself. At 0 it sends embeddings, which are as good as
    its text."""
    topologies: tuple[Topology, ...] = ("vanilla", "u_shaped")
    """Topologies it takes part in; `["u_shaped"]`: its labels never leave it."""
    codecs: tuple[str, ...] = ()
    """Codecs that it uses, as a run writes them, e.g. `["compact", "fine"]`; an adapter may
    always travel whole. Empty: every codec."""
    data_dirs: tuple[Path, ...] = ()
    """Folders that its data files lie in; a file elsewhere is refused at the start. Empty: any."""


class DeviceConfig(LocalDevice):
    """A device agent's own file."""

    name: NodeName
    """Name of this device, one of the run's `[[devices]]`."""
    edge: str = ""
    """`host:port` of its edge."""
    shared_train: Path | str | None = None
    """A training file that holds the rows of all devices: this one takes its part of it, by the
    run's `data.partition`. For where it has no `train`."""
    shared_eval: Path | str | None = None
    """The same for held-out data, for where it has no `eval`."""
    consent: ConsentSettings = ConsentSettings()
    """What this device agrees to."""
