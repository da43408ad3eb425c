"""A package of another's: its strategy, family, codec stage, order and planner in a real run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.federation import SFL, run, sfl, write_config
from tests.house.paths import MODEL, QUICKSTART, ROOT
from tests.house.waiting import until

pytestmark = pytest.mark.process
PACKAGE = "sfl-example-plugin==0.1"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("plugin")
    source, site = folder / "source", folder / "site"
    shutil.copytree(ROOT / "examples" / "plugin", source)  # a build leaves files beside it
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--no-index", "--disable-pip-version-check", "--target", site, source], check=True
    )
    return site


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model under the example's model type."""
    folder = tmp_path_factory.mktemp("model") / "storyteller"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "storyteller"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ends(model: Path) -> int:
    """Most blocks that a device may have."""
    values = json.loads((model / "config.json").read_text())
    return int(values["num_hidden_layers"]) - 1


def settings(model: Path, **more: object) -> dict[str, object]:
    devices = [
        {"name": name, "cut_layer": 1, "train": str(QUICKSTART / "data" / name / "train.jsonl")}
        for name in ("harbour", "meadow")
    ]
    return {
        "run": {"rounds": 2},
        "model": {"path": str(model), "max_length": 96},
        "training": {"local_steps": 2, "batch_size": 4},
        "aggregation": {"strategy": "damped", "server_learning_rate": 0.25},
        "codec": {"activation": "centre | int8 | zstd", "gradient": "int8"},
        "edge": {"order": "last_come"},
        "planner": {"policy": "see_saw"},
        "devices": devices,
        **more,
    }


def test_five_plug_ins_of_another_package_run(
    tmp_path: Path, site: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site))
    done = run(tmp_path, settings(model), alone=True)
    assert done.code == 0, done.output + done.logs()
    assert done.summary["rounds"] == 2
    assert done.summary["plugins"] == [PACKAGE]
    assert PACKAGE in (done.folder / "config.toml").read_text()
    adapter = json.loads((done.folder / "adapter" / "adapter_config.json").read_text())
    first, last = (device["cuts"] for device in done.summary["devices"])
    assert first == last == [[1, 1, 0], [2, ends(model), 0]]
    assert done.summary["faults"] == []
    assert set(adapter["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_without_the_package_its_names_are_refused_with_what_there_is(
    tmp_path: Path, model: Path
) -> None:
    done = sfl("run", write_config(tmp_path, settings(model)))
    assert done.returncode == 2
    assert "'storyteller'" in done.stderr or "'damped'" in done.stderr
    assert "'fedavg'" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_an_effective_configuration_names_the_package_that_it_needs(
    tmp_path: Path, model: Path
) -> None:
    values = settings(model, run={"rounds": 1, "plugins": [PACKAGE]})
    done = sfl("run", write_config(tmp_path, values))
    assert done.returncode == 2
    assert f"run.plugins = '{PACKAGE}'" in done.stderr
    assert "which is not installed here" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_package_shows_in_the_settings_that_take_effect(
    tmp_path: Path, site: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site))
    shown = sfl("config", "show", write_config(tmp_path, settings(model)))
    assert shown.returncode == 0, shown.stderr
    assert PACKAGE in shown.stdout


def test_an_edge_without_the_package_ends_with_one_line(
    tmp_path: Path, site: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = settings(model, cloud={"listen": "127.0.0.1:0"})
    config, address = write_config(tmp_path, values), tmp_path / "cloud"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [*SFL, "cloud", str(config), "--address-file", str(address)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=ROOT) as cloud:
        until(address.exists, "the cloud's address")
        edge = tmp_path / "edge.toml"
        edge.write_text(f'[edge]\ncloud = "{address.read_text().strip()}"\n')
        done = sfl("edge", edge)
        cloud.terminate()
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if "run.plugins" in line)
    assert PACKAGE in line and "is not installed here" in line
