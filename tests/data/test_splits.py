"""Splits and subsets of datasets by name, and rows that are never trained and evaluated on."""

from pathlib import Path
from typing import Any

import pytest

from sfl.config import DataSettings, DeviceEntry, ModelSettings, RunSettings
from sfl.data import Dataset, load_rows, load_tokenizer, prepare
from sfl.data.hub import _saved
from sfl.errors import DataError
from tests.house.paths import MODEL


def rows(count: int, tag: str) -> list[dict[str, str]]:
    return [{"text": f"{tag} lamp {k}"} for k in range(count)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`saved`: a DatasetDict; `single`: one saved split; `multi`: two subsets; `plain`: files."""
    import datasets

    top = tmp_path_factory.mktemp("datasets")
    datasets.config.HF_DATASETS_CACHE = top / "cache"
    parts = {"train": rows(12, "a"), "test": rows(4, "b")}
    saved = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()})
    saved.save_to_disk(str(top / "saved"))
    saved.save_to_disk(str(top / "both" / "en"))
    saved["train"].save_to_disk(str(top / "single"))
    for name in ("x", "y"):
        (top / "multi" / name).mkdir(parents=True)
        part = datasets.Dataset.from_list(rows(6, name))
        part.to_parquet(str(top / "multi" / name / "train.parquet"))
    configs = "".join(f"- config_name: {n}\n  data_files: {n}/train.parquet\n" for n in ("x", "y"))
    (top / "multi" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    (top / "plain").mkdir()
    for split, part in parts.items():
        text = "".join(f'{{"text": "{row["text"]}"}}\n' for row in part)
        (top / "plain" / f"{split}.jsonl").write_text(text)
    return top


def read(path: Path, **data: Any) -> list[str]:
    return [row.values["text"] for row in load_rows(path, DataSettings(**data))]


def dataset(entry: dict[str, Any], **data: Any) -> Dataset:
    device = DeviceEntry(name="a", **entry)
    model = ModelSettings(path=str(MODEL), max_length=32)
    settings = RunSettings(model=model, data=DataSettings(**data), devices=(device,))
    return prepare(device, "a", settings, load_tokenizer(MODEL))


@pytest.mark.parametrize("folder", ["saved", "plain"])
def test_splits_by_name(folders: Path, folder: str) -> None:
    assert len(read(folders / folder)) == 12
    assert read(folders / folder, split="test")[0] == "b lamp 0"
    with pytest.raises(DataError, match=r"no such split as 'dev'; it has: (train, test|test, tr)"):
        read(folders / folder, split="dev")


def test_subsets_by_name(folders: Path) -> None:
    assert read(folders / "multi", subset="y")[0] == "y lamp 0"
    assert read(folders / "both", subset="en", split="test")[0] == "b lamp 0"
    with pytest.raises(DataError, match=r"more than one subset: x, y.*data\.subset"):
        read(folders / "multi")
    with pytest.raises(DataError, match=r"no such subset as 'z'; it has: x, y"):
        read(folders / "multi", subset="z")
    with pytest.raises(DataError, match=r"no such split as 'dev'; it has: train"):
        read(folders / "multi", subset="x", split="dev")


def test_a_saved_split_has_no_others(folders: Path) -> None:
    assert len(read(folders / "single")) == 12
    with pytest.raises(DataError, match=r"no such split as 'test'"):
        read(folders / "single", split="test")


def test_a_subset_is_no_path(folders: Path) -> None:
    for subset in ("../saved", str(folders / "saved"), ".."):
        with pytest.raises(DataError):
            read(folders / "multi", subset=subset)


@pytest.mark.parametrize("folder", ["saved", "plain"])
def test_evaluated_on_a_split_of_its_own(folders: Path, folder: str) -> None:
    path = folders / folder
    for entry, data in (
        ({"train": path, "eval": path}, {"eval_split": "test"}),
        ({"train": path, "eval": path, "eval_split": "test"}, {}),
        ({"train": path, "eval_split": "test"}, {}),
        ({"train": path}, {"eval_split": "test"}),
        ({}, {"train": path, "eval_split": "test"}),
        ({}, {"train": path, "eval": path, "eval_split": "test"}),
        ({"train": path, "split": "train", "eval_split": "test"}, {"split": "none", "eval": "x"}),
    ):
        found = dataset(entry, **data)
        assert (len(found.train), len(found.eval), found.notes.repeated) == (12, 4, 0)
        assert found.warnings(32) == []


@pytest.mark.parametrize("folder", ["saved", "plain", "single", "plain/train.jsonl"])
def test_the_same_rows_are_not_named_twice(folders: Path, folder: str) -> None:
    path = folders / folder
    (folders / "link").unlink(missing_ok=True)
    (folders / "link").symlink_to(path)
    for entry, data in (
        ({"train": path, "eval": path}, {}),
        ({}, {"train": path, "eval": path}),
        ({"train": path}, {"eval": path}),
        ({"train": folders / "plain" / ".." / folder, "eval": path}, {}),
    ):
        with pytest.raises(DataError, match=r"the very rows of (data|devices\.a)\.train"):
            dataset(entry, **data)


def test_two_subsets_are_not_the_same_rows(folders: Path) -> None:
    path = folders / "multi"
    found = dataset({"train": path, "subset": "x"}, eval=path, subset="y")
    assert (len(found.train), len(found.eval), found.notes.repeated) == (6, 6, 0)


def test_a_file_has_no_splits(folders: Path) -> None:
    for entry, data in (
        ({"train": folders / "plain" / "train.jsonl", "eval_split": "test"}, {}),
        ({}, {"train": folders / "plain" / "train.jsonl", "eval_split": "test"}),
    ):
        with pytest.raises(DataError, match=r"eval_split = 'test': .* is a file"):
            dataset(entry, **data)


def test_the_same_rows_elsewhere_are_counted(folders: Path, tmp_path: Path) -> None:
    both = tmp_path / "eval.txt"
    both.write_text("a lamp 0\na lamp 3\nc lamp 1\n")
    train = tmp_path / "train.txt"
    train.write_text("".join(row["text"] + "\n" for row in rows(6, "a")))
    found = dataset({"train": train, "eval": both})
    assert found.notes.repeated == 2
    assert any("2 of the held-out" in line for line in found.warnings(32))


def test_both_ends_are_of_one_kind(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"laid out as 'text'.* as 'completion'"):
        dataset({"train": tmp_path / "a.jsonl", "eval": tmp_path / "b.jsonl"})


def test_files_that_were_never_fetched_are_named(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "d" / "train.parquet").write_text(pointer)
    with pytest.raises(DataError, match=r"train.parquet.*Git LFS pointer"):
        read(tmp_path / "d")


# -- folders of plain files -----------------------------------------------------------------------


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for data; what `datasets` keeps goes elsewhere."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.mark.parametrize(
    ("name", "content", "data"),
    [
        ("train.tsv", 'text\tlabel\n"say he\ton\nlamp\toff\nnow"\toff\n', {}),
        ("train.tsv", "lamp\ton\ndoor\toff\n", {"columns": ["text", "label"]}),
        ("train.csv", "text;label\na;on\nb;off\n", {"delimiter": ";"}),
        ("train.csv", "text,label\n007,NA\n1.0,null\n,\n", {}),
        ("train.jsonl", '{"text": "2024-01-01"}\n{"text": "2024-01-02"}\n', {}),
        ("train.jsonl", '{"text": "a"}\n{"text": "b", "x": 1}\n{"text": "c", "x": "y"}\n', {}),
        ("train.txt", "lamp\n\n  door\n", {}),
    ],
)
def test_a_file_is_read_alike_by_itself_and_in_a_folder(
    no_cache: Path, name: str, content: str, data: dict[str, Any]
) -> None:
    (no_cache / name).write_text(content)
    alone = load_rows(no_cache / name, DataSettings(**data))
    inside = load_rows(no_cache, DataSettings(**data))
    assert [row.values for row in inside] == [row.values for row in alone]
    assert inside[0].where == f"{no_cache}, {name}, {alone[0].place}"
    assert [row.headed for row in inside] == [row.headed for row in alone]
    assert not list(no_cache.parent.glob("cache/**/*.arrow"))  # no copy of private rows


def test_parts_of_splits_of_files(no_cache: Path) -> None:
    for split, part in (("train", rows(4, "a")), ("test", rows(2, "b"))):
        lines = ["text", *(row["text"] for row in part), ""]
        (no_cache / f"{split}.csv").write_text("\n".join(lines))
    assert read(no_cache, split="train[1:3]+test") == [
        "a lamp 1",
        "a lamp 2",
        "b lamp 0",
        "b lamp 1",
    ]
    for wrong in ("dev", "train[", "trains[:1]"):
        with pytest.raises(DataError, match=r"no such split as .*; it has: (train, test|test, tr)"):
            read(no_cache, split=wrong)


def test_a_file_of_a_folder_that_is_broken_is_named(no_cache: Path) -> None:
    for content, words in (
        (b'{"text": "a"}\n{"text": }\n', r"train.jsonl: line 2, column 10 is not valid JSON"),
        (b'{"text": "caf\xe9"}\n', r"train.jsonl: not UTF-8 at byte 13, in line 1"),
        ("lamp".encode("utf-16"), r"train.jsonl: is UTF-16"),
    ):
        (no_cache / "train.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=words):
            read(no_cache)


def test_a_folder_that_says_how_it_is_read_is_read_so(no_cache: Path) -> None:
    feature = "{name: label, dtype: {class_label: {names: {'0': 'on', '1': 'off'}}}}"
    features = f"[{{name: text, dtype: string}}, {feature}]"
    (no_cache / "README.md").write_text(f"---\ndataset_info: {{features: {features}}}\n---\n")
    (no_cache / "train.csv").write_text("text,label\na,1\nb,0\n")
    assert [row.values["label"] for row in load_rows(no_cache, DataSettings())] == ["off", "on"]
    data_files = "[{config_name: default, data_files: train.csv, sep: '|'}]"
    (no_cache / "README.md").write_text(f"---\nconfigs: {data_files}\n---\n")
    (no_cache / "train.csv").write_text("text|label\na|on\n")
    assert load_rows(no_cache, DataSettings())[0].values == {"text": "a", "label": "on"}


@pytest.mark.parametrize("note", ["dataset_dict.json", "state.json"])
@pytest.mark.parametrize("content", ["[]", "{}", "{"])
def test_damaged_notes_of_a_saved_dataset_are_one_sentence(
    tmp_path: Path, note: str, content: str
) -> None:
    for name in (note, "dataset_info.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="not a dataset that can be read"):
        read(tmp_path)


@pytest.mark.parametrize("subset", [".", "..", "../both", "a/b"])
def test_a_subset_is_no_way_out_of_its_folder(folders: Path, subset: str) -> None:
    """It comes with the run's settings, and a path never comes from another machine."""
    own = folders / "both" / "en" / "train"
    assert _saved(own, subset) == own
    assert _saved(folders / "both", "en") == folders / "both" / "en"
