"""The run's settings, owned by the cloud and sent to every node."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sfl.aggregation.traits import STRATEGIES, Traits
from sfl.codec.stages import is_exact
from sfl.config.base import (
    NodeName,
    OneOf,
    PackageVersion,
    RunId,
    Seconds,
    Section,
    given_twice,
)
from sfl.config.codec import (
    AUTO_CODECS,
    EVALUATION_CODEC,
    CodecChange,
    CodecSettings,
    RoleCodecs,
)
from sfl.config.evaluation import EvaluationSettings
from sfl.config.node import CloudNode, Dtype, EdgeConfig, LocalDevice
from sfl.errors import ConfigError
from sfl.plan import Plan, Topology

Task = Literal["causal_lm", "sequence_classification"]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

MOST_STEPS = (1 << 32) - 2
"""Of one device over a run: what 32 bits count, and one more round that only evaluates."""


class RunSection(Section):
    """What is run, and for how long."""

    id: RunId = ""
    """Name of the run and of its folder. Empty: date, time and a short random suffix."""
    output_dir: Path = Path("runs")
    """Folder in which the run's own folder is made."""
    seed: NonNegativeInt = 0
    """Seed that every keyed random choice derives from."""
    topology: Topology = "vanilla"
    """`vanilla`: labels and loss are at the edge. `u_shaped`: the device also holds the end of the
    model, so labels and logits never leave it."""
    rounds: PositiveInt = 4
    """Number of rounds. Each trains `local_steps` on every device and ends in one aggregation."""
    min_devices: PositiveInt | None = None
    """Fewest devices with which a round may close. Default: all but one (one, if there is one), or
    as many as `aggregation.strategy` needs."""
    keep_round_adapters: bool = False
    """Keep the aggregated adapter of every round under `adapters/`."""
    edges: tuple[NodeName, ...] = ()
    """Names of the run's edges. The cloud refuses every other edge, whatever its certificate.
    Default: the edge of `[edge]`, by `edge.name`."""

    plugins: tuple[PackageVersion, ...] = ()
    """Written by the run: the packages whose plug-ins it uses, each as `name==version`. A node that
    has another version, or none, ends (docs/plugins.md)."""

    @model_validator(mode="after")
    def _edges_are_different(self) -> Self:
        if (name := given_twice(self.edges)) is not None:
            raise ValueError(f"edges: the name {name!r} is given twice")
        return self


class ModelSettings(Section):
    """The base model, frozen, and the task."""

    path: str
    """A Hugging Face folder, or a name on the hub; safetensors only."""
    task: Task = "causal_lm"
    """What the head computes."""
    labels: tuple[str, ...] = ()
    """Class names, in order, for `sequence_classification`."""
    max_length: PositiveInt = 512
    """Longest sequence in tokens. The model's context is the upper bound."""
    dtype: Dtype = "float32"
    """Precision of the frozen weights and of the arithmetic. LoRA stays in float32. `autocast`:
    products in bfloat16 over float32 weights. `auto`: each node measures float32 against bfloat16
    once, and takes bfloat16 where it is clearly faster. The effective configuration records the
    choice."""

    @model_validator(mode="after")
    def _labels_fit_task(self) -> Self:
        if self.task == "sequence_classification" and len(self.labels) < 2:
            raise ValueError("labels: list at least two class names for sequence_classification")
        if self.task != "sequence_classification" and self.labels:
            raise ValueError(f"labels: task {self.task!r} has no classes; set task, or leave them")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a class name is given twice")
        return self


class LoraSettings(Section):
    """The adapter: LoRA (Hu et al., 2106.09685) on both sides of the cut."""

    rank: PositiveInt = 8
    """Rank r of the global adapter. A device may have a smaller one (`devices.rank`)."""
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / r. Here r is the rank of the adapter itself: a device's own,
    or the global one."""
    dropout: Fraction = 0.0
    """Dropout on the input of A, drawn from keyed generators."""
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that get LoRA. Empty: the family's default."""


class TrainingSettings(Section):
    """Local optimisation. Device and edge use AdamW, and keep its moments over rounds."""

    batch_size: PositiveInt = 8
    """Sequences of one optimizer step."""
    computation: Literal["auto", "reference", "lean"] = "auto"
    """How a batch is computed. `reference`: the same as an unsplit transformers loop, bit for bit,
    with padded batches and logits at every position. `lean`: only what counts is computed. It is
    faster and smaller, and equal to rounding. `auto`: `reference` where no codec of the run changes
    a bit, otherwise `lean`."""
    micro_batches: PositiveInt | Literal["auto"] = 1
    """Micro-batches of one step. With more than one, device, link and edge work at the same time.
    `auto`: before the first round every device rehearses a few steps with 1, 2, 4, ... of them. The
    number that suits the slowest device is written into the effective configuration."""
    local_steps: PositiveInt | None = None
    """Optimizer steps in a round. Use this or `local_epochs`, not both."""
    local_epochs: PositiveInt | None = None
    """Passes over a device's data in a round. Default: one."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of AdamW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate over all steps of the run, after the warmup."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly from 0."""
    max_grad_norm: PositiveFloat | None = None
    """Clip the gradient's norm over device and edge together. Off by default."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("local_steps: give it or local_epochs, not both")
        return self

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> Self:
        if self.micro_batches != "auto" and self.micro_batches > self.batch_size:
            raise ValueError(f"micro_batches: at most batch_size ({self.batch_size})")
        return self


class AggregationSettings(Section):
    """How the adapters of a round become the next global adapter (docs/aggregation.md)."""

    strategy: Annotated[str, OneOf(STRATEGIES)] = "fedavg"
    """The rule. `flexlora` and `flora` accept devices of different ranks."""
    mu: NonNegativeFloat = 0.01
    """`fedprox`: weight of the pull back to the round's global adapter."""
    server_learning_rate: PositiveFloat | None = None
    """The cloud's step, for `fedavgm` (default 1), `fedadam` and `fedyogi` (default 0.002)."""
    momentum: Fraction = 0.9
    """`fedavgm`: share of the last step that is applied again."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """`fedadam`, `fedyogi`: decay rates of the cloud's two moments."""
    tau: PositiveFloat = 1e-3
    """`fedadam`, `fedyogi`: added to the root of the second moment. A small value adapts more."""
    trim_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2
    """`trimmed_mean`: share of the devices that are left out at each end, rounded up."""
    byzantine: NonNegativeInt = 1
    """`krum`, `multi_krum`: number of devices that may send anything. Needs 2 x this + 3
    devices."""
    selected: PositiveInt | None = None
    """`multi_krum`: number of devices that are averaged. Default: those that took part, less
    `byzantine` + 2."""
    rank_partitioned: bool = False
    """`flexlora`: weigh each component only among the devices whose rank reaches it. Devices of
    smaller rank then do not shrink it (docs/aggregation.md)."""
    max_update_norm: PositiveFloat | Literal["auto", "off"] = "auto"
    """Longest change of the adapter that counts, as a Euclidean norm. `auto`: five times the median
    of this round's other devices, but at most as far as AdamW can go in the round's steps. `off`:
    nothing is measured."""
    large_updates: Literal["auto", "refuse", "clip"] = "auto"
    """What happens to an update beyond `max_update_norm`. `refuse`: the device is left out of the
    round, with a strike, as long as enough others remain. `clip`: the update counts, shortened to
    the bound. `auto`: `refuse` for an update beyond your own number or further than AdamW can go,
    otherwise `clip`. An honest device with data that the others never saw also moves much further
    than they do."""
    max_examples: PositiveInt = 10_000_000
    """Most training examples that a device may claim. The number is its weight, and decides its
    steps. A device that claims more is refused at the door. It may hold out as many again."""
    max_weight_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Largest share of a round's weights for one device, whatever number of examples it claims. 1:
    no bound. Strategies that count every device once do not need it."""
    max_parameters: PositiveInt = 1 << 28
    """Most values in an adapter, where the cloud has no copy of the model to check. Edges that
    state more are refused. The cloud keeps 4 bytes of each value."""
    strikes: PositiveInt = 3
    """Number of offences after which a device is out of the run for good. An offence is a refused
    update, a message that breaks the contract, or silence until a timeout (docs/aggregation.md)."""

    @model_validator(mode="after")
    def _options_are_read(self) -> Self:
        for name, field in type(self).model_fields.items():
            built_in = STRATEGIES.built_in.items()
            readers = [kind for kind, traits in built_in if name in traits.reads]
            ours = not readers or name in self.traits.reads
            if not ours and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name}: strategy {self.strategy!r} does not read it; leave it out, or use "
                    f"{' or '.join(readers)}"
                )
        return self

    @property
    def traits(self) -> Traits:
        """What the strategy asks of settings and nodes."""
        return STRATEGIES[self.strategy]

    @property
    def fewest_devices(self) -> int:
        """Fewest adapters that the strategy keeps its promise with."""
        return self.traits.fewest + self.traits.fewest_more * self.byzantine

    @property
    def server_step(self) -> float | None:
        """`server_learning_rate` or its default; None where the strategy has none."""
        return self.server_learning_rate or self.traits.server_step

    @property
    def proximal(self) -> float:
        """Weight of the devices' and the edge's proximal term."""
        return self.mu if self.traits.proximal else 0.0


class DataSettings(Section):
    """What an example is, and how one file is split among devices (docs/data.md)."""

    format: Literal["auto", "jsonl", "csv", "tsv", "text", "parquet", "dataset"] = "auto"
    """File format. `auto` goes by the file's ending."""
    layout: Literal["auto", "completion", "text", "messages", "instruction"] = "auto"
    """How a row of a causal task is laid out. `completion`: a prompt and its completion. `text`:
    plain text. `messages`: a conversation, also as ShareGPT's `conversations`. `instruction`:
    Alpaca's instruction, input and output. `auto`: by the fields of the first row. The effective
    configuration records the choice."""
    messages_field: str = "messages"
    """Field of a conversation: a list of messages with `role` and `content`."""
    prompt_field: str = "prompt"
    """Field of the prompt."""
    completion_field: str = "completion"
    """Field of the completion. Only this part is in the loss."""
    text_field: str = "text"
    """Field of plain text, or of the text to classify."""
    label_field: str = "label"
    """Field of the class name or number."""
    delimiter: str | None = None
    """Column separator of CSV and TSV files. Default: comma, or tab for TSV."""
    quoting: Literal["auto", "minimal", "none"] = "auto"
    """`minimal`: a field of a CSV or TSV file may be in double quotes. `none`: quotation marks are
    text. `auto`: `minimal` for CSV, `none` for TSV, as corpora are published."""
    columns: tuple[str, ...] = ()
    """Names of the columns of CSV and TSV files without a header. Empty: line 1 has the names."""
    split: str = "train"
    """Split of a Hugging Face dataset to train on."""
    eval_split: str = ""
    """Split to evaluate on: of `eval`, or of the training dataset if no `eval` is named."""
    subset: str = ""
    """Subset (configuration) of a Hugging Face dataset that has several."""
    train: Path | str | None = None
    """One training file for all devices, split by `partition`. Under `sfl run` only. A device on a
    machine of its own names the file itself, as `device.shared_train`."""
    eval: Path | str | None = None
    """One held-out file for all devices, split like `train`. Under `sfl run` only. Elsewhere use
    `device.shared_eval`."""
    eval_fraction: Fraction = 0.1
    """Share of a device's examples that is held out if no eval file is given."""
    partition: Literal["iid", "field", "dirichlet"] = "iid"
    """How one file is split: evenly, by a field's value, or by label with Dirichlet skew."""
    partition_field: str = ""
    """Field for `partition`. `field`: the value is a device's name, or the values are assigned to
    devices in turn. `dirichlet`: default is the label."""
    dirichlet_alpha: PositiveFloat = 0.5
    """Concentration of the Dirichlet partition. A small value is skewed."""
    blocks: Literal["each", "joined", "first"] = "each"
    """How plain text is cut into blocks of `model.max_length` tokens. `each`: every text by itself,
    nothing is lost. `joined`: texts one after another. `first`: the first block of each text, the
    remainder is dropped."""
    chat_template: bool = True
    """Apply the tokenizer's chat template, if it has one, to prompts, instructions and
    conversations. The effective configuration records whether it was applied."""

    chat_template_digest: str = ""
    """Written by the run: the chat template that was applied. A node that has another is
    refused."""

    @model_validator(mode="after")
    def _columns_are_named_once(self) -> Self:
        for name in self.columns:
            if not name or self.columns.count(name) > 1:
                raise ValueError(f"columns: the name {name!r} is empty or is given twice")
        return self


class LinkSettings(Section):
    """A limit of a device's link, inside the transport itself (a token bucket and a delay)."""

    up_mbit: NonNegativeFloat = 0.0
    """Megabits a second from the device to its edge. 0: no limit."""
    down_mbit: NonNegativeFloat = 0.0
    """Megabits a second from the edge to the device. 0: no limit."""
    delay_ms: NonNegativeFloat = 0.0
    """Milliseconds added to each message, each way."""


class DeviceEntry(LocalDevice):
    """One device of the run. The keys that are local to the device are read under `sfl run`
    only."""

    name: NodeName
    """Name of the device, unique in the run."""
    cut_layer: NonNegativeInt = 1
    """Transformer blocks at the front of the model that this device holds."""
    tail_layers: NonNegativeInt = 0
    """Blocks at the end that this device holds (U-shaped only)."""
    rank: PositiveInt | None = None
    """LoRA rank of this device. Default and upper bound: `lora.rank`. A smaller one needs a
    strategy that accepts different ranks."""
    optional: bool = False
    """It is no fault if this device never comes. Use it to reserve an entry for one more device."""
    codec: CodecChange = CodecChange()
    """Codecs of this device that differ from the run's."""
    link: LinkSettings = LinkSettings()
    """A slower link than the real one, for experiments and for sharing a radio fairly."""


class NetworkSettings(Section):
    """Timeouts and limits of the links. None of them changes a bit of the result."""

    idle_timeout: Seconds = 60.0
    """Seconds without a byte after which a peer counts as lost. Heartbeats reset it."""
    heartbeat_interval: Seconds = 1.0
    """Seconds between a node's heartbeats."""
    join_timeout: Seconds = 120.0
    """Seconds the cloud waits for all devices before the first round."""
    join_grace: Seconds | None = None
    """Seconds the cloud waits for the other devices once `min_devices` are ready. Default: until
    `join_timeout`. A device that comes later joins with the next round."""
    rejoin_timeout: Annotated[float, Field(ge=0.0, le=1e9)] = 60.0
    """Seconds a lost device, edge or cloud is waited for. A device that is back by then goes on as
    if nothing had happened. 0: a round goes on at once without a lost device."""
    round_timeout: Seconds = 3600.0
    """Seconds a round may take. Devices that are not done by then are left out of it."""
    straggler_factor: Annotated[float, Field(ge=1.0)] | Literal["off"] = 10.0
    """When to leave out a silent device. It applies once half of a round's devices, and enough of
    them, are done. A device is left out if nothing of it moves for this many times their median
    time. A slow device that sends or receives something in that time is waited for. `off`: wait
    until `round_timeout`."""
    straggler_seconds: Seconds = 300.0
    """The shortest such wait, in seconds. It is longer than a device needs between two
    micro-batches."""
    credits: Annotated[int, Field(gt=0, le=4096)] = 4
    """Micro-batches of one device that may be in flight at once. In training a device uses only as
    many as keep itself, its link and its edge busy. Changes no bit."""
    insecure: bool = False
    """Allow addresses other than loopback without TLS."""

    @model_validator(mode="after")
    def _heartbeats_come_in_time(self) -> Self:
        if self.heartbeat_interval >= self.idle_timeout:
            raise ValueError(
                f"idle_timeout: heartbeats come every {self.heartbeat_interval:g} s "
                "(heartbeat_interval), so that every peer would count as lost; use more than that"
            )
        return self


class RecoverySettings(Section):
    """What is kept so that a node that died goes on. None of it changes a bit of the result."""

    snapshot_steps: NonNegativeInt = 0
    """Device and edge also keep a snapshot after every so many steps of a round. A part that is
    begun again then starts there. 0: only at the ends of rounds."""

    def due(self, step: int) -> bool:
        """Whether there is a snapshot of the point with so many steps of a round behind it."""
        return self.snapshot_steps > 0 and step > 0 and step % self.snapshot_steps == 0


FOLDING_DTYPES: tuple[Dtype | None, ...] = ("float32", "autocast", None)
"""Settings of a base that a small change can be added to."""
NEEDS_FLOAT32 = "flora adds every round's sum to the base, which only float32 weights can take"
GIVE_FLOAT32 = 'use "float32" or "autocast", not quantised, or strategy "flexlora"'


def cannot_fold(own: EdgeConfig | LocalDevice) -> str | None:
    """The setting by which a node's base cannot take what a folding strategy adds, if any."""
    if own.quantised not in ("none", "auto"):  # auto never quantises what is to be folded into
        return "quantised"
    return None if own.dtype in FOLDING_DTYPES else "dtype"


class RunSections(Section):
    """The sections of a run, and the rules that hold between them."""

    run: RunSection = RunSection()
    """The run."""
    model: ModelSettings
    """The base model."""
    lora: LoraSettings = LoraSettings()
    """The adapter."""
    training: TrainingSettings = TrainingSettings()
    """Optimisation."""
    aggregation: AggregationSettings = AggregationSettings()
    """Averaging."""
    codec: CodecSettings = CodecSettings()
    """Compression."""
    data: DataSettings = DataSettings()
    """Examples."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Held-out scores."""
    network: NetworkSettings = NetworkSettings()
    """Waits and bounds."""
    recovery: RecoverySettings = RecoverySettings()
    """Snapshots."""
    devices: tuple[DeviceEntry, ...] = Field(min_length=1)
    """The devices of the run."""

    @model_validator(mode="after")
    def _devices_make_sense(self) -> Self:
        names = [device.name for device in self.devices]
        if (twice := given_twice(names)) is not None:
            raise ValueError(f"devices: the name {twice!r} is given twice")
        if self.run.min_devices is not None and self.run.min_devices > len(names):
            raise ValueError(f"run.min_devices: at most the number of devices ({len(names)})")
        known = set(names)
        for change in self.codec.schedule:
            if change.device is not None and change.device not in known:
                raise ValueError(
                    f"codec.schedule: no device {change.device!r}; known: {', '.join(names)}"
                )
        changes: list[tuple[str, CodecChange]] = [
            *((f"devices.{device.name}.codec", device.codec) for device in self.devices),
            *(("codec.schedule", change) for change in self.codec.schedule),
        ]
        for place, own in changes:
            if "auto" in own.model_dump(exclude={"device"}).values():
                raise ValueError(
                    f'{place}: "auto" is for the run\'s codec.activation and codec.gradient; '
                    "name a codec here"
                )
        return self

    @model_validator(mode="after")
    def _steps_can_be_counted(self) -> Self:
        rounds, steps = self.run.rounds, self.training.local_steps or 1
        if rounds * steps > MOST_STEPS:
            field = "training.local_steps" if steps > 1 else "run.rounds"
            raise ValueError(
                f"{field}: {rounds} rounds of {steps} steps are more than {MOST_STEPS}, the most "
                "that a run counts; lower either"
            )
        return self

    @model_validator(mode="after")
    def _ranks_can_be_averaged(self) -> Self:
        strategy, most = self.aggregation.strategy, self.lora.rank
        for device in self.devices:
            rank, field = device.rank or most, f"devices.{device.name}.rank"
            if rank > most:
                raise ValueError(f"{field}: at most lora.rank ({most}); raise that, or lower this")
            if rank < most and not self.aggregation.traits.mixes_ranks:
                built_in = STRATEGIES.built_in.items()
                able = [name for name, traits in built_in if traits.mixes_ranks]
                raise ValueError(
                    f"{field}: {strategy} cannot average unequal ranks; use lora.rank ({most}), or "
                    f"aggregation.strategy = {' or '.join(map(repr, able))}"
                )
        return self

    @model_validator(mode="after")
    def _bases_can_be_changed(self) -> Self:
        if not self.aggregation.traits.folds:
            return self
        if self.model.dtype not in FOLDING_DTYPES:
            raise ValueError(f"model.dtype: {NEEDS_FLOAT32}; {GIVE_FLOAT32}")
        for device in self.devices:
            if field := cannot_fold(device):
                raise ValueError(f"devices.{device.name}.{field}: {NEEDS_FLOAT32}; {GIVE_FLOAT32}")
        coded = [
            ("codec.adapter", self.codec.adapter),
            *((f"devices.{d.name}.codec.adapter", d.codec.adapter) for d in self.devices),
            *(("codec.schedule", change.adapter) for change in self.codec.schedule),
        ]
        for field, codec in coded:
            if codec not in (None, "none"):
                raise ValueError(
                    f"{field}: flora adds what travels to every base for good, so it travels as it "
                    'is; leave it at "none"'
                )
        return self

    @model_validator(mode="after")
    def _devices_suffice(self) -> Self:
        options, count = self.aggregation, len(self.devices)
        needed = options.fewest_devices
        if needed > count:
            lower = ", or lower aggregation.byzantine" if options.traits.fewest_more else ""
            raise ValueError(
                f"aggregation.strategy: needs {needed} devices, the run has {count}; "
                f"add some, or choose another strategy{lower}"
            )
        if self.run.min_devices is not None and self.run.min_devices < needed:
            raise ValueError(
                f"run.min_devices: {options.strategy} needs {needed} devices in every round; "
                f"use at least {needed}, or leave it out"
            )
        if options.selected is not None and options.selected > count - options.byzantine:
            raise ValueError(
                f"aggregation.selected: at most {count - options.byzantine}, the devices less "
                "aggregation.byzantine"
            )
        return self


class RunSettings(RunSections):
    """What the cloud owns, and sends to every node."""

    @property
    def min_devices(self) -> int:
        """Fewest devices a round may close with."""
        default = max(1, len(self.devices) - 1, self.aggregation.fewest_devices)
        return self.run.min_devices or default

    @property
    def names(self) -> tuple[str, ...]:
        """Who may take part."""
        return tuple(entry.name for entry in self.devices)

    def rank(self, device: str) -> int:
        """LoRA rank of the device called so."""
        return self.device(device).rank or self.lora.rank

    def scaling(self, device: str) -> float:
        """What the device's B A is multiplied by: alpha over its own rank."""
        return self.lora.alpha / self.rank(device)

    def knows(self, name: str) -> bool:
        """Whether a device of the run is called so."""
        return name in self._entries

    def device(self, name: str) -> DeviceEntry:
        """The entry of the device called `name`; KeyError where there is none."""
        return self._entries[name][1]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As of any model; a copy may have other devices, so it makes an index of its own."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("_entries", None)
        return copied

    @cached_property
    def _entries(self) -> dict[str, tuple[int, DeviceEntry]]:
        """Every device by name, with its position."""
        return {entry.name: (index, entry) for index, entry in enumerate(self.devices)}

    def plan(self, device: str, num_layers: int, cut_layer: int | None = None) -> Plan:
        """How a model of so many blocks is cut for a device, at its own cut or another.

        Raises ConfigError, which names the device's field.
        """
        entry = self.device(device)
        cut = entry.cut_layer if cut_layer is None else cut_layer
        try:
            return Plan.split(num_layers, cut, entry.tail_layers, self.run.topology)
        except ConfigError as error:
            field = f"devices.{device}.{error.field}"
            raise ConfigError(field, error.value, error.problem, error.fix) from None

    def codecs(self, device: str, round_: int, auto: str = "") -> RoleCodecs:
        """What a device's tensors are coded with in a round; the last word that fits counts.

        `auto` is what stands where a codec has yet to be chosen; by default the coarsest.
        """
        chosen = self.codec.model_dump(exclude={"schedule"})
        if self.codec.is_auto:
            chosen.update(dict.fromkeys(("activation", "gradient"), auto or AUTO_CODECS[-1]))
        changes: list[CodecChange] = [self.device(device).codec]
        changes += [
            step
            for step in self.codec.schedule
            if step.from_round <= round_ and step.device in (None, device)
        ]
        for change in changes:
            own = change.model_dump(exclude_none=True, exclude={"from_round", "device"})
            chosen.update(own)
        exact = is_exact(chosen["activation"])
        defaults = {
            "hidden": chosen["activation"],
            "tail_gradient": chosen["gradient"],
            "evaluation": "none" if exact else EVALUATION_CODEC,
        }
        for role, default in defaults.items():
            chosen[role] = chosen[role] or default
        return RoleCodecs(**chosen)

    @property
    def computation(self) -> Literal["reference", "lean"]:
        """How batches are laid out and losses taken, `auto` decided."""
        if self.training.computation != "auto":
            return self.training.computation
        changes = [self.codec, *(d.codec for d in self.devices), *self.codec.schedule]
        roles = ("activation", "gradient", "hidden", "tail_gradient")
        specs = [getattr(change, role) for change in changes for role in roles]
        return "reference" if all(is_exact(spec) for spec in specs if spec) else "lean"

    def settled(self, micro_batches: int, codecs: Mapping[str, str]) -> Self:
        """These settings with what a rehearsal chose instead of `auto`.

        `codecs` has the choice for each device that rehearsed; what most have holds for the others.
        """
        training = self.training.model_copy(update={"micro_batches": micro_batches})
        if not self.codec.is_auto:
            return self.model_copy(update={"training": training})
        # The nodes compute as they were told when they joined, whatever codec was chosen since.
        training = training.model_copy(update={"computation": self.computation})
        votes = list(codecs.values())
        common = max(AUTO_CODECS, key=votes.count)
        devices = []
        for entry in self.devices:
            own = codecs.get(entry.name, common)
            lacks = [r for r in ("activation", "gradient") if getattr(entry.codec, r) is None]
            if own != common:
                change = entry.codec.model_copy(update=dict.fromkeys(lacks, own))
                entry = entry.model_copy(update={"codec": change})
            devices.append(entry)
        codec = self.codec.model_copy(update={"activation": common, "gradient": common})
        return self.model_copy(
            update={"training": training, "codec": codec, "devices": tuple(devices)}
        )

    def device_index(self, name: str) -> int:
        """Position of the device in the run: its share of a partitioned file."""
        return self._entries[name][0]


class LaunchSettings(Section):
    """What `sfl run` does with the processes that it starts."""

    restarts: NonNegativeInt = 3
    """How often a node is started again within the run. That happens if it was killed, met a bug or
    had no memory left. 0: never."""


class RunConfig(RunSettings):
    """A run's file: the settings, and the nodes that `sfl run` starts on this machine."""

    cloud: CloudNode = CloudNode()
    """The cloud process."""
    edge: EdgeConfig = EdgeConfig()
    """The edge process of `sfl run`."""
    launch: LaunchSettings = LaunchSettings()
    """How `sfl run` treats its processes."""

    @model_validator(mode="after")
    def _edge_can_be_changed(self) -> Self:
        if self.aggregation.traits.folds and (field := cannot_fold(self.edge)):
            raise ValueError(f"edge.{field}: {NEEDS_FLOAT32}; {GIVE_FLOAT32}")
        return self

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the edges that may take part."""
        return self.run.edges or (self.edge.name,)

    @property
    def settings(self) -> RunSettings:
        """Only what travels to the nodes."""
        fields = {name: getattr(self, name) for name in RunSettings.model_fields}
        return RunSettings.model_construct(**fields)
