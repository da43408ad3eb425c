"""The main job, held to plain PEFT training bit for bit.

`run` is `sfl run`: a cloud, an edge and one or more devices, each a process of its own. `played` is
the same federation in this process; that both leave the same adapter stands in test_twin.
The reference is a PEFT training loop in this process, with the same initial values, batches,
thread count and optimizer.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sfl.cli.model import evaluate_model, load_model
from sfl.config import load_run
from sfl.config.codec import AUTO_CODECS
from sfl.data import load_tokenizer, prepare
from tests.house.federation import Outcome, finished, run, sfl
from tests.house.files import write_jsonl
from tests.house.fleets import CLASSES, classified, completions, device, sentence, settings, tiny
from tests.house.named import Runs
from tests.house.paths import MODEL, STORIES
from tests.house.reference import adapter, adapter_traffic, assert_same_bits, reference
from tests.house.retold import assert_retold
from tests.house.twin import played

pytestmark = [pytest.mark.usefixtures("quiet_peft"), pytest.mark.process]


# -- the reference --------------------------------------------------------------------------------


# -- one device: N rounds are plain training -----------------------------------------------------


CASES = [
    ("llama", "vanilla", 1, 0, {}),
    ("llama", "u_shaped", 1, 1, {}),
    ("llama", "vanilla", 0, 0, {"schedule": "constant"}),
    ("gpt2", "vanilla", 2, 0, {"schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.1}),
    ("gpt2", "u_shaped", 1, 0, {}),
    ("bert", "vanilla", 1, 0, {}),
    ("bert", "u_shaped", 1, 1, {}),
]


@pytest.mark.parametrize(
    ("kind", "topology", "cut_layer", "tail_layers", "training"),
    CASES,
    ids=lambda value: str(value) if not isinstance(value, dict) else "-".join(value) or "plain",
)
def test_rounds_of_one_device_are_plain_training_bit_for_bit(
    tmp_path: Path,
    kind: str,
    topology: str,
    cut_layer: int,
    tail_layers: int,
    training: dict[str, Any],
) -> None:
    model: dict[str, Any] = {}
    data = tmp_path / "train.jsonl"
    if kind == "bert":
        model = {"task": "sequence_classification", "labels": CLASSES}
        classified(data, 1)
    else:
        completions(data, 1, same_length=kind == "gpt2")
    values = settings(tiny(kind), run={"topology": topology}, model=model, training=training)
    values["devices"] = [device("a", data, cut_layer, tail_layers=tail_layers)]
    # Once for each topology in processes, and a family's code alone in its nursery once.
    alone = kind != "llama" and topology == "vanilla"
    real = alone or (kind == "llama" and cut_layer > 0)
    outcome = finished(run(tmp_path, values, alone=alone) if real else played(tmp_path, values))
    assert_same_bits(adapter(outcome), reference(outcome).train("a"))


@pytest.mark.parametrize("model", [STORIES, MODEL], ids=["stories260k", "quickstart"])
def test_real_weights_train_as_in_one_process_bit_for_bit(tmp_path: Path, model: Path) -> None:
    if not model.is_dir():
        pytest.skip(f"{model} is not there")
    rng = random.Random(0)
    names = ["Lily", "Tom", "Ann", "Ben"]
    rows = [
        {
            "prompt": f"{rng.choice(names)} and {rng.choice(names)} went to the ",
            "completion": rng.choice(["park.", "big house.", "sea to play all day."]),
        }
        for _ in range(12)
    ]
    data = write_jsonl(tmp_path / "train.jsonl", rows)
    values = settings(model, model={"max_length": 64})
    values["devices"] = [device("a", data, 2)]
    outcome = finished(played(tmp_path, values))
    assert_same_bits(adapter(outcome), reference(outcome).train("a"))


def test_clipping_and_micro_batches_equal_one_process_to_rounding(tmp_path: Path) -> None:
    data = completions(tmp_path / "train.jsonl", 1)
    training = {"micro_batches": 3, "max_grad_norm": 0.5, "local_steps": 3}
    values = settings(tiny("llama"), training=training)
    values["devices"] = [device("a", data, 1)]
    outcome = finished(played(tmp_path, values))
    found, wanted = adapter(outcome), reference(outcome).train("a")
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_adapters_travel_as_coded_changes(tmp_path: Path, topology: str) -> None:
    outcomes = {}
    for codec in ("none", "none | zstd", "int8", "stochastic(4) | zstd"):
        folder = tmp_path / str(len(outcomes))
        folder.mkdir()
        values = settings(
            tiny("llama"),
            run={"topology": topology, "rounds": 3},
            codec={"adapter": codec},
        )
        values["devices"] = [
            device(name, completions(tmp_path / f"{name}.jsonl", seed), 1)
            for name, seed in (("a", 1), ("b", 2))
        ]
        outcomes[codec] = finished(played(folder, values))
    whole = outcomes["none"]
    assert_same_bits(adapter(whole), adapter(outcomes["none | zstd"]))
    start = adapter(whole, "adapters/round-0000")
    for codec, share in (("int8", 0.05), ("stochastic(4) | zstd", 0.5)):
        found, wanted = adapter(outcomes[codec]), adapter(whole)
        error = sum(float(np.square(found[n] - wanted[n]).sum()) for n in wanted)
        moved = sum(float(np.square(wanted[n] - start[n]).sum()) for n in wanted)
        assert 0 < error < share**2 * moved
        assert adapter_traffic(outcomes[codec]) < adapter_traffic(whole)


@pytest.mark.parametrize(("topology", "codec"), [("vanilla", "compact"), ("u_shaped", "auto")])
def test_a_rehearsal_fixes_what_is_auto_and_changes_nothing_else(
    tmp_path: Path, topology: str, codec: str
) -> None:
    # Clipping, dropout, moments, and codecs that remember: whatever a rehearsal could leave behind.
    values = settings(
        tiny("llama"),
        run={"topology": topology},
        lora={"dropout": 0.1},
        training={"micro_batches": "auto", "max_grad_norm": 0.5, "local_steps": 3},
        codec={"activation": codec, "gradient": codec},
    )
    values["devices"] = [
        device(name, completions(tmp_path / f"{name}.jsonl", seed), cut)
        for name, seed, cut in (("a", 1, 1), ("b", 2, 2))
    ]
    timed = finished(run(tmp_path, values))
    chosen = load_run(timed.folder / "config.toml")
    assert chosen.training.micro_batches in (1, 2, 4)
    assert chosen.codec.activation == chosen.codec.gradient in AUTO_CODECS
    assert "timing steps of 1, 2, 4 micro-batches" in timed.logs()
    assert ("codec: a: " in timed.logs()) == (codec == "auto")
    again = sfl(
        "run", timed.folder / "config.toml", "--set", f"run.output_dir={str(tmp_path)!r}",
        "--set", "run.id=again",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    repeated = Outcome(0, "", tmp_path / "again")
    assert "timing steps" not in repeated.logs()
    assert_same_bits(adapter(timed), adapter(repeated))


# -- three devices -------------------------------------------------------------------------------


@pytest.fixture
def three(runs: Runs) -> Outcome:
    """Three devices with different cuts and amounts of data, interleaved in one edge."""
    return runs("vanilla")


def test_interleaved_devices_average_to_the_mean_of_their_own_runs(three: Outcome) -> None:
    alone = reference(three)
    parts = {entry.name: alone.train(entry.name, rounds=1) for entry in alone.config.devices}
    examples = {d["name"]: d["num_examples"] for d in three.summary["devices"]}
    wanted = {
        name: (
            sum(examples[key] * parts[key][name].astype(np.float64) for key in sorted(parts))
            / sum(examples.values())
        ).astype(np.float32)
        for name in parts["a"]
    }
    assert_same_bits(adapter(three, "adapters/round-0001"), wanted)


def test_the_adapter_loads_into_peft_and_scores_what_the_run_reported(three: Outcome) -> None:
    config, summary = load_run(three.folder / "config.toml"), three.summary
    tokenizer = load_tokenizer(Path(config.model.path))
    for name, key in (("adapter", "eval_loss_after"), ("adapters/round-0000", "eval_loss_before")):
        model = PeftModel.from_pretrained(load_model(config, None), three.folder / name).eval()
        scores = [
            evaluate_model(model, prepare(e, e.name, config, tokenizer), tokenizer, config)
            for e in config.devices
        ]
        loss = sum(s.loss_sum for s in scores) / sum(s.num_targets for s in scores)
        assert loss == pytest.approx(summary[key], rel=1e-5)
    assert (three.folder / "adapter_best" / "adapter_config.json").is_file()


def test_the_effective_config_repeats_the_run_bit_for_bit(three: Outcome, tmp_path: Path) -> None:
    options = [f"run.output_dir={str(tmp_path)!r}", "run.id=again"]
    again = sfl("run", three.folder / "config.toml", "--set", options[0], "--set", options[1])
    assert again.returncode == 0, again.stderr
    assert_same_bits(adapter(three), adapter(Outcome(0, "", tmp_path / "again")))


def test_a_finished_run_can_be_asked_evaluated_and_exported(three: Outcome, tmp_path: Path) -> None:
    config = load_run(three.folder / "config.toml")
    asked = sfl("generate", "--run", three.folder, "w1 w2 w3", "--max-new-tokens", "4")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    assert not asked.stderr.strip()
    scored = sfl("eval", "--run", three.folder)
    assert scored.returncode == 0, scored.stderr
    assert f"{three.summary['eval_loss_after']:.3f}" in scored.stdout
    for options, merged in (((), False), (("--merge",), True)):
        folder = tmp_path / ("merged" if merged else "plain")
        done = sfl("export", "--run", three.folder, folder, *options)
        assert done.returncode == 0, done.stderr
    with_adapter = load_model(config, tmp_path / "plain")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([load_tokenizer(tmp_path / "merged").encode(["w1 w2 w3"])[0]])
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, with_adapter(ids).logits)
    again = sfl("export", "--run", three.folder, tmp_path / "plain")
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_the_journal_alone_tells_what_the_run_wrote(three: Outcome, tmp_path: Path) -> None:
    assert_retold(three.folder, tmp_path / "retold")


def assert_accounted(outcome: Outcome, micro_batches: int) -> None:
    """Each device's compute thread and its edge have all phases of a step, none counted twice."""
    steps = json.loads((outcome.folder / "timeline.json").read_text())
    assert len(steps) == len(outcome.summary["devices"])
    for step in steps:
        own = [span for span in step["spans"] if span["node"] == "device"]
        edge = [span for span in step["spans"] if span["node"] == "edge"]
        thread = [span for span in own if span["lane"] == "compute"]
        assert {span["phase"] for span in thread} >= {"collate", "forward", "wait", "step"}
        for before, after in itertools.pairwise(thread):
            assert before["end"] <= after["begin"] + 1e-5
        assert {span["phase"] for span in edge} >= {"receive", "forward", "send", "step"}
        for phase in ("send", "receive"):
            for spans in (own, edge):
                micros = {span["micro_batch"] for span in spans if span["phase"] == phase}
                assert micros == set(range(micro_batches)), (phase, spans)
    (node,) = outcome.summary["edges"]
    assert node["phases"].keys() >= {"receive", "decode", "wait", "forward", "encode", "send"}


def test_a_step_is_accounted(three: Outcome) -> None:
    assert_accounted(three, 1)


@pytest.mark.alone  # a busy machine takes the core away between two phases, too
def test_nothing_of_a_step_lies_between_its_phases(tmp_path: Path) -> None:
    """But for a tenth."""
    values = settings(tiny("llama"), run={"rounds": 1})
    values["devices"] = [device("d0", completions(tmp_path / "d0.jsonl", 0), 1)]
    (step,) = json.loads((finished(run(tmp_path, values)).folder / "timeline.json").read_text())
    lane = [span for span in step["spans"] if (span["node"], span["lane"]) == ("device", "compute")]
    wall = lane[-1]["end"] - lane[0]["begin"]
    assert sum(span["end"] - span["begin"] for span in lane) >= 0.9 * wall


def test_the_summary_says_what_happened(three: Outcome) -> None:
    summary = three.summary
    assert (summary["run_id"], summary["rounds"], summary["faults"]) == ("t", 2, [])
    assert summary["topology"] == "vanilla"
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    assert 0.0 <= summary["eval_accuracy_after"] <= 1.0
    assert summary["tokens_trained"] > 0
    assert 0 < summary["train_seconds"] < summary["wall_seconds"]
    assert [d["cut_layer"] for d in summary["devices"]] == [0, 1, 2]
    for entry in summary["devices"]:
        for key in (
            "tail_layers",
            "rank",
            "num_examples",
            "train_loss",
            "eval_loss",
            "eval_accuracy",
            "tokens_per_second",
        ):
            assert entry[key] is not None, key
        for key in ("bytes_up", "bytes_down", "bytes_up_raw", "peak_rss_bytes"):
            assert entry[key] > 0, key
        assert sum(entry["bytes_up_by_role"].values()) == entry["bytes_up"]
    # At cut 0 the device has nothing to train: no gradient comes down.
    assert summary["devices"][0]["bytes_down_raw"] == 0
    assert summary["devices"][1]["bytes_down_raw"] > 0
    assert summary["edges"][0]["peak_rss_bytes"] > summary["cloud"]["peak_rss_bytes"] > 0
    assert (three.folder / "report.html").stat().st_size > 10_000
    assert not (three.folder / "spool").exists()


# -- what an edge may be told ----------------------------------------------------------------------


def test_what_an_edge_is_told_changes_no_bit_and_batching_none_beyond_rounding(
    tmp_path: Path,
) -> None:
    told = {
        "order": "longest_tail",
        "recompute": True,
        "resident_adapters": 1,
        "swap_dir": str(tmp_path / "swapped"),
        "in_flight": 2,
    }
    outcomes = {}
    for name, own in {"plain": {}, "told": told, "batched": told | {"batch_devices": 2}}.items():
        # With a large epsilon Adam does not blow rounding up where a gradient is next to nothing.
        training = {"computation": "lean", "micro_batches": 2, "local_steps": 5, "eps": 1e-3}
        values = settings(tiny("llama"), training=training, edge=own)
        values["devices"] = [
            device(part, completions(tmp_path / f"{part}.jsonl", seed, same_length=seed < 3), 1)
            for part, seed in (("a", 1), ("b", 2), ("c", 3))
        ]
        (tmp_path / name).mkdir()
        outcomes[name] = finished(played(tmp_path / name, values))
        edge = load_run(outcomes[name].folder / "config.toml").edge
        assert (edge.order, edge.batch_devices, edge.in_flight) == (
            own.get("order", "first_come"),
            own.get("batch_devices", 1),
            own.get("in_flight", 8),
        )
    plain, start = adapter(outcomes["plain"]), adapter(outcomes["plain"], "adapters/round-0000")
    assert_same_bits(adapter(outcomes["told"]), plain)
    batched = adapter(outcomes["batched"])
    error = sum(float(np.square(batched[n] - plain[n]).sum()) for n in plain)
    moved = sum(float(np.square(plain[n] - start[n]).sum()) for n in plain)
    # Nothing here makes two wait at once; tests/transport/test_edge_room.py does: they go together.
    assert error < 1e-8 * moved
    assert list((tmp_path / "swapped").iterdir()) == []  # it was used, and left empty


# -- other tasks and codecs ------------------------------------------------------------------------


def test_a_u_shaped_run_of_a_mixed_fleet_with_codecs(runs: Runs) -> None:
    outcome = runs("u_shaped")
    summary = outcome.summary
    assert not summary["faults"]
    assert summary["reduction_vs_fp32"] > 1.5
    assert summary["eval_accuracy_after"] is not None
    assert [d["tail_layers"] for d in summary["devices"]] == [1, 2]
    assert_accounted(outcome, 2)


def test_plain_text_has_no_accuracy(tmp_path: Path) -> None:
    rng = random.Random(0)
    (tmp_path / "train.txt").write_text("\n".join(sentence(rng, 4, 9) for _ in range(16)))
    values = settings(tiny("llama"), run={"rounds": 1})
    values["devices"] = [device("a", tmp_path / "train.txt", 1)]
    summary = finished(played(tmp_path, values)).summary
    assert summary["eval_accuracy_before"] is None
    assert summary["eval_accuracy_after"] is None
    assert summary["eval_loss_after"] > 0
