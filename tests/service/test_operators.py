"""What operators see and do: watch, logs, stop, mistakes, and who may."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from sfl.node.certificates.own import own_in
from sfl.transport.jobs.client import ServiceClient
from tests.house.federation import SFL, finished, sfl
from tests.house.fleets import SLOW
from tests.house.paths import ROOT
from tests.house.reference import adapter, assert_same_bits
from tests.house.service import GuardedService, Served, run_of, started
from tests.house.twin import played
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedService]:
    service = GuardedService(tmp_path_factory.mktemp("service"))
    try:
        yield service
    finally:
        service.stop()


def long(served: Served, name: str) -> str:
    """A run that lasts until it is stopped."""
    return served.submit(name, run={"rounds": 200}, training={"local_steps": 40}, link=SLOW)


def test_a_run_is_watched_followed_and_stopped(served: GuardedService) -> None:
    agents = served.attached()
    assert {(agent["name"], agent["via"]) for agent in agents} == {
        ("edge", ""),
        ("d0", "edge"),
        ("d1", ""),
    }
    run = long(served, "watched")
    watching = started(served, "watch", run, "--format", "json")
    following = started(served, "logs", run, "d1", "-f")
    until(lambda: served.status(run).get("round", 0) >= 1, "the first round")
    until(lambda: (served.output_dir / run / "logs" / "d1.log").exists(), "the log of d1")
    said = served.sfl("status", run)
    assert said.returncode == 0 and "training" in said.stdout and "d0" in said.stdout
    stopped = served.json("stop", run, "--reason", "seen enough")
    assert stopped["runs"][0]["state"] == "stopping"
    output, errors = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 1, errors
    seen = [json.loads(line) for line in output.splitlines()]
    assert seen[-1]["runs"][0]["state"] == "stopped"
    assert seen[-1]["runs"][0]["reason"] == "seen enough"
    assert any(one["status"] and one["status"]["round"] == 1 for one in seen)
    lines, errors = following.communicate(timeout=PATIENCE)
    assert following.returncode == 0, errors
    assert "examples" in lines and "seen enough" in lines
    everyone = served.sfl("logs", run)
    assert {line.split()[0] for line in everyone.stdout.splitlines()} >= {"cloud", "edge", "d0"}
    summary = json.loads((served.output_dir / run / "summary.json").read_text())
    assert summary["failure"] == "seen enough"
    served.at_rest()
    again = served.sfl("stop", run)
    assert again.returncode != 0 and "it has ended: stopped" in again.stderr


def test_a_run_with_tls_is_the_same(served: GuardedService, tmp_path: Path) -> None:
    run = served.submit("guarded")
    outcome = finished(served.ended(run))
    values = run_of(served.data)
    assert_same_bits(adapter(outcome), adapter(finished(played(tmp_path, values))))


def test_a_submission_whose_answer_was_lost_is_one_run(
    served: GuardedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda size: "the same key")
    client = ServiceClient(served.listen, False, own_in(served.certs / "anna"), PATIENCE)
    values = {**run_of(served.data), "devices": [{"name": "nobody"}]}
    try:
        run = client.submit(tomli_w.dumps(values))
        assert client.submit(tomli_w.dumps(values)) == run
        assert [row.run for row in client.rows()].count(run) == 1
        waits = until(lambda: client.standing(run).runs[0].waits, "what it waits for")
        assert waits == "1 more of the devices nobody to attach"
        assert client.stop(run, "a test").runs[0].state == "stopped"
    finally:
        client.close()


def test_a_run_that_is_put_into_the_folder_is_taken(served: GuardedService) -> None:
    file = served.run_file("beside", devices=["d0"], run={"rounds": 1})
    done = sfl("submit", file, "--output-dir", served.output_dir)
    assert done.returncode == 0 and done.stdout.strip() == "beside"
    assert finished(served.ended("beside")).summary["rounds"] == 1
    listed = json.loads(sfl("list", "--output-dir", served.output_dir, "--format", "json").stdout)
    assert {row["run"]: row["state"] for row in listed}["beside"] == "finished"


def test_only_operators_may(served: GuardedService) -> None:
    for name, role in (("d0", "device"), ("edge", "edge")):
        own = ("--service", served.listen, "--certs", served.certs / name)
        done = sfl("list", *own, timeout=PATIENCE)
        assert done.returncode == 1
        assert f"the certificate is of {role} '{name}', and this is open to: operator" in (
            done.stderr.replace("\n", " ")
        )


def test_mistakes_come_back_at_once(served: GuardedService, tmp_path: Path) -> None:
    file = served.run_file("wrong", lora={"rnak": 3})
    done = served.sfl("submit", file)
    assert done.returncode == 2 and "lora.rnak = 3" in done.stderr
    taken = served.run_file("taken", run={"rounds": 500})
    assert served.sfl("submit", taken).returncode == 0
    done = served.sfl("submit", taken)
    assert done.returncode == 2 and "run.id = 'taken': a run of that name exists" in done.stderr
    assert served.json("stop", "taken")["runs"][0]["state"] in ("stopped", "stopping")
    done = served.sfl("status", "nobody")
    assert done.returncode != 0 and "RUN = 'nobody': no such run" in done.stderr
    huge = tmp_path / "huge.toml"
    values = run_of(served.data)
    values["lora"]["target_modules"] = ["q" * 1000] * 1200
    huge.write_text(tomli_w.dumps(values))
    done = served.sfl("submit", huge)
    assert done.returncode != 0 and "at most" in done.stderr


def test_an_agent_with_the_name_of_another_costs_nobody_anything(served: GuardedService) -> None:
    other = Path(served.folder / "other.toml")
    other.write_text(
        f'[device]\nname = "d0"\nthreads = 1\ncache_dir = "{served.folder / "cache2"}"\n'
        f'train = "{served.data["d0"]}"\n'
    )
    attach = ["--service", served.listen, "--certs", str(served.certs / "d0")]
    impostor = subprocess.Popen(
        [*SFL, "device", str(other), *attach],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    try:
        before = {(a["name"], a["attached_at"]) for a in served.attached()}
        assert impostor.stdout is not None
        said = ""
        while "an agent named 'd0' is attached already" not in said:
            said = impostor.stdout.readline()
            assert said, "it ended"
        assert {(a["name"], a["attached_at"]) for a in served.attached()} == before
    finally:
        impostor.terminate()
        impostor.communicate(timeout=PATIENCE)
    assert impostor.returncode == 130
