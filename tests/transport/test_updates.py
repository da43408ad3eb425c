"""Adapters as coded changes: nothing is lost for good, and both ends hold the same."""

from __future__ import annotations

import numpy as np
import pytest

from sfl.codec.pipeline import parse
from sfl.errors import ProtocolError
from sfl.transport.device.updates import UpdateSender, decode_update

SHAPES = {"b.lora_B": (6, 4), "a.lora_A": (4, 33), "bias": (7,)}
COARSE = "int(4) | zstd"


def values(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: (scale * rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("spec", ["none | zstd", "int8", COARSE, "topk(0.1) | fp16", "compact"])
def test_the_sender_knows_to_the_bit_what_the_receiver_has(spec: str) -> None:
    codec = parse(spec).without_context()
    sender = UpdateSender("kitchen", 1, "up", feedback=True)
    reference, target = values(1), values(2)
    for round_ in range(3):
        payload, arrived = sender.encode(codec, target, reference, round_)
        assert_same(decode_update(codec, payload, reference), arrived)
        reference, target = arrived, values(3 + round_)


def test_an_exact_codec_brings_the_values_themselves() -> None:
    codec = parse("none | zstd")
    payload, _ = UpdateSender("k", 1, "up", True).encode(codec, values(2), values(1), 1)
    assert_same(decode_update(codec, payload, values(1)), values(2))


def test_what_a_device_owes_comes_with_later_rounds() -> None:
    # Small steady changes, a coarse codec: without feedback top-k would drop most of them forever.
    codec = parse("topk(0.1) | fp16")
    start, change = values(1), values(2, 0.01)
    total = {False: 0.0, True: 0.0}
    for feedback in total:
        sender = UpdateSender("kitchen", 1, "up", feedback)
        moved = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        for round_ in range(60):
            trained = {name: start[name] + change[name] for name in start}
            payload, _ = sender.encode(codec, trained, start, round_)
            arrived = decode_update(codec, payload, start)
            for name in moved:
                moved[name] += arrived[name] - start[name]
        total[feedback] = sum(
            float(np.square(moved[name] - 60 * change[name]).sum()) for name in moved
        )
    wanted = sum(float(np.square(60 * array).sum()) for array in change.values())
    assert total[True] < 0.05 * wanted < 0.3 * wanted < total[False]


def test_what_an_edge_could_not_say_comes_with_the_next_difference() -> None:
    codec = parse(COARSE)
    sender = UpdateSender("kitchen", 1, "down", feedback=False)
    held, goal = values(1), values(2)
    errors = []
    for round_ in range(12):  # the goal stands still: what is held has to come to it
        _, held = sender.encode(codec, goal, held, round_)
        errors.append(max(float(np.abs(held[n] - goal[n]).max()) for n in goal))
    assert errors[-1] < 1e-4 * errors[0]


def test_a_payload_of_another_adapter_is_refused() -> None:
    codec = parse("int8")
    payload, _ = UpdateSender("k", 1, "up", True).encode(codec, values(2), values(1), 1)
    smaller = {name: array for name, array in values(1).items() if name != "a.lora_A"}
    with pytest.raises(ProtocolError):
        decode_update(codec, payload, smaller)


def test_a_diverged_update_is_refused() -> None:
    broken = values(2)
    broken["bias"][0] = np.nan
    with pytest.raises(ProtocolError, match="NaN"):
        UpdateSender("k", 1, "up", True).encode(parse("int8"), broken, values(1), 1)
