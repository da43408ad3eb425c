"""Options that nobody would look at are refused, and not left aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfl.errors import ConfigError
from sfl.node.options import folder_of_runs, require_of_service


def test_a_limit_of_a_service_is_of_a_service() -> None:
    require_of_service(None)
    with pytest.raises(ConfigError, match="--max-runs = 2: is of a service and its agents alone"):
        require_of_service(2)


def test_a_run_s_file_says_where_its_runs_are() -> None:
    assert folder_of_runs(None, None) == folder_of_runs(Path("a.toml"), None) == Path("runs")
    assert folder_of_runs(None, Path("there")) == Path("there")
    with pytest.raises(ConfigError, match="--output-dir = 'there': goes without CONFIG"):
        folder_of_runs(Path("a.toml"), Path("there"))
