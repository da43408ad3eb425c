"""Settings of how data are read that nothing of a run's data reads: each would be ignored without
a word, and is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sfl.config import DataSettings, RunSettings
from sfl.config.wording import did_you_mean
from sfl.data.sources import Source, sources
from sfl.errors import DataError

_COLUMNS = ("csv", "tsv")
_IN_FOLDERS = (*_COLUMNS, "dataset")  # a folder's files are read as each by itself
_FILES = ("", "jsonl", *_COLUMNS, "text", "parquet")  # the first: another ending, with an error
_READ_BY: Mapping[str, tuple[tuple[str, ...], str]] = {
    "format": (_FILES, "a file"),
    "delimiter": (_IN_FOLDERS, "a CSV or TSV file"),
    "quoting": (_IN_FOLDERS, "a CSV or TSV file"),
    "columns": (_IN_FOLDERS, "a CSV or TSV file"),
    "split": (("dataset",), "a dataset"),
    "eval_split": (("dataset",), "a dataset"),
    "subset": (("dataset",), "a dataset"),
}
"""The settings that only some formats know: which, and what to give for them to be read."""


def check_all_read(settings: RunSettings) -> None:
    """Raise DataError for a setting of `data` that no source of the run's devices reads.

    Nothing is said where the data of some device are named on its own machine alone.
    """
    data = settings.data
    if any(entry.train is None and data.train is None for entry in settings.devices):
        return
    pairs = [sources(entry, entry.name, settings) for entry in settings.devices]
    train = [train for train, _ in pairs]
    held_out = [held_out for _, held_out in pairs if held_out is not None]
    for name, (formats, needed) in _READ_BY.items():
        value = getattr(data, name)
        default = DataSettings.model_fields[name].default
        chosen = held_out if name == "eval_split" else train + held_out
        if value != default and not any(source.format in formats for source in chosen):
            raise _unread(name, value, default, chosen, needed)


def _unread(
    name: str, value: object, default: object, chosen: Sequence[Source], needed: str
) -> DataError:
    first, rest = chosen[0], len({source.name for source in chosen}) - 1
    what = f"{first.field} ({first.name})" + (f" and {rest} more" if rest else "")
    fix = f"{did_you_mean(value, [str(default)])}Leave it out, or name {needed}."
    shown = list(value) if isinstance(value, tuple) else value
    return DataError(f"data.{name}", shown, f"nothing reads it: {what} is not {needed}", fix)
