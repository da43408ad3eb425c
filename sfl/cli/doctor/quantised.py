"""Whether bitsandbytes really works here: tried in a process of its own, which may crash."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from sfl.cli.doctor.report import Check

TIMEOUT = 60.0
LIMITS = {"nf4": 0.2, "int8": 0.05}
"""Relative errors of a product that a sound build stays well below (0.09 and 0.01 here)."""
INSTALL = "Optional. To install it: pip install bitsandbytes"
REINSTALL = "Reinstall it (pip install --force-reinstall bitsandbytes), or uninstall it."


def check_bitsandbytes() -> Check:
    """One NF4 and one int8 product on each device, or what stopped them."""
    command = [sys.executable, "-m", "sfl.cli.doctor.quantised_child"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return Check("bitsandbytes", "warning", f"no answer within {TIMEOUT:g} s", REINSTALL)
    results = [found for line in done.stdout.splitlines() if (found := _result(line))]
    if any("missing" in result for result in results):
        return Check("bitsandbytes", "warning", "not installed", INSTALL, {"installed": False})
    version = next((result["version"] for result in results if "version" in result), None)
    tried = [result for result in results if "kind" in result]
    failed = [result for result in tried if not _sound(result)]
    figures = {"installed": True, "version": version, "products": tried}
    name = f"bitsandbytes {version}" if version else "bitsandbytes"
    if done.returncode != 0:
        where = f"after {_said(tried[-1])}" if tried else "when it is imported or first used"
        return Check(
            "bitsandbytes", "problem", f"{name} {_death(done)}, {where}", REINSTALL, figures
        )
    text = f"{name}: {'; '.join(_said(result) for result in tried)}"
    return Check(
        "bitsandbytes", "problem" if failed else "ok", text, REINSTALL if failed else "", figures
    )


def _result(line: str) -> dict[str, Any] | None:
    """One line of the child's; libraries may print what they like between."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _sound(result: dict[str, Any]) -> bool:
    return "error" not in result and result["relative_error"] < LIMITS[result["kind"]]


def _said(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['kind']} on {result['device']} failed ({result['error']})"
    return f"{result['kind']} on {result['device']} off by {result['relative_error']:.2%}"


def _death(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"crashes ({signal.Signals(-done.returncode).name})"
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"fails ({last})"
