"""The whole path from a device's settings to its examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sfl.config import DataSettings, LocalDevice, RunSettings
from sfl.data.encode import applies_template, encode_rows
from sfl.data.example import Dataset, Example, Row
from sfl.data.layout import KINDS, Layout, kind_of, layout_of
from sfl.data.load import load_rows
from sfl.data.partition import field_values, hold_out, partition_rows, sample
from sfl.data.sources import Source, sources
from sfl.data.targets import check_left
from sfl.data.tokenizer import Tokenizer
from sfl.errors import ConfigError, DataError, UserError


def prepare(local: LocalDevice, name: str, settings: RunSettings, tokenizer: Tokenizer) -> Dataset:
    """The examples of device `name`, one of the run's, to train on and to evaluate on.

    Training rows are those of `local.train`, else the device's part of `data.train`. Held-out
    rows are those of `local.eval` or `local.eval_split`, else its part of `data.eval` or
    `data.eval_split`, else `data.eval_fraction` of its training rows; none only where that is 0.
    Raises DataError.
    """
    data, model, due = settings.data, settings.model, settings.evaluation
    seed = settings.run.seed
    source, held_out = sources(local, name, settings)
    train_rows = _rows(source, held_out, name, settings)
    if held_out is not None:
        eval_rows = _rows(held_out, source, name, settings)
    else:
        train_rows, eval_rows = hold_out(train_rows, data.eval_fraction, seed, name, source.field)
    if not due.full:
        eval_rows = sample(eval_rows, due.max_examples, seed, name)

    layout = layout_of(train_rows, model, data)
    _check_layout(eval_rows, layout, settings)
    template = _template(layout, tokenizer, data)
    train, notes = encode_rows(train_rows, tokenizer, model, data)
    of = f" for device {name}"
    check_left(train, notes.truncated, train_rows, of, model.max_length)
    evaluation, eval_notes = encode_rows(eval_rows, tokenizer, model, data)
    if eval_rows:
        check_left(evaluation, eval_notes.truncated, eval_rows, of, model.max_length)
    chosen = frozenset(sample(range(len(evaluation)), due.max_examples, seed, name))
    more = replace(eval_notes, tokens=0, tokens_kept=0, repeated=_repeated(train, evaluation))
    return Dataset(train, evaluation, KINDS[layout], notes + more, chosen, layout, template)


def held_out_only(
    source: Path | str, settings: RunSettings, tokenizer: Tokenizer, option: str
) -> Dataset:
    """All rows of one file, to evaluate on; `option` is what named it. Raises DataError."""
    data, model = settings.data, settings.model
    data = data.model_copy(update={"split": data.eval_split or data.split, "layout": "auto"})
    try:
        rows = load_rows(source, data, option)
        evaluation, notes = encode_rows(rows, tokenizer, model, data)
        check_left(evaluation, notes.truncated, rows, "", model.max_length)
        kind = kind_of(rows, model, data)
    except (DataError, ConfigError) as error:
        raise _of_option(error, option, str(source)) from None
    return Dataset([], evaluation, kind, notes)


def _of_option(error: UserError, option: str, source: str) -> UserError:
    """The error as one of the option that somebody gave, who did not write the run's settings."""
    if error.field == option:
        return error
    problem = error.problem
    if error.field != "data":
        problem = f"it does not fit the run, where {error.field} is {error.value!r}: {problem}"
    return DataError(option, source, problem, "Name a file like those that the run was made with.")


def _rows(source: Source, other: Source | None, name: str, settings: RunSettings) -> list[Row]:
    """The device's rows of a source; `other` is the one for the other purpose."""
    rows = load_rows(source.name, source.data, source.field)
    if not source.shared:
        return rows
    devices = [device.name for device in settings.devices]
    elsewhere = values_elsewhere(other, settings)
    parts = partition_rows(rows, settings.data, devices, settings.run.seed, source.field, elsewhere)
    return parts[settings.device_index(name)]


def values_elsewhere(other: Source | None, settings: RunSettings) -> Sequence[str]:
    """Values of the partition field in the other shared file, so that both are dealt alike."""
    data = settings.data
    if data.partition != "field" or not data.partition_field or other is None or not other.shared:
        return ()
    return field_values(load_rows(other.name, other.data, other.field), data.partition_field)


def _check_layout(rows: Sequence[Row], layout: Layout, settings: RunSettings) -> None:
    if rows and (other := layout_of(rows, settings.model, settings.data)) != layout:
        raise DataError(
            "data.eval",
            rows[0].source,
            f"its rows are laid out as {other!r}, those to train on as {layout!r}",
            "Give both the same fields.",
        )


def _template(layout: Layout, tokenizer: Tokenizer, data: DataSettings) -> str:
    """Digest of the chat template that is applied; empty where none is."""
    if layout in ("text", "label") or not applies_template(tokenizer, data):
        return ""
    return tokenizer.chat_template_digest


def _repeated(train: Sequence[Example], evaluation: Sequence[Example]) -> int:
    """How many examples to evaluate on are also trained on, token by token."""
    known = set(train)
    return sum(example in known for example in evaluation)
