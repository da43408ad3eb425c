"""FLoRA: base updates against dense float64 sums, bases that take them, nodes that are late."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load, load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from cloud_aggregator.base_updates import BaseUpdates
from sfl.adapters import folding
from sfl.adapters.base_updates import as_one_adapter
from sfl.adapters.folding import fold
from sfl.adapters.initial import fresh_lora
from sfl.adapters.names import PREFIX, is_lora_a, is_lora_b, lora_b_of, lora_names
from sfl.adapters.rank import shapes_at_rank
from sfl.adapters.targets import Target
from sfl.aggregation.contribution import verify
from sfl.aggregation.examine import not_finite
from sfl.cli.model import evaluate_model, load_model
from sfl.config import DeviceConfig, EdgeConfig, ModelSettings, load_run
from sfl.data import load_tokenizer, prepare
from sfl.data.batches import Sampler, collate
from sfl.errors import ConfigError, ProtocolError
from sfl.report.conclusion import drop_rounds
from sfl.report.records import RoundRecord, read_records
from sfl.rounds.values import Score
from sfl.stage.base import settle
from sfl.stage.optimizer import learning_rate_factor
from tests.house.adapters import (
    ALPHA,
    LAYERS,
    SAVED,
    Adapter,
    adapter,
    fresh,
    same_bits,
    spool,
    strategy,
    update,
)
from tests.house.federation import Outcome, finished
from tests.house.fleets import (
    CLASSES,
    classified,
    completions,
    fleet,
    of_unequal_ranks,
    settings,
    tiny,
)
from tests.house.nodes import ByHand
from tests.house.reference import Reference
from tests.house.reference import adapter as adapter_of
from tests.house.twin import played
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("quiet_peft")

RANKS = (2, 4, 6)
A_END = ".lora_A.weight"


def rounds_of(folder: Path, count: int) -> tuple[list[Path], dict[str, np.ndarray], Adapter]:
    """Base updates of so many rounds as files, each layer's dense float64 sum, and the last's."""
    dense = {layer: np.zeros(shape) for layer, shape in LAYERS.items()}
    files, current = [], fresh()
    for number in range(count):
        adapters = [adapter(10 * number + k, rank) for k, rank in enumerate(RANKS)]
        parts = [spool(folder, f"d{k}", v, 3 * k + 1) for k, v in enumerate(adapters)]
        server = strategy("flora")
        for part in parts:
            verify(part, server.shapes(part, current))
        current = server.aggregate(parts, current)
        total = sum(part.num_examples for part in parts)
        for layer in LAYERS:
            for part, values, rank in zip(parts, adapters, RANKS, strict=True):
                share = part.num_examples / total
                dense[layer] += share * update(values, layer, ALPHA / rank)
        files.append(folder / f"update-{number}.safetensors")
        save_file(server.folded(current), files[-1])
    return files, dense, current


def test_a_base_update_is_the_weighted_sum_of_products(tmp_path: Path) -> None:
    _, dense, merged = rounds_of(tmp_path, 1)
    assert list(merged) == sorted(merged)
    for layer, (outputs, inputs) in LAYERS.items():
        a, b = (merged[name] for name in lora_names(layer))
        assert (a.shape, b.shape) == ((12, inputs), (outputs, 12))
        np.testing.assert_allclose(update(merged, layer, 1.0), dense[layer], rtol=1e-5, atol=1e-5)
    adapters = [adapter(k, rank) for k, rank in enumerate(RANKS)]
    weights = np.array([1, 4, 7]) / 12
    for name in SAVED:
        wanted = sum(w * v[name].astype(np.float64) for w, v in zip(weights, adapters, strict=True))
        np.testing.assert_allclose(merged[name], wanted, rtol=1e-6, atol=1e-7)
        parts = [spool(tmp_path, f"d{k}", v, 3 * k + 1) for k, v in enumerate(adapters)]
        equal = [spool(tmp_path, f"e{k}", adapter(k), n) for k, n in enumerate((1, 4, 7))]
        del parts
        assert np.array_equal(
            strategy("flora").aggregate(equal, fresh())[name],
            strategy("fedavg").aggregate(equal, fresh())[name],
        )


def test_what_float32_cannot_hold_is_found_without_a_warning(tmp_path: Path) -> None:
    values, rank = adapter(0, 2), 2
    assert ALPHA / rank > 1.2
    name = lora_names(next(iter(LAYERS)))[1]
    values[name] = np.full_like(values[name], 3e38)
    merged = strategy("flora").aggregate([spool(tmp_path, "home", values)], fresh())
    assert not_finite(merged) == name


def test_an_update_of_another_rank_is_refused(tmp_path: Path) -> None:
    part = spool(tmp_path, "home", adapter(0, 3))
    server = strategy("flora")
    base_update = server.aggregate([part], fresh())
    verify(part, server.shapes(part, base_update))
    other = spool(tmp_path, "away", adapter(0, 2))
    lying = type(part)("home", 1, other.files, 3, ALPHA / 3)
    with pytest.raises(ProtocolError, match=r"device home: .*lora_A\.weight is \[2, 7\], not \[3"):
        verify(lying, server.shapes(lying, base_update))


# Full ranks are 7 and 5: a sum of 12 is beyond both, two rounds of rank 1 + 2 beyond neither.
@pytest.mark.parametrize(("ranks", "count", "rank"), [(RANKS, 3, 7), ((1, 2), 2, 6), ((1,), 7, 7)])
def test_one_adapter_is_the_sum_of_all_rounds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranks: Sequence[int],
    count: int,
    rank: int,
) -> None:
    monkeypatch.setitem(globals(), "RANKS", ranks)
    files, dense, _ = rounds_of(tmp_path, count)
    whole = as_one_adapter(files)
    assert whole.keys() == {name for layer in LAYERS for name in lora_names(layer)}
    for layer, (outputs, inputs) in LAYERS.items():
        a, b = (whole[name] for name in lora_names(layer))
        assert a.dtype == b.dtype == np.float32
        assert (a.shape, b.shape) == ((rank, inputs), (outputs, rank))
        scale = np.abs(dense[layer]).max()
        np.testing.assert_allclose(update(whole, layer, 1.0), dense[layer], atol=1e-6 * scale)


# -- the base --------------------------------------------------------------------------------------


def targets() -> dict[str, Target]:
    torch.manual_seed(0)
    first, second = nn.Linear(7, 9), Conv1D(5, 12)
    nn.init.normal_(second.weight)
    return {
        "m.layers.0.q": Target("m.layers.0.q", first, 7, 9),
        "m.layers.1.k": Target("m.layers.1.k", second, 12, 5),
    }


def dense_weight(target: Target) -> np.ndarray:
    weight: Any = target.module.weight
    values: np.ndarray = weight.detach().numpy().astype(np.float64)
    return values.T if isinstance(target.module, Conv1D) else values


@pytest.mark.parametrize("piece", [1, 20, 1 << 18])
def test_a_base_takes_the_sum_rounded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(folding, "PIECE_VALUES", piece)
    _, _, base_update = rounds_of(tmp_path, 1)
    layers = targets()
    wanted = {
        name: (dense_weight(target) + update(base_update, name, 1.0)).astype(np.float32)
        for name, target in layers.items()
    }
    fold(list(layers.values()), base_update)
    for name, target in layers.items():
        np.testing.assert_array_equal(dense_weight(target), wanted[name])


def test_a_base_update_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    _, _, base_update = rounds_of(tmp_path, 1)
    layers = targets()
    before = {name: dense_weight(target).copy() for name, target in layers.items()}
    a, b = lora_names("m.layers.1.k")
    spoilt: list[tuple[Mapping[str, np.ndarray], str]] = [
        ({n: v for n, v in base_update.items() if n != b}, r"nothing .* added to m\.layers\.1\.k"),
        (
            {**base_update, a: base_update[a][:3]},
            r"\[5, 12\] x \[3, 12\] .* added to m\.layers\.1\.k",
        ),
        (
            {**base_update, a: np.full_like(base_update[a], np.nan)},
            r"added to m\.layers\.1\.k is not finite",
        ),
    ]
    for values, words in spoilt:
        with pytest.raises(ProtocolError, match=words):
            fold(list(layers.values()), values)
    for name, target in layers.items():
        np.testing.assert_array_equal(dense_weight(target), before[name])


@pytest.mark.parametrize(
    "own",
    [EdgeConfig(quantised="nf4"), EdgeConfig(dtype="bfloat16"), EdgeConfig(dtype="auto")],
)
def test_a_node_whose_base_cannot_take_it_says_so(own: EdgeConfig) -> None:
    model = ModelSettings(path="x")
    field = "quantised" if own.quantised != "none" else "dtype"
    with pytest.raises(ConfigError, match=rf"^edge\.{field} = '{getattr(own, field)}': flora adds"):
        settle(own, model, 1, folds=True)
    device = DeviceConfig(name="a", edge="e", train=Path("t"), **own.model_dump(include={field}))
    with pytest.raises(ConfigError, match=rf"^device\.{field} = .* not quantised"):
        settle(device, model, 1, folds=True)
    assert settle(EdgeConfig(dtype="autocast"), model, 1, folds=True).autocast


# -- a round's own LoRA ----------------------------------------------------------------------------


def test_fresh_lora_is_keyed_by_seed_round_and_name() -> None:
    def drawn(rank: int, seed: int = 3, round_: int = 2) -> Adapter:
        return fresh_lora({n: v.shape for n, v in adapter(0, rank).items()}, seed, round_)

    small, large = drawn(2), drawn(6)
    assert small.keys() == {name for layer in LAYERS for name in lora_names(layer)}
    for name in filter(is_lora_a, large):
        assert np.array_equal(small[name], large[name][:2])
        assert not large[lora_b_of(name)].any()
        bound = 1 / np.sqrt(large[name].shape[1])
        assert 0.5 * bound < np.abs(large[name]).max() <= bound
        for other in (drawn(6, seed=4), drawn(6, round_=3)):
            assert not np.array_equal(other[name], large[name])
    assert same_bits(drawn(6), large)


# -- what the cloud keeps --------------------------------------------------------------------------


def test_each_node_is_sent_what_it_lacks(tmp_path: Path) -> None:
    files, dense, _ = rounds_of(tmp_path, 3)
    base_updates = BaseUpdates(tmp_path / "base_updates")
    edge, old, new = ("edge", "e"), ("device", "old"), ("device", "new")

    def sent(*nodes: Any) -> list[int]:
        return [number for number, _ in base_updates.lacking(nodes)]

    assert base_updates.as_adapter() == ({}, {})
    assert sent(edge, old) == []
    for number, file in enumerate(files[:2], 1):
        base_updates.add(load_file(file))
        assert sent(edge, old) == [number]
    assert sent(edge, old, new) == [1, 2]
    base_updates.add(load_file(files[2]))
    base_updates.joined(old)
    assert sent(edge, new) == [3]
    assert sent(edge, old) == [1, 2, 3]
    base_updates.joined(edge)
    found = [load(payload) for _, payload in base_updates.lacking([edge, new])]
    assert all(same_bits(f, load_file(w)) for f, w in zip(found, files, strict=True))
    values, rank = base_updates.as_adapter()
    assert rank == {"r": 7, "lora_alpha": 7}
    for layer in LAYERS:
        np.testing.assert_allclose(update(values, layer, 1.0), dense[layer], rtol=1e-4, atol=1e-4)
    drop_rounds(tmp_path, every_round=False)
    assert not (tmp_path / "base_updates").exists()


# -- in real processes -----------------------------------------------------------------------------


@dataclass
class FloraReference(Reference):
    """PEFT on one device's batches of a single round, over a base that holds the rounds before."""

    round: int = 1
    before: Adapter = field(default_factory=dict)

    def train_round(self, name: str) -> Adapter:
        """The device's adapter after that round alone, at its own rank."""
        config, options = self.config, self.config.training
        rank, local = config.rank(name), options.local_steps or 0
        model = self._over_base(rank)
        entry, tokenizer = config.device(name), load_tokenizer(Path(config.model.path))
        examples = prepare(entry, name, config, tokenizer).train
        sampler = Sampler(len(examples), options.batch_size, config.run.seed, name)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, weight_decay=options.weight_decay)
        first, total = (self.round - 1) * local, local * config.run.rounds
        for step in range(first, first + local):
            batch = collate([examples[i] for i in sampler.indices(step)], tokenizer.pad_id)
            self.loss(model, batch).backward()
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * learning_rate_factor(options, step, total)
            optimizer.step()
            optimizer.zero_grad()
        return {k: v.numpy() for k, v in get_peft_model_state_dict(model).items()}

    def _over_base(self, rank: int) -> Any:
        lora, values = super().start()
        base = load_model(self.config, None)
        for a in filter(is_lora_a, self.before):
            weight = base.get_parameter(a.removeprefix(PREFIX).replace("lora_A.", ""))
            product = update(self.before, a.removeprefix(PREFIX).removesuffix(A_END), 1.0)
            turned = product.T if lora.fan_in_fan_out else product
            with torch.no_grad():
                weight.copy_(weight.double() + torch.from_numpy(turned.copy()))
        lora.r, lora.inference_mode = rank, False
        shapes = shapes_at_rank(values, rank)
        start = {**values, **self._saved(), **fresh_lora(shapes, self.config.run.seed, self.round)}
        model = get_peft_model(base, lora)
        set_peft_model_state_dict(model, {k: torch.tensor(v) for k, v in start.items()})
        return model.train()

    def _saved(self) -> Adapter:
        return {n: v for n, v in self.before.items() if not is_lora_a(n) and not is_lora_b(n)}


def scores(outcome: Outcome, name: str, data: Mapping[str, Path] | None = None) -> dict[str, Score]:
    """An adapter on each device's held-out examples, PEFT in this process."""
    config = load_run(outcome.folder / "config.toml")
    tokenizer = load_tokenizer(Path(config.model.path))
    model = load_model(config, outcome.folder / name)
    found = {}
    for entry in config.devices:
        own = entry.model_copy(update={"train": data[entry.name]}) if data else entry
        dataset = prepare(own, entry.name, config, tokenizer)
        found[entry.name] = evaluate_model(model, dataset, tokenizer, config)
    return found


def scored(outcome: Outcome, name: str = "adapter") -> float:
    """The same as one loss."""
    found = scores(outcome, name).values()
    return sum(s.loss_sum for s in found) / sum(s.num_targets for s in found)


CASES = [("llama", "u_shaped", 3, 32), ("bert", "vanilla", 2, 28)]
"""Model, topology, rounds, and the last adapter's rank: 14 a round, at most the full one."""


@pytest.mark.process
@pytest.mark.parametrize(("kind", "topology", "rounds", "rank"), CASES)
def test_devices_of_unequal_ranks_train_over_the_sum_of_all_rounds(
    tmp_path: Path, kind: str, topology: str, rounds: int, rank: int
) -> None:
    model, data = {}, completions
    if kind == "bert":
        model, data = {"task": "sequence_classification", "labels": CLASSES}, classified
    values = settings(
        tiny(kind),
        run={"topology": topology, "rounds": rounds},
        model=model,
        lora={"rank": 8, "alpha": 8},
        aggregation={"strategy": "flora"},
    )
    values["devices"] = of_unequal_ranks(tmp_path, data)
    outcome = finished(played(tmp_path, values))
    config, summary = load_run(outcome.folder / "config.toml"), outcome.summary
    assert not summary["faults"]
    examples = {d["name"]: d["num_examples"] for d in summary["devices"]}
    total = sum(examples.values())
    before: Adapter = {}
    for number in (1, 2):
        alone = {
            name: FloraReference(outcome, config, number, before).train_round(name)
            for name in examples
        }
        merged = adapter_of(outcome, f"adapters/round-{number:04d}")
        base_update = load_file(outcome.folder / "base_updates" / f"round-{number:04d}.safetensors")
        assert len(base_update) == 2 * sum(map(is_lora_a, base_update))
        for a in filter(is_lora_a, base_update):
            layer = a.removeprefix(PREFIX).removesuffix(A_END)
            wanted = sum(
                examples[name] / total * update(alone[name], layer, config.scaling(name))
                for name in examples
            )
            scale = np.abs(wanted).max()
            np.testing.assert_allclose(update(base_update, layer, 1.0), wanted, atol=1e-4 * scale)
            wanted = wanted + (update(before, layer, 1.0) if before else 0.0)
            np.testing.assert_allclose(update(merged, layer, 1.0), wanted, atol=1e-4 * scale)
        before = merged
    assert json.loads((outcome.folder / "adapter/adapter_config.json").read_text())["r"] == rank
    assert summary["eval_loss_after"] != summary["eval_loss_before"]
    assert scored(outcome) == pytest.approx(summary["eval_loss_after"], rel=1e-5)
    assert scored(outcome, "adapters/round-0000") == pytest.approx(
        summary["eval_loss_before"], rel=1e-5
    )


@pytest.mark.process
def test_devices_that_come_late_or_miss_a_round_are_in_step_afterwards(tmp_path: Path) -> None:
    # The slow one holds the round open, asleep, while another one comes or goes.
    values = fleet(
        tmp_path,
        run={"rounds": 4, "min_devices": 2},
        training={"local_steps": 30},
        lora={"rank": 8, "alpha": 8},
        aggregation={"strategy": "flora"},
        network={"join_grace": 0.5, "idle_timeout": 300.0, "rejoin_timeout": 2.0},
        evaluation={"every": 1},
    )
    values["model"]["path"] = str(tiny("gpt2"))  # whose weights lie the other way round
    for entry, cut, rank in zip(values["devices"], (1, 2, 0), (2, 4, 8), strict=True):
        entry |= {"cut_layer": cut, "rank": rank}
    values["devices"][0]["link"] = {"delay_ms": 20}
    nodes = ByHand(tmp_path, values)

    def state(name: str) -> str:
        known = {d["name"]: d["state"] for d in nodes.status().get("devices", [])}
        return str(known.get(name, ""))

    def round_begun(number: int) -> bool:
        status = nodes.status()
        return status.get("round", 0) >= number and status["phase"] == "training"

    try:
        slow, leaving = nodes.device(0), nodes.device(1)
        until(lambda: round_begun(2), "round 2")
        slow.send_signal(signal.SIGSTOP)
        late = nodes.device(2)
        until(lambda: state("d1") == "done", "the first devices' second update")
        leaving.kill()
        until(lambda: state("d2") == "ready", "the late device")
        slow.send_signal(signal.SIGCONT)
        until(lambda: round_begun(3), "round 3")
        slow.send_signal(signal.SIGSTOP)
        nodes.device(1)
        until(lambda: state("d1") == "ready", "the device that was gone")
        slow.send_signal(signal.SIGCONT)
        outcome = nodes.outcome()
        assert late.wait(PATIENCE) == 0
    finally:
        nodes.stop()
    assert outcome.code == 0, outcome.output
    assert {fault["node"] for fault in outcome.summary["faults"]} == {"d1", "d2"}
    records = read_records(outcome.folder / "metrics.jsonl")
    evaluated = [r for r in records if isinstance(r, RoundRecord) and r.eval_targets]
    taken = {name: {r.round for r in evaluated if r.device == name} for name in ("d1", "d2")}
    assert taken == {"d1": {0, 1, 3, 4}, "d2": {2, 3, 4}}
    data = {f"d{number}": tmp_path / f"d{number}.jsonl" for number in range(3)}
    for number in range(5):
        wanted = scores(outcome, f"adapters/round-{number:04d}", data)
        for record in evaluated:
            if record.round == number:
                score = wanted[record.device]
                assert record.eval_targets == score.num_targets
                assert record.eval_loss_sum == pytest.approx(score.loss_sum, rel=1e-5)
