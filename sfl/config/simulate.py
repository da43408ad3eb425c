"""`[simulate]`: a fleet, its links and its failures, as `sfl simulate` takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sfl.config.base import NodeName, Section, given_twice
from sfl.config.size import Size
from sfl.errors import ConfigError

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class PassTimes(Section):
    """Milliseconds of one part of the model, for the batch of one step."""

    forward_ms: NonNegativeFloat = 0.0
    """Forward."""
    backward_ms: NonNegativeFloat = 0.0
    """Backward."""


class ComputeSettings(Section):
    """How fast a node computes: `tflops`, or the times of its parts as they were measured."""

    tflops: PositiveFloat | None = None
    """Its peak, in 10^12 floating-point operations a second. Times follow from the model's
    shape."""
    utilisation: Share = 0.3
    """The share of its peak that it reaches."""
    block: PassTimes | None = None
    """Of one block. It replaces `tflops`."""
    embedding: PassTimes = PassTimes()
    """Of the embedding. It counts beside `block`."""
    head: PassTimes = PassTimes()
    """Of the head. It counts beside `block`."""
    fixed_ms: NonNegativeFloat = 0.0
    """Milliseconds that every forward and every backward takes besides."""

    @model_validator(mode="after")
    def _one_speed(self) -> Self:
        if (self.tflops is None) == (self.block is None):
            raise ValueError("tflops: give either `tflops` or `block`")
        return self


class PowerSettings(Section):
    """Watts of a device by what it does."""

    compute: NonNegativeFloat = 0.0
    """While it computes."""
    send: NonNegativeFloat = 0.0
    """While it sends."""
    receive: NonNegativeFloat = 0.0
    """While it receives."""
    idle: NonNegativeFloat = 0.0
    """While it waits."""


class RadioSettings(Section):
    """A radio link: its rate follows from where the device is (Shannon's capacity)."""

    bandwidth_mhz: PositiveFloat = 10.0
    """Of the device's own part of the band."""
    efficiency: Share = 0.6
    """Share of the capacity that is reached."""
    power_dbm: float = 23.0
    """What the device sends with."""
    edge_power_dbm: float = 43.0
    """What the edge sends with."""
    noise_dbm_hz: float = -167.0
    """Noise for each hertz, with the receiver's own."""
    loss_db: float = 38.0
    """Path loss at one metre."""
    exponent: PositiveFloat = 3.5
    """How fast the loss grows with distance: 2 in the open, 3 to 4 in a city."""
    shadowing_db: NonNegativeFloat = 0.0
    """Standard deviation of what buildings add, log-normal by place."""
    shadowing_m: PositiveFloat = 50.0
    """Metres over which it stays the same."""
    fading: Literal["none", "rayleigh"] = "none"
    """`rayleigh`: many paths of like strength, drawn anew after every `coherence`."""
    radius_m: PositiveFloat = 500.0
    """Devices are within so many metres of their edge."""
    nearest_m: PositiveFloat = 10.0
    """No device counts as nearer than this."""
    mobility: Literal["still", "waypoint", "straight"] = "still"
    """`waypoint`: walks from one random place to the next. `straight`: drives through the cell and
    comes in again on the other side."""
    speed_mps: NonNegativeFloat = 1.4
    """Metres a second of a device that moves."""

    @model_validator(mode="after")
    def _there_is_room(self) -> Self:
        if self.nearest_m >= self.radius_m:
            raise ValueError(f"nearest_m: less than radius_m ({self.radius_m:g})")
        return self


class FailureSettings(Section):
    """How devices fail. Times between failures, and until a device is back, are exponential."""

    crash_hours: PositiveFloat | None = None
    """Mean hours until the process or the device dies. Default: never."""
    restart_seconds: PositiveFloat = 30.0
    """Mean seconds until it is started again."""
    break_hours: PositiveFloat | None = None
    """Mean hours until the link is gone, as in a tunnel. Default: never."""
    break_seconds: PositiveFloat = 20.0
    """Mean seconds until the link is back. A break shorter than `network.idle_timeout` is only a
    delay."""


class DeviceClass(ComputeSettings):
    """Devices of one kind."""

    name: NodeName
    """Name of the class, as in reports."""
    share: PositiveFloat = 1.0
    """Its share of the fleet, beside those of the other classes."""
    devices: tuple[NodeName, ...] = ()
    """Devices of the file that are of this class. The others are spread by `share`."""
    spread: NonNegativeFloat = 0.0
    """How speeds differ from device to device: standard deviation of their logarithms."""
    jitter: NonNegativeFloat = 0.0
    """The same from round to round, of one device."""
    memory: Size | None = None
    """Its budget. A device that its cut does not fit never joins. Default: enough."""
    cut_layer: NonNegativeInt | None = None
    """Blocks at the front of each device. Default: as the file's devices say."""
    tail_layers: NonNegativeInt | None = None
    """Blocks at the end of each device (U-shaped only). Default: as the file's devices say."""
    up_mbit: PositiveFloat | None = None
    """Megabits a second to the edge. Default: the device's `link`."""
    down_mbit: PositiveFloat | None = None
    """Megabits a second to the device. Default: the device's `link`."""
    latency_ms: NonNegativeFloat | None = None
    """Milliseconds of each message, each way. Default: the device's `link`."""
    link_spread: NonNegativeFloat = 0.0
    """How rates differ from device to device: standard deviation of their logarithms."""
    link_jitter: NonNegativeFloat = 0.0
    """The same from one `coherence` to the next, of one device."""
    radio: RadioSettings | None = None
    """A radio link in place of `up_mbit` and `down_mbit`."""
    coherence: PositiveFloat = 1.0
    """Seconds for which a link that changes stays the same."""
    power: PowerSettings = PowerSettings()
    """Watts."""
    failures: FailureSettings = FailureSettings()
    """How it fails."""
    load_seconds: NonNegativeFloat = 5.0
    """Seconds from being let in until model and data are read."""


class SimulatedEdge(ComputeSettings):
    """Every edge."""

    count: PositiveInt | None = None
    """Edges. Default: as many as `run.edges` names. Devices are dealt out to them in turn."""
    watts: NonNegativeFloat = 0.0
    """While it computes."""
    least_clock: Share = 1.0
    """Its slowest clock, as a share of the fastest, for planners that set one."""


class SimulatedCloud(Section):
    """The cloud, and the links of edges to it."""

    latency_ms: NonNegativeFloat = 0.0
    """Milliseconds of a message between edge and cloud."""
    mbit: PositiveFloat | None = None
    """Megabits a second of an adapter between edge and cloud. Default: no limit."""
    averaging_seconds: NonNegativeFloat = 0.1
    """Seconds of one average."""


class SimulatedModel(Section):
    """A model's shape, in place of its folder."""

    num_layers: PositiveInt
    """Transformer blocks."""
    hidden_size: PositiveInt
    """Features of a hidden state."""
    intermediate_size: PositiveInt | None = None
    """Features within an MLP. Default: four times `hidden_size`."""
    key_value_size: PositiveInt | None = None
    """Features of all keys of a token. Default: `hidden_size`."""
    vocab_size: PositiveInt = 32_000
    """Tokens that the head tells apart."""
    block_memory: Size | None = None
    """Bytes that a device needs for each block that it holds, all included."""
    process_memory: Size | None = None
    """Bytes that it needs without a block."""


class BitsSettings(Section):
    """Bits of a value on the wire: one number, or one for each cut from 0 on. Default: those of
    the run's codecs, where they are known."""

    activation: NonNegativeFloat | tuple[PositiveFloat, ...] | None = None
    """Hidden states to the edge, in training."""
    gradient: NonNegativeFloat | tuple[PositiveFloat, ...] | None = None
    """Gradients to the device."""
    evaluation: PositiveFloat | None = None
    """Hidden states in evaluations."""


class SimulateSettings(Section):
    """What `sfl simulate` adds to a run's file (docs/simulate.md). A run does not read it."""

    devices: NonNegativeInt = 0
    """Devices of the fleet, made from the classes. 0: the file's own."""
    classes: tuple[DeviceClass, ...] = Field(min_length=1)
    """Kinds of devices."""
    edge: SimulatedEdge
    """Edges."""
    stage: ComputeSettings | None = None
    """Each stage behind the edges (three tiers). Default: as quick as an edge. The hop to it has
    the limits of `stages`."""
    cloud: SimulatedCloud = SimulatedCloud()
    """The cloud."""
    model: SimulatedModel | None = None
    """The model's shape. Default: that of `model.path`, whose headers are read."""
    bits: BitsSettings = BitsSettings()
    """Bits on the wire."""
    examples: PositiveInt = 400
    """Training examples of a device."""
    eval_examples: NonNegativeInt = 0
    """Held-out examples of a device. 0: nothing is evaluated."""
    tokens: PositiveInt | None = None
    """Tokens of an example, in the mean. Default: `model.max_length`."""

    @model_validator(mode="after")
    def _classes_make_sense(self) -> Self:
        names = [one.name for one in self.classes]
        if (twice := given_twice(names)) is not None:
            raise ValueError(f"classes: the name {twice!r} is given twice")
        placed = [device for one in self.classes for device in one.devices]
        if (twice := given_twice(placed)) is not None:
            raise ValueError(f"classes: device {twice!r} is in two classes")
        return self


def with_fleet(table: dict[str, Any], shown: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A file with as many devices as its fleet has, each as the first one of the file.

    `shown` stands for what the file does not state of its fleet. Raises ConfigError where neither
    says anything.
    """
    own = table.get("simulate")
    if shown is not None and (own is None or isinstance(own, dict)):
        own = {**shown, **(own or {})}
        table = {**table, "simulate": own}
    if own is None:
        fix = "Add [simulate], as docs/simulate.md has it."
        raise ConfigError("simulate", "", "the file states no fleet", fix)
    count = own.get("devices", 0) if isinstance(own, dict) else 0
    if not isinstance(count, int) or count < 1:
        return table  # the file's own, or what validation refuses
    stated = table.get("devices")
    like = stated[0] if isinstance(stated, list) and stated and isinstance(stated[0], dict) else {}
    width = max(4, len(str(count - 1)))
    made = [{**like, "name": f"d{number:0{width}d}"} for number in range(count)]
    return {**table, "devices": made}
