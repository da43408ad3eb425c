"""Which files a device's rows come from, and which part of them; never one part for both ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfl.config import DataSettings, LocalDevice, RunSettings
from sfl.data.load import ENDINGS, may_be_on_hub, require_readable
from sfl.errors import DataError
from sfl.node.paths import amiss, expanded, nothing_there


@dataclass(frozen=True, slots=True)
class Source:
    """A file or a dataset, as `data` reads it."""

    name: Path | str
    field: str
    """The setting that it came from."""
    data: DataSettings
    shared: bool
    """Whether it is one for all devices, of which this one has a part."""

    @property
    def is_dataset(self) -> bool:
        """Whether it has splits: a folder, or a name on the hub."""
        return self.data.format == "dataset" or bool(amiss(self.path, "file"))

    @property
    def format(self) -> str:
        """`data.format`, or what it is by its ending; empty where a file's says nothing."""
        if not amiss(self.path, "folder"):
            return "dataset"
        if self.data.format != "auto":
            return self.data.format
        return ENDINGS.get(self.path.suffix.lower(), "dataset" if self.is_dataset else "")

    @property
    def is_here(self) -> bool:
        """Whether it is, or should be, on this machine; else it is a name on the hub."""
        plainly = str(self.name).startswith(".") or not may_be_on_hub(self.path)
        return plainly or not nothing_there(self.path)

    def same_rows(self, other: Source) -> bool:
        """Whether both are the same part of the same file or dataset."""
        places = {os.path.realpath(source.path) for source in (self, other)}
        if len(places) > 1 and str(self.name) != str(other.name):
            return False
        if not self.is_dataset:
            return True
        parts = ((source.data.split, source.data.subset) for source in (self, other))
        return len(set(parts)) == 1

    @property
    def path(self) -> Path:
        """Where it is, if it is there. Raises ConfigError for a home that nobody has."""
        return expanded(self.name, self.field)


def sources(local: LocalDevice, name: str, settings: RunSettings) -> tuple[Source, Source | None]:
    """What device `name` trains on, and what it is evaluated on where that is named apart.

    Raises DataError where nothing is named, or the same rows are named twice.
    """
    train = _train(local, name, settings)
    held_out = _eval(local, name, settings, train)
    check_own(local, f"devices.{name}", [train] if held_out is None else [train, held_out])
    if held_out is not None and train.same_rows(held_out):
        raise DataError(
            held_out.field,
            str(held_out.name),
            f"these are the very rows of {train.field}"
            + (f" (split {train.data.split!r})" if train.is_dataset else ""),
            "Name another split in eval_split, or another file; without either, "
            "data.eval_fraction of the training rows is held out.",
        )
    return train, held_out


def require_there(source: Source) -> None:
    """Raise DataError where a source is here, by its name, and nothing to read is."""
    path = expanded(source.name, source.field)
    require_readable(path, source.field)
    if source.is_here and amiss(path, "folder") and (wrong := amiss(path, "file")):
        fix = "Correct the path; it is relative to the file."
        raise DataError(source.field, str(source.name), wrong, fix)


def check_own(local: LocalDevice, prefix: str, found: Sequence[Source]) -> None:
    """Raise DataError for a split or subset of a device's own that none of its own data has.

    `found` is what it trains on, then what it is evaluated on where that is named apart.
    """
    own = [source for source in found if not source.shared]
    for key in ("split", "subset", "eval_split"):
        value = getattr(local, key)
        # A split to evaluate on may also be one of the data that all devices share.
        read = own if key != "eval_split" else found[-1:]
        if value and not any(source.is_dataset for source in read):
            what = f"{read[0].field} is a file ({read[0].name})" if read else "it has no data file"
            raise DataError(
                f"{prefix}.{key}",
                value,
                f"nothing reads it: {what}{', which has no splits' if read else ' of its own'}",
                "Leave it out, or name a dataset.",
            )


def _train(local: LocalDevice, name: str, settings: RunSettings) -> Source:
    data = settings.data
    if local.train is not None:
        own = _part(data, local.split or data.split, local)
        return Source(local.train, f"devices.{name}.train", own, shared=False)
    if data.train is not None:
        return Source(data.train, "data.train", data, shared=True)
    raise DataError(
        f"devices.{name}.train",
        None,
        "the device has no training data",
        "Set it, or data.train for all devices.",
    )


def _eval(local: LocalDevice, name: str, settings: RunSettings, train: Source) -> Source | None:
    data = settings.data
    split = local.eval_split or data.eval_split
    if local.eval is not None:
        own = _part(data, split or local.split or data.split, local)
        return Source(local.eval, f"devices.{name}.eval", own, shared=False)
    if local.eval_split:
        return _split_of(train, local.eval_split, f"devices.{name}.eval_split")
    if data.eval is not None:
        other = data.model_copy(update={"split": split or data.split})
        return Source(data.eval, "data.eval", other, shared=True)
    return _split_of(train, split, "data.eval_split") if split else None


def _split_of(train: Source, split: str, field: str) -> Source:
    """Another split of what is trained on."""
    if not train.is_dataset:
        raise DataError(
            field,
            split,
            f"{train.field} is a file ({train.name}), which has no splits",
            "Name a held-out file as eval, or leave it out.",
        )
    other = train.data.model_copy(update={"split": split})
    return Source(train.name, field, other, train.shared)


def _part(data: DataSettings, split: str, local: LocalDevice) -> DataSettings:
    subset = data.subset if local.subset is None else local.subset
    return data.model_copy(update={"split": split, "subset": subset})
