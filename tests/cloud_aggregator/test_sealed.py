"""A run whose own files were changed on the disk does not go on with them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud_aggregator.aggregator import CloudAggregator
from sfl.errors import SflError
from sfl.node.numbered import of_rounds, round_name, round_of
from sfl.report.resume import resumed
from tests.house.fleets import fleet
from tests.house.twin import Twin


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs of a strategy that were stopped in round 2, each played once."""
    folders: dict[str, Path] = {}

    def of(strategy: str) -> Path:
        if strategy not in folders:
            folder = tmp_path_factory.mktemp(strategy)
            values = fleet(folder, 2, aggregation={"strategy": strategy})
            twin = Twin(folder, values | {"training": {"local_steps": 2}})
            twin.at("d1", 2, 1, lambda _: twin.loop.call_soon_threadsafe(twin._cloud_task.cancel))
            folders[strategy] = twin.run().folder
        return folders[strategy]

    return of


def goes_on(folder: Path) -> int:
    """The round in which a cloud goes on from this folder."""

    async def begun() -> int:
        found, config = resumed(str(folder))
        cloud = CloudAggregator(config, found)
        try:
            return cloud.coordinator.round
        finally:
            cloud.records._file.close()
            cloud.journal.close()

    return asyncio.run(begun())


def latest(folder: Path, what: str) -> Path:
    return of_rounds(folder / what)[-1]


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


WEIGHTS = "adapter_model.safetensors"
HARMS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a bit of the adapter": (
        "fedadam",
        lambda run: flipped(run / "adapters" / "round-0001" / WEIGHTS),
        rf"adapters/round-0001/{WEIGHTS}: it was changed since",
    ),
    "the adapter is gone": (
        "fedadam",
        lambda run: shutil.rmtree(run / "adapters"),
        f"round-0001/{WEIGHTS}.*No such file",
    ),
    "the manifest is gone": (
        "fedadam",
        lambda run: (run / "manifest.json").unlink(),
        "manifest.json.*No such file",
    ),
    "the manifest is no text": (
        "fedadam",
        lambda run: (run / "manifest.json").write_bytes(b"\xff\xfe"),
        "manifest.json: it is damaged",
    ),
    "the strategy's memory is torn": (
        "fedadam",
        lambda run: latest(run, "strategy").write_bytes(b"torn"),
        "strategy/round-0001.safetensors: it was changed since",
    ),
    "a base update is gone": (
        "flora",
        lambda run: (run / "base_updates" / "round-0001.safetensors").unlink(),
        "base_updates/round-0001.safetensors.*No such file",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_was_changed_is_named_in_a_line(
    tmp_path: Path, stopped: Callable[[str], Path], harm: str
) -> None:
    strategy, do, said = HARMS[harm]
    run = shutil.copytree(stopped(strategy), tmp_path / "runs" / "t")
    assert goes_on(run) == 2
    do(run)
    with pytest.raises(SflError, match=said) as caught:
        goes_on(run)
    assert "\n" not in str(caught.value)


def test_rounds_go_by_their_numbers(tmp_path: Path) -> None:
    for round_ in (9999, 10000, 2):
        (tmp_path / round_name(round_)).mkdir()
    assert [round_of(path) for path in of_rounds(tmp_path)] == [2, 9999, 10000]
