"""The whole path from a device's settings to its examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfl.config import LocalDevice, RunSettings
from sfl.data.encode import encode_rows, kind_of
from sfl.data.example import Dataset, Example, Row
from sfl.data.load import load_rows
from sfl.data.partition import field_values, hold_out, partition_rows, sample
from sfl.data.tokenizer import Tokenizer
from sfl.errors import DataError

Source = Path | str


def prepare(local: LocalDevice, name: str, settings: RunSettings, tokenizer: Tokenizer) -> Dataset:
    """The examples of device `name`, one of the run's, to train on and to evaluate on.

    Training rows are those of `local.train`, else the device's part of `data.train`. Held-out
    rows are those of `local.eval`, else its part of `data.eval`, else `data.eval_fraction` of its
    training rows; none only where that is 0. Raises DataError.
    """
    data, seed, due = settings.data, settings.run.seed, settings.evaluation
    train_rows, field = _train_rows(local, name, settings)
    eval_rows = _eval_rows(local, name, settings)
    if eval_rows is None:
        train_rows, eval_rows = hold_out(train_rows, data.eval_fraction, seed, name, field)
    if not due.full:
        eval_rows = sample(eval_rows, due.max_examples, seed, name)

    model = settings.model
    train, notes = encode_rows(train_rows, tokenizer, model, data)
    _check_left(train, train_rows, name, model.max_length)
    evaluation, eval_notes = encode_rows(eval_rows, tokenizer, model, data)
    if eval_rows:
        _check_left(evaluation, eval_rows, name, model.max_length)
    chosen = frozenset(sample(range(len(evaluation)), due.max_examples, seed, name))
    kind = kind_of(train_rows, model, data)
    return Dataset(train, evaluation, kind, notes + eval_notes, chosen)


def _train_rows(local: LocalDevice, name: str, settings: RunSettings) -> tuple[list[Row], str]:
    """The rows, and the setting that they came from."""
    if local.train is not None:
        field = f"devices.{name}.train"
        return load_rows(local.train, settings.data, field), field
    if settings.data.train is None:
        raise DataError(
            f"devices.{name}.train",
            None,
            "the device has no training data",
            "Set it, or data.train for all devices.",
        )
    rows = load_rows(settings.data.train, settings.data, "data.train")
    return _part(rows, name, settings, "data.train"), "data.train"


def _eval_rows(local: LocalDevice, name: str, settings: RunSettings) -> list[Row] | None:
    """The rows of a held-out file, None where there is no such file."""
    if local.eval is not None:
        return load_rows(local.eval, settings.data, f"devices.{name}.eval")
    if settings.data.eval is None:
        return None
    return _part(
        load_rows(settings.data.eval, settings.data, "data.eval"), name, settings, "data.eval"
    )


def _part(rows: list[Row], name: str, settings: RunSettings, field: str) -> list[Row]:
    devices = [device.name for device in settings.devices]
    parts = partition_rows(
        rows, settings.data, devices, settings.run.seed, field, _values_elsewhere(settings, field)
    )
    return parts[settings.device_index(name)]


def _values_elsewhere(settings: RunSettings, field: str) -> Sequence[str]:
    """Values of the partition field in the other shared file, so that both are dealt alike."""
    data = settings.data
    other, setting = (
        (data.eval, "data.eval") if field == "data.train" else (data.train, "data.train")
    )
    if data.partition != "field" or other is None or not data.partition_field:
        return ()
    return field_values(load_rows(other, data, setting), data.partition_field)


def _check_left(examples: list[Example], rows: list[Row], name: str, max_length: int) -> None:
    if not examples:
        raise DataError(
            "model.max_length",
            max_length,
            f"none of the {len(rows)} rows of {rows[0].source} for device {name} has a target "
            "within it",
            "Raise it.",
        )
