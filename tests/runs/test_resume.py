"""A run whose cloud was killed goes on from its folder, and ends as if nothing had happened."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cloud_aggregator.averaging import Averaging, GlobalAdapter
from cloud_aggregator.memory import StrategyMemory
from cloud_aggregator.records import RunRecords
from sfl.report.journal import SqliteJournal
from sfl.report.records import RoundRecord, read_records
from sfl.report.served import PostgresJournal
from sfl.report.status import RunStatus
from tests.house.federation import Outcome, finished, sfl
from tests.house.fleets import LASTING, fleet, lasting
from tests.house.forks import HOOK
from tests.house.nodes import ByHand, launched, left_running, node_process
from tests.house.postgres import PASSWORD, Postgres, Rows
from tests.house.proxy import Proxy
from tests.house.stills import assert_same_end, digest, over, stills_of
from tests.house.twin import Twin, played
from tests.house.waiting import PATIENCE, until

WEIGHTS = "adapter_model.safetensors"


WRITES = (
    (SqliteJournal, "_write"),
    (GlobalAdapter, "save"),
    (StrategyMemory, "save"),
    (Averaging, "forget_before"),
    (RunRecords, "keep"),
    (RunRecords, "close"),
)


def brief(folder: Path, **sections: Any) -> dict[str, Any]:
    """Few steps, and one round unless told otherwise."""
    run = {"rounds": 1, "keep_round_adapters": False, **sections.pop("run", {})}
    return fleet(folder, 2, run=run, training={"local_steps": 2}, **sections)


@pytest.mark.parametrize("strategy", ["fedadam", "flora"])
def test_a_cloud_killed_between_any_two_writes_goes_on(tmp_path: Path, strategy: str) -> None:
    """With all the others: each begins anew with what it has on its disk."""
    folder = tmp_path / "whole"
    folder.mkdir()
    writes = WRITES if strategy == "fedadam" else WRITES[1:]
    more = {"run": {"rounds": 2}, "aggregation": {"strategy": strategy}}
    whole, stills = stills_of(folder, brief(folder, **more), writes)
    moments = [still for still in stills.taken if not over(still[0])]
    assert {when for _, when in moments} >= {"save", "forget_before", "keep"}
    for still, when in moments:
        logging.getLogger("sfl").warning("resumed %s: %s", still.parent.name, when)
        outcome = finished(Twin(tmp_path, {}, resume=still).run())
        assert_same_end(outcome, whole)


@pytest.mark.process
def test_with_its_journal_on_a_server_a_killed_cloud_goes_on(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two writes, with a copy of the database as it was then."""
    monkeypatch.setenv("SFL_TEST_PASSWORD", PASSWORD)
    folder = tmp_path / "whole"
    folder.mkdir()
    database = postgres.database()

    rows: dict[Path, Rows] = {}

    def copied(still: Path) -> None:
        rows[still] = postgres.rows(database)

    def with_its_own(still: Path) -> Path:
        config, own = still / "config.toml", postgres.database_of(rows[still])
        config.write_text(config.read_text().replace(f'/{database}"', f'/{own}"'))
        return still

    journal = {"journal": postgres.url(database)}
    writes = ((PostgresJournal, "_write"), *WRITES[1:])
    whole, stills = stills_of(folder, brief(folder, cloud=journal), writes, copied)
    assert not (whole.folder / "run.sqlite").exists()
    assert {when for _, when in stills.taken} >= {"_write", "save", "forget_before", "keep"}
    known = [still for still, _ in stills.taken if (still / "status.json").exists()]
    every_third = (with_its_own(still) for still in known[::3])
    for still in [still for still in every_third if not over(still)]:
        logging.getLogger("sfl").warning("resumed %s", still.parent.name)
        outcome = finished(Twin(tmp_path, {}, resume=still).run())
        assert_same_end(outcome, whole)


@pytest.mark.process
def test_a_journal_whose_connection_breaks_changes_nothing(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFL_TEST_PASSWORD", PASSWORD)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = finished(played(tmp_path / "whole", brief(tmp_path / "whole", run={"rounds": 2})))
    with Proxy(f"127.0.0.1:{postgres.port}") as proxy:
        port = int(proxy.address.rsplit(":", 1)[1])
        journal = {"journal": postgres.url(postgres.database(), port)}
        values = brief(tmp_path / "broken", run={"rounds": 2}, cloud=journal)
        twin = Twin(tmp_path / "broken", values)
        for round_ in (1, 2):
            for step in (1, 2):
                twin.at("d0", round_, step, lambda _: proxy.cut())
        outcome = finished(twin.run())
        assert proxy.connections >= 3
        (outcome.folder / "run.sqlite").touch()  # the other has one
        assert_same_end(outcome, whole)


# -- in real processes -----------------------------------------------------------------------------


def resumed_run(folder: Path, *options: str) -> Outcome:
    """`sfl run --resume`, as a user calls it."""
    found = folder / "runs" / "t"
    done = sfl("run", "--resume", "t", "--output-dir", folder / "runs", *options)
    return Outcome(done.returncode, done.stdout + done.stderr, found)


def amid_round(folder: Path, round_: int) -> bool:
    """Whether all devices have taken some steps of a round."""
    status = RunStatus.read(folder / "runs" / "t" / "status.json")
    assert status is not None and not status.over
    return status.round == round_ and all(own.step > 2 for own in status.devices)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    return finished(played(folder, fleet(folder, 2, training=LASTING)))


@pytest.mark.process
@pytest.mark.parametrize(("who", "options"), [("cloud", ()), ("all", ()), ("cloud", ("--tls",))])
def test_a_killed_run_is_gone_on_with(
    tmp_path: Path, undisturbed: Outcome, who: str, options: tuple[str, ...]
) -> None:
    values = lasting(tmp_path, 2, launch={"restarts": 0})
    for node in (values["edge"], *values["devices"]):
        node["cache_dir"] = str(tmp_path / "cache")
    process = launched(tmp_path, values, *options)
    until(lambda: amid_round(tmp_path, 2), "the middle of round 2")
    if who == "cloud":
        node_process(tmp_path, "cloud").kill()
    else:
        process.terminate()
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode != 0
    assert f"to go on: sfl run --resume {tmp_path / 'runs' / 't'}" in said
    keys = sorted((tmp_path / "runs" / "t" / "tls").rglob("*.key"))
    assert [key.stem for key in keys] == (["cloud", "d0", "d1", "edge"] if options else [])
    assert all(key.stat().st_mode & 0o077 == 0 for key in keys)
    logs = (tmp_path / "runs" / "t" / "logs").glob("*.log")
    before = sum(log.read_text().count("TLS 1.3") for log in logs)
    refused = resumed_run(tmp_path, "--set", "training.local_steps=2")
    assert refused.code == 2 and "settings that it has" in refused.output
    outcome = finished(resumed_run(tmp_path))
    assert digest(outcome.folder) == digest(undisturbed.folder)
    assert outcome.summary["failure"] is None and outcome.summary["rounds"] == 3
    for key in ("eval_loss_before", "eval_loss_after", "tokens_trained"):
        assert outcome.summary[key] == undisturbed.summary[key]
    records = read_records(outcome.folder / "metrics.jsonl")
    assert len(records) == len(read_records(undisturbed.folder / "metrics.jsonl"))
    assert not left_running(tmp_path)
    assert not (outcome.folder / "tls").exists()
    after = outcome.logs().count("TLS 1.3")
    assert (after > before) == bool(options)
    again = resumed_run(tmp_path)
    assert again.code == 2 and "this run has ended: every round closed" in again.output
    assert (outcome.folder / "summary.json").exists()


STRUCK = """
import os, signal
from {module} import {owner}

known = {owner}.{name}


def struck(own, *given):
    if {after}:
        known(own, *given)
    if given != (0,):
        os.kill(os.getpid(), signal.SIGKILL)
    return known(own, *given)


{owner}.{name} = struck
"""
MOMENTS = {
    "averaging, nothing written": ("cloud_aggregator.averaging", "GlobalAdapter", "save", False),
    "averaging, all written": ("cloud_aggregator.averaging", "GlobalAdapter", "save", True),
    "the last evaluation": ("cloud_aggregator.records", "RunRecords", "keep", False),
    "decided, nobody told": ("cloud_aggregator.aggregator", "CloudAggregator", "_dismiss", False),
    "told, no word of it": ("cloud_aggregator.records", "RunRecords", "make_room", False),
    "all written, not tidied": ("cloud_aggregator.records", "RunRecords", "close", True),
}


class Struck(ByHand):
    """A run whose cloud kills itself."""

    def environment(self, name: str) -> dict[str, str]:
        return {HOOK: str(self.folder / "hook.py")} if name == "cloud" else {}


@pytest.fixture(scope="module")
def undisturbed_brief(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("brief")
    return finished(played(folder, brief(folder)))


@pytest.mark.process
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_cloud_killed_at_a_moment_goes_on(
    tmp_path: Path, undisturbed_brief: Outcome, moment: str
) -> None:
    module, owner, name, after = MOMENTS[moment]
    hook = STRUCK.format(module=module, owner=owner, name=name, after=after)
    (tmp_path / "hook.py").write_text(hook)
    nodes = Struck(tmp_path, brief(tmp_path))
    try:
        for number in range(2):
            nodes.device(number)
        assert nodes.cloud.wait(PATIENCE) == -signal.SIGKILL
    finally:
        nodes.stop()
    outcome = finished(resumed_run(tmp_path))
    assert digest(outcome.folder) == digest(undisturbed_brief.folder)
    assert outcome.summary["rounds"] == 1 and outcome.summary["failure"] is None
    records = read_records(outcome.folder / "metrics.jsonl")
    scored = Counter((r.round, r.device) for r in records if isinstance(r, RoundRecord))
    assert scored == dict.fromkeys([(r, d) for r in (0, 1) for d in ("d0", "d1")], 1)
