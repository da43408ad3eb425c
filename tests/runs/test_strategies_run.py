"""Strategies in whole runs: what devices and edge train, held to PEFT in this process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from cloud_aggregator.aggregator import CloudAggregator
from sfl.adapters.names import is_lora_a, lora_b_of
from sfl.adapters.rank import truncated
from sfl.config import AggregationSettings, TrainingSettings, load_run
from sfl.rounds import OpenRound, Progress, Steps
from sfl.rounds.ordered import Ordered
from sfl.rounds.values import UpdateHeader
from sfl.stage.optimizer import Optimizer
from tests.house.federation import Outcome, finished, write_config
from tests.house.fleets import (
    CLASSES,
    classified,
    completions,
    device,
    of_unequal_ranks,
    settings,
    tiny,
)
from tests.house.reference import Reference, adapter, adapter_traffic, assert_same_bits, reference
from tests.house.twin import played

pytestmark = pytest.mark.usefixtures("quiet_peft")


# -- ranks -----------------------------------------------------------------------------------------


@dataclass
class RankReference(Reference):
    """PEFT at a device's own rank, from its truncation of the first adapter."""

    rank: int

    def start(self) -> tuple[LoraConfig, dict[str, np.ndarray]]:
        lora, values = super().start()
        lora.r = self.rank
        return lora, truncated(values, self.rank)


def best_of_rank(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def update(values: dict[str, np.ndarray], a: str, scaling: float) -> np.ndarray:
    product: np.ndarray = values[lora_b_of(a)].astype(np.float64) @ values[a].astype(np.float64)
    return scaling * product


@pytest.mark.process
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_devices_of_unequal_ranks_average_to_what_their_products_do(
    tmp_path: Path, topology: str
) -> None:
    values = settings(
        tiny("llama"),
        run={"topology": topology, "rounds": 3},
        lora={"rank": 8, "alpha": 8},
        aggregation={"strategy": "flexlora"},
        codec={"adapter": "none | zstd"},
    )
    values["devices"] = of_unequal_ranks(tmp_path)
    outcome = finished(played(tmp_path, values))
    config, summary = load_run(outcome.folder / "config.toml"), outcome.summary
    assert not summary["faults"]
    assert [entry["rank"] for entry in summary["devices"]] == [2, 4, 8]
    ranks = {entry.name: config.rank(entry.name) for entry in config.devices}
    alone = {
        name: RankReference(outcome, config, rank).train(name, rounds=1)
        for name, rank in ranks.items()
    }
    examples = {d["name"]: d["num_examples"] for d in summary["devices"]}
    total = sum(examples.values())
    averaged = adapter(outcome, "adapters/round-0001")
    for a in filter(is_lora_a, averaged):
        wanted = best_of_rank(
            sum(examples[name] / total * update(alone[name], a, 8 / ranks[name]) for name in ranks),
            8,
        )
        found = update(averaged, a, 1.0)
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=a)
    assert summary["eval_loss_after"] < summary["eval_loss_before"]


@pytest.mark.process
def test_one_device_under_flexlora_trains_like_plain_training_for_a_round(tmp_path: Path) -> None:
    data = completions(tmp_path / "train.jsonl", 1)
    values = settings(tiny("llama"), run={"rounds": 1}, aggregation={"strategy": "flexlora"})
    values["devices"] = [device("a", data, 1)]
    outcome = finished(played(tmp_path, values))
    found, wanted = adapter(outcome), reference(outcome).train("a")
    for a in filter(is_lora_a, found):
        np.testing.assert_allclose(update(found, a, 2.0), update(wanted, a, 2.0), atol=1e-6)


@pytest.mark.process
def test_an_update_that_is_scaled_otherwise_is_left_out(tmp_path: Path) -> None:
    values = settings(tiny("llama"), aggregation={"strategy": "flexlora"})
    values["devices"] = [device("a", tmp_path / "none.jsonl", 1, rank=2)]
    config = load_run(write_config(tmp_path, values))

    async def receive(scaling: float) -> list[str]:
        cloud = CloudAggregator(config, tmp_path)
        opened = OpenRound(Ordered.of([("a", Progress(Steps(4, 0, 8), 5))]))
        cloud.coordinator.state = replace(cloud.coordinator.state, open=opened)
        said: list[str] = []
        cloud.driver.do = lambda command: said.append(getattr(command, "reason", ""))  # type: ignore[assignment,method-assign]
        header = UpdateHeader(round=1, device="a", side="edge", scaling=scaling)
        cloud.host.update_received(header)
        cloud.records._file.close()
        cloud.journal.close()
        return said

    assert asyncio.run(receive(4.0)) == []
    said = asyncio.run(receive(2.0))
    assert said[0].startswith("adapter of device a: scaled by 2; alpha / rank is 4")


# -- FFA-LoRA --------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("codec", ["none", "int8 | zstd"])
def test_a_frozen_a_never_moves_and_never_travels_up(tmp_path: Path, codec: str) -> None:
    outcomes = {}
    for strategy in ("fedavg", "ffa_lora"):
        folder = tmp_path / strategy
        folder.mkdir()
        values = settings(
            tiny("bert"),
            run={"topology": "u_shaped"},
            model={"task": "sequence_classification", "labels": CLASSES},
            training={"weight_decay": 0.1},
            aggregation={"strategy": strategy},
            codec={"adapter": codec},
        )
        values["devices"] = [
            device("a", classified(tmp_path / "a.jsonl", 1), 1, tail_layers=1),
            device("b", classified(tmp_path / "b.jsonl", 2, 20), 2),
        ]
        outcomes[strategy] = finished(played(folder, values))
    outcome = outcomes["ffa_lora"]
    assert not outcome.summary["faults"]
    first, last = adapter(outcome, "adapters/round-0000"), adapter(outcome)
    frozen = [name for name in first if is_lora_a(name)]
    assert_same_bits({n: last[n] for n in frozen}, {n: first[n] for n in frozen})
    moved = {name for name in first if not np.array_equal(first[name], last[name])}
    assert moved == first.keys() - set(frozen)
    assert adapter_traffic(outcome) < adapter_traffic(outcomes["fedavg"])


# -- FedProx ---------------------------------------------------------------------------------------


@dataclass
class ProximalReference(Reference):
    """Plain training that is pulled back to where its round began."""

    held: list[torch.Tensor] = field(default_factory=list)

    def change_gradients(self, trained: list[torch.nn.Parameter], step: int) -> None:
        if step % (self.config.training.local_steps or 1) == 0:
            self.held = [p.detach().clone() for p in trained]
        for parameter, held in zip(trained, self.held, strict=True):
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach() - held, alpha=self.config.aggregation.mu)


def proximal(folder: Path, mu: float, topology: str, **training: Any) -> Outcome:
    values = settings(
        tiny("llama"),
        run={"topology": topology},
        training=training,
        aggregation={"strategy": "fedprox", "mu": mu},
    )
    values["devices"] = [device("a", completions(folder / "train.jsonl", 1), 1)]
    return finished(played(folder, values))


@pytest.mark.process
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_a_split_proximal_run_equals_the_unsplit_one_bit_for_bit(
    tmp_path: Path, topology: str
) -> None:
    outcome = proximal(tmp_path, 0.5, topology)
    config = load_run(outcome.folder / "config.toml")
    found = adapter(outcome)
    assert_same_bits(found, ProximalReference(outcome, config).train("a"))
    plain = Reference(outcome, config).train("a")
    assert any(not np.array_equal(found[name], plain[name]) for name in found)


@pytest.mark.process
def test_the_proximal_term_is_clipped_with_the_rest(tmp_path: Path) -> None:
    outcome = proximal(tmp_path, 5.0, "vanilla", max_grad_norm=0.5, micro_batches=2)
    config = load_run(outcome.folder / "config.toml")
    found, wanted = adapter(outcome), ProximalReference(outcome, config).train("a")
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=2e-5, err_msg=name)


def test_moments_end_with_the_round_where_components_rotate() -> None:
    for strategy, kept in (("fedavg", True), ("flexlora", False), ("flora", False)):
        weight = torch.nn.Parameter(torch.ones(3))
        options = AggregationSettings(strategy=strategy)
        optimizer = Optimizer({"w": weight}, TrainingSettings(), options)
        optimizer.begin_round()
        weight.grad = torch.ones(3)
        optimizer.step(0, 10)
        assert optimizer._adamw is not None
        assert optimizer._adamw.state
        optimizer.begin_round()
        assert bool(optimizer._adamw.state) is kept
