"""What nodes showed becomes what they cost: the costs that made it come out again."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from sfl.cost.energy import Energy
from sfl.cost.fit import Phase, foretold
from sfl.cost.shown import Crossed, Passes, PassKey, Shown, Sums, between
from sfl.cost.values import LineCost, LinkCost, NodeCost, PassCost
from sfl.planners.observed import DeviceReport, EdgeReport, Observations

DEVICE = NodeCost(
    PassCost(3e-5, 5e-5),
    PassCost(2e-6, 0.0),
    overhead=PassCost(2e-4, 3e-4),
    encode=LineCost(1e-4, 1e-6),
    decode=LineCost(2e-4, 2e-6),
    step=LineCost(1e-3, 5e-4),
    threads=2,
    dtype="float32",
)
EDGE = NodeCost(PassCost(3e-6, 5e-6), head=PassCost(9e-6, 1.2e-5), overhead=PassCost(1e-4, 2e-4))
LINK = LinkCost(2.5e6, 6e5, 0.02)
TOKENS = (64, 200, 512)


def device_passes(cut: int, rounds: int = 1) -> dict[PassKey, Sums]:
    """As a device times itself: embedding and blocks apart, three lengths of batches."""
    found: dict[PassKey, Sums] = {}
    for tokens in TOKENS * rounds:
        shapes = (
            Phase(0.0, tokens, 0, embedding=True),
            Phase(0.0, tokens, cut),
            Phase(0.0, tokens, cut, backward=True),
        )
        for one in shapes:
            add(found, key_of(one), Sums.of(tokens, foretold(DEVICE, one)))
        add(found, PassKey("encode"), Sums.of(tokens, DEVICE.encode.seconds(tokens)))
        add(found, PassKey("decode"), Sums.of(tokens, DEVICE.decode.seconds(tokens)))
        add(found, PassKey("step", blocks=cut), Sums.of(0, DEVICE.step.seconds(cut)))
    return found


def edge_passes(blocks: int) -> dict[PassKey, Sums]:
    """As an edge times one device: blocks and head apart."""
    found: dict[PassKey, Sums] = {}
    for tokens in TOKENS:
        for backward in (False, True):
            for one in (
                Phase(0.0, tokens, blocks, backward),
                Phase(0.0, tokens, 0, backward, head=True),
            ):
                add(found, key_of(one), Sums.of(tokens, foretold(EDGE, one)))
    return found


def key_of(phase: Phase) -> PassKey:
    return PassKey(
        "backward" if phase.backward else "forward",
        "training",
        int(phase.blocks),
        phase.embedding,
        phase.head,
    )


def add(found: dict[PassKey, Sums], key: PassKey, sums: Sums) -> None:
    found[key] = found.get(key, Sums()) + sums


def messages(up: bool) -> Sums:
    sizes = (20_000, 90_000, 400_000)
    seconds = LINK.up_seconds if up else LINK.down_seconds
    return sum((Sums.of(size, seconds(size)) for size in sizes), Sums())


def report(name: str, cut: int, rounds: int = 1) -> DeviceReport:
    """A device's statistics after so many rounds at one cut, and its edge's of the last one."""
    shown = Shown(
        passes=device_passes(cut, rounds),
        up=messages(True).scaled(rounds),
        down=messages(False).scaled(rounds),
        crossed={("activation", cut): Crossed(3 * rounds, 8000 * rounds, 2500 * rounds)},
        threads=2,
    )
    return DeviceReport(
        name, "edge", shown, edge_passes(6 - cut), 4.0, 3, sum(TOKENS), 100.0, "float32"
    )


def test_costs_come_out_again_of_one_cut():
    """Embedding, head and blocks are timed apart, and batches differ: one cut tells all."""
    seen = Observations(block_bytes=(1000.0, 2000.0)).with_round([report("phone", 2)])
    cost = seen.device_cost("phone")
    assert cost is not None
    for tokens, blocks in ((300, 1), (80, 5), (600, 3)):
        assert cost.node.forward(tokens, blocks) == pytest.approx(DEVICE.forward(tokens, blocks))
        assert cost.node.backward(tokens, blocks) == pytest.approx(DEVICE.backward(tokens, blocks))
    assert cost.node.embedding.forward == pytest.approx(DEVICE.embedding.forward)
    assert cost.node.encode.seconds(333) == pytest.approx(DEVICE.encode.seconds(333))
    assert cost.node.decode.seconds(333) == pytest.approx(DEVICE.decode.seconds(333))
    assert cost.node.step.seconds(2) == pytest.approx(DEVICE.step.seconds(2))
    assert (cost.node.threads, cost.node.dtype) == (2, "float32")
    assert (cost.link.up, cost.link.down) == pytest.approx((LINK.up, LINK.down))
    assert cost.link.latency == pytest.approx(LINK.latency)
    assert cost.bits.activation == (2.5, 2.5, 2.5) and cost.bits.gradient == (32.0,)
    assert (cost.lora_bytes, cost.moment_bytes) == (1000.0, 2000.0)
    assert seen.step_tokens() == sum(TOKENS) / 3


def test_an_edge_is_fitted_over_its_devices():
    seen = Observations().with_round([report("a", 1), report("b", 4)])
    cost = seen.edge_cost("edge")
    assert cost is not None
    assert cost.node.forward(100, 3) == pytest.approx(EDGE.forward(100, 3))
    assert cost.node.backward(100, 3) == pytest.approx(EDGE.backward(100, 3))
    assert cost.node.head.both == pytest.approx(EDGE.head.both)
    assert seen.edge_cost("other") is None


def test_two_cuts_tell_what_a_step_costs_whatever_is_trained():
    seen = Observations().with_round([report("phone", 2)])
    both = {**device_passes(2), **device_passes(5)}
    later = replace(report("phone", 5), shown=replace(report("phone", 5).shown, passes=both))
    cost = seen.with_device(later).device_cost("phone")
    assert cost is not None
    assert (cost.node.step.fixed, cost.node.step.unit) == pytest.approx((1e-3, 5e-4))


def slowed(times: float, cut: int = 2) -> dict[PassKey, Sums]:
    """A round's passes, so many times as slow."""
    return {
        key: Sums(sums.passes, sums.size, times * sums.seconds, sums.size_sq,
                  times * sums.size_seconds, times * times * sums.seconds_sq)
        for key, sums in device_passes(cut).items()
    }  # fmt: skip


def after_rounds(*rounds: dict[PassKey, Sums], cut: int = 2) -> Observations:
    """What is known after rounds of these passes, of one process."""
    seen, passes = Observations(), dict[PassKey, Sums]()
    for number, own in enumerate(rounds, 1):
        for key, sums in own.items():
            add(passes, key, sums)
        said = report("phone", cut, number)
        seen = seen.with_device(replace(said, shown=replace(said.shown, passes=dict(passes))))
    return seen


def slowness(seen: Observations) -> float:
    """Times that two blocks take as long as at first."""
    cost = seen.device_cost("phone")
    assert cost is not None
    return cost.node.forward(200, 2) / DEVICE.forward(200, 2)


def test_rounds_are_told_by_difference_and_a_new_process_is_new():
    seen = after_rounds(slowed(1.0), slowed(1.0), slowed(1.0))
    assert slowness(seen) == pytest.approx(1.0)
    fresh = replace(report("phone", 2), started_at=200.0)
    assert seen.with_device(fresh).device_cost("phone") is not None


@pytest.mark.parametrize("times", [1 / 3, 3.0])
def test_a_device_that_changed_is_seen_after_one_round(times: float):
    steady = [slowed(1.0)] * 8
    assert slowness(after_rounds(*steady, slowed(times))) == pytest.approx(times, rel=0.2)
    assert slowness(after_rounds(*steady, slowed(times), slowed(times))) == pytest.approx(
        times, rel=0.05
    )


def test_noise_of_a_steady_device_is_averaged():
    """Of rounds that are a tenth off either way, the last does not count for much."""
    noisy = [slowed(1.1 if number % 2 else 0.9) for number in range(9)]
    assert slowness(after_rounds(*noisy)) == pytest.approx(1.0, abs=0.05)


def test_rounds_that_differ_tell_how_much_they_do():
    """A change is no noise: of five rounds it is one."""
    assert after_rounds(slowed(1.0)).noise("phone") == 0.0
    assert after_rounds(*[slowed(1.0)] * 6).noise("phone") == pytest.approx(0.0, abs=1e-9)
    noisy = [slowed(1.1 if number % 2 else 0.9) for number in range(9)]
    assert after_rounds(*noisy).noise("phone") == pytest.approx(0.13, abs=0.05)
    changed = after_rounds(*[slowed(1.0)] * 6, slowed(5.0))
    assert changed.noise("phone") == pytest.approx(0.0, abs=1e-9)
    assert changed.noise("nobody") == 0.0


def test_what_a_device_showed_at_another_cut_fades_too():
    """Or its old speed there would be believed for ever."""
    there = [slowed(1.0, cut=4)] * 8
    assert slowness(after_rounds(*there, *[slowed(3.0)] * 5)) == pytest.approx(3.0, rel=0.15)


def test_another_thread_count_is_another_device():
    seen = Observations().with_round([report("phone", 2)])
    said = report("phone", 2, 2)
    slow = {key: replace(sums, seconds=9 * sums.seconds) for key, sums in said.shown.passes.items()}
    said = replace(said, shown=replace(said.shown, passes=slow, threads=1))
    cost = seen.with_device(said).device_cost("phone")
    assert cost is not None and cost.node.threads == 1
    assert cost.node.forward(200, 2) > 5 * DEVICE.forward(200, 2)


def test_who_has_no_block_or_no_link_has_no_costs_yet():
    nothing = replace(report("phone", 1), shown=Shown(passes=device_passes(1)))
    seen = Observations().with_round([nothing], lost=["phone"])
    assert seen.device_cost("phone") is None and seen.device_cost("nobody") is None
    assert seen.success("phone") == 0.5 and seen.success("nobody") == 1.0


def test_joules_are_measured_or_none_at_all():
    first, second = report("phone", 2), report("phone", 2, 2)
    read = [
        replace(one, shown=replace(one.shown, energy=Energy(joules, "measured")))
        for one, joules in ((first, 100.0), (second, 120.0))
    ]
    seen = Observations().with_device(read[0]).with_device(read[1])
    cost = seen.device_cost("phone")
    assert cost is not None and cost.power.source == "measured"
    assert cost.power.compute == pytest.approx(20.0 / 4.0, rel=0.05)
    plain = Observations().with_device(first).with_device(second).device_cost("phone")
    assert plain is not None and plain.power.source == "modelled" and not plain.power.compute


def test_an_edges_watts():
    passes = edge_passes(3)
    seconds = sum(one.seconds for one in passes.values())
    seen = Observations()
    for count in (1, 2):
        shown = Shown({key: one.scaled(count) for key, one in passes.items()})
        shown = replace(shown, energy=Energy(50.0 * count, "measured"))
        seen = seen.with_edge(EdgeReport("edge", shown, 1.0))
    cost = seen.with_device(report("phone", 3)).edge_cost("edge")
    assert cost is not None and cost.clock.source == "measured"
    assert cost.clock.watts == pytest.approx(50.0 / seconds)


def test_shared_passes_add_up_to_the_pass():
    """Three devices' micro-batches in one pass: the sum is the pass, as often as it was."""
    parts = [Sums.of(600, 0.3, tokens / 600) for tokens in (100, 200, 300)]
    assert sum(parts, Sums()).values == pytest.approx(Sums.of(600, 0.3).values)
    assert [part.seconds for part in parts] == pytest.approx([0.05, 0.1, 0.15])


def test_points_have_the_line_of_all_passes():
    draw = random.Random(1)
    pairs = [(size, 3.0 + 0.5 * size + draw.gauss(0, 0.3)) for size in range(1, 40)]
    (x1, y1, _), (x2, y2, _) = sum((Sums.of(*pair) for pair in pairs), Sums()).points()
    n, sx, sy = len(pairs), sum(x for x, _ in pairs), sum(y for _, y in pairs)
    slope = (n * sum(x * y for x, y in pairs) - sx * sy) / (
        n * sum(x * x for x, _ in pairs) - sx**2
    )
    assert (y2 - y1) / (x2 - x1) == pytest.approx(slope, rel=1e-3)
    assert (y1 + y2) / 2 == pytest.approx(sy / n)


def test_where_passes_scatter_no_time_is_below_nothing():
    """A stall of a second, in the largest batch: the line has no seconds below 0 at any size."""
    pairs = [(size, 1e-4 * size) for size in (90, 95, 100, 105)] + [(110, 1.0)]
    (x1, y1, _), (x2, y2, _) = sum((Sums.of(*pair) for pair in pairs), Sums()).points()
    assert 0.0 < y1 < y2 and y1 / x1 >= y2 / x2 - 1e-12


def test_costs_travel_as_json():
    shown = replace(report("phone", 2).shown, energy=Energy(3.5, "measured"))
    back = Shown.from_dict(json.loads(json.dumps(shown.to_dict())))
    assert back.passes.keys() == shown.passes.keys()
    assert (back.crossed, back.energy, back.threads) == (shown.crossed, shown.energy, 2)
    assert back.up.values == pytest.approx(shown.up.values)


@pytest.mark.parametrize(
    "values",
    [
        {"passes": [["sleep", "training", 1, 0, 1, 1, 1, 1, 1, 1]]},
        {"passes": [["forward", "training", -1, 0, 1, 1, 1, 1, 1, 1]]},
        {"passes": [["forward", "training", 1, 4, 1, 1, 1, 1, 1, 1]]},
        {"passes": [["forward", "training", 1, 0, 1, 1, 1]]},
        {"passes": [["forward", "training", 1, 0, 1, 1, float("nan"), 1, 1, 1]]},
        {"passes": [["forward", "training", n, 0, 1, 1, 1, 1, 1, 1] for n in range(200)]},
        {"passes": {}},
        {"up": [1, 2]},
        {"crossed": [["activation", 1, 1.5, 1, 1]]},
        {"crossed": [["adapter", 1, 1, 1, 1]]},
        {"energy": [1.0, "guessed"]},
        {"threads": True},
    ],
)
def test_malformed_costs_are_refused(values: dict[str, object]):
    with pytest.raises((ValueError, TypeError)):
        Shown.from_dict(values)


def test_a_count_that_fell_began_anew():
    key = PassKey("forward", blocks=2)
    before: Passes = {key: Sums.of(10, 1.0).scaled(5)}
    assert between({key: Sums.of(10, 2.0)}, before)[key].seconds == 2.0
    assert between(before, before) == {}


def test_what_neither_passes_nor_link_explain_is_of_the_hand_over():
    """Two rounds of whole batches, alone at the edge: 5 ms of each of 3 round trips."""

    def said(rounds: int, seconds: float) -> DeviceReport:
        one = report("phone", 2, rounds)
        crossed = {
            ("activation", 2): Crossed(3 * rounds, 8000 * rounds, 510_000 * rounds),
            ("gradient", 2): Crossed(3 * rounds, 8000 * rounds, 510_000 * rounds),
        }
        return replace(one, shown=replace(one.shown, crossed=crossed), seconds=seconds)

    own = sum(one.seconds for one in device_passes(2).values())
    there = sum(one.seconds for one in edge_passes(4).values())
    link = 3 * (LINK.up_seconds(170_000) + LINK.down_seconds(170_000))
    seconds = own + there + link + 3 * 0.005
    first = Observations().with_device(said(1, seconds))
    assert first.devices["phone"].handover is None
    cost = first.with_device(said(2, seconds)).device_cost("phone")
    assert cost is not None and cost.handover == pytest.approx(0.005)
    beside = replace(said(2, seconds + 9.0), device="other")
    shared = first.with_round([said(2, seconds + 9.0), beside]).device_cost("phone")
    assert shared is not None and not shared.handover
