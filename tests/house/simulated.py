"""Small fleets for tests of the simulator, and what comes of them."""

from __future__ import annotations

from typing import Any

from sfl.config import RunConfig
from sfl.config.simulate import with_fleet
from sfl.rounds import RunEnded
from sfl.rounds.journal import Entry
from sfl.simulate.costs import stated_memory, stated_shape
from sfl.simulate.fleet import Fleet, fleet_of, with_classes
from sfl.simulate.ledger import Outcome
from sfl.simulate.simulation import Simulation

PHONE: dict[str, Any] = {
    "name": "phone",
    "block": {"forward_ms": 20.0, "backward_ms": 40.0},
    "up_mbit": 20.0,
    "down_mbit": 60.0,
    "latency_ms": 10.0,
    "load_seconds": 2.0,
}
EDGE: dict[str, Any] = {"block": {"forward_ms": 1.0, "backward_ms": 2.0}}
MODEL = {"num_layers": 6, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 500}


def file_of(fleet: int = 0, **tables: Any) -> dict[str, Any]:
    """A run's file with a fleet; `tables` change sections, `simulate` that one."""
    own = {"classes": [PHONE], "edge": EDGE, "model": MODEL, "devices": fleet, "examples": 32}
    file: dict[str, Any] = {
        "run": {"rounds": 3},
        "model": {"path": "m", "max_length": 32},
        "training": {"batch_size": 4, "local_steps": 5},
        "codec": {"activation": "none", "gradient": "none"},
        "devices": [{"name": "a"}, {"name": "b", "cut_layer": 2}],
        "simulate": own,
    }
    for name, table in tables.items():
        file[name] = {**file.get(name, {}), **table} if isinstance(table, dict) else table
    return file


def configured(file: dict[str, Any]) -> tuple[RunConfig, Fleet]:
    """The settings in effect, and everybody."""
    config = with_classes(RunConfig.model_validate(with_fleet(file)))
    assert config.simulate is not None
    shape = stated_shape(config.simulate.model or _nothing(), config.lora)
    return config, fleet_of(config, shape, stated_memory(config.simulate.model))


def _nothing() -> Any:
    raise AssertionError("these tests state the model")


def played(file: dict[str, Any], *, strict: bool = False) -> tuple[Outcome, list[Entry]]:
    """A simulated run, and what its journal would have."""
    heard: list[Entry] = []
    simulation = Simulation(*configured(file), heard.append, strict=strict)
    outcome = simulation.run()
    simulation.tell(RunEnded(outcome.ok, outcome.reason))
    return outcome, heard


def kinds(heard: list[Entry], *names: str) -> list[Entry]:
    """Those of these types."""
    return [entry for entry in heard if type(entry.event).__name__ in names]
