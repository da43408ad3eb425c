"""The cuts that a device may have, each with the memory that it then needs: from headers alone."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from sfl.config import RunSettings
from sfl.config.planner import OFF
from sfl.config.ranges import plan_with, ways_of
from sfl.models.folder import ModelFolder
from sfl.models.memory.footprint import NOTHING_SAVED, Load, Thrift, device_footprint
from sfl.plan import Plan, Topology
from sfl.planners.told import Cut


def legal_cuts(
    folder: ModelFolder,
    topology: Topology,
    load: Load,
    base_bytes: int,
    *,
    cut_layers: Iterable[int],
    tail_layers: Iterable[int] = (0,),
    thrift: Thrift = NOTHING_SAVED,
) -> tuple[Cut, ...]:
    """Those of the two ranges that leave at least one block to the edge.

    `base_bytes` is what the process takes without the model.
    """
    found = []
    for cut_layer, tail in product(cut_layers, tail_layers):
        if cut_layer + tail < folder.num_layers:
            plan = Plan.split(folder.num_layers, cut_layer, tail, topology)
            needed = device_footprint(folder, plan.device_spans, load, base_bytes, thrift)
            found.append(Cut(cut_layer, tail, needed.total))
    return tuple(found)


def told_cuts(
    folder: ModelFolder,
    settings: RunSettings,
    device: str,
    load: Load,
    base_bytes: int,
    thrift: Thrift,
) -> tuple[Cut, ...]:
    """What a device tells its cloud: all that its ranges allow; nothing where no planner asks.

    `thrift` is what it has settled on: it stays so, whatever the cut is.
    """
    if settings.planner.policy == OFF:
        return ()
    found = []
    for at in ways_of(settings, device, folder.num_layers):
        plan = plan_with(settings, device, folder.num_layers, at)
        needed = device_footprint(folder, plan.device_spans, load, base_bytes, thrift)
        found.append(Cut(*at, needed.total))
    return tuple(found)
