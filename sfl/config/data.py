"""What an example is, and how one file is split among devices."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import PositiveFloat, model_validator

from sfl.config.base import Fraction, Section


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
