"""A run of three tiers whose planner chooses its cuts: once, before it starts; then they stay.

What a block of the edge and of the stage remembers does not travel between the two. So no cut moves
within such a run.
"""

from __future__ import annotations

from pathlib import Path

from sfl.cli.plan.asked import Asked
from sfl.cli.plan.gather import gather_for
from sfl.config import RunConfig
from sfl.config.planner import OFF, ONCE
from sfl.errors import ConfigError
from sfl.planners.decision import Choice
from sfl.planners.situation import planner_of

NAMED = 8
"""Devices whose cuts are said."""


def chosen_once(config: RunConfig) -> tuple[RunConfig, str]:
    """The settings with the cuts that their planner has chosen, and a line that says so.

    Raises ConfigError, ModelError, DiskError.
    """
    _check(config)
    run, runs = config.planner.costs, config.run.output_dir
    asked = Asked(Path(), run=run, output_dir=runs)
    try:
        gathered = gather_for(config, asked, lambda what: None)
    except ConfigError as error:
        field = "planner.costs" if error.field == "--from" else error.field
        raise ConfigError(field, error.value, error.problem, error.fix) from None
    planner = planner_of(config.planner.policy)
    assert planner is not None, "somebody is asked"
    decision = planner.decide(gathered.state)
    chosen = {name: one for name, one in decision.devices.items() if one.takes_part}
    cuts = [f"{name} {_words(config, name, one)}" for name, one in chosen.items()]
    more = f" and {len(cuts) - NAMED} more" if len(cuts) > NAMED else ""
    said = f"cuts by {decision.policy}, from what run {run} has shown: "
    return _settled(config, chosen), said + "; ".join(cuts[:NAMED]) + more


def _check(config: RunConfig) -> None:
    own = config.planner
    if own.policy not in ONCE:
        problem = f"a cut does not move in topology {config.run.topology}"
        fix = "Use fleet or scan, which choose once, or off."
        raise ConfigError("planner.policy", own.policy, problem, fix)
    if not own.costs:
        problem = "in three tiers cuts are chosen before the run, by what another one has shown"
        fix = 'Name that run, or set planner.policy to "off".'
        raise ConfigError("planner.costs", own.costs, problem, fix)


def _words(config: RunConfig, name: str, choice: Choice) -> str:
    stages = choice.stage_cuts or config.stage_cuts(name)
    cuts = ", ".join(map(str, (choice.cut_layer, *stages)))
    return f"{cuts} + {choice.tail_layers}" if choice.tail_layers else cuts


def _settled(config: RunConfig, chosen: dict[str, Choice]) -> RunConfig:
    """With these cuts for good. A device that no cut fits keeps its own, and is told so later."""
    devices = []
    for entry in config.devices:
        if (one := chosen.get(entry.name)) is not None:
            cuts = {"cut_layer": one.cut_layer, "tail_layers": one.tail_layers}
            stages = one.stage_cuts or entry.stage_cuts
            entry = entry.model_copy(update={**cuts, "stage_cuts": stages})
        devices.append(entry)
    planner = config.planner.model_copy(update={"policy": OFF, "costs": ""})
    return config.model_copy(update={"devices": tuple(devices), "planner": planner})
