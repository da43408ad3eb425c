"""What is wrong with the data is said before anything is started."""

import json
from pathlib import Path
from typing import Any

import pytest

from sfl.cli.launch import run as launch
from sfl.config import DataSettings, RunConfig
from sfl.data import targets
from sfl.data.examine import examine
from sfl.data.load import load_rows
from sfl.data.sources import sources
from sfl.data.unread import check_all_read
from sfl.errors import DataError
from tests.house.paths import MODEL


def config(folder: Path, content: str, name: str = "a.jsonl", **sections: Any) -> RunConfig:
    (folder / name).write_text(content)
    values: dict[str, Any] = {
        "run": {"output_dir": str(folder / "runs")},
        "model": {"path": str(MODEL), "max_length": 32},
        "devices": [{"name": "a"}, {"name": "b"}],
        "data": {"train": str(folder / name)},
    }
    for section, changes in sections.items():
        values[section] = changes if isinstance(changes, list) else values[section] | changes
    return RunConfig.model_validate(values)


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


PAIR = {"prompt": "a", "completion": "b"}
CLASSES = {"task": "sequence_classification", "labels": ["off", "on"]}


def test_sound_data_are_counted(tmp_path: Path) -> None:
    found = examine(config(tmp_path, lines(*[PAIR] * 8)).settings)
    assert (found.files, found.rows) == (1, 8)


@pytest.mark.parametrize(
    ("content", "sections", "match"),
    [
        (lines(*[PAIR] * 7, {"prompt": "a"}), {}, "line 8 has no such field"),
        (lines(*[PAIR] * 7, {"prompt": 1, "completion": "b"}), {}, "line 8 the field is an int"),
        (lines(*[PAIR] * 3), {}, "none of which can be held out"),
        (lines(PAIR), {}, "leaves device b without a row"),
        (
            lines(*[{"text": "x", "label": "on"}] * 7, {"text": "x", "label": "onn"}),
            {"model": CLASSES},
            "line 8 has label 'onn'.*Did you mean 'on'",
        ),
        (lines(*[PAIR] * 8), {"data": {"eval": "@/a.jsonl"}}, "the very rows of data.train"),
        (lines(*[PAIR] * 8), {"data": {"partition": "dirichlet"}}, "data.label_field = 'label'"),
        (lines(*[{"messages": "x"}] * 8), {}, "not a list of messages"),
        (
            lines(*[{"messages": [{"role": "user", "content": "x"}]}] * 8),
            {},
            "none of its 8 rows has anything to score. A conversation needs an answer",
        ),
        (lines(*[{"messages": []}] * 8), {}, "has anything to score"),
        (lines(*[PAIR] * 8), {"data": {"eval": "./nowhere"}}, "no such file"),
        (lines(*[PAIR] * 8), {"data": {"eval_split": "test"}}, "has no splits"),
    ],
)
def test_what_a_device_would_stop_at_is_found(
    tmp_path: Path, content: str, sections: dict[str, Any], match: str
) -> None:
    changes = json.loads(json.dumps(sections).replace("@", str(tmp_path)))
    with pytest.raises(DataError, match=match):
        examine(config(tmp_path, content, **changes).settings)


def test_a_file_without_a_header_starts_nothing(tmp_path: Path) -> None:
    content = "a stirring tale\t1\nleft over\t0\n" * 4
    run = config(tmp_path, content, "sst.tsv", model=CLASSES)
    with pytest.raises(DataError, match=r"Line 1 of the file was taken for its header"):
        launch.run_on_this_machine(run, lambda status: None, lambda folder: None)
    assert not (tmp_path / "runs").exists()
    run = config(tmp_path, content, "sst.tsv", model=CLASSES, data={"columns": ["text", "label"]})
    assert examine(run.settings).rows == 8


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_file_that_one_device_holds_out_and_another_trains_on_is_checked_for_both(
    tmp_path: Path, first: str
) -> None:
    (tmp_path / "t.jsonl").write_text(lines(*[PAIR] * 8))
    one = str(tmp_path / "a.jsonl")
    held = {"name": "a", "train": str(tmp_path / "t.jsonl"), "eval": one}
    alone = {"name": "b", "train": one}
    devices = [held, alone] if first == "a" else [alone, held]
    found = config(tmp_path, lines(PAIR), devices=devices, data={"train": None})
    with pytest.raises(DataError, match="none of which can be held out"):
        examine(found.settings)  # b has a single row


def test_all_devices_have_one_layout(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(lines(*[{"text": "x"}] * 4))
    devices = [{"name": "a"}, {"name": "b", "train": str(tmp_path / "b.jsonl")}]
    run = config(tmp_path, lines(*[PAIR] * 8), devices=devices)
    with pytest.raises(DataError, match=r"laid out as 'text', those of data.train as 'completion'"):
        examine(run.settings)


def dataset(folder: Path) -> str:
    """A folder of a file a split, which is a dataset."""
    for split in ("train", "test"):
        (folder / "set").mkdir(exist_ok=True)
        (folder / "set" / f"{split}.jsonl").write_text(lines(*[PAIR | {"prompt": split}] * 8))
    return str(folder / "set")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(*[PAIR] * 8)),
        ("a.csv", "prompt,completion\n" + "a,b\n" * 8),
        ("a.txt", "a text\n" * 8),
    ],
)
@pytest.mark.parametrize(
    ("setting", "value", "match"),
    [
        (
            "split",
            "tran",
            r"data.split = 'tran': nothing reads it: .*Did you mean 'train'",
        ),
        ("subset", "x", r"data.subset = 'x': nothing reads it: .* is not a dataset. Leave it out"),
        ("eval_split", "test", r"data.eval_split = 'test': nothing reads it: data.eval "),
        ("delimiter", ";", r"data.delimiter = ';': nothing reads it: .* is not a CSV or TSV file"),
        ("quoting", "none", "data.quoting = 'none': nothing reads it"),
        (
            "columns",
            ["prompt", "completion"],
            r"data.columns = \['prompt', 'compl.*nothing reads",
        ),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(
    tmp_path: Path, name: str, content: str, setting: str, value: Any, match: str
) -> None:
    data: dict[str, Any] = {setting: value}
    if setting == "eval_split":
        (tmp_path / f"eval{name}").write_text(content)
        data["eval"] = str(tmp_path / f"eval{name}")
    run = config(tmp_path, content, name, data=data)
    if name == "a.csv" and setting in ("delimiter", "quoting", "columns"):
        check_all_read(run.settings)
        return
    with pytest.raises(DataError, match=match):
        examine(run.settings)


def test_a_setting_that_one_of_several_sources_reads_is_let_be(tmp_path: Path) -> None:
    devices = [{"name": "a", "train": dataset(tmp_path)}, {"name": "b"}]
    run = config(tmp_path, lines(*[PAIR] * 8), devices=devices, data={"split": "test"})
    assert examine(run.settings).rows == 16
    # And where the data of one device are named on its own machine, nothing is known.
    run = config(tmp_path, "", devices=[{"name": "a"}], data={"split": "tran", "train": None})
    check_all_read(run.settings)


def test_a_folder_has_no_file_format(tmp_path: Path) -> None:
    data = {"train": dataset(tmp_path), "format": "csv"}
    with pytest.raises(DataError, match=r"data.format = 'csv': .* is not a file"):
        examine(config(tmp_path, "", data=data).settings)


@pytest.mark.parametrize("key", ["split", "subset"])
@pytest.mark.parametrize("own", [True, False])
def test_a_devices_own_setting_that_nothing_reads_is_refused(
    tmp_path: Path, key: str, own: bool
) -> None:
    train = {"train": str(tmp_path / "a.jsonl")} if own else {}
    run = config(tmp_path, lines(*[PAIR] * 8), devices=[{"name": "a", key: "tran", **train}])
    why = "devices.a.train is a file" if own else "it has no data file of its own"
    with pytest.raises(DataError, match=rf"devices.a.{key} = 'tran': nothing reads it: {why}"):
        sources(run.device("a"), "a", run.settings)


def test_a_mistyped_split_of_a_dataset_has_its_nearest_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such split as 'tset'.*Did you mean 'test'\?"):
        load_rows(dataset(tmp_path), DataSettings(split="tset"))


CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
ALPACA = {"instruction": "say it", "output": "it"}


@pytest.mark.parametrize("row", [PAIR, ALPACA, CHAT, {"text": "a text of some words"}])
def test_rows_that_leave_no_target_are_found_before_the_start(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    """The model's tokenizer puts one token before a text: of two there is one to score."""
    for length, fits in ((1, False), (2, True)):
        sections = {"model": {"max_length": length}}
        run = config(tmp_path, lines(*[row] * 8), **sections)
        if fits:
            examine(run.settings, MODEL)
            continue
        with pytest.raises(DataError, match=r"max_length = 1: none of the \d rows .* device a"):
            examine(run.settings, MODEL)


def test_no_tokenizer_is_loaded_where_any_text_leaves_a_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "load_tokenizer", None)
    examine(config(tmp_path, lines(*[PAIR] * 8)).settings, MODEL)


def test_what_would_take_long_to_encode_is_left_to_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(tmp_path, lines(*[PAIR] * 8), model={"max_length": 1})
    monkeypatch.setattr(targets, "MOST_ROWS", 0)
    examine(run.settings, MODEL)
    monkeypatch.setattr(targets, "MOST_ROWS", 1000)
    monkeypatch.setattr(targets, "MOST_CHARACTERS", 1)
    examine(run.settings, MODEL)
