"""What a device has loaded, and whether that is what another link of the same run asks for."""

from __future__ import annotations

from dataclasses import dataclass

from sfl.config import CodecSettings, DataSettings, RunSettings
from sfl.config.codec import CodecChange
from sfl.data import Dataset
from sfl.errors import ConfigError
from sfl.models.span import SpanModel
from sfl.plan import Plan
from sfl.planners.told import Cut
from sfl.stage.device import DeviceStage
from sfl.transport.device.link import Joined


@dataclass(frozen=True, slots=True)
class Loaded:
    """A device's span, data and tokenizer, for as long as its process is in one run."""

    joined: Joined
    """What it was loaded for."""
    stage: DeviceStage
    dataset: Dataset
    pad_id: int
    cuts: tuple[Cut, ...] = ()
    """That it may have, with the memory that each would take."""
    teacher: SpanModel | None = None
    """The teacher's first blocks, where it holds them."""

    @property
    def teacher_width(self) -> int:
        """Of the hidden states that they give; 0 without any."""
        return 0 if self.teacher is None else self.teacher.hidden_size

    def fits(self, joined: Joined) -> bool:
        """Whether this is what an edge asks for that has taken the device in again."""
        before = self.joined
        return (
            before.run_key == joined.run_key
            and self.stage.assignment.same_adapter(joined.assignment)
            and loads(before.settings) == loads(joined.settings)
        )

    def check_room(self, plan: Plan, memory: int | None) -> None:
        """Raise ConfigError where a plan takes more memory than this device may use.

        A cut that it has neither loaded nor foretold is one of a range that it was not told of.
        """
        needed = {cut.at: cut.memory for cut in self.cuts}.get((plan.cut_layer, plan.tail_layers))
        loaded = plan == self.joined.assignment.plan
        if memory is None or loaded or (needed is not None and needed <= memory):
            return
        takes = "was not foretold" if needed is None else f"takes {needed / 1e6:,.0f} MB"
        raise ConfigError(
            "device.memory",
            f"{memory / 1e6:,.0f} MB",
            f"the round's cut_layer {plan.cut_layer} {takes}",
            "Give more, or end cut_range of this device at fewer blocks.",
        )

    def same_data(self, joined: Joined) -> bool:
        """Whether the examples are the same, too."""
        return self.joined.settings.data == joined.settings.data


def loads(settings: RunSettings) -> RunSettings:
    """The settings without what each round's assignment says, and without what is about data.

    A rehearsal settles some of it, and most devices' form of text settles some of the data's.
    """
    training = settings.training.model_copy(
        update={"micro_batches": 1, "computation": settings.computation}
    )
    devices = [entry.model_copy(update={"codec": CodecChange()}) for entry in settings.devices]
    return settings.model_copy(
        update={
            "training": training,
            "codec": CodecSettings(),
            "data": DataSettings(),
            "devices": tuple(devices),
        }
    )
