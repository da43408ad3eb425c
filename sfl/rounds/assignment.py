"""What one device does in a round, complete: the cloud makes it here, nodes obey it.

Device and edge take nothing of this from the run's settings: a planner that moves a cut, or gives a
round another rank or codec, changes what is made here and nothing on a node. No torch, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from sfl.config import Extent, RunSettings
from sfl.config.codec import CodecChange
from sfl.plan import Plan
from sfl.planners.decision import Choice
from sfl.rounds.messages import Rehearse, ReplayRound, StartRound
from sfl.rounds.values import BEGINNING, NO_STEPS, Assignment, EdgeBase, Point, Steps


def assign(
    settings: RunSettings,
    base: EdgeBase,
    device: str,
    round_: int = 0,
    *,
    steps: Steps = NO_STEPS,
    evaluate: Extent = "none",
    rehearse: tuple[int, ...] = (),
    codec: str = "",
    after: Point = BEGINNING,
    lineage: int = 0,
    choice: Choice | None = None,
    together: tuple[str, ...] = (),
) -> Assignment:
    """A device's part, by the settings in effect and its edge's base; round 0 is joining.

    `codec` is what a rehearsal tries where none is chosen yet, `choice` what a planner has chosen.
    Raises ConfigError where the model cannot be cut so.
    """
    micro_batches, most = settings.training.micro_batches, settings.network.credits
    return Assignment(
        round_,
        plan_of(settings, device, base.num_layers, choice),
        settings.rank(device),
        settings.scaling(device),
        settings.codecs(device, max(1, round_), codec, _planned(choice)),
        min(base.credits or most, most),
        steps,
        1 if micro_batches == "auto" else micro_batches,
        evaluate,
        rehearse,
        after,
        lineage,
        1.0 if choice is None else choice.share,
        together,
    )


def plan_of(settings: RunSettings, device: str, num_layers: int, choice: Choice | None) -> Plan:
    """How a device's model is cut. Raises ConfigError."""
    if choice is None:
        return settings.plan(device, num_layers)
    return settings.plan(device, num_layers, *choice.at)


def _planned(choice: Choice | None) -> CodecChange | None:
    if choice is None:
        return None
    return CodecChange(activation=choice.activation, gradient=choice.gradient)


def assignments(
    command: StartRound | ReplayRound | Rehearse,
    settings: RunSettings,
    bases: Mapping[str, EdgeBase],
) -> dict[str, Assignment]:
    """What each device of a round, or of a rehearsal, does; `bases` are their edges', by device."""
    if isinstance(command, Rehearse):
        return {
            name: assign(
                settings,
                bases[name],
                name,
                rehearse=command.counts,
                codec=command.codec,
                choice=command.choices.get(name),
            )
            for name in command.devices
        }
    return {
        name: assign(
            settings,
            bases[name],
            name,
            command.round,
            steps=steps,
            evaluate=command.evaluate,
            after=command.after.get(name, BEGINNING),
            lineage=command.lineage.get(name, 0),
            choice=command.choices.get(name),
            together=command.together,
        )
        for name, steps in command.devices.items()
    }
