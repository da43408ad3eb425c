"""Held-out scores: when they are taken, on what, through which codec, and what they say of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfl.codec.pipeline import decode, parse
from sfl.config import EvaluationSettings, RunSettings, load_run
from sfl.config.codec import AUTO_CODECS, RoleCodecs
from sfl.errors import ConfigError, ProtocolError
from sfl.report.journal import JournalReader
from sfl.report.projection import RunProjection
from sfl.report.records import RoundRecord, SampleScore, read_records
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.transport.device.stream_codecs import StreamCodecs
from sfl.transport.frames.words import EXTENTS, from_assignment, to_assignment
from sfl.v1 import edge_pb2
from tests.house.federation import finished
from tests.house.fleets import completions, device, settings, tiny
from tests.house.twin import played


@pytest.mark.parametrize(
    ("every", "rounds", "due"),
    [
        (1, 3, ["all", "sample", "sample", "all"]),
        (2, 4, ["all", "none", "sample", "none", "all"]),
        (2, 5, ["all", "none", "sample", "none", "sample", "all"]),
        (9, 2, ["all", "none", "all"]),
    ],
)
def test_which_adapters_are_evaluated(every: int, rounds: int, due: list[str]) -> None:
    options = EvaluationSettings(every=every)
    assert [options.extent(adapter, rounds) for adapter in range(rounds + 1)] == due


def test_an_extent_survives_the_wire_and_an_unknown_one_is_refused() -> None:
    for extent, number in EXTENTS.items():
        said = to_assignment(assign(run_settings(), EdgeBase(3), "a", 2))
        said.evaluate = number
        wire = edge_pb2.Assignment.FromString(said.SerializeToString())
        assert from_assignment(wire).evaluate == extent
    strange = edge_pb2.Assignment.FromString(b"\x08\x02\x10\x07")
    with pytest.raises(ProtocolError, match="round 2: evaluation 7 is not known"):
        from_assignment(strange)


def test_the_setting_that_was_replaced_is_an_error_that_names_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[model]\npath = "m"\n[data]\nmax_eval_examples = 3\n[[devices]]\nname="a"\n')
    with pytest.raises(ConfigError, match=r"unknown key.*evaluation\.max_examples"):
        load_run(path)


# -- the codec of evaluations --------------------------------------------------------------------


def run_settings(**codec: str) -> RunSettings:
    return RunSettings.model_validate(
        {"model": {"path": "m"}, "codec": codec, "devices": [{"name": "a"}]}
    )


@pytest.mark.parametrize("largest", [7e4, 1e20, 3e38])
def test_no_codec_that_is_chosen_for_a_user_has_a_largest_value(largest: float) -> None:
    chosen = {*AUTO_CODECS}
    for activation in ("compact", "sft", "extreme", "int8", "none"):
        chosen.add(
            run_settings(activation=activation, gradient=activation).codecs("a", 1).evaluation
        )
    chosen |= {*run_settings().codecs("a", 1).model_dump().values()}
    rows = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    rows[2, 5] = largest
    for spec in chosen:
        codec = parse(spec).without_context()
        arrived = decode(codec.encode(rows))
        assert arrived[2, 5] == pytest.approx(largest, rel=0.01), spec


def test_exact_training_is_evaluated_exactly_and_any_other_finely() -> None:
    assert run_settings(activation="none", gradient="int8").codecs("a", 1).evaluation == "none"
    assert run_settings(activation="zstd", gradient="int8").codecs("a", 1).evaluation == "none"
    assert run_settings().codecs("a", 1).evaluation == "fine"
    assert run_settings(evaluation="fp16").codecs("a", 1).evaluation == "fp16"


def test_a_value_too_large_for_a_codec_names_the_setting_and_a_way_out() -> None:
    own = RoleCodecs(
        activation="compact", gradient="none", hidden="none", tail_gradient="none",
        evaluation="fp16",
    )  # fmt: skip
    end = StreamCodecs("device", "d", 0, True)
    end.begin_round(own, 1)
    key = Key(Purpose.EVALUATION, 1, 0, 0)
    message = TensorMessage(Kind.ACTIVATION, key, 1, (2,), torch.full((2, 4), 7e4))
    words = r"codec\.evaluation: codec fp16: a value of 70000 is beyond 65504.*fine"
    with pytest.raises(ProtocolError, match=words):
        end.encode(message)
    with pytest.raises(ProtocolError, match=r"codec\.evaluation: .*NaN or infinite"):
        end.encode(replace(message, rows=torch.full((2, 4), float("nan"))))


# -- a run ----------------------------------------------------------------------------------------


def large_gemma(folder: Path) -> Path:
    """Gemma 3 with one channel whose values exceed what fp16 holds, as real checkpoints have."""
    model = folder / "gemma"
    shutil.copytree(tiny("gemma3_text"), model)
    weights = load_file(model / "model.safetensors")
    for name, value in weights.items():
        if name.endswith("post_feedforward_layernorm.weight"):
            value[3] = 60000.0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


def scored(records: list[RoundRecord], device: str) -> dict[int, tuple[int, int]]:
    """Round -> examples evaluated, and those that rounds are compared by."""
    return {
        record.round: (record.eval_examples, record.on_sample.eval_examples)
        for record in records
        if record.device == device and record.eval_targets
    }


@pytest.mark.process
def test_a_run_evaluates_when_it_is_due_and_says_so(tmp_path: Path) -> None:
    values: dict[str, Any] = settings(large_gemma(tmp_path))
    del values["codec"]  # the defaults take whatever a family's values are
    values["run"] = {"rounds": 5}
    values["evaluation"] = {"max_examples": 3}
    values["devices"] = [
        device(name, completions(tmp_path / f"{name}.jsonl", seed, 20), 1)
        for name, seed in (("a", 1), ("b", 2))
    ]
    outcome = finished(played(tmp_path, values))
    records = [
        r for r in read_records(outcome.folder / "metrics.jsonl") if isinstance(r, RoundRecord)
    ]
    for name in ("a", "b"):
        assert scored(records, name) == {0: (6, 3), 2: (3, 3), 4: (3, 3), 5: (6, 3)}
        assert {r.round for r in records if r.device == name} == set(range(6))
    summary = outcome.summary
    assert not summary["faults"] and summary["failure"] is None
    assert summary["eval_loss_before"] is not None and summary["eval_loss_after"] is not None
    losses = {n: sum(r.on_sample.eval_loss_sum for r in records if r.round == n) for n in (2, 4, 5)}
    assert summary["best_round"] == min(losses, key=lambda n: losses[n])
    # What a device's statistics show is said to be of the adapter that it was taken of.
    shown = {r.round: r.snapshot.eval_round for r in records if r.device == "a"}
    assert shown == {0: 0, 1: 0, 2: 2, 3: 2, 4: 4, 5: 5}
    report = (outcome.folder / "report.html").read_text()
    assert "those of rounds 0, 2, 4, 5" in report and "same 6 examples" in report
    assert "all 12" in report
    # The journal's events alone tell the same, in the same order.
    journal = JournalReader(outcome.folder)
    told = RunProjection.of(journal.entries()).records
    assert [r for r in told if isinstance(r, RoundRecord)] == records
    journal.close()


def test_a_sample_that_is_not_finite_reads_back(tmp_path: Path) -> None:
    from sfl.report.records import RecordFile
    from tests.house.report_sample import sample_records

    (record, *_) = [r for r in sample_records() if isinstance(r, RoundRecord)]
    record = replace(record, sample=SampleScore(float("nan"), 4, 1, 2))
    with RecordFile(tmp_path / "metrics.jsonl") as file:
        file.append(record)
    (read,) = read_records(tmp_path / "metrics.jsonl")
    assert isinstance(read, RoundRecord) and read.on_sample.eval_examples == 2
    assert read.on_sample.eval_loss != read.on_sample.eval_loss
