"""`make up` keeps the shell's variables where a later compose command reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.paths import ROOT

pytestmark = pytest.mark.process


def test_variables_of_a_shell_are_kept_for_the_next(tmp_path: Path) -> None:
    for name in ("keep_env.py", "compose.yml", "service.yml"):
        shutil.copy(ROOT / "docker" / name, tmp_path / name)
    file = tmp_path / ".env"
    file.write_text("COMPOSE_PROJECT_NAME=sfl\nSFL_RUNS=./runs\n")

    def keep(**variables: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SFL_")}
        command = [sys.executable, tmp_path / "keep_env.py"]
        subprocess.run(command, env={**clean, **variables}, check=True)

    keep(SFL_TORCH_INDEX="https://host.invalid/cpu", SFL_TEST_COMPOSE="1")  # one is not compose's
    first = file.read_text().splitlines()
    assert first == [
        "COMPOSE_PROJECT_NAME=sfl",
        "SFL_RUNS=./runs",
        "SFL_TORCH_INDEX=https://host.invalid/cpu",
    ]
    assert file.stat().st_mode & 0o777 == 0o600
    keep()
    assert file.read_text().splitlines() == first
    keep(SFL_RUNS="/srv/runs")
    assert "SFL_RUNS=/srv/runs" in file.read_text()
    keep(SFL_SERVICE_PORT="0.0.0.0:7000")
    assert "SFL_SERVICE_PORT=0.0.0.0:7000" in file.read_text()
