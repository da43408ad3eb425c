"""What an asynchronous run's averages have to be, computed from its journal and its spool alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sfl.report.journal import JournalReader
from sfl.rounds import AdapterReady, DeviceReady

Values = dict[str, np.ndarray]


@contextlib.contextmanager
def spool_is_kept() -> Iterator[None]:
    """Updates stay where they came, also when the run is over."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sfl.transport.cloud.spool.Spool.drop", lambda spool, round_: None)
        for name in ("drop_working_folders", "drop_working_files"):
            patched.setattr(f"cloud_aggregator.aggregator.{name}", lambda folder: None)
        yield


KEEPING = """
import cloud_aggregator.aggregator as aggregator
from sfl.transport.cloud.spool import Spool

Spool.drop = lambda spool, round_: None
aggregator.drop_working_folders = aggregator.drop_working_files = lambda folder: None
"""
"""The same as a process's hook (`tests.house.forks.HOOK`)."""


def averages(folder: Path) -> dict[int, dict[str, int]]:
    """The staleness of each update that was averaged, by round and device."""
    with contextlib.closing(JournalReader(folder)) as journal:
        events = [entry.event for entry in journal.entries()]
    made = [event for event in events if isinstance(event, AdapterReady) and event.round]
    assert [event.round for event in made] == list(range(1, len(made) + 1))
    return {event.round: dict(event.staleness) for event in made}


def assert_averages(folder: Path, exponent: float = 0.5) -> dict[int, dict[str, int]]:
    """Every adapter is the one before, moved by what came, each change by its weight; no update
    counts twice. Returns the staleness of each update, by round and device."""
    examples = _examples(folder)
    made = averages(folder)
    counted = [(name, r - s) for r, own in made.items() for name, s in own.items()]
    assert len(set(counted)) == len(counted)
    for round_, staleness in made.items():
        sums: Values = {}
        for name in sorted(staleness):
            values = _counted(folder, name, round_, staleness[name], exponent)
            for key, array in values.items():
                term = array.astype(np.float64) * examples[name]
                sums[key] = sums[key] + term if key in sums else term
        total = sum(examples[name] for name in staleness)
        adapter = _adapter(folder, round_)
        assert sums.keys() == adapter.keys()
        for key, array in adapter.items():
            expected = (sums[key] / total).astype(np.float32)
            assert np.array_equal(array, expected), (round_, key)
    return made


def _counted(folder: Path, name: str, round_: int, staleness: int, exponent: float) -> Values:
    files = (folder / "spool" / f"round-{round_ - staleness:04d}").glob(f"{name}.*.safetensors")
    values: Values = {key: array for file in files for key, array in load_file(file).items()}
    if not staleness:
        return values
    start, onto = _adapter(folder, round_ - staleness - 1), _adapter(folder, round_ - 1)
    weight = (1.0 + staleness) ** -exponent
    return {
        key: (onto[key] + weight * (array - start[key].astype(np.float64))).astype(np.float32)
        for key, array in values.items()
    }


def _adapter(folder: Path, round_: int) -> Values:
    path = folder / "adapters" / f"round-{round_:04d}" / "adapter_model.safetensors"
    return dict(load_file(path))


def _examples(folder: Path) -> dict[str, int]:
    with contextlib.closing(JournalReader(folder)) as journal:
        events = [entry.event for entry in journal.entries()]
    return {e.device: e.num_examples for e in events if isinstance(e, DeviceReady)}
