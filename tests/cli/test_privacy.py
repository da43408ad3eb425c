"""`sfl privacy`: attacks that must succeed where a token lies open, and fail where nothing does."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from rich.console import Console

from sfl.cli.privacy import Finding, Findings, attacks, experiment, measure, plan
from sfl.cli.privacy.command import read_cuts, sentences, show
from sfl.cli.privacy.crossing import Rows
from sfl.config import load_run
from sfl.errors import ConfigError
from sfl.report.text import percent
from tests.house.federation import sfl
from tests.house.fleets import completions, device, tiny


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the training, which tiny models do with."""
    monkeypatch.setattr(experiment, "STEPS", 60)


def written(folder: Path, **sections: Any) -> Path:
    values: dict[str, Any] = {
        "model": {"path": str(tiny("llama")), "max_length": 24},
        "devices": [
            device("a", completions(folder / "a.jsonl", 1, 30), 0),
            device("b", completions(folder / "b.jsonl", 2, 30), 1),
        ],
        **sections,
    }
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(values))
    return path


def rows(count: int, dimensions: int, seed: int, noise: float) -> tuple[Rows, torch.Tensor]:
    """Rows that are their token's own vector, and noise; the vectors beside them."""
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(40, dimensions, generator=generator)
    generator.manual_seed(seed)
    tokens = torch.randint(40, (count,), generator=generator)
    values = embedded[tokens] + noise * torch.randn(count, dimensions, generator=generator)
    return Rows(values, tokens, (10,) * (count // 10)), embedded


def read(known: Rows, target: Rows, embedded: torch.Tensor, width: int) -> float:
    inverter = attacks.train(known, embedded, width, 200, 0, lambda: None)
    return float((inverter.tokens(target.values) == target.tokens).float().mean())


@pytest.mark.process
@pytest.mark.parametrize("width", [0, attacks.WIDTH])
def test_an_inverter_reads_what_lies_open_and_nothing_else(width: int) -> None:
    (known, embedded), (target, _) = rows(800, 16, 1, 0.1), rows(400, 16, 2, 0.1)
    assert read(known, target, embedded, width) > 0.99
    shuffled = replace(target, tokens=target.tokens[torch.randperm(len(target.tokens))])
    assert read(known, shuffled, embedded, width) < 0.15


@pytest.mark.parametrize("cosine", [False, True])
def test_neighbours_name_tokens_by_their_rows(cosine: bool) -> None:
    (known, _), (target, _) = rows(800, 16, 1, 0.1), rows(400, 16, 2, 0.1)
    assert (attacks.nearest(known, target, cosine, 0) == target.tokens).float().mean() > 0.99
    common = attacks.guess(known, target)
    assert len(set(common.tolist())) == 1


def test_the_first_of_a_sequence_is_no_merit() -> None:
    own, _ = rows(30, 4, 1, 0.0)
    assert own.first.nonzero()[:, 0].tolist() == [0, 10, 20]
    both = own.and_of(own)
    assert both.first.sum() == 6 and len(both.values) == 60


def test_every_cut_and_codec_of_a_run_is_attacked_once(tmp_path: Path) -> None:
    path = written(tmp_path)
    cases = [(c.device, c.cut_layer, c.codec) for c in plan(load_run(path)).cases]
    assert cases == [("a", 0, "none"), ("a", 0, "compact"), ("b", 1, "none"), ("b", 1, "compact")]
    exact = load_run(path, ["codec.activation=zstd", "codec.gradient=none"])
    assert [c.codec for c in plan(exact, (2,)).cases] == ["none"]
    automatic = load_run(path, ["codec.activation=auto", "codec.gradient=auto"])
    assert {c.codec for c in plan(automatic).cases} == {"none", "compact"}


@pytest.mark.process
@pytest.mark.usefixtures("quick")
def test_a_run_is_measured_and_the_same_again(tmp_path: Path) -> None:
    config = load_run(written(tmp_path))
    heard: list[tuple[int, int]] = []
    found = measure(plan(config), lambda what, done, total: heard.append((done, total)))
    bare, coded = found.findings[:2]
    assert bare.cut_layer == 0 and bare.mlp > 0.9 and bare.guess < 0.3
    assert coded.mlp > 0.8, "a codec hides nothing"
    assert all(0.0 <= f.whole <= 1.0 and f.sequences == 27 for f in found.findings)
    assert heard == [(number, 4 * 3 * 60) for number in range(1, 4 * 3 * 60 + 1)]
    assert measure(plan(config, (0,))).findings == found.findings[:2]
    assert "are sent as labels" in " ".join(sentences(found))
    hidden = replace(found, topology="u_shaped")
    assert "are read there" in " ".join(sentences(hidden))


@pytest.mark.parametrize(
    ("topology", "task", "words"),
    [
        ("vanilla", "causal_lm", "completions are sent as labels: run.topology is vanilla"),
        ("three_tier", "causal_lm", "completions are sent as labels: run.topology is three_tier"),
        ("three_tier", "sequence_classification", "classes are sent as labels"),
        ("three_tier_u_shaped", "causal_lm", "Labels stay on the device"),
    ],
)
def test_where_labels_are_sent_is_said(topology: str, task: str, words: str) -> None:
    finding = Finding("a", 1, "none", 100, 1000, *[0.1] * 8)
    found = Findings("m", topology, task, 0, True, (finding,))  # type: ignore[arg-type]
    assert words in " ".join(sentences(found))


@pytest.mark.usefixtures("quick")
def test_one_device_alone_is_attacked_with_text_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path)
    config = load_run(path)
    alone = config.model_copy(update={"devices": config.devices[:1]})
    found = measure(plan(alone))
    assert not found.from_others and found.findings[0].sequences == 13
    assert "of the same device" in sentences(found)[0]


@pytest.mark.process
def test_the_command_prints_json_and_a_wrong_cut_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    done = sfl("privacy", path, "--json", "--cuts", "0", "--set", "codec.activation=none",
               "--set", "codec.gradient=none")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["mlp"] > 0.95 and finding["codec"] == "none"
    done = sfl("privacy", path, "--cuts", "9")
    assert done.returncode == 2 and "--cuts = 9" in done.stderr
    with pytest.raises(ConfigError, match="Write 0,1,2"):
        read_cuts("1,x")


def test_every_number_is_whole_however_narrow_the_terminal() -> None:
    shares = (0.136, 0.991, 0.992, 0.993, 0.994, 0.995, 0.996, 0.997)
    finding = Finding("harbour", 1, "uniform(0.25, dither) | rans", 100, 1000, *shares)
    found = Findings("m", "vanilla", "causal_lm", 0, True, (finding,))
    console = Console(file=io.StringIO(), width=40, highlight=False)
    show(found, console)
    written_out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in written_out
    (row,) = [line for line in written_out.splitlines() if "harbour" in line]
    assert finding.codec in row and row.split()[-8:] == [percent(share) for share in shares]


def test_random_strings_begin_as_the_victims_do(tmp_path: Path) -> None:
    from sfl.data import load_tokenizer

    config = load_run(written(tmp_path))
    text = experiment.Text(config, load_tokenizer(Path(config.model.path)))
    strings = text.random("a", 61)
    assert strings == text.random("a", 61) and len(strings) == 150
    assert {s.input_ids[0] for s in strings} == {text.victims("a")[0].input_ids[0]}
