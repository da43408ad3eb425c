"""A cloud whose machine and disk are gone goes on elsewhere, from a database and a bucket."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from cloud_aggregator.averaging import Averaging, GlobalAdapter
from cloud_aggregator.mirror import StoreMirror
from cloud_aggregator.records import RunRecords
from sfl.config import load_run
from sfl.errors import ConfigError
from sfl.report.asked import asked
from sfl.report.elsewhere import fetched
from sfl.report.journal import open_journal
from sfl.report.runs import open_run_folder
from sfl.report.served import PostgresJournal
from sfl.report.status import RunStatus
from sfl.rounds.journal import Entry
from sfl.store.artifacts import ArtifactStore
from tests.house.federation import Outcome, finished, sfl, surroundings, write_config
from tests.house.fleets import LASTING, fleet, lasting
from tests.house.forks import fork
from tests.house.nodes import ByHand, launched
from tests.house.postgres import PASSWORD, Postgres, Rows
from tests.house.s3 import S3
from tests.house.stills import Stills, assert_same_end, over, stills_of
from tests.house.twin import Twin, played
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.process

WEIGHTS = "adapter_model.safetensors"


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / WEIGHTS).read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFL_TEST_PASSWORD", PASSWORD)
    s3.use(monkeypatch)
    # Nodes of one process wait for each other: what takes seconds to import is imported before.
    ArtifactStore("cloud.artifacts", f"s3://{s3.bucket()}", "first").check()


class Fleet(ByHand):
    """A run whose cloud is started again elsewhere."""

    def cloud_elsewhere(self, journal: str, artifacts: str) -> None:
        command = ["cloud", "--resume", "t", "--journal", journal, "--artifacts", artifacts]
        command += ["--output-dir", str(self.folder / "elsewhere"), "--set"]
        command += [f'cloud.listen="{self.address("cloud")}"']
        self.cloud = fork(command, surroundings(), self.folder / "cloud.log")
        self.processes.append(self.cloud)


def amid_round(folder: Path, round_: int) -> bool:
    status = RunStatus.read(folder / "status.json")
    return status is not None and status.round == round_ and any(d.step > 0 for d in status.devices)


def test_a_cloud_whose_machine_is_gone_goes_on_elsewhere(
    postgres: Postgres, s3: S3, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {
        "aggregation": {"strategy": "fedadam"},
        "run": {"rounds": 2, "keep_round_adapters": False},
        "training": LASTING,
    }
    (tmp_path / "whole").mkdir()
    whole = finished(played(tmp_path / "whole", fleet(tmp_path / "whole", 2, **sections)))
    bucket = s3.bucket()
    journal, artifacts = postgres.url(postgres.database()), f"s3://{bucket}/runs"
    cloud = {"journal": journal, "artifacts": artifacts}
    nodes = Fleet(tmp_path, lasting(tmp_path, 2, cloud=cloud, **sections))
    try:
        for number in range(2):
            nodes.device(number)
        until(lambda: amid_round(tmp_path / "runs" / "t", 2), "the middle of round 2")
        nodes.cloud.kill()
        nodes.cloud.wait()
        shutil.rmtree(tmp_path / "runs")
        nodes.cloud_elsewhere(journal, artifacts)
        assert nodes.cloud.wait(PATIENCE) == 0, nodes.log("cloud")
    finally:
        nodes.stop()
    folder = tmp_path / "elsewhere" / "t"
    assert digest(folder) == digest(whole.folder)
    outcome = finished(Outcome(0, nodes.log("cloud"), folder))
    for key in ("rounds", "best_round", "eval_loss_before", "eval_loss_after", "tokens_trained"):
        assert outcome.summary[key] == whole.summary[key], key
    # The results are in the bucket, and nothing else is left there.
    kept = s3.folder / bucket / "runs" / "t"
    assert (kept / "adapter" / WEIGHTS).read_bytes() == (folder / "adapter" / WEIGHTS).read_bytes()
    assert {"summary.json", "report.html"} <= {path.name for path in kept.iterdir()}
    assert not [path for path in kept.rglob("*") if "objects" in path.parts and path.is_file()]
    for file in (folder / "config.toml", folder / "report.html", tmp_path / "cloud.log"):
        assert PASSWORD not in file.read_text()


def test_a_run_of_one_machine_goes_on_without_its_folder(
    postgres: Postgres, s3: S3, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {
        "run": {"rounds": 2, "keep_round_adapters": False},
        "training": LASTING,
    }
    (tmp_path / "whole").mkdir()
    whole = finished(played(tmp_path / "whole", fleet(tmp_path / "whole", 2, **sections)))
    cloud = {
        "journal": postgres.url(postgres.database()),
        "artifacts": f"s3://{s3.bucket()}/runs",
    }
    process = launched(tmp_path, lasting(tmp_path, 2, cloud=cloud, **sections))
    until(lambda: amid_round(tmp_path / "runs" / "t", 2), "the middle of round 2")
    process.terminate()
    process.communicate(timeout=PATIENCE)
    shutil.rmtree(tmp_path / "runs")
    where = [word for name, url in cloud.items() for word in (f"--{name}", url)]
    done = sfl("run", "--resume", "t", *where, "--output-dir", tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere" / "t"
    finished(Outcome(done.returncode, done.stdout + done.stderr, folder))
    assert digest(folder) == digest(whole.folder)


WRITES = (
    (PostgresJournal, "_write"),
    (StoreMirror, "put"),
    (StoreMirror, "sync"),
    (StoreMirror, "prune"),
    (GlobalAdapter, "save"),
    (Averaging, "forget_before"),
    (RunRecords, "keep"),
)


def test_whenever_its_machine_goes_a_cloud_goes_on_elsewhere(
    postgres: Postgres, s3: S3, tmp_path: Path
) -> None:
    """Between any two writes, with database and bucket as they were then, and no folder."""
    (tmp_path / "whole").mkdir()
    database, bucket = postgres.database(), s3.bucket()
    rows: dict[Path, tuple[Rows, str]] = {}

    def copied(still: Path) -> None:
        rows[still] = (postgres.rows(database), s3.copy(bucket))

    def moved(still: Path) -> Path | None:
        kept, own = rows[still]
        shutil.rmtree(still)
        s3.look_again()
        name = postgres.database_of(kept)
        where = (postgres.url(name), f"s3://{own}/runs", still.parent)
        try:
            folder = fetched("t", *where)
        except ConfigError as error:  # nothing was begun, or all was over
            assert "no such run" in str(error) or "none of its files" in str(error)
            return None
        config = folder / "config.toml"
        text = config.read_text().replace(f'/{database}"', f'/{name}"')
        config.write_text(text.replace(f"s3://{bucket}/", f"s3://{own}/"))
        (folder / "status.json").touch()  # a run's folder, by its path
        return folder

    cloud = {"journal": postgres.url(database), "artifacts": f"s3://{bucket}/runs"}
    training = {"local_steps": 2}
    run = {"rounds": 1, "keep_round_adapters": False}
    more = {"aggregation": {"strategy": "flora"}, "cloud": cloud}
    values = fleet(tmp_path / "whole", 2, run=run, training=training, **more)
    stills: Stills
    whole, stills = stills_of(tmp_path / "whole", values, WRITES, copied)
    assert {when for _, when in stills.taken} >= {"_write", "put", "sync", "save", "keep"}
    resumed = 0
    for still, _ in stills.taken[2::6]:
        if (folder := moved(still)) is not None and not over(folder):
            assert_same_end(finished(Twin(tmp_path, {}, resume=folder).run()), whole)
            resumed += 1
    assert resumed > 1


def test_a_slow_store_keeps_nobody_waiting_but_for_what_it_is_to_keep(
    postgres: Postgres, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), threading.Event()
    put = ArtifactStore.put

    def slow(store: ArtifactStore, content: bytes) -> str:
        if twin.servers and threading.current_thread() is not threading.main_thread():
            asked.set()
            assert answers.wait(PATIENCE)
        return put(store, content)

    def sequence() -> int:
        status = RunStatus.read(twin.folder / "status.json")
        return 0 if status is None else status.sequence

    async def story(twin: Twin) -> None:
        await twin.until(asked.is_set)
        seen = sequence()
        await twin.until(lambda: sequence() > seen + 2)  # the cloud goes on
        assert not any(own.done for own in twin.cloud.coordinator.progress.values())
        answers.set()

    cloud = {"artifacts": f"s3://{s3.bucket()}/runs"}
    run = {"rounds": 1, "keep_round_adapters": False}
    values = fleet(tmp_path, 2, run=run, training={"local_steps": 2}, cloud=cloud)
    twin = Twin(tmp_path, values)
    monkeypatch.setattr(ArtifactStore, "put", slow)
    finished(twin.run(story))


def test_the_folder_of_another_run_is_left_alone(
    postgres: Postgres, s3: S3, tmp_path: Path
) -> None:
    """One that has the name of the run that is fetched, or a file that nobody knows."""
    url, bucket = postgres.url(postgres.database()), f"s3://{s3.bucket()}/runs"
    config = load_run(write_config(tmp_path, fleet(tmp_path, 1, cloud={"journal": url})))
    folder = open_run_folder(config)
    with contextlib.closing(open_journal(config, folder)) as journal:
        journal.append(Entry(0.0, asked(config)))
        store = ArtifactStore("cloud.artifacts", bucket, "t")
        for name in ("config.toml", "adapters/round-0000/a"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
            journal.keep(name, store.put((folder / name).read_bytes()))
        journal.commit()

    def here(runs: Path) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}

    # Nobody there; the same run again; one whose fetching was cut off.
    mine = fetched("t", url, bucket, tmp_path / "new")
    assert fetched("t", url, bucket, tmp_path / "new") == mine
    shutil.rmtree(mine / "adapters")
    fetched("t", url, bucket, tmp_path / "new")
    assert (mine / "adapters" / "round-0000" / "a").exists()
    (tmp_path / "begun" / "t").mkdir(parents=True)
    (tmp_path / "begun" / "t" / ".config.toml.1.tmp").write_text("[ru")
    fetched("t", url, bucket, tmp_path / "begun")

    text = (folder / "config.toml").read_text()
    others = {
        "its settings": {"config.toml": text.replace("\nrank = ", "\nrank = 1")},
        "its journal": {"config.toml": text, "run.sqlite": ""},
        "its database": {"config.toml": text.replace(url, url + "2")},
        "only results": {"adapter/adapter_model.safetensors": ""},
        "no settings": {"config.toml": "rank = "},
    }
    for why, files in others.items():
        for name, content in files.items():
            path = tmp_path / why / "t" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        before = here(tmp_path / why)
        with pytest.raises(
            ConfigError, match=r"something else than that run.*Move it away"
        ) as told:
            fetched("t", url, bucket, tmp_path / why)
        assert "\n" not in str(told.value) and here(tmp_path / why) == before, why


def test_what_cannot_be_gone_on_with_is_told(postgres: Postgres, s3: S3, tmp_path: Path) -> None:
    url, bucket = postgres.url(postgres.database()), f"s3://{s3.bucket()}"
    with pytest.raises(ConfigError, match=r"--resume = 't': no such run.*that database: none"):
        fetched("t", url, bucket, tmp_path)
    done = sfl("cloud", "--resume", "t", "--journal", url)
    assert done.returncode == 2 and "--artifacts = '': is missing" in done.stderr
    open_password = "postgresql://me:hidden@127.0.0.1/db"
    done = sfl("cloud", "--resume", "t", "--journal", open_password, "--artifacts", bucket)
    assert done.returncode == 2 and "has a password" in done.stderr
    assert "hidden" not in done.stderr
