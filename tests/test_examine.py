"""What is wrong with the data is said before anything is started."""

import json
from pathlib import Path
from typing import Any

import pytest

from sfl.config import RunConfig
from sfl.data.examine import examine
from sfl.errors import DataError
from sfl.launch import run as launch

MODEL = Path(__file__).parents[1] / "examples" / "quickstart" / "model"


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


def test_all_devices_have_one_layout(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(lines(*[{"text": "x"}] * 4))
    devices = [{"name": "a"}, {"name": "b", "train": str(tmp_path / "b.jsonl")}]
    run = config(tmp_path, lines(*[PAIR] * 8), devices=devices)
    with pytest.raises(DataError, match=r"laid out as 'text', those of data.train as 'completion'"):
        examine(run.settings)
