"""A run goes on with the settings that it began with, and with its journal."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from sfl.config import RunConfig, load_run
from sfl.errors import ConfigError
from sfl.report.asked import asked, require_same
from sfl.report.journal import open_journal
from sfl.report.resume import resumed
from sfl.report.runs import open_run_folder
from sfl.rounds.journal import Entry
from tests.house.federation import write_config
from tests.house.fleets import fleet


def begun(folder: Path) -> tuple[Path, RunConfig]:
    """A run whose cloud has begun, and is gone."""
    config = load_run(write_config(folder, fleet(folder, 2)))
    run = open_run_folder(config)
    with contextlib.closing(open_journal(config, run)) as journal:
        journal.append(Entry(0.0, asked(config)))
    return run, config


def edited(run: Path, before: str, after: str) -> None:
    """As a user does it."""
    text = (run / "config.toml").read_text("utf-8")
    assert before in text
    (run / "config.toml").write_text(text.replace(before, after, 1), "utf-8")


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ("\nlearning_rate = ", "\nlearning_rate = 9", "training.learning_rate"),
        ("\nrank = ", "\nrank = 1", "lora.rank"),
        ("\nrounds = ", "\nrounds = 1", "run.rounds"),
        ('strategy = "fedavg"', 'strategy = "fedadam"', "aggregation.strategy"),
    ],
)
def test_a_setting_that_was_changed_meanwhile_is_named(
    tmp_path: Path, before: str, after: str, field: str
) -> None:
    run, _ = begun(tmp_path)
    assert resumed(str(run))[0] == run.resolve()
    edited(run, before, after)
    with pytest.raises(ConfigError, match="the run began with") as caught:
        resumed(str(run))
    assert caught.value.field == field


def test_what_a_run_settles_and_where_it_goes_on_may_differ(tmp_path: Path) -> None:
    _, config = begun(tmp_path)
    entries = [Entry(0.0, asked(config))]
    data = config.data.model_copy(update={"layout": "completion"})
    edge = config.edge.model_copy(update={"dtype": "bfloat16", "listen": "127.0.0.1:1"})
    cloud = config.cloud.model_copy(update={"listen": "127.0.0.1:2"})
    run = config.run.model_copy(update={"output_dir": Path("elsewhere"), "id": "t"})
    update = {"data": data, "edge": edge, "cloud": cloud, "run": run}
    require_same(entries, config.model_copy(update=update))
    require_same([], config)  # of a run that an older version began
    other = config.training.model_copy(update={"batch_size": 99})
    with pytest.raises(ConfigError, match="the run began"):
        require_same(entries, config.model_copy(update={"training": other}))


def test_a_run_that_has_results_and_no_journal_is_not_begun_anew(tmp_path: Path) -> None:
    run, _ = begun(tmp_path)
    (run / "run.sqlite").unlink()
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "adapter").mkdir()
    (run / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="its journal is gone"):
        resumed(str(run))
    assert (run / "summary.json").exists()
