"""What `sfl plan` is asked; nothing heavy, so that it is read before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sfl.config import RunConfig
from sfl.config.load import load_planned
from sfl.config.planner import ADVICE, OFF
from sfl.errors import ConfigError

_LINK = re.compile(r"(\d+(?:\.\d+)?)(?:/(\d+(?:\.\d+)?))?([kmg])bit", re.IGNORECASE)
_MEGABITS = {"k": 1e-3, "m": 1.0, "g": 1e3}


@dataclass(frozen=True, slots=True)
class Asked:
    """A run's file, and what counts in place of what it says.

    `run` is one that has shown what nodes cost. `speeds` are operations a second of a device and of
    the edge, in 1e9; None: as fast as this machine. `stage_speed` is that of a stage behind the
    edge; None: as the edge.
    """

    file: Path
    overrides: tuple[str, ...] = ()
    run: str | None = None
    output_dir: Path = Path("runs")
    model: str | None = None
    link: str | None = None
    policy: str | None = None
    speeds: tuple[float | None, float | None] = (None, None)
    figure: Path = Path("plan.svg")
    as_json: bool = False
    stage_speed: float | None = None

    def load(self) -> RunConfig:
        """The settings. `fleet` decides where the file has no planner. Raises ConfigError."""
        changes = list(self.overrides)
        if self.model is not None:
            changes.append(f"model.path={self.model}")
        if self.policy is not None:
            changes.append(f"planner.policy={self.policy}")
        config = load_planned(self.file, changes)
        if config.planner.policy in (OFF, ADVICE):
            config = load_planned(self.file, [*changes, "planner.policy=fleet"])
        return config if self.link is None else _with_link(config, read_link(self.link))


def read_link(text: str) -> tuple[float, float]:
    """`20mbit`, or `5/20mbit` for up and down: megabits a second. Raises ConfigError."""
    found = _LINK.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0.0 or float(found[2] or 1.0) <= 0.0:
        fix = "Write 20mbit, or 5/20mbit for up and down."
        raise ConfigError("--link", text, "is not the rate of a link", fix)
    factor = _MEGABITS[found[3].lower()]
    return factor * float(found[1]), factor * float(found[2] or found[1])


def _with_link(config: RunConfig, rates: tuple[float, float]) -> RunConfig:
    """Every device with these limits, and the delay that it has."""
    up, down = rates
    devices = []
    for entry in config.devices:
        link = entry.link.model_copy(update={"up_mbit": up, "down_mbit": down})
        devices.append(entry.model_copy(update={"link": link}))
    return config.model_copy(update={"devices": tuple(devices)})
