"""What a run leaves as numbers: `metrics.jsonl`, one line a round and node."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sfl.errors import ProtocolError, UserError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.node.files import on_disk, write_atomic

_SCORES = ("train_loss", "eval_loss_sum", "eval_targets", "eval_correct", "eval_examples")
_WORK = ("num_examples", "steps", "tokens", "seconds")


@dataclass(frozen=True, slots=True)
class SampleScore:
    """A score over the held-out examples that every evaluation takes, as `eval_*` have it."""

    loss_sum: float
    targets: int
    correct: int | None
    examples: int


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One device's part in one round, and its evaluation of the adapter that the round gave.

    Round 0 is the evaluation before any training: its `train_loss` is None and its work is 0.
    `eval_loss_sum` is in nats, summed over `eval_targets` scored tokens or labels; `eval_correct`
    of `eval_examples` is None for plain text. `sample` is the part of it that rounds can be
    compared by, None where that is all of it. `seconds` is the device's training time.
    """

    round: int
    device: str
    train_loss: float | None
    eval_loss_sum: float
    eval_targets: int
    eval_correct: int | None
    eval_examples: int
    num_examples: int
    steps: int
    tokens: int
    seconds: float
    snapshot: NodeSnapshot
    sample: SampleScore | None = None

    @property
    def on_sample(self) -> RoundRecord:
        """This record with the score that rounds are compared by."""
        if self.sample is None:
            return self
        own = self.sample
        return replace(
            self,
            eval_loss_sum=own.loss_sum,
            eval_targets=own.targets,
            eval_correct=own.correct,
            eval_examples=own.examples,
            sample=None,
        )

    @property
    def eval_loss(self) -> float | None:
        """Mean loss of a scored token or label; None where the device evaluated nothing."""
        return self.eval_loss_sum / self.eval_targets if self.eval_targets else None

    @property
    def eval_accuracy(self) -> float | None:
        """Share of examples that were right, 0 to 1; None for plain text or nothing evaluated."""
        if self.eval_correct is None or not self.eval_examples:
            return None
        return self.eval_correct / self.eval_examples


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """An edge's or the cloud's state at the end of one round, `seconds` after it began.

    `staleness`, of the cloud and where updates may be late: how many adapters were made since each
    device's update began.
    """

    round: int
    seconds: float
    snapshot: NodeSnapshot
    staleness: Mapping[str, int] = field(default_factory=dict)


Record = RoundRecord | NodeRecord


class LineFile:
    """A file of lines, appended to as the run goes; a context, or `close` it."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        with on_disk(self._folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer nothing is left to be written when it is closed on a full disk.
            self._file = path.open("ab", buffering=0)

    def write(self, line: bytes) -> None:
        """Write one line, and hand it to the system before returning: all of it, or nothing.

        Raises DiskError.
        """
        with on_disk(self._folder):
            before = os.fstat(self._file.fileno()).st_size
            try:
                while line:  # a disk that is nearly full takes a part
                    line = line[self._file.write(line) :]
            except OSError:
                self._file.truncate(before)
                raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class RecordFile(LineFile):
    """`metrics.jsonl`."""

    def append(self, record: Record) -> None:
        """Write a record's line. Raises DiskError."""
        self.write(_line(record))


def read_records(path: Path) -> list[Record]:
    """All records of a `metrics.jsonl`; a last line cut short by a crash is left out.

    Raises UserError for any other line that cannot be read.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    records: list[Record] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
        try:
            records.append(_from_dict(json.loads(line)))
        except (ProtocolError, AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                "metrics.jsonl", str(path), f"line {number} is malformed", "Delete that line."
            ) from None
    return records


def complete_records(path: Path, records: Iterable[Record]) -> None:
    """Have a `metrics.jsonl` tell all of these. Raises DiskError."""
    complete_lines(path, map(_line, records))


def complete_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Have a file tell all of these: what it lacks is added, also to a torn last line.

    One that tells anything else is replaced. Raises DiskError.
    """
    whole = b"".join(lines)
    with on_disk(path.parent):
        told = path.read_bytes() if path.exists() else b""
        if whole.startswith(told):
            if len(whole) > len(told):
                with path.open("ab") as file:
                    file.write(whole[len(told) :])
            return
    write_atomic(path, whole)


def _line(record: Record) -> bytes:
    return json.dumps(_to_dict(record), allow_nan=False).encode() + b"\n"


def _to_dict(record: Record) -> dict[str, Any]:
    snapshot = record.snapshot
    head = {"round": record.round, "node": snapshot.name, "kind": snapshot.kind}
    if isinstance(record, NodeRecord):
        late = {"staleness": dict(record.staleness)} if record.staleness else {}
        return head | {"seconds": record.seconds} | late | {"snapshot": snapshot.to_dict()}
    values = {name: _finite(getattr(record, name)) for name in (*_SCORES, *_WORK)}
    means = {"eval_loss": record.eval_loss, "eval_accuracy": record.eval_accuracy}
    shown = {name: _finite(value) for name, value in means.items()}
    sample = None if record.sample is None else asdict(record.sample)
    if sample is not None:
        shown["sample"] = {name: _finite(value) for name, value in sample.items()}
    return head | {"node": record.device} | values | shown | {"snapshot": snapshot.to_dict()}


def _from_dict(values: dict[str, Any]) -> Record:
    snapshot = NodeSnapshot.from_dict(values["snapshot"])
    if values["kind"] != "device":
        late = values.get("staleness", {})
        return NodeRecord(values["round"], values["seconds"], snapshot, late)
    numbers = {name: values[name] for name in (*_SCORES, *_WORK)}
    if numbers["eval_loss_sum"] is None:
        numbers["eval_loss_sum"] = math.nan  # JSON has no NaN
    sample = None
    if (own := values.get("sample")) is not None:
        sample = SampleScore(**own)
        if sample.loss_sum is None:
            sample = replace(sample, loss_sum=math.nan)
    return RoundRecord(values["round"], values["node"], snapshot=snapshot, sample=sample, **numbers)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
