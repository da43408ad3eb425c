"""A look at the data before anything is started: all that needs no model, and a tokenizer only
where rows may leave nothing to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from sfl.config import DeviceEntry, RunSettings
from sfl.data.conversation import has_answer, instruction_of, nothing_to_score, turns_of
from sfl.data.example import Row
from sfl.data.fields import text_of
from sfl.data.labels import class_of
from sfl.data.layout import Layout, layout_of
from sfl.data.load import load_rows
from sfl.data.partition import hold_out, partition_rows
from sfl.data.prepare import values_elsewhere
from sfl.data.sources import Source, sources
from sfl.data.targets import TargetCheck
from sfl.data.unread import check_all_read
from sfl.errors import DataError
from sfl.models.folder import local_folder

Check = Callable[[Row, RunSettings], object]


@dataclass(slots=True)
class Examiner:
    """Reads every source of a run that is on this machine, and keeps none of its rows.

    Once for its rows, and once more for each other use that devices make of it.
    """

    settings: RunSettings
    model: Path | None = None
    """Folder of the run's model, where it is here; without it no row is held against a length."""
    rows: int = field(default=0, init=False)
    _found: dict[tuple[str, ...], Layout] = field(default_factory=dict, init=False)
    _used: set[tuple[object, ...]] = field(default_factory=set, init=False)
    _first: tuple[str, Layout] | None = field(default=None, init=False)
    _targets: TargetCheck = field(init=False)

    def __post_init__(self) -> None:
        self._targets = TargetCheck(self.settings.model, self.settings.data)

    @property
    def files(self) -> int:
        """How many sources were read."""
        return len(self._found)

    def look_at(self, entry: DeviceEntry) -> None:
        """Read what a device reads; names on the hub are left alone. Raises DataError for files,
        fields, labels, splits and parts that the device itself would stop at."""
        train, held_out = sources(entry, entry.name, self.settings)
        self._look(train, held_out, entry.name)
        if held_out is not None:
            self._look(held_out, train, entry.name)

    def _look(self, source: Source, other: Source | None, device: str) -> None:
        key = _key(source)
        # Held out elsewhere or not, and with which tokenizer: of one file each use is checked.
        use = key, other and _key(other), self.settings.device(device).model
        if not source.is_here or use in self._used:
            return
        rows = load_rows(source.name, source.data, source.field)
        layout = layout_of(rows, self.settings.model, source.data)
        if key not in self._found:
            self._check_rows(rows, layout, source)
        self._check_parts(rows, layout, source, other, device)
        if key not in self._found:
            self._check_alike(source, layout)
            self._found[key] = layout
            self.rows += len(rows)
        self._used.add(use)

    def _check_rows(self, rows: list[Row], layout: Layout, source: Source) -> None:
        for row in rows:
            _CHECKS[layout](row, self.settings)
        if layout == "messages" and not any(has_answer(row, source.data) for row in rows):
            raise nothing_to_score(rows)

    def _check_parts(
        self, rows: list[Row], layout: Layout, source: Source, other: Source | None, device: str
    ) -> None:
        settings, parts = self.settings, {device: rows}
        if source.shared:
            names = [entry.name for entry in settings.devices]
            elsewhere = values_elsewhere(other, settings)
            seed, data = settings.run.seed, settings.data
            shared = partition_rows(rows, data, names, seed, source.field, elsewhere)
            parts = dict(zip(names, shared, strict=True))
        for name, part in parts.items():
            ends: tuple[list[Row], ...] = (part,)
            if other is None:  # a part of these rows is held out
                fraction, seed = settings.data.eval_fraction, settings.run.seed
                ends = hold_out(part, fraction, seed, name, source.field)
            for end in ends:
                self._check_targets(end, layout, name)

    def _check_targets(self, rows: list[Row], layout: Layout, device: str) -> None:
        if self.model is None:
            return
        own = self.settings.device(device).model
        folder = self.model if own is None else local_folder(own)
        if folder is not None:  # else it is on the hub, and not here yet
            self._targets.look(rows, layout, f" for device {device}", folder)

    def _check_alike(self, source: Source, layout: Layout) -> None:
        first = self._first = self._first or (source.field, layout)
        if layout != first[1]:
            raise DataError(
                source.field,
                str(source.name),
                f"its rows are laid out as {layout!r}, those of {first[0]} as {first[1]!r}",
                "Give all of them the same fields, or set data.layout.",
            )


def _key(source: Source) -> tuple[str, ...]:
    return str(source.name), source.data.split, source.data.subset, str(source.shared)


def _check_completion(row: Row, settings: RunSettings) -> None:
    data = settings.data
    text_of(row, data.prompt_field, "data.prompt_field")
    text_of(row, data.completion_field, "data.completion_field")


def _check_text(row: Row, settings: RunSettings) -> None:
    text_of(row, settings.data.text_field, "data.text_field")


def _check_label(row: Row, settings: RunSettings) -> None:
    class_of(row, _classes(settings.model.labels), settings.data.label_field)
    _check_text(row, settings)


@lru_cache(maxsize=8)
def _classes(labels: tuple[str, ...]) -> Mapping[str, int]:
    return {name: number for number, name in enumerate(labels)}


_CHECKS: Mapping[Layout, Check] = {
    "completion": _check_completion,
    "text": _check_text,
    "label": _check_label,
    "messages": lambda row, settings: turns_of(row, settings.data),
    "instruction": lambda row, settings: instruction_of(row),
}


def examine(settings: RunSettings, model: Path | None = None) -> Examiner:
    """Look at the data of all devices of a run on this machine. Raises DataError."""
    examiner = Examiner(settings, model)
    for entry in settings.devices:
        examiner.look_at(entry)
    check_all_read(settings)
    return examiner
