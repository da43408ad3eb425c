"""Units of systemd for servers: what they name exists, and systemd finds them sound."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sfl.errors import Bug, ConfigError, NotYetValid, OutOfMemory
from tests.house.options import options_of
from tests.house.paths import ROOT

UNITS = sorted((ROOT / "docker" / "systemd").glob("*.service"))


def settings(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(unit)
    return parser


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_restarts_what_a_restart_may_help(unit: Path) -> None:
    service = settings(unit)["Service"]
    module, *rest = service["ExecStart"].split()[2:]
    kind = {"cloud_aggregator": "cloud", "edge_server": "edge"}.get(module) or rest.pop(0)
    file, *options = rest
    if unit.stem != "sfl-cloud":  # it may have processes of its own, each run's
        assert (service["KillMode"], service["OOMPolicy"]) == ("mixed", "continue")
    if unit.stem == "sfl-service":  # it has no file
        options.append(file)
        assert "--output-dir" in options
    else:
        assert unit.stem == f"sfl-{kind}"
        assert file == f"/etc/sfl/{'run' if kind == 'cloud' else kind}.toml"
    assert {word for word in options if word.startswith("--")} <= options_of(kind)
    assert service["RestartPreventExitStatus"] == str(ConfigError.exit_code)
    for code in (Bug.exit_code, OutOfMemory.exit_code, NotYetValid.exit_code):
        assert str(code) not in service["RestartPreventExitStatus"].split()
    assert service["Restart"] in ("on-failure", "always")
    assert service["SuccessExitStatus"] == "130"
    assert service["KillSignal"] == "SIGTERM"
    # A step may still end, and a cloud closes its journal.
    assert int(service["TimeoutStopSec"]) >= 20
    assert service["ProtectSystem"] == "strict" and service["User"] == "sfl"


@pytest.mark.process
@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_a_unit_sound(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    # It also looks whether the program is there.
    copy.write_text(unit.read_text().replace("/opt/sfl/venv/bin/python", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
