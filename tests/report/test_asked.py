"""A run goes on with the settings that it began with, and with its journal."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from sfl.config import RunConfig, load_run
from sfl.config.load import read_run
from sfl.errors import ConfigError
from sfl.metrics.stats import NodeStats
from sfl.report.asked import asked, require_same
from sfl.report.journal import open_journal
from sfl.report.resume import resumed
from sfl.report.runs import open_run_folder
from sfl.rounds import DeviceReady, NodeHeard, Settle, TextForm
from sfl.rounds.journal import Entry
from sfl.rounds.values import DeviceFacts
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


def test_where_a_run_goes_on_may_differ(tmp_path: Path) -> None:
    _, config = begun(tmp_path)
    entries = [Entry(0.0, asked(config))]
    edge = config.edge.model_copy(update={"listen": "127.0.0.1:1"})
    cloud = config.cloud.model_copy(update={"listen": "127.0.0.1:2"})
    run = config.run.model_copy(update={"output_dir": Path("elsewhere"), "id": "t"})
    update = {"edge": edge, "cloud": cloud, "run": run}
    require_same(entries, config.model_copy(update=update))
    require_same([], config)  # of a run that an older version began
    other = config.training.model_copy(update={"batch_size": 99})
    with pytest.raises(ConfigError, match="the run began"):
        require_same(entries, config.model_copy(update={"training": other}))


TEXT = """
[model]
path = "m"
dtype = "{dtype}"
[training]
micro_batches = {micro_batches}
[codec]
activation = "{activation}"
gradient = "{gradient}"
[data]
layout = "{layout}"
chat_template_digest = "{digest}"
[edge]
dtype = "{edge}"
quantised = "{quantised}"
[[devices]]
name = "d0"
dtype = "{device}"
micro_batches = {pieces}
[devices.codec]
{own}
[[devices]]
name = "d1"
"""
ASKED: dict[str, object] = {
    "dtype": "float32",
    "micro_batches": 2,
    "activation": "auto",
    "gradient": "auto",
    "layout": "auto",
    "digest": "",
    "edge": "auto",
    "quantised": "auto",
    "device": "auto",
    "pieces": 1,
    "own": "",
}
GIVEN = {**ASKED, "activation": "none", "gradient": "none"}


def written(values: dict[str, object], **changed: object) -> RunConfig:
    return read_run(TEXT.format(**{**values, **changed}))


def settled() -> list[Entry]:
    """What the nodes of a run say, and the run makes of it."""
    own = {"dtype": "bfloat16", "quantised": "none"}
    edge = replace(NodeStats("edge", "edge").snapshot(), dtype="autocast", quantised="nf4")
    device = replace(NodeStats("d0", "device").snapshot(), micro_batches=4, **own)
    form = TextForm("completion", "")
    facts = DeviceFacts(1, layout="completion", snapshot=device.to_json())
    codecs = {"d0": "none", "d1": "compact"}
    return [
        Entry(0.0, NodeHeard("edge", "edge", edge.to_json())),
        Entry(0.0, DeviceReady("d0", 1, form, facts)),
        Entry(1.0, Settle(1, {1: 0.1}, {**codecs, "d2": "compact"})),
    ]


SETTLED: dict[str, object] = {
    "micro_batches": 1,
    "activation": "compact",
    "gradient": "compact",
    "edge": "autocast",
    "layout": "completion",
    "quantised": "nf4",
    "device": "bfloat16",
    "pieces": 4,
    "own": 'activation = "none"\ngradient = "none"',
}


def test_what_a_run_has_settled_may_differ() -> None:
    entries = [Entry(0.0, asked(written(ASKED))), *settled()]
    forms = [TextForm("completion", "")]
    require_same(entries, written(ASKED), forms)  # killed before it was written
    require_same(entries, written(ASKED, **SETTLED), forms)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("model.dtype", {"dtype": "bfloat16"}),
        ("training.micro_batches", {"micro_batches": 4}),
        ("codec.activation", {"activation": "int4", "gradient": "compact"}),
        ("devices.d0.codec.activation", {"own": 'activation = "bf16"'}),
        ("data.layout", {"layout": "text"}),
        ("data.chat_template_digest", {"digest": "abc"}),
        ("edge.dtype", {"edge": "float32"}),
        ("edge.quantised", {"quantised": "int8"}),
        ("devices.d0.dtype", {"device": "float32"}),
        ("devices.d0.micro_batches", {"pieces": 2}),
    ],
)
def test_what_a_run_has_not_settled_is_not_changed_by_hand(
    field: str, change: dict[str, object]
) -> None:
    begun_so = [Entry(0.0, asked(written(ASKED)))]
    forms = [TextForm("completion", "")]
    for entries, said in ((begun_so, []), (begun_so + settled(), forms)):
        with pytest.raises(ConfigError, match="the run began with") as caught:
            require_same(entries, written(ASKED, **change), said)
        assert caught.value.field == field


def test_a_codec_that_was_given_is_not_settled() -> None:
    given = [Entry(0.0, asked(written(GIVEN))), Entry(1.0, Settle(1, {1: 0.1}))]
    require_same(given, written(GIVEN, micro_batches=1))
    with pytest.raises(ConfigError, match="the run began with 'none'") as caught:
        require_same(given, written(GIVEN, activation="int4"))
    assert caught.value.field == "codec.activation"


def test_a_run_that_has_results_and_no_journal_is_not_begun_anew(tmp_path: Path) -> None:
    run, _ = begun(tmp_path)
    (run / "run.sqlite").unlink()
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "adapter").mkdir()
    (run / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="its journal is gone"):
        resumed(str(run))
    assert (run / "summary.json").exists()
