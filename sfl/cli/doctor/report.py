"""What an examination finds, as values; text and JSON are made from the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sfl.errors import SflError, UserError
from sfl.models.memory.footprint import Footprint

Mark = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, how it is, and what to do about it.

    `figures` hold its numbers; their names end in the unit: bytes, seconds, bytes_per_second,
    gflops (1e9 floating-point operations a second).
    """

    name: str
    mark: Mark
    text: str
    fix: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CutRow:
    """What a device with this cut would need, in bytes."""

    cut_layer: int
    footprint: Footprint
    fits: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found."""

    checks: tuple[Check, ...]
    cut_layers: tuple[CutRow, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is a problem; warnings are none."""
        return all(check.mark != "problem" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        rows = [
            {
                "cut_layer": row.cut_layer,
                **{f"{name}_bytes": value for name, value in asdict(row.footprint).items()},
                "total_bytes": row.footprint.total,
                "fits": row.fits,
            }
            for row in self.cut_layers
        ]
        return {
            "ok": self.ok,
            "checks": [asdict(check) for check in self.checks],
            "cut_layers": rows,
        }


def problem(name: str, error: SflError) -> Check:
    """An error of this project as a check: its fix stands apart where it has one."""
    if isinstance(error, UserError):
        text = f"{error.field} = {error.value!r}: {error.problem}"
        return Check(name, "problem", text, error.fix)
    return Check(name, "problem", str(error))
