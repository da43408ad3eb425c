"""Which threads of a node compute with more than one core: one in each, however much it codes.

A library before libgomp's own function notes every thread that opens a team (team_counter.c).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from sfl.node.process import SPIN, quiet_environment
from tests.house.federation import run
from tests.house.fleets import completions, device, settings
from tests.house.paths import MODEL, ROOT

GOMP = list((Path(torch.__file__).parent / "lib").glob("libgomp*"))
needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux" or not GOMP,
    reason="counting teams takes a C compiler, Linux and torch with libgomp",
)


@pytest.fixture
def teams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Counts teams in every process started from here; the file of what was noted."""
    library, noted = tmp_path / "team_counter.so", tmp_path / "teams"
    source = ROOT / "tests" / "house" / "team_counter.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    monkeypatch.setenv("TEAMS_FILE", str(noted))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    return noted


@pytest.mark.process
@needs_compiler
def test_one_thread_of_a_node_opens_teams(teams: Path, tmp_path: Path) -> None:
    long = "the harbour lamp hums while the loft heater waits " * 12
    train = completions(tmp_path / "train.jsonl", 1)
    train.write_text(train.read_text().replace('"prompt": "', f'"prompt": "{long}'))
    values = settings(
        MODEL,
        run={"rounds": 1},
        model={"max_length": 96},
        training={"batch_size": 8, "local_steps": 2},
        edge={"threads": 2},
    )
    coded = {"activation": "stochastic(4) | rans", "gradient": "stochastic(4) | rans"}
    values["devices"] = [
        device("plain", train, 1, threads=2),
        device("coded", train, 1, threads=2, codec=coded),
    ]
    outcome = run(tmp_path, values, alone=True)
    assert outcome.code == 0, outcome.output + outcome.logs()
    threads = defaultdict(set)
    for line in teams.read_text().splitlines():
        process, thread, command = line.split(" ", 2)
        if command.startswith("sfl "):
            threads[" ".join(command.split()[1:3])].add((process, thread))
    assert {node: len(found) for node, found in threads.items()} == {
        "edge edge": 1,
        "device plain": 1,
        "device coded": 1,
    }


COMPUTES = """
import threading, torch
from sfl.stage.threads import compute_here
from sfl.codec.compiled.calls import threads
found = []
def ask(): found.append((torch.get_num_threads(), threads().value))
compute_here(3)
ask()
for _ in range(2):
    other = threading.Thread(target=ask); other.start(); other.join()
compute_here(2)
ask()
print(found)
"""


@pytest.mark.process
def test_a_thread_that_does_not_compute_has_one_core() -> None:
    """The codec's own threads are no team, and stay."""
    done = subprocess.run([sys.executable, "-c", COMPUTES], capture_output=True, text=True)
    assert done.stdout == "[(3, 3), (1, 3), (1, 3), (2, 2)]\n", done.stderr


def test_a_user_of_a_wait_policy_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SPIN:
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    quiet_environment()
    assert not set(SPIN) & set(os.environ)
    monkeypatch.delenv("OMP_WAIT_POLICY")
    quiet_environment()
    assert SPIN.items() <= os.environ.items()
