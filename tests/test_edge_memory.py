"""An edge's memory budget: what it decides, and what it says where nothing fits."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomli_w
from tiny_models import model_folder, opened

from sfl.config import EdgeConfig, RunSettings, load_run
from sfl.config.size import read_size
from sfl.errors import ConfigError
from sfl.launch.run import budgeted
from sfl.models.edge_budget import EdgeChoice, fit_edge, needs
from sfl.models.folder import ModelFolder, TensorEntry, checkpoint_tensors
from sfl.models.footprint import QUANTISER_BYTES
from sfl.stage.lean import _pieces

ROOT = Path(__file__).resolve().parents[1]


def settings(devices: int = 4, **changes: object) -> RunSettings:
    return RunSettings.model_validate(
        {
            "model": {"path": "m", "max_length": 64},
            "training": {"batch_size": 256},
            "devices": [{"name": f"device-{n}"} for n in range(devices)],
            **changes,
        }
    )


def test_graphs_are_kept_where_they_fit_then_computed_again_then_refused() -> None:
    folder, run = opened("llama"), settings()
    kept = [needs(folder, run, EdgeConfig(), n, recompute=False).total for n in (1, 8)]
    again = [needs(folder, run, EdgeConfig(), n, recompute=True).total for n in (1, 8)]
    assert again[0] < again[1] < kept[0] < kept[1]
    for memory, expected in (
        (None, EdgeChoice(False, 8)),
        (kept[1], EdgeChoice(False, 8)),
        (kept[0], EdgeChoice(False, 1)),
        (kept[0] - 1, EdgeChoice(True, 8)),
        (again[0], EdgeChoice(True, 1)),
    ):
        assert fit_edge(folder, run, EdgeConfig(memory=memory)) == expected
    with pytest.raises(ConfigError, match=r"edge\.memory.* MB at least \(process"):
        fit_edge(folder, run, EdgeConfig(memory=again[0] - 1))
    assert fit_edge(folder, run, EdgeConfig(recompute=True)) == EdgeChoice(True, 8)


def test_what_a_device_adds_is_its_adapter_and_optimizer() -> None:
    folder = opened("llama")
    few, many = (needs(folder, settings(n), EdgeConfig(), 8, False) for n in (2, 10))
    assert many.weights == few.weights and many.activations == few.activations
    assert many.adapter == 5 * few.adapter and many.optimizer == 3 * many.adapter


def test_lean_needs_less_than_the_reference_and_waiting_graphs_cost() -> None:
    folder = opened("llama")
    lean = needs(folder, settings(training={"computation": "lean"}), EdgeConfig(), 8, False)
    plain = needs(folder, settings(training={"computation": "reference"}), EdgeConfig(), 8, False)
    assert lean.activations <= plain.activations
    waiting = settings(run={"topology": "u_shaped"})
    kept = needs(folder, waiting, EdgeConfig(), 8, False).activations
    again = needs(folder, waiting, EdgeConfig(), 8, True).activations
    assert kept > 2 * again


def test_a_quantised_base_needs_its_library_and_one_layer_restored() -> None:
    folder, run = opened("llama"), settings()
    plain, small = (
        needs(folder, run, EdgeConfig(quantised=kind), 8, recompute=False)
        for kind in ("none", "nf4")
    )
    linear = [e for e in checkpoint_entries(folder) if len(e.shape) == 2 and ".layers." in e.name]
    largest = max(entry.shape[0] * entry.shape[1] for entry in linear)
    assert small.base == plain.base + QUANTISER_BYTES
    assert small.activations == plain.activations + 4 * largest
    assert small.weights < plain.weights


def checkpoint_entries(folder: ModelFolder) -> list[TensorEntry]:
    layout = folder.family.layout(folder.config, "causal_lm")
    return list(checkpoint_tensors(folder, layout).values())


@pytest.mark.parametrize("vocab", [1000, 151_936])
def test_a_piece_of_the_logits_is_foretold_as_it_is_taken(
    vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = opened("llama"), settings(training={"batch_size": 256, "computation": "lean"})
    wide = replace(folder, sizes=replace(folder.sizes, vocab_size=vocab))
    model = SimpleNamespace(vocab_size=vocab)
    (first, *_) = _pieces(model, 256 * 64)  # type: ignore[arg-type]
    piece = (first.stop - first.start) * vocab
    with_logits = needs(wide, run, EdgeConfig(), 8, recompute=False).activations
    monkeypatch.setattr("sfl.models.footprint.LOGIT_COPIES", 0)
    without = needs(wide, run, EdgeConfig(), 8, recompute=False).activations
    assert with_logits - without == 3 * 4 * piece


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512_000_000), ("1.5 GiB", 1610612736), ("7k", 7000), ("123", 123), (9, 9)],
)
def test_sizes(text: object, size: int) -> None:
    assert EdgeConfig.model_validate({"memory": text}).memory == size == read_size(text)


@pytest.mark.parametrize("text", ["much", "-1GB", "1TB", "", 0, "0"])
def test_sizes_that_are_none(text: object) -> None:
    with pytest.raises(ValueError, match="memory"):
        EdgeConfig.model_validate({"memory": text})


def run_file(folder: Path, memory: str) -> Path:
    path, data = folder / "run.toml", folder / "train.jsonl"
    data.write_text('{"text": "one two three four five"}\n' * 12)
    content = {
        "model": {"path": str(model_folder("llama")), "max_length": 64},
        "edge": {"memory": memory},
        "data": {"train": str(data)},
        "devices": [{"name": "attic"}],
    }
    path.write_text(tomli_w.dumps(content))
    return path


def test_the_choice_is_in_the_effective_settings(tmp_path: Path) -> None:
    config = load_run(run_file(tmp_path, "2GB"))
    roomy = budgeted(config)
    assert (roomy.edge.recompute, roomy.edge.in_flight) == (False, 8)
    folder = opened("llama")
    tight = needs(folder, config.settings, config.edge, 1, recompute=True).total
    edge = config.edge.model_copy(update={"memory": tight})
    narrow = budgeted(config.model_copy(update={"edge": edge}))
    assert (narrow.edge.recompute, narrow.edge.in_flight) == (True, 1)
    assert budgeted(narrow).edge == narrow.edge  # deciding again changes nothing


def test_a_run_that_does_not_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sfl.cli", "run", str(run_file(tmp_path, "100MB"))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "edge.memory" in done.stderr and "at least" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*"))
