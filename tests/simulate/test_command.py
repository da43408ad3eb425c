"""`sfl simulate`, as a user calls it: files, mistakes, and a fleet that is like a real run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from sfl.cli.simulate import Asked, simulate_and_show
from sfl.errors import ConfigError
from sfl.report.records import NodeRecord, RoundRecord, read_records
from sfl.report.summary import RunSummary
from tests.house.federation import finished, run, sfl
from tests.house.paths import ROOT
from tests.house.simulated import PHONE, file_of

QUICKSTART = ROOT / "examples" / "quickstart"


def _written(folder: Path, file: dict[str, Any]) -> Path:
    path = folder / "fleet.toml"
    path.write_text(tomli_w.dumps({**file, "run": {**file["run"], "output_dir": str(folder)}}))
    return path


def _simulated(folder: Path, file: dict[str, Any], **asked: Any) -> Path:
    assert simulate_and_show(Asked(_written(folder, file), **asked)) == 0
    return folder / "fleet-simulated"


def _every_file(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_it_leaves_what_a_run_leaves_without_losses(tmp_path: Path) -> None:
    folder = _simulated(tmp_path, file_of(5, planner={"policy": "fleet"}))

    assert set(_every_file(folder)) == {
        "config.toml",
        "figures/busiest.svg",
        "figures/devices.svg",
        "figures/seconds.svg",
        "figures/traffic.svg",
        "metrics.jsonl",
        "plans.jsonl",
        "report.html",
        "simulation.json",
        "summary.json",
    }
    summary = RunSummary.read(folder / "summary.json")
    assert summary.rounds == 3
    assert len(summary.devices) == 5
    assert all(device.train_loss is None for device in summary.devices)
    assert summary.eval_loss_after is None
    assert summary.tokens_trained == 5 * 3 * 5 * 4 * 32
    records = read_records(folder / "metrics.jsonl")
    assert sum(isinstance(own, NodeRecord) for own in records) == 3
    trained = [own for own in records if isinstance(own, RoundRecord) and own.steps]
    assert len(trained) == 15
    assert "Losses, scores" in (folder / "report.html").read_text()


def test_the_same_file_gives_the_same_files_to_the_byte(tmp_path: Path) -> None:
    fails = {"crash_hours": 0.02, "restart_seconds": 3.0}
    own = file_of()["simulate"]
    classes = [{**PHONE, "spread": 0.3, "failures": fails, "power": {"compute": 4.0}}]
    file = file_of(simulate={**own, "devices": 12, "classes": classes}, run={"min_devices": 2})

    first = _every_file(_simulated(tmp_path, file))
    second = _every_file(_simulated(tmp_path, file))

    assert first == second
    assert "figures/energy.svg" in first


def test_its_own_settings_give_the_same_again(tmp_path: Path) -> None:
    folder = _simulated(tmp_path, file_of(4))
    before = _every_file(folder)
    config = tmp_path / "again.toml"
    config.write_bytes(before["config.toml"])

    name = ("run.id=fleet-simulated",)
    assert simulate_and_show(Asked(config, name)) == 0

    assert _every_file(folder)["simulation.json"] == before["simulation.json"]


def test_options_change_devices_and_rounds_and_json_says_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _simulated(tmp_path, file_of(4), devices=7, rounds=2, as_json=True)

    said = json.loads(capsys.readouterr().out)
    assert said["simulated"] is True
    assert [own["devices"] for own in said["rounds"]] == [7, 7]
    assert said["classes"][0]["devices"] == 7


def test_large_fleets_leave_the_clouds_lines_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfl.cli.simulate.MOST_REPORTS", 10)
    records = read_records(_simulated(tmp_path, file_of(4)) / "metrics.jsonl")

    assert [type(own) for own in records] == [NodeRecord] * 3


def test_a_model_that_is_there_is_read_for_its_shape(tmp_path: Path) -> None:
    file = file_of(3, model={"path": str(QUICKSTART / "model"), "max_length": 32})
    del file["simulate"]["model"]
    classes = [{**PHONE, "memory": "100MB"}, {**PHONE, "name": "roomy"}]
    file["simulate"]["classes"] = classes
    file["run"]["min_devices"] = 1
    file["network"] = {"join_timeout": 5.0}

    said = json.loads((_simulated(tmp_path, file) / "simulation.json").read_text())

    assert said["rounds"][0]["bytes_up"] > 0
    # No model fits into what a process takes without one.
    assert {own["name"]: own["never_joined"] == own["devices"] for own in said["classes"]} == {
        own["name"]: own["name"] == "phone" for own in said["classes"]
    }


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no fleet": ({"simulate": None}, "simulate"),
    "no speed": ({"classes": [{"name": "a"}]}, "give either `tflops` or `block`"),
    "a class twice": ({"classes": [PHONE, PHONE]}, "'phone' is given twice"),
    "nobody of that name": ({"classes": [{**PHONE, "devices": ["z"]}]}, "no device of that name"),
    "an unknown key": ({"device": 3}, "unknown"),
    "a negative rate": ({"classes": [{**PHONE, "up_mbit": -1.0}]}, "up_mbit"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, mistake: str) -> None:
    change, said = MISTAKES[mistake]
    file = file_of(0)
    if change == {"simulate": None}:
        del file["simulate"]
    else:
        file["simulate"].update(change)

    with pytest.raises(ConfigError, match=said):
        simulate_and_show(Asked(_written(tmp_path, file)))
    assert not (tmp_path / "fleet-simulated").exists()


def test_a_codec_of_unknown_size_needs_its_bits(tmp_path: Path) -> None:
    file = file_of(2, codec={"activation": "topk(0.1) | int8", "gradient": "none"})

    with pytest.raises(ConfigError, match=r"simulate\.bits\.activation"):
        simulate_and_show(Asked(_written(tmp_path, file)))
    file["simulate"]["bits"] = {"activation": [3.0, 2.0], "evaluation": 6.0}
    assert simulate_and_show(Asked(_written(tmp_path, file))) == 0


def test_a_real_runs_folder_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "fleet-simulated"
    folder.mkdir()
    (folder / "summary.json").write_text("{}")

    with pytest.raises(ConfigError, match="has no simulated run"):
        simulate_and_show(Asked(_written(tmp_path, file_of(2))))
    assert (folder / "summary.json").exists()


@pytest.mark.process
def test_the_example_is_simulated(tmp_path: Path) -> None:
    done = sfl(
        "simulate", ROOT / "examples" / "fleet" / "phones.toml", "--devices", "40", "--rounds", "2",
        "--set", "run.min_devices=20", "--set", f"run.output_dir={tmp_path}", "--json",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said["rounds"]) == 2
    assert {own["name"] for own in said["classes"]} == {"phone", "gateway"}


@pytest.mark.process
def test_a_fleet_is_like_a_real_run(tmp_path: Path) -> None:
    """The costs are the run's own, and of each device the coordinator hears the same."""
    from benchmarks.simulate import _same, events, simulated
    from sfl.report.fitting import fitted_from
    from sfl.report.journal import JournalReader

    link = {"up_mbit": 20.0, "down_mbit": 40.0, "delay_ms": 5.0}
    devices = [
        {
            "name": name,
            "cut_layer": cut,
            "link": link,
            "train": str(QUICKSTART / "data" / name / "train.jsonl"),
            "eval": str(QUICKSTART / "data" / name / "eval.jsonl"),
        }
        for name, cut in (("harbour", 1), ("loft", 2))
    ]
    values = {
        "run": {"rounds": 2},
        "model": {"path": str(QUICKSTART / "model"), "max_length": 96},
        "training": {"batch_size": 8, "local_steps": 2, "micro_batches": 1},
        "codec": {"activation": "none", "gradient": "none"},
        "devices": devices,
    }
    real = finished(run(tmp_path, values))

    fitted = fitted_from(real.folder)
    assert set(fitted.devices) == {"harbour", "loft"}
    node = None if fitted.edge is None else fitted.edge.node
    assert node is not None and node.forward(64, 2) + 64 * node.head.both > 0.0
    reader = JournalReader(real.folder)
    theirs = events(reader.entries())
    reader.close()
    outcome, heard = simulated(tmp_path / "run.toml", fitted)
    assert outcome.ok
    assert _same(theirs, events(heard)), [what for what, _ in theirs]


def test_a_run_without_a_journal_shows_no_costs(tmp_path: Path) -> None:
    folder = _simulated(tmp_path, file_of(2))

    with pytest.raises(ConfigError, match="has no journal"):
        simulate_and_show(Asked(tmp_path / "fleet.toml", like=str(folder)))


def test_a_range_beyond_the_model_is_refused_as_in_a_real_run(tmp_path: Path) -> None:
    devices = [{"name": "a", "cut_range": [1, 40]}, {"name": "b"}]
    file = file_of(0, devices=devices, planner={"policy": "random"})
    with pytest.raises(ConfigError, match=r"devices\.a\.cut_range"):
        simulate_and_show(Asked(_written(tmp_path, file)))


def test_three_tiers_are_played_and_the_stage_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_, stages = {"topology": "three_tier"}, {"cuts": [3], "up_mbit": 2.0, "down_mbit": 2.0}
    file = file_of(4, stages=stages)
    file["run"] |= run_
    folder = _simulated(tmp_path, file)
    said = capsys.readouterr().out
    assert "stage: " in said and "busiest hop to it: " in said
    (stage,) = json.loads((folder / "simulation.json").read_text())["stages"]
    assert stage["name"] == "stage" and stage["busy"] > 0.0 and stage["hop"] > stage["busy"]
    assert "<h2>Stages</h2>" in (folder / "report.html").read_text()
    assert "<h2>Stages</h2>" not in _report(tmp_path / "two", file_of(4))


def _report(folder: Path, file: dict[str, Any]) -> str:
    folder.mkdir()
    return (_simulated(folder, file) / "report.html").read_text()
