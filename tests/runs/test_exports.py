"""What a run leaves for others: adapters and models that load, with tokenizer, card and classes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer, pipeline

import sfl.cli.app
from sfl.cli.app import app
from sfl.cli.base import open_base
from sfl.cli.export import write_adapter
from sfl.cli.model import evaluate_model, load_model, room_for_answer
from sfl.config import RunConfig, load_run
from sfl.data import held_out_only, load_tokenizer, prepare
from sfl.errors import ConfigError, DataError, DiskError, ModelError, UserError
from sfl.models.hub import hub_name
from sfl.report.card import Base, merged_card, model_card
from sfl.report.summary import RunSummary
from tests.house.federation import Outcome
from tests.house.federation import sfl as sfl_command
from tests.house.files import edit, write_jsonl
from tests.house.named import Runs, copied
from tests.house.paths import MODEL


@pytest.fixture
def classified(runs: Runs) -> Outcome:
    """A finished run over texts of unequal lengths."""
    return runs("classifier")


@pytest.mark.process
def test_a_decoder_without_a_pad_token_is_evaluated_as_the_run_did(classified: Outcome) -> None:
    config = load_run(classified.folder / "config.toml")
    tokenizer = load_tokenizer(Path(config.model.path))
    model = load_model(config, classified.folder / "adapter")
    score = evaluate_model(
        model, prepare(config.devices[0], "a", config, tokenizer), tokenizer, config
    )
    loss = score.loss_sum / score.num_targets
    assert loss == pytest.approx(classified.summary["eval_loss_after"], rel=2e-3)
    assert score.num_correct / score.num_examples == classified.summary["eval_accuracy_after"]


@pytest.mark.process
def test_a_run_is_used_with_its_model_elsewhere(classified: Outcome, tmp_path: Path) -> None:
    classified = copied(classified, tmp_path / "own")
    config = load_run(classified.folder / "config.toml")
    moved = Path(config.model.path).rename(tmp_path / "elsewhere")
    lost = sfl_command("eval", "--run", classified.folder)
    assert lost.returncode == 2
    assert "no such folder" in lost.stderr and "--model PATH" in lost.stderr
    found = sfl_command("eval", "--run", classified.folder, "--model", moved)
    assert found.returncode == 0, found.stderr
    assert f"{classified.summary['eval_loss_after']:.2f}" in found.stdout
    wrong = sfl_command("eval", "--run", classified.folder, "--model", MODEL)
    assert wrong.returncode == 2
    assert "does not fit the model" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "gone.jsonl"], "--data = 'gone.jsonl': no such file"),
        (["--data", "@/pipe"], "is a named pipe (FIFO), not a file"),
        (["--data", "@/text.jsonl"], "it does not fit the run, where data.label_field is 'label'"),
        (["--data", "@/class.jsonl"], "has label 'dim'"),
        (["--data", "@/text.jsonl", "--model", "@/nowhere"], "--model = '@/nowhere': no such fol"),
        (["--data", "@/text.jsonl", "--model", "@/pipe"], "--model = '@/pipe': is a named pipe"),
        (["--data", "@/text.jsonl", "--model", "@"], "--model = '@/config.json'"),
    ],
)
def test_an_error_names_the_option_that_was_given(
    classified: Outcome,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    write_jsonl(tmp_path / "text.jsonl", [{"text": "lamp"}] * 3)
    write_jsonl(tmp_path / "class.jsonl", [{"text": "lamp", "label": "dim"}] * 3)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "config.json").write_text("{")
    given = [argument.replace("@", str(tmp_path)) for argument in arguments]
    with pytest.raises(UserError) as caught:
        app(["eval", "--run", str(classified.folder), *given], standalone_mode=False)
    named = next(option for option in ("--model", "--data") if option in given)
    assert caught.value.field == named
    assert words.replace("@", str(tmp_path)) in str(caught.value)
    assert "device" not in str(caught.value) and "data.label_field." not in caught.value.fix


@pytest.mark.process
def test_a_mistyped_model_is_not_passed_over_by_export(classified: Outcome, tmp_path: Path) -> None:
    given = ["--run", str(classified.folder), "--model", str(tmp_path / "nowhere")]
    with pytest.raises(ModelError, match=r"--model = '.*nowhere': no such folder"):
        app(["export", *given, str(tmp_path / "out")], standalone_mode=False)


def test_rows_without_a_target_are_those_of_the_option(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "lamp", "completion": "on"}] * 3)
    values = {"model": {"path": str(MODEL), "max_length": 1}, "devices": [{"name": "a"}]}
    config = RunConfig.model_validate(values)
    with pytest.raises(DataError) as caught:
        held_out_only(tmp_path / "a.jsonl", config, load_tokenizer(MODEL), "--data")
    assert caught.value.field == "--data"
    assert "where model.max_length is 1: none of the 3 rows of" in caught.value.problem
    assert "device" not in str(caught.value)


@pytest.mark.process
def test_an_exported_classifier_knows_its_classes_and_takes_batches(
    classified: Outcome, tmp_path: Path
) -> None:
    done = sfl_command("export", "--run", classified.folder, "--merge", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "MISSING" not in done.stdout
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["id2label"] == {"0": "off", "1": "on"}
    assert config["label2id"] == {"off": 0, "on": 1}
    assert config["pad_token_id"] == 2
    card = (tmp_path / "merged" / "README.md").read_text()
    front = front_of(card)
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-classification"
    assert "# Model of run t\n" in card and "merged into it" in card
    for part in ("| a | 12 examples, 8 held out |", "off, on", "rank 4", "1 of 1"):
        assert part in card
    assert "PeftModel" not in card
    classify = pipeline("text-classification", model=str(tmp_path / "merged"), device="cpu")
    texts = ["lamp", "lamp heater door kitchen now please"]
    together = classify(texts, batch_size=2)
    for one, text in zip(together, texts, strict=True):
        alone = classify(text)[0]
        assert one["label"] == alone["label"] in ("off", "on")
        assert one["score"] == pytest.approx(alone["score"], rel=1e-4)


@pytest.mark.process
def test_a_base_too_small_for_the_run_is_refused(classified: Outcome, tmp_path: Path) -> None:
    config = load_run(classified.folder / "config.toml")
    small = shutil.copytree(config.model.path, tmp_path / "small")
    edit(small / "config.json", lambda content: content.update(n_positions=32))
    with pytest.raises(ConfigError, match=r"max_length = 64: the model's context is 32"):
        open_base(config, str(small))


def test_an_answer_ends_where_the_context_does() -> None:
    assert room_for_answer("lamp", 60, 64) == 4
    with pytest.raises(ConfigError, match=r"has 64 tokens, and the model's context is 64"):
        room_for_answer("lamp", 64, 64)
    with pytest.raises(ConfigError, match="no token"):
        room_for_answer("", 0, 64)


@pytest.mark.process
@pytest.mark.parametrize("name", ["adapter", "adapter_best", "exported"])
def test_every_adapter_has_its_tokenizer_and_its_card(
    classified: Outcome, tmp_path: Path, name: str
) -> None:
    folder = classified.folder / name
    if name == "exported":
        folder = tmp_path / "with spaces"
        assert sfl_command("export", "--run", classified.folder, folder).returncode == 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        tokenizer("lamp on")["input_ids"]
        == AutoTokenizer.from_pretrained(MODEL)("lamp on")["input_ids"]
    )
    assert (tokenizer.pad_token is not None) == (name == "exported")
    card = (folder / "README.md").read_text()
    front = front_of(card)
    assert "tokenizer = AutoTokenizer.from_pretrained(FOLDER)" in card
    assert front["library_name"] == "peft"
    assert front["pipeline_tag"] == "text-classification"
    assert "base_model" not in front  # a folder of this machine is nobody else's
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == load_run(classified.folder / "config.toml").model.path
    for part in ("| a | 12 examples, 8 held out |", "off, on", "rank 4", "1 of 1", base):
        assert part in card


def front_of(card: str) -> dict[str, Any]:
    """The YAML in front of a card."""
    values: dict[str, Any] = yaml.safe_load(re.match("---\n(.*?)\n---\n", card, re.DOTALL)[1])  # type: ignore[index]
    return values


@pytest.mark.process
def test_a_card_without_a_tokenizer_beside_it_says_where_to_get_it(classified: Outcome) -> None:
    config = load_run(classified.folder / "config.toml")
    summary = RunSummary.read(classified.folder / "summary.json")
    base = Base("org/model", on_hub=True)
    card = model_card(summary, config.settings, base, tokenizer=False)
    assert "tokenizer = AutoTokenizer.from_pretrained('org/model')" in card
    assert "This folder has no tokenizer" in card
    assert front_of(card)["base_model_relation"] == "adapter"
    merged = front_of(merged_card(summary, config.settings, base))
    assert (merged["base_model"], merged["base_model_relation"]) == ("org/model", "finetune")
    assert "base_model:finetune:org/model" in merged["tags"]


@pytest.mark.process
def test_the_hint_finds_a_run_that_lies_elsewhere(runs: Runs) -> None:
    outcome = runs("u_shaped")
    assert f"sfl eval --run t --output-dir {outcome.folder.parent}" in outcome.output


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("/home/me/.cache/huggingface/hub/models--org--m-1/snapshots/0a1b", "org/m-1"),
        ("/home/me/hub/models--gpt2/snapshots/0a1b", "gpt2"),
        ("/home/me/models/org/model", None),
        ("./org/model", None),
        ("tests", None),
        ("../a", None),
    ],
)
def test_a_base_goes_by_its_name_on_the_hub(given: str, name: str | None) -> None:
    assert hub_name(given) == name


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/out/a"), 1, "/out: its disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/out/a"), 1, "/out: its disk is read-only"),
        (MemoryError(), 71, "out of memory"),
    ],
)
def test_a_command_s_full_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    words: str,
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(sfl.cli.app, "app", fails)
    with pytest.raises(SystemExit) as ended:
        sfl.cli.app.main()
    assert ended.value.code == code
    assert f"error: {words}" in capsys.readouterr().err
    monkeypatch.setattr(sfl.cli.app, "app", lambda: {}["a bug"])
    with pytest.raises(KeyError):
        sfl.cli.app.main()


def test_an_adapter_is_copied_with_its_folders_or_the_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter" / "additional_chat_templates").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "additional_chat_templates/rag.jinja"):
        (tmp_path / "adapter" / name).write_text(name)
    text = f'[model]\npath = "{tmp_path / "gone"}"\n[[devices]]\nname = "a"\n'
    (tmp_path / "run.toml").write_text(text)
    config, to = load_run(tmp_path / "run.toml"), tmp_path / "to"
    to.mkdir()
    write_adapter(tmp_path / "adapter", config, None, to)
    assert (to / "additional_chat_templates" / "rag.jinja").read_text().endswith("rag.jinja")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DiskError, match=f"{to}: its disk is full"):
        write_adapter(tmp_path / "adapter", config, None, to)
