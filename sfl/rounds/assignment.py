"""What one device does in a round, complete: the cloud makes it here, nodes obey it.

Device and edge take nothing of this from the run's settings: a planner that moves a cut, or gives a
round another rank or codec, changes what is made here and nothing on a node. No torch, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from sfl.config import Extent, RunSettings
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
) -> Assignment:
    """A device's part, by the settings in effect and its edge's base; round 0 is joining.

    `codec` is what a rehearsal tries where none is chosen yet. Raises ConfigError where the model
    cannot be cut so.
    """
    micro_batches, most = settings.training.micro_batches, settings.network.credits
    return Assignment(
        round_,
        settings.plan(device, base.num_layers),
        settings.rank(device),
        settings.scaling(device),
        settings.codecs(device, max(1, round_), codec),
        min(base.credits or most, most),
        steps,
        1 if micro_batches == "auto" else micro_batches,
        evaluate,
        rehearse,
        after,
        lineage,
    )


def assignments(
    command: StartRound | ReplayRound | Rehearse,
    settings: RunSettings,
    bases: Mapping[str, EdgeBase],
) -> dict[str, Assignment]:
    """What each device of a round, or of a rehearsal, does; `bases` are their edges', by device."""
    if isinstance(command, Rehearse):
        return {
            name: assign(settings, bases[name], name, rehearse=command.counts, codec=command.codec)
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
        )
        for name, steps in command.devices.items()
    }
