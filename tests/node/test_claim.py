"""Replicas take one identity each from a folder of them, and give it back however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sfl.errors import ConfigError
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.bundle import Wanted, issue_all
from sfl.node.certificates.claim import claim_identity
from sfl.node.certificates.identity import Identity
from tests.house.federation import sfl
from tests.house.paths import ROOT

REPLICA = """
import sys, time
from pathlib import Path
from sfl.node.certificates.claim import claim_identity
with claim_identity(Path(sys.argv[1])) as folder:
    print(folder.name, flush=True)
    time.sleep(600)
"""
Start = Callable[[], tuple[str, subprocess.Popen[str]]]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    names = ["device-10", "device-2", "device-0"]
    wanted = [Wanted(Identity("device", name)) for name in names]
    issue_all(Authority.create(), wanted, tmp_path / "pool")
    # What is no identity: a mount point, another name's key, a file.
    (tmp_path / "pool" / "cloud").mkdir()
    (tmp_path / "pool" / "copy").mkdir()
    (tmp_path / "pool" / "copy" / "device-3.key").touch()
    (tmp_path / "pool" / "note.key").touch()
    return tmp_path / "pool"


@pytest.fixture
def start(pool: Path) -> Iterator[Start]:
    """A replica: the name it got, and its process."""
    replicas: list[subprocess.Popen[str]] = []

    def start() -> tuple[str, subprocess.Popen[str]]:
        replica = subprocess.Popen(
            [sys.executable, "-c", REPLICA, pool], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        replicas.append(replica)
        assert replica.stdout is not None
        return replica.stdout.readline().strip(), replica

    yield start
    for replica in replicas:
        replica.kill()
        replica.communicate()


@pytest.mark.process
def test_each_process_gets_another_and_a_killed_one_leaves_its_own(
    pool: Path, start: Start
) -> None:
    names = []
    for _ in range(2):
        name, replica = start()
        names.append(name)
    assert names == ["device-0", "device-2"]
    replica.send_signal(signal.SIGKILL)
    replica.wait()
    assert start()[0] == "device-2"
    with claim_identity(pool) as folder:
        assert folder == pool / "device-10"
        with (
            pytest.raises(ConfigError, match="all 3 identities are taken") as caught,
            claim_identity(pool),
        ):
            pass
        assert "--claim" in str(caught.value)
    with claim_identity(pool) as folder:
        assert folder.name == "device-10"


def test_no_right_to_write_is_needed(pool: Path) -> None:
    before = sorted(pool.rglob("*"))
    for folder in [*pool.iterdir(), pool]:
        if folder.is_dir():
            folder.chmod(0o500)
    with claim_identity(pool) as first, claim_identity(pool) as second:
        assert (first.name, second.name) == ("device-0", "device-2")
        assert sorted(pool.rglob("*")) == before
    pool.chmod(0o700)
    for folder in pool.iterdir():
        if folder.is_dir():
            folder.chmod(0o700)


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_pool_is_said_so(tmp_path: Path, exists: bool) -> None:
    pool = tmp_path / "pool"
    if exists:
        pool.mkdir()
    with pytest.raises(ConfigError, match="has no identity in it"), claim_identity(pool):
        pass


@pytest.mark.process
def test_a_device_goes_by_what_it_claimed(pool: Path, tmp_path: Path) -> None:
    config = tmp_path / "device.toml"
    config.write_text('[device]\nname = "any"\nedge = "127.0.0.1:1"\n')
    # Looked at before torch is loaded, and wrong, so that the command ends there and says which.
    (pool / "device-2" / "device-2.pem").write_text("no certificate")
    with claim_identity(pool):
        done = sfl("device", config, "--claim", pool)
        assert done.returncode == 2
        assert str(pool / "device-2" / "device-2.pem") in done.stderr
        assert "Traceback" not in done.stderr
        done = sfl("device", config, "--claim", pool, "--certs", pool / "device-2")
        assert done.returncode == 2
        assert "--claim" in done.stderr
        with claim_identity(pool), claim_identity(pool):
            done = sfl("device", config, "--claim", pool)
    assert done.returncode == 2
    assert "all 3 identities are taken" in done.stderr


@pytest.mark.process
def test_locks_are_let_go_of_by_children(pool: Path) -> None:
    with claim_identity(pool):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with claim_identity(pool) as folder:
            assert folder.name == "device-0", "a child that outlives the claim does not keep it"
    finally:
        assert child.stdin is not None
        child.stdin.close()
        os.waitpid(child.pid, 0)
        child.returncode = 0
