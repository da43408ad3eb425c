"""The run's settings as they are in effect: what nodes report and what is settled changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

from cloud_aggregator.text_form import with_text_form
from sfl.config import DeviceEntry, EdgeConfig, LocalDevice, RunConfig
from sfl.config.node import Dtype, Quantised
from sfl.metrics.snapshot import NodeSnapshot
from sfl.report.runs import write_effective
from sfl.rounds import Settle, TextForm

Keep = Callable[[], None]


def nothing() -> None:
    """It is kept already."""


class EffectiveConfig:
    """The settings in effect, `current`, and their copy in the run's folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        settled: Iterable[Settle] = (),
        form: TextForm | None = None,
    ) -> None:
        """`settled` before, and `form` used, and perhaps not written then. Raises DiskError."""
        self.current = config
        self._folder = folder
        for command in settled:
            self.settle(command)
        if form is not None:
            self.use_text_form(form)

    def edge_said(self, snapshot: NodeSnapshot, keep: Keep = nothing) -> None:
        """The run's edge tells what it does with its base; `keep` that, before it is written."""
        config = self.current
        own = config.edge.model_copy(update=_base(config, config.edge, snapshot))
        self._change(config.model_copy(update={"edge": own}), keep)

    def device_said(self, snapshot: NodeSnapshot, keep: Keep = nothing) -> None:
        """A device tells what it does with its base and its batches; as for `edge_said`."""
        config, name = self.current, snapshot.name
        if config.knows(name) and (found := _as_said(config, config.device(name), snapshot)):
            devices = list(config.devices)
            devices[config.device_index(name)] = config.device(name).model_copy(update=found)
            self._change(config.model_copy(update={"devices": tuple(devices)}), keep)

    def use_text_form(self, form: TextForm) -> None:
        """How the rows of all devices become text is fixed."""
        self._change(with_text_form(self.current, form))

    def settle(self, command: Settle) -> None:
        """What was `auto` is fixed; written in any case."""
        self.current = self.current.settled(command.micro_batches, command.codecs)
        write_effective(self.current, self._folder)

    def _change(self, config: RunConfig, keep: Keep = nothing) -> None:
        """Write the settings again where a report changed them."""
        if config != self.current:
            keep()
            self.current = config
            write_effective(config, self._folder)


def _as_said(config: RunConfig, entry: DeviceEntry, snapshot: NodeSnapshot) -> dict[str, str | int]:
    """What a device does otherwise than its settings say."""
    return {**_base(config, entry, snapshot), **_pieces(config, entry, snapshot)}


def _base(
    config: RunConfig, own: EdgeConfig | LocalDevice, snapshot: NodeSnapshot
) -> dict[str, str]:
    """What a node does with its base, as far as the settings say something else."""
    said = {"dtype": own.dtype or config.model.dtype, "quantised": own.quantised}
    found = {"dtype": snapshot.dtype, "quantised": snapshot.quantised}
    allowed = {"dtype": get_args(Dtype), "quantised": get_args(Quantised)}
    return {
        field: value
        for field, value in found.items()
        if value != said[field] and value in allowed[field]
    }


def _pieces(config: RunConfig, entry: DeviceEntry, snapshot: NodeSnapshot) -> dict[str, int]:
    """What a device cuts its batches into, as far as its settings say something else."""
    found = snapshot.micro_batches
    most = max(entry.micro_batches, config.training.batch_size)
    changed = found != entry.micro_batches and 0 < found <= most
    return {"micro_batches": found} if changed else {}
