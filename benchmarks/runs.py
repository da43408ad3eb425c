"""Running `sfl run` from a benchmark, and reading what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sfl.config import RunConfig, load_run

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def run(
    config: Path,
    folder: Path,
    name: str,
    overrides: Iterable[str],
    options: Iterable[str] = (),
) -> dict[str, Any]:
    """`sfl run` to its end; its summary."""
    settings = [f"run.id={name!r}", f"run.output_dir={str(folder)!r}", *overrides]
    command = [sys.executable, "-m", "sfl.cli", "run", str(config), *options]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    summary: dict[str, Any] = json.loads((folder / name / "summary.json").read_text())
    return summary


def effective(folder: Path, name: str) -> RunConfig:
    """The settings a run took."""
    return load_run(folder / name / "config.toml")


def needed(*paths: Path) -> None:
    """Say what is missing and leave, where it is."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise SystemExit(f"skipped: this benchmark needs {', '.join(missing)}")
