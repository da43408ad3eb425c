"""Adapters that are swapped to files: whose, that memory comes back, and that no bit changes."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfl.config import EdgeConfig
from sfl.errors import DiskError
from sfl.metrics.stats import NodeStats
from sfl.stage.messages import Kind, TensorMessage
from sfl.stage.swapping import OnDisk, Residence, surplus
from sfl.stage.training import TrainingSession
from tests.house.residents import edge, message
from tests.house.together import handle_together


@pytest.mark.parametrize(
    ("residents", "idle", "needed", "limit", "expected"),
    [
        ("abc", "abc", "d", 3, "a"),
        ("abc", "abc", "a", 3, ""),
        ("abc", "abc", "d", 1, "abc"),
        ("abc", "bc", "d", 2, "bc"),  # a has a step under way
        ("abc", "ac", "b", 2, "a"),
        ("abc", "", "d", 1, ""),
        ("", "", "ab", 1, ""),
    ],
)
def test_those_used_longest_ago_go_unless_they_are_busy_or_needed(
    residents: str, idle: str, needed: str, limit: int, expected: str
) -> None:
    assert surplus(list(residents), set(idle), set(needed), limit) == list(expected)


OPEN: list[Residence] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def residing(tmp_path: Path, limit: int) -> Residence:
    OPEN.append(Residence(limit, tmp_path / "swapped", NodeStats("edge", "edge")))
    return OPEN[-1]


def tear(residence: Residence, device: str) -> None:
    """Cut off the end of what was swapped out of a device."""
    swapped = residence._swapped[device]
    assert isinstance(swapped, OnDisk)
    swapped._file.truncate(1000)


def train(sessions: Sequence[TrainingSession], topology: str) -> list[dict[str, np.ndarray]]:
    """Three steps of each, by turns."""
    for step in range(3):
        for seed, session in enumerate(sessions):
            sent = message(topology, seed, step, session.model.hidden_size)
            reply = session.handle(sent)[0].message
            if topology == "u_shaped":
                assert isinstance(reply, TensorMessage) and reply.rows is not None
                gradient = reply.rows.flip(0).clone()
                session.handle(
                    TensorMessage(Kind.GRADIENT, sent.key, 1, sent.lengths, gradient, None)
                )
    return [session.end_round() for session in sessions]


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_swapping_changes_no_bit(tmp_path: Path, topology: str) -> None:
    wanted = train(edge(None, topology), topology)
    residence = residing(tmp_path, 1)
    sessions = edge(residence, topology)
    found = train(sessions, topology)
    for one, other in zip(wanted, found, strict=True):
        assert one.keys() == other.keys()
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    stats = residence._stats.snapshot()
    assert (stats.adapters_resting, stats.adapters_woken) == (2, 3 + 3 * 3 + 3)
    assert list(residence._swapped) == ["attic", "barn"]
    for session in sessions:
        session.close()
    assert not residence._swapped and residence._stats.adapters_resting == 0


def test_in_memory_beside_an_accelerator_no_file_is_written(tmp_path: Path) -> None:
    wanted = train(edge(None), "vanilla")
    residence = Residence(1, None, NodeStats("edge", "edge"))
    sessions = edge(residence)
    found = train(sessions, "vanilla")
    for one, other in zip(wanted, found, strict=True):
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    assert residence._stats.adapters_resting == 2
    assert all(p.numel() == 0 for p in sessions[0].adapter.parameters.values())
    with pytest.raises(ValueError, match="frees nothing"):
        EdgeConfig(swap_to="memory")
    for session in sessions:
        session.close()
    assert not residence._swapped and not tmp_path.joinpath("swapped").exists()


def test_a_batch_over_devices_has_all_of_them_in_memory(tmp_path: Path) -> None:
    outcomes = []
    for residence in (None, residing(tmp_path, 1)):
        sessions = edge(residence)
        own = [message("vanilla", n, 0, sessions[0].model.hidden_size) for n in range(3)]
        handle_together(list(zip(sessions, own, strict=True)))
        assert residence is None or residence._stats.adapters_resting == 0
        outcomes.append([session.adapter.state() for session in sessions])
    for one, other in zip(*outcomes, strict=True):
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def tensor_bytes() -> int:
    """Of all tensors that are alive, each storage once; gradients and moments included."""
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if type(tensor) in {torch.Tensor, torch.nn.Parameter}  # no fake one of another test
    }
    return sum(storages.values())


@pytest.mark.process
def test_the_memory_of_those_swapped_out_comes_back(tmp_path: Path) -> None:
    residence = residing(tmp_path, 3)
    sessions = edge(residence)
    train(sessions, "vanilla")
    values = sum(p.numel() for p in sessions[0].adapter.parameters.values())
    each = 4 * 4 * values  # values, AdamW's two moments, FedProx's anchor
    before = tensor_bytes()
    residence._limit = 1
    residence.enter(sessions[2])
    freed = before - tensor_bytes()
    steps = 4 * len(sessions[0].adapter.trained)  # AdamW counts them by parameter
    assert freed == 2 * (each + steps)
    residence._limit = 3
    residence.enter(*sessions)
    assert tensor_bytes() == before
    for session in sessions:
        session.close()
    session = sessions.pop()
    del session
    sessions.clear()
    assert before - tensor_bytes() >= 3 * each
    residence.close()
    assert not list((tmp_path / "swapped").iterdir())


def test_a_step_under_way_is_left_alone(tmp_path: Path) -> None:
    residence = residing(tmp_path, 1)
    attic, barn, _ = edge(residence, "u_shaped")
    attic.handle(message("u_shaped", 0, 0, attic.model.hidden_size))
    assert not attic.idle
    barn.handle(message("u_shaped", 1, 0, barn.model.hidden_size))
    assert all(p.numel() for p in attic.adapter.parameters.values())
    assert list(residence._swapped) == ["cellar"]


def test_a_full_disk_keeps_adapters_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[FileIO] = []

    class Full(FileIO):
        """Takes some bytes, then no more, as a disk does."""

        def write(self, data: Any) -> int:
            if self.tell() > 5000:
                raise OSError(28, "No space left on device")
            return super().write(data[:700])

    def temporary(**_: object) -> FileIO:
        made.append(Full(tmp_path / "file", "w+"))
        return made[-1]

    monkeypatch.setattr("sfl.stage.swapping.tempfile.TemporaryFile", temporary)
    wanted = train(edge(None), "vanilla")
    residence = residing(tmp_path, 1)
    found = train(edge(residence), "vanilla")
    assert "adapters stay in memory" in caplog.text and "No space left" in caplog.text
    assert len([r for r in caplog.records if "stay in memory" in r.message]) == 1
    assert [file.closed for file in made] == [True]
    for one, other in zip(wanted, found, strict=True):
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_what_cannot_be_read_back_ends_that_device_only(tmp_path: Path) -> None:
    residence = residing(tmp_path, 1)
    attic, barn, _ = edge(residence)
    tear(residence, "attic")
    with pytest.raises(DiskError, match="device attic cannot be read back"):
        attic.handle(message("vanilla", 0, 0, attic.model.hidden_size))
    barn.handle(message("vanilla", 1, 0, barn.model.hidden_size))
    attic.close()
    assert "attic" not in residence._swapped and barn.step == 1


def test_of_a_batch_only_the_device_that_cannot_be_read_back_fails(tmp_path: Path) -> None:
    outcomes = []
    for torn in (False, True):
        residence = residing(tmp_path, 1)
        sessions = edge(residence)
        own = [message("vanilla", n, 0, sessions[0].model.hidden_size) for n in range(3)]
        tasks: Any = list(zip(sessions, own, strict=True))
        if torn:
            tear(residence, "attic")
            lost, *answers = handle_together(tasks)
            assert isinstance(lost, DiskError)  # which is no strike against the device
            assert "device attic cannot be read back" in str(lost)
        else:
            answers = handle_together(tasks[1:])
        assert all(isinstance(answer, list) and answer for answer in answers)
        assert [session.step for session in sessions] == [0, 1, 1]
        outcomes.append([session.adapter.state() for session in sessions[1:]])
    for one, other in zip(*outcomes, strict=True):
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from sfl.metrics.stats import NodeStats
from sfl.stage.swapping import Residence
sleeper, other = (
    SimpleNamespace(device=name, idle=True, held=lambda: {"a": torch.ones(9)}, let_go=lambda: None)
    for name in ("attic", "barn")
)
residence = Residence(1, Path(sys.argv[1]), NodeStats("edge", "edge"))
residence.enter(sleeper)
residence.enter(other)
assert list(residence._swapped) == ["attic"]
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
def test_nothing_of_a_killed_edge_is_left(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "swapped")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list((tmp_path / "swapped").iterdir()) == []
