"""Each device alone, by a minimum cut of the model's graph (2507.01041), which is exact.

A run's blocks are a chain, so that the planner's cut is `scan`'s. For models whose graph branches,
`best_cut` of `sfl/planners/graph.py` says what the best cut would be.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf

from sfl.cost.values import Workload
from sfl.planners.decision import Choice
from sfl.planners.graph import Costs, Graph, best_cut
from sfl.planners.planner import Planner, Proposal
from sfl.planners.scan import shortest
from sfl.planners.seconds import alone_seconds
from sfl.planners.state import DeviceState, State


def propose(state: State) -> Proposal:
    """The least cut of each device's chain, or `scan`'s where a model has more than one."""
    several = state.workload.u_shaped or bool(state.stages)
    choose = shortest if several else _by_graph
    note = "the model has two cuts or more: looked at one by one" if several else ""
    chosen = {device.name: choose(state, device) for device in state.able}
    return Proposal(chosen, state.memory, note)


def chain_costs(state: State, device: DeviceState) -> Costs:
    """The embedding, each block and the head as vertices, in seconds of a round.

    The embedding is the device's and the head the server's, and so are the blocks that all legal
    cuts give to one of them.
    """
    workload, cost, edge = state.workload, device.cost, state.edge(device.edge).cost
    tokens, steps, layers = workload.tokens, workload.steps, workload.num_layers
    held = [cut.cut_layer for cut in device.legal]
    exchange = cost.lora_bytes / cost.link.up + cost.lora_bytes / cost.link.down
    own, far = cost.node, edge.node
    work = [workload.blocks(block, block + 1) for block in range(layers)]
    on_device = [steps * (2 * own.fixed + tokens * own.embedding.both)]
    on_server = [inf]
    for block in range(layers):
        mine = steps * tokens * work[block] * own.block.both + exchange
        theirs = steps * tokens * work[block] * far.block.both
        on_device.append(mine if block < max(held) else inf)
        on_server.append(theirs if block >= min(held) else inf)
    on_device.append(inf)
    on_server.append(steps * (2 * far.fixed + tokens * far.head.both))
    return Costs(on_device, on_server, [*_crossing(workload, device, steps), 0.0])


def _crossing(workload: Workload, device: DeviceState, steps: int) -> list[float]:
    """Seconds of a round for the hidden states at each cut, there and back."""
    bits, link = device.cost.bits, device.cost.link
    values = workload.tokens * workload.hidden_size / 8.0

    def at(sizes: tuple[float, ...], cut: int) -> float:
        return values * sizes[min(cut, len(sizes) - 1)]

    return [
        steps
        * (link.up_seconds(at(bits.activation, cut)) + link.down_seconds(at(bits.gradient, cut)))
        for cut in range(workload.num_layers + 1)
    ]


def _by_graph(state: State, device: DeviceState) -> Choice:
    _, mine = best_cut(_chain(state.workload.num_layers), chain_costs(state, device))
    found = len(mine) - 1
    legal = [cut for cut in device.legal if cut.cut_layer == found]
    return device.choice(legal[0]) if legal else shortest(state, device)


@lru_cache(maxsize=16)
def _chain(num_layers: int) -> Graph:
    return Graph([(), *((vertex,) for vertex in range(num_layers + 1))])


MINCUT = Planner("mincut", propose, alone=alone_seconds)
