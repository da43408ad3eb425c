"""An edge that runs ahead of the clock comes to the same as one that does not, to the bit."""

from __future__ import annotations

from typing import Any

import pytest

from sfl.stage.orders import ORDERS
from tests.house.simulated import PHONE, file_of, kinds, played

FAILS = {"crash_hours": 0.02, "restart_seconds": 4.0, "break_hours": 0.02, "break_seconds": 5.0}
WALKS = {"fading": "rayleigh", "mobility": "waypoint", "speed_mps": 20.0, "shadowing_db": 6.0}


def _simulate(**changes: Any) -> dict[str, Any]:
    own = file_of()["simulate"]
    edge = {"block": {"forward_ms": 6.0, "backward_ms": 9.0}, "count": 3}
    return {**own, "devices": 20, "edge": edge, "classes": [{**PHONE, "spread": 0.5, **changes}]}


NETWORK = {"idle_timeout": 8.0, "rejoin_timeout": 10.0, "straggler_seconds": 3.0}
SCENES: dict[str, dict[str, Any]] = {
    "steady": {"simulate": _simulate()},
    "longest tail": {"simulate": _simulate(), "edge": {"order": "longest_tail"}},
    "fair share": {"simulate": _simulate(), "edge": {"order": "fair_share"}},
    "micro-batches": {
        "simulate": _simulate(),
        "training": {"batch_size": 4, "local_steps": 5, "micro_batches": 4},
        "edge": {"order": "fair_share"},
    },
    "rehearsed": {
        "simulate": _simulate(),
        "training": {"batch_size": 4, "local_steps": 5, "micro_batches": "auto"},
        "codec": {"activation": "auto", "gradient": "auto"},
    },
    "evaluated": {"simulate": {**_simulate(), "eval_examples": 30}},
    "U-shaped": {
        "simulate": {**_simulate(tail_layers=1), "eval_examples": 30},
        "run": {"rounds": 3, "topology": "u_shaped"},
    },
    "moving": {"simulate": _simulate(radio=WALKS)},
    "unsteady": {"simulate": _simulate(link_jitter=0.4, jitter=0.3)},
    "failing": {
        "simulate": _simulate(failures=FAILS),
        "run": {"rounds": 6, "min_devices": 5},
        "network": NETWORK,
        "recovery": {"snapshot_steps": 2},
    },
    "late": {
        "simulate": _simulate(spread=1.5),
        "run": {"rounds": 4, "min_devices": 3},
        "network": {**NETWORK, "round_timeout": 4.0},
    },
    "late updates count": {
        "simulate": _simulate(spread=1.5, failures=FAILS),
        "run": {"rounds": 4, "min_devices": 3},
        "network": {**NETWORK, "round_timeout": 6.0},
        "aggregation": {"late_updates": "weighted"},
    },
    "asynchronous": {
        "simulate": _simulate(failures=FAILS),
        "run": {"rounds": 12, "mode": "asynchronous"},
        "network": {"idle_timeout": 8.0, "rejoin_timeout": 10.0},
    },
    "planned": {"simulate": _simulate(), "planner": {"policy": "fleet"}},
    "selected": {
        "simulate": _simulate(failures=FAILS),
        "run": {"rounds": 6, "min_devices": 2},
        "planner": {"policy": "ucb", "select": 6},
        "network": NETWORK,
    },
}


@pytest.mark.parametrize("scene", SCENES)
def test_the_same_comes_of_it(scene: str) -> None:
    file = file_of(**SCENES[scene])

    ahead, strict = played(file), played(file, strict=True)

    assert ahead[1] == strict[1]
    assert ahead[0] == strict[0]
    assert kinds(ahead[1], "AdapterReady")


@pytest.mark.parametrize("scene", ["failing", "asynchronous", "moving"])
def test_the_same_file_gives_the_same_events(scene: str) -> None:
    file = file_of(**SCENES[scene])

    assert played(file) == played(file)


def test_another_seed_gives_others() -> None:
    file = file_of(**SCENES["failing"])
    other = {**file, "run": {**file["run"], "seed": 1}}

    assert played(file)[1] != played(other)[1]


def test_an_order_of_another_package_is_asked_as_a_real_edge_asks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = file_of(simulate=_simulate(), edge={"order": "longest_tail"})
    built_in = played(file)

    class Elsewhere:
        name = "longest_tail"

        def choose(self, waiting: Any) -> int:
            return min(
                range(len(waiting)),
                key=lambda index: (-waiting[index].tail_seconds, waiting[index].number),
            )

    monkeypatch.setitem(ORDERS.built_in, "longest_tail", Elsewhere())  # type: ignore[arg-type]

    assert played(file) == built_in
