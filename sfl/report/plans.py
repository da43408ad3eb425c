"""A run's `plans.jsonl`: one line for each decision of its planner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sfl.errors import ConfigError
from sfl.node.paths import expanded
from sfl.planners.plans import Plan
from sfl.report.records import LineFile, complete_lines

PLANS = "plans.jsonl"
FIX = "Name the plans.jsonl of a run that had a planner (runs/ID/plans.jsonl)."


class PlanFile:
    """`plans.jsonl`, there from the first decision on."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PLANS
        self._file: LineFile | None = None

    def append(self, line: str) -> None:
        """Write a decision. Raises DiskError."""
        if self._file is None:
            self._file = LineFile(self._path)
        self._file.write(_line(line))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def complete_plans(folder: Path, lines: Iterable[str]) -> None:
    """Have a run's file tell all of these; none where there are none. Raises DiskError."""
    if told := list(map(_line, lines)):
        complete_lines(folder / PLANS, told)


def _line(line: str) -> bytes:
    return line.encode() + b"\n"


def read_plans(path: Path, field: str, *, with_state: bool = False) -> list[Plan]:
    """All decisions, the latest of each round, by round. Raises ConfigError, naming `field`."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise ConfigError(field, str(path), problem, FIX) from None
    plans: dict[int, Plan] = {}
    for number, line in enumerate(lines, start=1):
        try:
            plan = Plan.from_json(line, with_state=with_state)
        except ValueError:
            raise ConfigError(field, str(path), f"line {number} is no decision", FIX) from None
        plans[plan.decision.round] = plan
    if not plans:
        raise ConfigError(field, str(path), "has no decision", FIX)
    return [plans[round_] for round_ in sorted(plans)]


def recorded_plans(policy: str, path: str) -> Sequence[Plan]:
    """What `planner.plans` names, where the policy reads it. Raises ConfigError."""
    if policy != "recorded":
        return ()
    return read_plans(expanded(path, "planner.plans"), "planner.plans")


def plans_of(folder: Path) -> list[Plan]:
    """Those of a run's folder; none where it had no planner, or they cannot be read."""
    path = folder / PLANS
    try:
        return read_plans(path, "planner.plans") if path.exists() else []
    except ConfigError:
        return []
