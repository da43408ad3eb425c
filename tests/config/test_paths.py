"""Paths as people have them: relative to a file, without a home, in other encodings."""

from __future__ import annotations

import gzip
import json
import os
import pwd
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from device_agent.consent import Consent
from sfl.cli.doctor.hardware import check_disk
from sfl.config import DataSettings, load_device, load_edge, load_run
from sfl.data import load_rows
from sfl.errors import ConfigError, DataError, ModelError, SflError, UserError
from sfl.models.folder import open_model
from sfl.node.files import writable_folder, write_atomic
from sfl.node.paths import amiss
from sfl.report.runs import find_run, open_run_folder
from tests.house.federation import SFL
from tests.house.paths import ROOT

ODD = os.fsdecode(b"caf\xe9")  # Latin-1, as old disks and archives have it
RUN = """
[run]
output_dir = "out"
[model]
path = "./m"
[edge]
cache_dir = "c"
swap_dir = "../r"
tls = { ca = "ca.crt", cert = "~/cert.crt", key = "/abs/key" }
[data]
train = "./all.jsonl"
eval = "./some.jsonl"
[[devices]]
name = "a"
train = "./a.jsonl"
eval = "b.jsonl"
model = "./own"
cache_dir = "cache"
"""
DEVICE = """
[device]
name = "a"
train = "a.jsonl"
cache_dir = "cache"
shared_train = "all.jsonl"
"""
EDGE = '[edge]\nmodel = "./m"\ncache_dir = "c"\nswap_dir = "r"\n'


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom no list of users knows, without HOME."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


# -- relative to the file -------------------------------------------------------------------------


def test_every_path_of_a_run_is_relative_to_its_file(tmp_path: Path) -> None:
    config = load_run(written(tmp_path / "x" / "run.toml", RUN))
    place, device = tmp_path / "x", config.devices[0]
    assert config.run.output_dir == place / "out"
    assert config.model.path == str(place / "m")
    assert config.edge.cache_dir == place / "c"
    assert config.edge.swap_dir.resolve() == tmp_path / "r"
    assert config.edge.tls is not None
    assert config.edge.tls.ca == place / "ca.crt"
    assert (str(config.edge.tls.cert), str(config.edge.tls.key)) == ("~/cert.crt", "/abs/key")
    assert [str(config.data.train), str(config.data.eval)] == [
        str(place / "all.jsonl"),
        str(place / "some.jsonl"),
    ]
    assert [str(device.train), str(device.eval)] == [
        str(place / "a.jsonl"),
        str(place / "b.jsonl"),
    ]
    assert (device.model, device.cache_dir) == (str(place / "own"), place / "cache")


def test_every_path_of_a_node_is_relative_to_its_file(tmp_path: Path) -> None:
    place = tmp_path / "x"
    device = load_device(written(place / "device.toml", DEVICE))
    assert (str(device.train), device.cache_dir) == (str(place / "a.jsonl"), place / "cache")
    edge = load_edge(written(place / "edge.toml", EDGE))
    assert (edge.model, edge.cache_dir, edge.swap_dir) == (
        str(place / "m"),
        place / "c",
        place / "r",
    )


def test_a_folder_on_the_command_line_is_relative_to_where_it_is_typed(tmp_path: Path) -> None:
    path = written(tmp_path / "run.toml", RUN)
    assert load_run(path, ["run.output_dir=elsewhere"]).run.output_dir == Path("elsewhere")
    plain = load_run(written(tmp_path / "b.toml", RUN.replace('output_dir = "out"', "")))
    assert plain.run.output_dir == Path.cwd() / "runs"


def test_the_effective_settings_repeat_a_run_into_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "run.toml", RUN.replace('output_dir = "out"', ""))
    monkeypatch.chdir(tmp_path)
    folder = open_run_folder(load_run(path))
    assert folder.parent == tmp_path / "runs"
    assert load_run(folder / "config.toml").run.output_dir == tmp_path / "runs"


# -- without a home -------------------------------------------------------------------------------


@pytest.mark.usefixtures("nobody")
def test_a_path_in_nobody_s_home_names_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device.cache_dir = '~/.cache/sfl'.*no home.*set HOME"):
        writable_folder(Path("~/.cache/sfl"), "device.cache_dir")
    with pytest.raises(ConfigError, match=r"model.path = '~/m'.*no home"):
        open_model("~/m")
    with pytest.raises(ConfigError, match=r"data.train = '~/a.jsonl'.*no home"):
        load_rows("~/a.jsonl", DataSettings())
    check = check_disk(Path("~/.cache/sfl"))
    assert (check.mark, "no home directory" in check.text) == ("warning", True)
    consented = '[device]\nname = "a"\ntrain = "~/a.jsonl"\nconsent = { data_dirs = ["/d"] }\n'
    with pytest.raises(ConfigError, match=r"device.train = '~/a.jsonl'.*no home"):
        Consent(load_device(written(tmp_path / "d.toml", consented))).check_sources()


@pytest.mark.usefixtures("nobody")
def test_nothing_is_kept_in_a_folder_called_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "~/.cache/huggingface/datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    found = SimpleNamespace(sha="0" * 40)
    for name in ("model_info", "dataset_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda *args, **more: found)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "lamp"}\n'))
    assert load_rows(tmp_path / "packed", DataSettings())[0].values == {"text": "lamp"}
    with pytest.raises(DataError, match=r"'org/data'.*on the hub.*no home.*HF_HOME"):
        load_rows("org/data", DataSettings())
    with pytest.raises(ModelError, match=r"'org/model'.*on the hub.*no home.*HF_HOME"):
        open_model("org/model")
    assert not (tmp_path / "~").exists()


@pytest.mark.process
def test_a_device_without_a_home_says_so_before_it_joins(tmp_path: Path) -> None:
    path = written(tmp_path / "d.toml", '[device]\nname = "a"\nedge = "127.0.0.1:9"\n')
    strange = ["unshare", "-U", "--map-user=12345", "--map-group=12345", "--", "env", "-u", "HOME"]
    if subprocess.run([*strange, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*strange, *SFL, "device", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 2
    assert "device.cache_dir = '~/.cache/sfl': this user has no home directory" in done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("a.jsonl")
    config = load_run(written(tmp_path / "run.toml", RUN))
    with pytest.raises(ConfigError, match=r"devices.a.train = .*Too many levels"):
        load_rows(str(config.devices[0].train), DataSettings(), "devices.a.train")
    with pytest.raises(ConfigError, match=r"'a.jsonl.*no such run"):
        find_run("a.jsonl" * 50, tmp_path)


# -- other encodings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "field"),
    [
        (f"run.output_dir=/tmp/{ODD}", "run.output_dir"),
        (f"model.path={ODD}", "model.path"),
        (f"devices.a.train=./{ODD}.jsonl", "devices.a.train"),
        (f"data.prompt_field={ODD}", "data.prompt_field"),
        (f"edge.cache_dir={ODD}", "edge.cache_dir"),
    ],
)
def test_a_setting_that_is_not_utf_8_is_named(tmp_path: Path, override: str, field: str) -> None:
    with pytest.raises(ConfigError, match="not UTF-8") as error:
        load_run(written(tmp_path / "run.toml", RUN), [override])
    assert error.value.field == field
    str(error.value).encode()  # what is shown can be shown


def test_a_file_in_a_folder_that_is_not_utf_8_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ODD
    for load, text in ((load_run, RUN), (load_device, DEVICE), (load_edge, EDGE)):
        with pytest.raises(ConfigError, match=r"not UTF-8.*by a link"):
            load(written(place / "x.toml", text))
    monkeypatch.chdir(place)
    plain = written(tmp_path / "b.toml", RUN.replace('output_dir = "out"', ""))
    with pytest.raises(ConfigError, match=r"run.output_dir.*not UTF-8"):
        open_run_folder(load_run(plain))
    with pytest.raises(SflError, match="not UTF-8"):
        open_model(place)


def test_what_cannot_be_written_is_escaped(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", f"<{ODD}>")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == r"<caf\udce9>"
    (tmp_path / ODD).mkdir()
    write_atomic(tmp_path / ODD / "a.txt", "x")
    assert (tmp_path / ODD / "a.txt").read_text() == "x"


@pytest.mark.process
def test_a_command_s_own_paths_may_be_any(tmp_path: Path) -> None:
    done = subprocess.run(
        [*SFL, "eval", "--run", ODD, "--output-dir", str(tmp_path / ODD)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "no such run" in done.stderr
    done = subprocess.run(
        [*SFL, "generate", ODD, "--run", "x"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "prompt = 'caf\\udce9': it is not UTF-8" in done.stderr


def test_a_path_with_quotes_reaches_the_cloud(tmp_path: Path) -> None:
    odd = tmp_path / 'it\'s "a\\b" é'
    text = f"run.output_dir={json.dumps(str(odd), ensure_ascii=False)}"
    assert load_run(written(tmp_path / "run.toml", RUN), [text]).run.output_dir == odd
    from sfl.cli.launch.node import cloud_node

    options = cloud_node(odd / "t", load_run(tmp_path / "run.toml")).beginning
    given = next(part for part in options if part.startswith("run.output_dir="))
    assert load_run(tmp_path / "run.toml", [given]).run.output_dir == odd


# -- what is no file -------------------------------------------------------------------------------


@pytest.fixture(params=["pipe", "socket", "device", "folder", "link", "loop"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Something that is no file, and the words for it."""
    path = tmp_path / "rows.jsonl"
    with socket.socket(socket.AF_UNIX) as listener:
        match request.param:
            case "pipe":
                os.mkfifo(path)
                yield path, "is a named pipe (FIFO), not a file"
            case "socket":
                listener.bind(str(path))
                yield path, "is a socket, not a file"
            case "device":
                yield Path(os.devnull), "is a character device, not a file"
            case "folder":
                path.mkdir()
                yield path, "is a folder, not a file"
            case "link":
                path.symlink_to("gone.jsonl")
                yield path, "is a link to 'gone.jsonl', which does not exist"
            case _:
                path.symlink_to(path)
                yield path, "cannot be reached (Too many levels of symbolic links)"


def test_what_is_no_file_is_named_as_what_it_is(no_file: tuple[Path, str]) -> None:
    path, words = no_file
    assert amiss(path, "file") == words
    with pytest.raises(ConfigError) as config:
        load_run(path)
    assert config.value.problem == words
    if "folder" not in words:  # a folder is a dataset
        with pytest.raises(UserError) as rows:
            load_rows(path, DataSettings(), "data.train")
        assert (rows.value.field, rows.value.problem) == ("data.train", words)
        with pytest.raises(UserError) as model:
            open_model(path)
        assert model.value.problem == amiss(path, "folder") != "no such folder"


def test_a_model_folder_with_a_pipe_in_it_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"config.json.*is a named pipe \(FIFO\), not a file"):
        open_model(tmp_path)


def test_a_pipe_beside_the_settings_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows")  # which could be a dataset's name on the hub
    done = written(tmp_path / "d.toml", '[device]\nname = "a"\ntrain = "rows"\n')
    config = load_device(done)
    assert config.train == str(tmp_path / "rows")
    with pytest.raises(DataError, match=r"is a named pipe \(FIFO\), not a file. Rows are read"):
        load_rows(str(config.train), DataSettings())


@pytest.mark.parametrize(("old", "new"), [("rest_dir", "swap_dir"), ("rest_in", "swap_to")])
def test_an_edges_setting_that_was_renamed_names_the_new_one(
    tmp_path: Path, old: str, new: str
) -> None:
    """In an edge's own file, and in the run's."""
    alone = written(tmp_path / "edge.toml", f'[edge]\n{old} = "disk"\n')
    with pytest.raises(ConfigError, match=rf"unknown key.*edge\.{new}"):
        load_edge(alone)
    run = written(tmp_path / "run.toml", RUN.replace('swap_dir = "../r"', f"{old} = 1"))
    with pytest.raises(ConfigError, match=rf"unknown key.*edge\.{new}"):
        load_run(run)
