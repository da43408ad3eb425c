"""The queue of a service: on the disk before anybody is told, and one run for one submission."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tomli_w

from sfl.errors import ConfigError, DiskError
from sfl.service.accept import accept
from sfl.service.listing import one_of, rows_of
from sfl.service.operators import end_run
from sfl.service.queue import QUEUE, JobQueue, existing


def settings(run: str = "", **more: object) -> str:
    own = {"id": run} if run else {}
    values = {"run": own, "model": {"path": "m"}, "devices": [{"name": "a"}], **more}
    return tomli_w.dumps(values)


def test_the_same_submission_twice_is_one_run(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    first = accept(queue, tmp_path, settings(), "k", "operator 'o'")
    assert accept(queue, tmp_path, settings(), "k", "") == first
    other = accept(JobQueue(tmp_path), tmp_path, settings(), "other", "")
    assert [job.run for job in queue.open()] == [first.run, other.run]
    found = existing(tmp_path)
    assert found is not None and found.get(first.run) == first
    assert first.submitted_by == "operator 'o'" and not first.over


def test_tries_at_the_same_moment_are_one_run(tmp_path: Path) -> None:
    queues = [JobQueue(tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(accept, queue, tmp_path, settings(), "k", "") for queue in queues]
    assert len({entry.result().run for entry in tries}) == 1
    assert len(queues[0].all()) == 1


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    accept(queue, tmp_path, settings("r"), "k", "")
    with pytest.raises(ConfigError, match=r"run\.id = 'r': a run of that name exists"):
        accept(queue, tmp_path, settings("r"), "k2", "")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="a run of that name exists"):
        accept(queue, tmp_path, settings("there"), "k3", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = [", "config = '': not valid TOML"),
        (settings(lora={"rnak": 2}), r"lora\.rnak = 2: unknown"),
        (settings(lora={"rank": 0}), r"lora\.rank = 0: must be"),
        (settings("../x"), r"run\.id = '\.\./x'"),
    ],
)
def test_settings_that_do_not_validate_name_the_field(tmp_path: Path, text: str, said: str) -> None:
    queue = JobQueue(tmp_path)
    with pytest.raises(ConfigError, match=said):
        accept(queue, tmp_path, text, "k", "")
    assert queue.all() == []


def test_a_run_has_nothing_of_the_submitters_machine(tmp_path: Path) -> None:
    cloud = {"listen": "0.0.0.0:1", "tls": {"ca": "/a", "cert": "/b", "key": "/c"}}
    text = settings("r", cloud=cloud) + "\n[launch]\nrestarts = 1\n"
    job = accept(JobQueue(tmp_path), tmp_path, text, "k", "")
    assert "0.0.0.0" not in job.settings and "/c" not in job.settings
    assert f'output_dir = "{tmp_path}"' in job.settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("journal", "postgresql://mine/x"),
        ("artifacts", "s3://mine/x"),
        ("tracing.endpoint", "http://mine/x"),
    ],
)
def test_what_the_service_dials_is_its_own_to_choose(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"cloud\.{name} = '{value}': is the service's to"):
        text = settings("r") + f'[cloud]\n{name} = "{value}"\n'
        accept(JobQueue(tmp_path), tmp_path, text, "k", "")


def test_a_run_in_the_queue_is_stopped_at_once_and_one_under_way_is_noted(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    for name in ("waits", "works"):
        accept(queue, tmp_path, settings(name), name, "")
    assert queue.change("works", only=("queued",), state="running")
    assert not queue.change("works", only=("queued",), state="running")
    rows = rows_of(tmp_path, queue)
    end_run(queue, one_of(rows, "wait"), "no use")
    end_run(queue, one_of(rows, "works"), "enough")
    found = {row.run: (row.state, row.reason) for row in rows_of(tmp_path, queue)}
    assert found == {"waits": ("stopped", "no use"), "works": ("stopping", "enough")}
    with pytest.raises(ConfigError, match="it has ended: stopped"):
        end_run(queue, one_of(rows_of(tmp_path, queue), "waits"), "")
    with pytest.raises(ConfigError, match="2 runs begin like this"):
        one_of(rows, "w")
    with pytest.raises(ConfigError, match="no such run"):
        one_of(rows, "x")
    with pytest.raises(ConfigError, match="RUN = '': is empty"):
        one_of(rows[:1], "")


def test_a_queue_that_cannot_be_read_is_an_error_of_the_disk(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    (queue.folder / QUEUE).write_bytes(b"not a database" * 100)
    with pytest.raises(DiskError, match=r"queue\.sqlite: file is not a database"):
        queue.all()
