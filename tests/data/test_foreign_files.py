"""Files that other people and programs wrote: marks, encodings, quotes, headers, class names."""

import csv
import datetime
import io
import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from sfl.config import DataSettings, load_device, load_run
from sfl.data import Row, load_rows
from sfl.data.classes import class_names, name_classes
from sfl.data.labels import class_of
from sfl.data.partition import field_values, partition_rows
from sfl.errors import ConfigError, DataError, UserError
from sfl.node.textfile import NotText, read_text

CLASSES = {"off": 0, "on": 1}


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path, **data: Any) -> list[dict[str, Any]]:
    return [row.values for row in load_rows(path, DataSettings(**data))]


# --- encodings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "on"}\n'),
        ("a.json", '[{"text": "on"}]'),
        ("a.csv", "text\non\n"),
        ("a.tsv", "text\r\non\r\n"),
        ("a.txt", "on"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str, content: str) -> None:
    path = written(tmp_path, name, content.encode("utf-8-sig"))
    assert values(path) == [{"text": "on"}]


def test_a_settings_file_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    run = '[model]\npath = "m"\n[[devices]]\nname = "a"\n'
    assert load_run(written(tmp_path, "r.toml", run.encode("utf-8-sig"))).devices[0].name == "a"
    own = '[device]\nname = "a"\n'
    assert load_device(written(tmp_path, "d.toml", own.encode("utf-8-sig"))).name == "a"
    with pytest.raises(ConfigError, match=r"UTF-16 \(little-endian\), not UTF-8"):
        load_run(written(tmp_path, "w.toml", run.encode("utf-16")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("text\nlamp on".encode("utf-16"), r"is UTF-16 \(little-endian\)"),
        ("\ufefftext\nlamp on".encode("utf-16-be"), r"is UTF-16 \(big-endian\)"),
        ("text\nlamp on\n".encode("utf-16-le"), r"UTF-16 \(little-endian, without a byte"),
        ("text\nlamp on\n".encode("utf-16-be"), r"UTF-16 \(big-endian, without a byte"),
        ("text\nlamp".encode("utf-32"), r"is UTF-32 \(little-endian\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 3\n", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00", "is a gzip file"),
        (b"PK\x03\x04rest", "is a ZIP"),
    ],
)
def test_what_is_no_utf_8_is_named(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_rows(written(tmp_path, name, content), DataSettings(), "devices.a.train")


def test_an_lfs_pointer_in_place_of_parquet_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.parquet", b"version https://git-lfs.github.com/spec/v1\noid s\n")
    with pytest.raises(DataError, match=r"Git LFS pointer.*git lfs pull"):
        load_rows(path, DataSettings())


@pytest.mark.process
@pytest.mark.parametrize("ahead", [0, 5, 8191, 8192, 94_904, (1 << 20) - 1, (1 << 20) + 1])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_bad_byte_is_named_at_its_true_place(tmp_path: Path, ahead: int, end: str) -> None:
    line = "lamp é on" + end
    before = (line.encode() * (ahead // len(line.encode()) + 1))[: max(ahead - 2, 0)]
    before = before.decode("utf-8", "ignore").encode() + end.encode()
    path = written(tmp_path, "a.txt", before + b"caf\xe9,1" + end.encode())
    lines = before.decode().replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
    match = rf"not UTF-8 at byte {len(before) + 3}, in line {lines}; .* Windows-1252"
    with pytest.raises(DataError, match=match):
        load_rows(path, DataSettings())


def test_the_likely_encoding_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "Сегодня хорошая погода, пойдем гулять".encode("cp1251"))
    with pytest.raises(DataError, match="looks like Windows-1251"):
        load_rows(path, DataSettings())
    with pytest.raises(NotText, match="byte 3, in line 1"):
        read_text(written(tmp_path, "cut.txt", "lmp€".encode()[:-1]))


# --- lines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_the_line_that_breaks_is_the_line_named(tmp_path: Path, end: str, last: bool) -> None:
    lines = ['{"a": 1}', "", '{"a": 2}', '{"prompt": "x", ']
    path = written(tmp_path, "a.jsonl", end.join(lines) + end * last)
    with pytest.raises(DataError, match=r"line 4, column \d+ is not valid JSON"):
        load_rows(path, DataSettings())
    rows = ["a,b", "1,2", '"x' + end + 'y",2', "", "1"]
    path = written(tmp_path, "a.csv", end.join(rows) + end * last)
    with pytest.raises(DataError, match="line 6 has 1 columns"):
        load_rows(path, DataSettings())


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85", "\0"])
def test_only_line_ends_end_a_line(tmp_path: Path, mark: str) -> None:
    text = f"one{mark}two"
    for name, content in (
        ("a.txt", f"{text}\nthree"),
        ("a.csv", f"text\n{text}\nthree"),
        ("a.tsv", f"text\n{text}\nthree"),
    ):
        rows = load_rows(written(tmp_path, name, content), DataSettings())
        assert [row.values["text"] for row in rows] == [text, "three"]
        assert rows[1].place == ("line 2" if name == "a.txt" else "line 3")
    line = json.dumps({"text": text}, ensure_ascii=mark in "\0\x0b\x0c\x1c")
    rows = load_rows(written(tmp_path, "a.jsonl", f"{line}\n{line}\n"), DataSettings())
    assert [row.values["text"] for row in rows] == [text, text]


def test_json_beyond_all_bounds_is_an_error_of_its_line(tmp_path: Path) -> None:
    for content in ("[" * 100_000, '{"a": ' * 100_000, '{"a": ' + "9" * 5000 + "}", "\0\0\0"):
        with pytest.raises(DataError, match="line 1"):
            load_rows(written(tmp_path, "a.jsonl", content), DataSettings())
    with pytest.raises(DataError, match="one object a line, or one array"):
        load_rows(written(tmp_path, "b.json", '{\n "a": 1\n}\n'), DataSettings())


# --- columns -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_field_may_be_of_any_length(tmp_path: Path, name: str) -> None:
    limit, text = csv.field_size_limit(), "word " * 60_000
    mark = "," if name == "a.csv" else "\t"
    path = written(tmp_path, name, f"text{mark}label\n{text}{mark}on\n")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(values(path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[{"text": text, "label": "on"}]] * 3
    quoted = written(tmp_path, "q.csv", f'text,label\n"{text}\n""{text}""",on\n')
    assert values(quoted) == [{"text": f'{text}\n"{text}"', "label": "on"}]
    assert csv.field_size_limit() == limit


def test_quotation_marks_in_tsv_are_text(tmp_path: Path) -> None:
    content = 'text\tlabel\n"Turn it on he said\ton\n5" pipe\toff\n"all of it"\ton\nnow"\toff\n'
    path = written(tmp_path, "a.tsv", content)
    texts = ['"Turn it on he said', '5" pipe', '"all of it"', 'now"']
    assert [row["text"] for row in values(path)] == texts
    assert [row["text"] for row in values(path, quoting="none")] == texts
    with pytest.raises(DataError, match=r"line 2: .*closing quotation mark.*data.quoting"):
        values(written(tmp_path, "b.tsv", 'text\tlabel\n"a" b\ton\n'), quoting="minimal")
    with pytest.raises(DataError, match=r"begins a field in line 3 is never closed.*data.quoting"):
        values(written(tmp_path, "a.csv", 'text,label\na,b\n"c,d\ne,f\n'))
    assert values(tmp_path / "a.csv", quoting="none")[1] == {"text": '"c', "label": "d"}
    with pytest.raises(DataError, match=r'data.quoting = "minimal"'):
        values(written(tmp_path, "c.tsv", '"text"\t"label"\n"a"\t"on"\n'))


def test_csv_reads_as_the_standard_library_reads_it(tmp_path: Path) -> None:
    fields = ["", "a", ' "b"', 'say "hi"', "x,y", "two\nlines", "two\r\nlines", '""', '"', "\t"]
    rows = [[one, two] for one in fields for two in fields]
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["one", "two"], *rows])
    assert [list(row.values()) for row in values(path)] == rows


@pytest.mark.process
def test_any_csv_is_read_or_refused_as_the_standard_library_does(tmp_path: Path) -> None:
    chance = random.Random(0)
    sound = 0
    for _ in range(3000):
        text = "".join(chance.choices('ab",\n\r \t', k=chance.randint(1, 14)))
        path = written(tmp_path, "a.csv", "c\n" + text)
        try:
            wanted = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
        except csv.Error:
            wanted = None
        if wanted and all(len(row) == 1 for row in wanted):
            assert [[row["c"]] for row in values(path)] == wanted
            sound += 1
        else:  # broken, empty, or more columns than the header has
            with pytest.raises(DataError):
                values(path)
    assert sound > 500


def test_a_file_without_a_header(tmp_path: Path) -> None:
    path = written(tmp_path, "sst.tsv", "a stirring tale\t1\nleft over\t0\nvisually fine\t1\n")
    rows = load_rows(path, DataSettings(columns=("text", "label")))
    assert [row.values["label"] for row in rows] == ["1", "0", "1"] and rows[0].place == "line 1"
    taken = load_rows(path, DataSettings(partition="dirichlet"))
    with pytest.raises(DataError, match=r"data.label_field = 'label': .*Line 1 .*data.columns"):
        partition_rows(taken, DataSettings(partition="dirichlet"), ["a"], 0)
    with pytest.raises(DataError, match=r"line 1 has 2 columns.*data.columns names 3"):
        load_rows(path, DataSettings(columns=("a", "b", "c")))
    for header in ("Text\tlabel", "sentence\tLabel "):
        path = written(tmp_path, "headed.tsv", f"{header}\nleft over\t0\nx\tlabel\n")
        with pytest.raises(DataError, match="line 1 is a header"):
            load_rows(path, DataSettings(columns=("text", "label")))
    path = written(tmp_path, "later.tsv", "left over\t0\nx\tlabel\n")
    assert len(load_rows(path, DataSettings(columns=("text", "label")))) == 2
    with pytest.raises(ConfigError, match=r"data.columns"):
        load_run(
            written(tmp_path, "r.toml", '[model]\npath = "m"\n[[devices]]\nname = "a"\n'),
            ["data.columns=['a', 'a']"],
        )


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ("text,label\n", "holds no rows, only a header"),
        ("text,label\r\n\r\n", "holds no rows, only a header"),
        ("text,label\na,b\nc\n", "line 3 has 1 columns"),
        ("text,label\na,b,\n", "line 2 has 3 columns"),
    ],
)
def test_empty_and_ragged_files(tmp_path: Path, content: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load_rows(written(tmp_path, "a.csv", content), DataSettings())


def test_one_column_and_a_column_without_a_name(tmp_path: Path) -> None:
    assert values(written(tmp_path, "a.csv", "text\na\n\nb\n")) == [{"text": "a"}, {"text": "b"}]
    path = written(tmp_path, "b.csv", ",text\n0,a\n1,b\n")  # as pandas writes its index
    assert [row["text"] for row in values(path)] == ["a", "b"]


# --- class names and numbers -------------------------------------------------------------------


def parquet(path: Path, rows: list[dict[str, Any]], names: list[str] | None = None) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows)
    if names is not None:
        feature = {"names": names, "_type": "ClassLabel"}
        declared = {"info": {"features": {"label": feature, "text": {"_type": "Value"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(declared)})
    pyarrow.parquet.write_table(table, path)
    return path


def test_parquet_is_read_by_the_class_names_that_it_declares(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": number} for number in (0, 1, 1, -1, None)]
    path = parquet(tmp_path / "a.parquet", rows, ["on", "off"])
    assert [row["label"] for row in values(path)] == ["on", "off", "off", None, None]
    path = parquet(tmp_path / "b.parquet", rows[:3], ["0", "1"])  # say no more than the numbers
    assert [class_of(row, CLASSES, "label") for row in load_rows(path, DataSettings())] == [0, 1, 1]
    path = parquet(tmp_path / "c.parquet", [{"text": "x", "label": 2}], ["on", "off"])
    with pytest.raises(DataError, match="row 1 has label 2, but the file names 2 classes"):
        load_rows(path, DataSettings())


def test_class_names_hold_for_columns_with_gaps_and_within_fields(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": number} for number in (0.0, 1.0, None)]
    path = parquet(tmp_path / "a.parquet", rows, ["on", "off"])
    assert [row["label"] for row in values(path)] == ["on", "off", None]
    label = {"names": ["on", "off"], "_type": "ClassLabel"}
    assert class_names({"answer": {"label": label}, "n": {"_type": "Value"}, "odd": 3}) == {
        "answer.label": ["on", "off"]
    }
    row = {"answer": {"label": 1}}
    assert name_classes(row, {"answer.label": ["on", "off"], "gone.label": ["a"]}, "row 1") == {
        "answer": {"label": "off"}
    }


def test_a_damaged_page_of_parquet_is_one_sentence(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"text": "x", "label": 1}] * 3, None)
    whole = path.read_bytes()
    for place in (4, 8, len(whole) - 9):
        data = bytearray(whole)
        data[place] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(DataError, match="not a Parquet file that can be read") as caught:
            load_rows(path, DataSettings())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", [b"", b"[]", b"{}", b'{"info": 3}', b'{"info": {"features"'])
def test_metadata_of_another_kind_are_no_class_names(tmp_path: Path, metadata: bytes) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"label": 0}])
    table = table.replace_schema_metadata({"huggingface": metadata})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [{"label": 0}]


def test_a_dataset_folder_and_its_parquet_file_give_the_same_labels(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["on", "off"])}
    )
    rows = [{"text": f"lamp {k}", "label": k % 2} for k in range(6)]
    dataset = datasets.Dataset.from_list(rows, features)
    dataset.save_to_disk(str(tmp_path / "folder"))
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    one, other = values(tmp_path / "folder"), values(tmp_path / "a.parquet")
    assert one == other and one[0]["label"] == "on"


@pytest.mark.parametrize(
    ("value", "expected"), [("on", 1), (1, 1), ("1", 1), (1.0, 1), ("0.0", 0), ("off", 0)]
)
def test_labels_whose_meaning_is_certain(value: Any, expected: int) -> None:
    assert class_of(Row({"label": value}, "f", "line 1"), CLASSES, "label") == expected


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (-1, "no label"),
        (None, "no label"),
        (float("nan"), "no label"),
        (True, "Write the name of the class"),
        (0.5, "fix the row"),
        (2, "Numbers count from 0 to 1"),
        ("2", "Numbers count from 0 to 1"),
        ("On ", "Did you mean 'on'"),
        ("of", "Did you mean 'off'"),
        ("", "fix the row"),
        (["on"], "one class"),
    ],
)
def test_other_labels_are_refused_with_what_to_do(value: Any, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        class_of(Row({"label": value}, "f.csv", "line 7"), CLASSES, "label")
    assert "f.csv, line 7" in str(caught.value)


def test_a_number_is_a_name_where_names_are_numbers() -> None:
    stars = {"1": 0, "2": 1, "3": 2}
    assert class_of(Row({"label": 1}, "f", "line 1"), stars, "label") == 0
    assert class_of(Row({"label": 3.0}, "f", "line 1"), stars, "label") == 2
    with pytest.raises(DataError, match="none of the 3"):
        class_of(Row({"label": 0}, "f", "line 1"), stars, "label")


def test_the_wrong_label_comes_before_the_right_ones() -> None:
    many = {f"class {number}": number for number in range(150)}
    with pytest.raises(DataError) as caught:
        class_of(Row({"label": "clas 7"}, "f", "line 1"), many, "label")
    text = str(caught.value)
    assert text.index("'clas 7'") < text.index("class 0") and "and 144 more" in text


# --- fields ------------------------------------------------------------------------------------


def test_values_to_share_out_by_read_as_identifiers(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 5, 1)
    rows = [
        {"day": day, "number": 1.0, "name": b"barn", "at": day.replace(hour=7)},
        {"day": day, "number": None, "name": b"attic", "at": day},
    ]
    loaded = load_rows(parquet(tmp_path / "a.parquet", rows), DataSettings())
    assert field_values(loaded, "day") == ["2024-05-01"] * 2
    assert field_values(loaded[:1], "number") == ["1"]
    assert field_values(loaded, "name") == ["barn", "attic"]
    assert len(set(field_values(loaded, "at"))) == 2
    with pytest.raises(DataError, match=r"row 2 the field is empty"):
        field_values(loaded, "number")


def test_fields_within_fields(tmp_path: Path) -> None:
    rows = [Row({"a": {"b": {"c": "x"}, "b.d": "y"}, "e.f": "z", "g": 1}, "f", "line 1")]
    assert [field_values(rows, name) for name in ("a.b.c", "a.b.d", "e.f")] == [["x"], ["y"], ["z"]]
    for name in ("a.x", "g.x", "a.b.c.d", ".", "a."):
        with pytest.raises(UserError, match="has no such field"):
            field_values(rows, name)


def test_an_adapters_own_files_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    import numpy as np

    from sfl.adapters.artifact import load_adapter, save_adapter

    save_adapter(tmp_path, {"a": np.zeros(2, np.float32)}, {"r": 4})
    config = tmp_path / "adapter_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert load_adapter(tmp_path)[1] == {"r": 4}
