"""What can be known before the start is said before the start, by `sfl run` and by `sfl doctor`."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from benchmarks.precision import in_its_own_process
from sfl.cli.doctor.files import check_data
from sfl.cli.launch.nearby import perhaps_meant, pointed
from sfl.cli.launch.preflight import KNOWN_CODECS, check_before_start, check_settings
from sfl.cli.launch.run import resolved
from sfl.codec.spec import PRESETS
from sfl.config import DeviceConfig, RunConfig, load_run
from sfl.config.base import NODE_NAME, RUN_ID
from sfl.config.effective import in_full
from sfl.config.wording import PATTERNS
from sfl.errors import ConfigError, DataError, ModelError, SflError, UserError
from sfl.models.folder import open_model
from sfl.report.live import status_picture, worst_first
from sfl.report.status import DeviceStatus, RunStatus, ServerStatus
from tests.house.federation import sfl, write_config
from tests.house.files import write_jsonl
from tests.house.paths import MODEL

ROWS = [{"prompt": f"light {n} on", "completion": f"on {n}"} for n in range(12)]
LONG = "x" * 300
LABELLED = [{"text": f"light {n}", "label": "on" if n % 2 else "off"} for n in range(12)]


def written(folder: Path, rows: list[dict[str, Any]] | None = None, /, **sections: Any) -> Path:
    train = write_jsonl(folder / "train.jsonl", ROWS if rows is None else rows)
    values: dict[str, Any] = {
        "model": {"path": str(MODEL), "max_length": 48},
        "devices": [{"name": "a", "train": str(train)}, {"name": "b", "train": str(train)}],
    }
    return write_config(folder, {**values, **sections})


def refused(path: Path, *overrides: str) -> SflError:
    config = load_run(path, overrides)
    with pytest.raises(UserError) as caught:
        check_before_start(config, open_model(config.model.path), lambda what: None)
    return caught.value


def test_a_run_in_order_passes(tmp_path: Path) -> None:
    config = load_run(written(tmp_path))
    check_before_start(config, open_model(config.model.path), lambda what: None)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.prompt_field=promt", ("line 1 has no such field", "did you mean 'prompt'")),
        ("lora.target_modules=['q_proj', 'vproj']", ("'vproj'", "Did you mean 'v_proj'?")),
        ("codec.activation=compct", ("codec.activation = 'compct'", "Did you mean 'compact'?")),
        ("codec.gradient=topk(2) | fp16", ("codec.gradient", "topk(2)")),
        ("lora.rank=129", ("lora.rank = 129", "a rank of more than 128")),
        ("devices.b.cut_layer=9", ("devices.b.cut_layer = 9",)),
        ("devices.b.memory=1MB", ("devices.b.memory", "MB at least")),
        ("devices.a.train=nowhere.jsonl", ("devices.a.train", "nowhere.jsonl")),
        ("devices.a.train=~nobody-is-so/a.jsonl", ("devices.a.train", "no home directory")),
        (f"devices.a.train={LONG}.jsonl", ("devices.a.train", "File name too long")),
        (f"devices.a.eval={LONG}", ("devices.a.eval", "File name too long")),
        (f"model.path={LONG}", ("model.path", "File name too long")),
        ("data.partition_field=home", ()),
        ("data.columns=['x', 'y']", ("data.columns = ['x', 'y']", "not a CSV or TSV file")),
        ("data.split=tran", ("data.split = 'tran'", "Did you mean 'train'?")),
        ("devices.a.split=tran", ("devices.a.split = 'tran'", "which has no splits")),
        ("model.max_length=1", ("model.max_length = 1", "has a target within it. Raise it.")),
    ],
)
def test_a_mistake_is_named_before_anything_starts(
    tmp_path: Path, override: str, words: tuple[str, ...]
) -> None:
    path = written(tmp_path)
    if not words:  # settings that nothing of this run reads
        config = load_run(path, [override])
        check_before_start(config, open_model(config.model.path), lambda what: None)
        return
    error = str(refused(path, override))
    assert "\n" not in error and all(word in error for word in words), error


def test_the_rows_of_a_shared_file_are_looked_at_as_they_are_shared_out(tmp_path: Path) -> None:
    path = written(tmp_path)
    shared = f"data.train={str(tmp_path / 'train.jsonl')!r}"
    bare = ["devices=[{name='a'}, {name='b'}]", shared]
    config = load_run(path, bare)
    check_before_start(config, open_model(config.model.path), lambda what: None)
    error = refused(path, *bare, "data.partition=field", "data.partition_field=home")
    assert "has no such field" in str(error)
    few = refused(written(tmp_path / "few", ROWS[:1]), *bare[:1], "data.train='few/train.jsonl'")
    assert "few" in str(few)


def test_a_label_that_is_no_class_is_found(tmp_path: Path) -> None:
    task = {"path": str(MODEL), "task": "sequence_classification", "labels": ["off", "on"]}
    rows = [*LABELLED, {"text": "lamp", "label": "dimm"}]
    error = str(refused(written(tmp_path, rows, model={**task, "labels": ["off", "on", "dim"]})))
    assert "line 13 has label 'dimm'" in error and "Did you mean 'dim'?" in error


def test_weights_that_are_not_what_the_config_says_are_found(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    path = written(tmp_path, model={"path": str(folder)})
    tensors = load_file(folder / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"]
    for wrong, words in (
        ({"model.embed_tokens.weight": rows[:-8].contiguous()}, "is [1272, 128], config.json asks"),
        ({"model.layers.2.mlp.up_proj.weight": None}, "lack model.layers.2.mlp.up_proj.weight"),
    ):
        changed = {name: value for name, value in {**tensors, **wrong}.items() if value is not None}
        save_file(changed, folder / "model.safetensors")
        error = refused(path)
        assert isinstance(error, ModelError) and words in str(error)


def test_tensors_that_are_of_no_block_are_let_be(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    more = {f"model.layers.{name}": torch.zeros(2) for name in ("extra.weight", "²", "0", "99.x")}
    save_file({**tensors, **more}, folder / "model.safetensors")
    config = load_run(written(tmp_path, model={"path": str(folder)}))
    check_before_start(config, open_model(folder), lambda what: None)


@pytest.mark.parametrize("labels", [["on", "off"], ["Off ", "ON"], ["no", "yes"]])
def test_a_head_s_classes_keep_their_order(tmp_path: Path, labels: list[str]) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    head = {"score.weight": torch.zeros(2, 128)}
    content = json.loads((folder / "config.json").read_text())
    content["id2label"] = {"0": "off", "1": "on"}
    (folder / "config.json").write_text(json.dumps(content))
    rows = [{"text": f"light {n}", "label": n % 2} for n in range(12)]
    model = {"path": str(folder), "task": "sequence_classification", "labels": labels}
    config = load_run(written(tmp_path, rows, model=model))
    check_before_start(config, open_model(folder), lambda what: None)  # it has no head
    save_file({**tensors, **head}, folder / "model.safetensors")
    if labels == ["on", "off"]:
        assert "another order" in str(refused(tmp_path / "run.toml"))
    else:
        check_before_start(config, open_model(folder), lambda what: None)


@pytest.mark.process
def test_nothing_is_started_and_no_folder_made(tmp_path: Path) -> None:
    path = written(tmp_path, [*ROWS, {"prompt": "x"}])
    done = sfl("run", path)
    assert done.returncode == 2
    assert "line 13 has no such field" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "t").exists()


def test_settings_that_are_codecs_unlooked_at_are_codecs() -> None:
    assert set(PRESETS) < KNOWN_CODECS


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('codec.stage_activation="nonsense"', "codec.stage_activation"),
        ('stage.listen="127.0.0.1:7002"', "starts 2 stages here, and each needs a port"),
        ("stage.metrics.port=9402", "starts 2 stages here, and each needs a port"),
    ],
)
def test_what_stages_cannot_do_is_said_before_they_start(
    tmp_path: Path, override: str, words: str
) -> None:
    tiers = ['run.topology="three_tier"', "stages.cuts=[2, 3]"]
    path = written(tmp_path)
    check_settings(load_run(path, tiers), open_model(MODEL))
    with pytest.raises(ConfigError, match=words):
        check_settings(load_run(path, [*tiers, override]), open_model(MODEL))


# -- errors in words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.topology=vanila", ("is none of 'vanilla', 'u_shaped'", "Did you mean 'vanilla'?")),
        ("learning_rate=3", ("Did you mean 'training.learning_rate'?",)),
        ("training.rank=3", ("Did you mean 'lora.rank'?",)),
        ("devices.b.cut_layr=3", ("devices.b.cut_layr = 3", "Did you mean 'cut_layer'?")),
        ("devices.b.cut_layer=-1", ("devices.b.cut_layer = -1: must be at least 0",)),
        ("devices.bb.cut_layer=1", ("no entry 'bb'", "Did you mean 'b'?")),
        ("devices.b=1", ("is a table, not a value",)),
        ("run.edges.0=x", ("['edge'] has no tables. Set the whole list.",)),
        ("run.id.x=3", ("'x' is inside 't', a value",)),
        ("run.rounds.x.y=3", ("'y' is inside",)),
        ("model.labels=['a', 'b']", ("model.labels", "task 'causal_lm' has no classes")),
        ("cloud.metrics.port=65536", ("must be at most 65535",)),
        ("run.id=a b", ("a run's name has letters",)),
        ("training.batch_size=many", ("is not a whole number",)),
        ("training.learning_rate=fast", ("is not a number",)),
        ("edge.order=first", ("Did you mean 'first_come'?",)),
    ],
)
def test_a_setting_is_wrong_in_words(tmp_path: Path, override: str, words: tuple[str, ...]) -> None:
    path = written(tmp_path, run={"rounds": 2, "edges": ["edge"]})
    first = ["run.rounds={x=1}"] if override.startswith("run.rounds.x") else []
    with pytest.raises(ConfigError) as caught:
        load_run(path, [*first, override])
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "pattern" not in str(caught.value) and "Input should" not in str(caught.value)


def test_every_pattern_of_a_setting_is_a_sentence() -> None:
    schema = json.dumps(RunConfig.model_json_schema())
    found = set(json.loads(f"[{','.join(_patterns(json.loads(schema)))}]"))
    assert found == set(PATTERNS) >= {RUN_ID, NODE_NAME}


def _patterns(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {json.dumps(value["pattern"])} if isinstance(value.get("pattern"), str) else set()
        return own.union(*map(_patterns, value.values()))
    return set().union(*map(_patterns, value)) if isinstance(value, list) else set()


# -- settings in full --------------------------------------------------------------------------


def test_defaults_that_follow_from_others_are_shown(tmp_path: Path) -> None:
    config = load_run(written(tmp_path, aggregation={"strategy": "fedadam"}))
    full = in_full(resolved(config), ("q_proj",))
    assert full.run.min_devices == config.min_devices and full.run.edges == ("edge",)
    assert full.training.local_epochs == 1 and full.training.computation == "lean"
    assert full.aggregation.server_learning_rate == 0.002
    assert full.lora.target_modules == ("q_proj",)
    assert (full.codec.hidden, full.codec.evaluation) == (None, "fine")  # vanilla has none
    assert {entry.rank for entry in full.devices} == {config.lora.rank}
    for entry in config.devices:  # saying them changes nothing
        assert full.codecs(entry.name, 1) == config.codecs(entry.name, 1)
        assert full.scaling(entry.name) == config.scaling(entry.name)


@pytest.mark.process
def test_config_show_prints_what_runs_and_json(tmp_path: Path) -> None:
    path = written(tmp_path)
    shown = sfl("config", "show", path)
    again = tmp_path / "again.toml"
    again.write_text(shown.stdout)
    assert sfl("config", "show", again).stdout == shown.stdout
    values = json.loads(sfl("config", "show", path, "--json").stdout)
    assert values["model"]["max_length"] == 48
    assert "q_proj" in values["lora"]["target_modules"]


# -- more devices than lines -------------------------------------------------------------------


def test_a_low_terminal_shows_faults_and_servers_first_then_the_worst() -> None:
    devices = [DeviceStatus(f"d{n:02}", "training", step=n, steps=30) for n in range(30)] + [
        DeviceStatus("gone", "lost"),
        DeviceStatus("slow", "not here yet"),
    ]
    status = RunStatus(
        "r",
        "training",
        1,
        3,
        devices=tuple(devices),
        edges=(ServerStatus("edge"),),
        cloud=ServerStatus("cloud"),
        faults=("round 1, gone: the stream broke",),
    )
    console = Console(width=120, height=20, file=io.StringIO())
    console.print(status_picture(status, 5.0, 120, 20))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().rstrip().splitlines()
    assert len(lines) <= 20
    order = [next(i for i, line in enumerate(lines) if word in line) for word in
             ("gone: the stream", "edge", "cloud", "gone  ", "slow", "d00", "more")]  # fmt: skip
    assert order == sorted(order)
    shown = sum(device.name in line.split()[:1] for line in lines for device in devices)
    assert f"+{len(devices) - shown} more" in lines[-1]


def test_whoever_is_furthest_behind_is_worse() -> None:
    devices = [
        DeviceStatus("ahead", "training", step=9, steps=10),
        DeviceStatus("behind", "training", step=1, steps=10),
        DeviceStatus("rests", "paused: too hot", step=5, steps=10),
        DeviceStatus("lost", "lost"),
    ]
    assert [d.name for d in worst_first(devices)] == ["lost", "rests", "behind", "ahead"]


# -- a mistyped path that may be a name on the hub -------------------------------------------------


def lying(folder: Path) -> Path:
    (folder / "model" / "qwen").mkdir(parents=True)
    (folder / "homes").mkdir()
    (folder / "a.jsonl").write_text("")
    return folder


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("modle/qwen", "model/qwen"),
        ("model/qwne", "model/qwen"),
        ("hoems", "homes"),
        ("./hoems", "homes"),
        ("a.jsnol", "a.jsonl"),
        ("Qwen/Qwen2-0.5B", None),
        ("stories", None),
        ("~nobody/x", None),
    ],
)
def test_what_was_perhaps_meant_is_named(tmp_path: Path, name: str, near: str | None) -> None:
    folders = [tmp_path / "empty", lying(tmp_path)]
    hint = f"Did you mean {near!r}? " if near else ""
    assert perhaps_meant(name, folders) == hint
    error = ModelError("model.path", name, "no such folder", "Look.")
    assert str(pointed(error, folders)) == f"model.path = {name!r}: no such folder. {hint}Look."
    other = DataError("data.label_field", name, "no such field", "Look.")
    assert pointed(other, folders) is other


def test_an_absolute_path_has_its_nearest(tmp_path: Path) -> None:
    meant = lying(tmp_path) / "model" / "qwen"
    assert perhaps_meant(str(tmp_path / "modl" / "qwen"), [Path("/")]).endswith(
        f"{str(meant.relative_to('/'))!r}? "
    )


@pytest.mark.parametrize("field", ["edge.model", "devices.a.model", "data.train", "devices.b.eval"])
def test_names_on_the_hub_are_asked_for_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    path = written(tmp_path, devices=[{"name": "a"}, {"name": "b"}])
    train = f"data.train={str(tmp_path / 'train.jsonl')!r}"
    error = refused(path, train, f"{field}=nobody/nothing")
    assert isinstance(error, UserError) and error.field == field
    assert "no such f" in error.problem


@pytest.mark.process
def test_doctor_says_what_it_takes_a_name_for(tmp_path: Path) -> None:
    lying(tmp_path)
    config = load_run(written(tmp_path), ["devices.a.train=hoems"])
    warning, fine = check_data(config, None, [tmp_path])
    assert (warning.mark, fine.mark) == ("warning", "ok")
    assert "devices.a.train = 'hoems': no such file or folder, so it is read" in warning.text
    assert warning.fix.startswith("Did you mean 'homes'?")
    done = sfl("doctor", "--model", "exampels/quickstart/model", "--memory", "9GB")
    assert "--model = 'exampels/quickstart/model'" in done.stdout, done.stdout
    assert "Did you mean 'examples/quickstart/model'?" in done.stdout


def test_doctor_looks_at_a_devices_own_data(tmp_path: Path) -> None:
    lying(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    own = {"name": "a", "train": str(tmp_path / "a.jsonl"), "split": "tran"}
    (check,) = check_data(DeviceConfig.model_validate(own), None, [tmp_path])
    assert check.text.startswith("device.split = 'tran': nothing reads it: device.train is a file")
    own = {"name": "a", "train": str(tmp_path / "homes"), "split": "x", "eval_split": "y"}
    assert not list(check_data(DeviceConfig.model_validate(own), None, [tmp_path]))
    own = {"name": "a", "shared_train": str(tmp_path / "pipe"), "eval": str(tmp_path / "b.jsonl")}
    gone, pipe = check_data(DeviceConfig.model_validate(own), None, [tmp_path])
    assert "device.eval" in gone.text and "no such file" in gone.text
    assert gone.fix.startswith("Did you mean ") and "a.jsonl" in gone.fix
    assert "device.shared_train" in pipe.text and "is a named pipe (FIFO), not a file" in pipe.text


@pytest.mark.process
def test_a_form_that_a_machine_lacks_is_left_out_of_the_benchmark() -> None:
    command = [sys.executable, "-c", "import sys; print('{}'); sys.exit('no such kernels')"]
    assert in_its_own_process(command) == "no such kernels"
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert in_its_own_process(killed) == "its process ended with -9"
    assert in_its_own_process([sys.executable, "-c", "print('{}')"]) == {}
