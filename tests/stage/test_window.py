"""How many micro-batches a device keeps in flight: wide where the way is long, never in the way."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfl.report.records import RoundRecord, read_records
from sfl.stage.window import Window
from tests.house.federation import finished
from tests.house.fleets import completions, device, tiny
from tests.house.fleets import settings as small_run
from tests.house.reference import adapter, assert_same_bits
from tests.house.twin import played

STEPS, GRANTED, COUNT = 40, 8, 16


@dataclass(frozen=True)
class Chain:
    """Seconds a micro-batch takes at each place; `way` is the delay of the link, each way."""

    forward: float
    backward: float
    link: float
    edge: float
    way: float

    def step(self, window: Window, size: int | None = None) -> float:
        """A step of the trainer's loop over this chain: its seconds."""
        now = up = busy = down = 0.0
        answers: deque[float] = deque()
        window.begin_step()

        def land() -> float:
            arrived = answers.popleft()
            window.landed(arrived)
            window.answered(self.backward)
            return max(now, arrived) + self.backward

        for _ in range(COUNT):
            while len(answers) >= (size or window.size):
                now = land()
            now += self.forward
            window.launched(now - self.forward, now)
            up = max(now, up) + self.link
            busy = max(up + self.way, busy) + self.edge
            down = max(busy, down) + self.link
            answers.append(down + self.way)
        while answers:
            now = land()
        window.end_step()
        return now


CHAINS = {
    "all alike, a short way": Chain(1.0, 1.0, 1.0, 1.0, 0.1),
    "a quick link": Chain(1.0, 2.0, 0.01, 4.0, 0.01),
    "a slow device": Chain(5.0, 10.0, 0.1, 1.0, 0.1),
    "a slow edge": Chain(0.5, 0.5, 0.1, 6.0, 0.1),
    "a slow link": Chain(0.2, 0.4, 5.0, 1.0, 1.0),
    "a long way": Chain(1.0, 1.0, 0.5, 1.0, 30.0),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_step_takes_no_longer_than_with_all_credits(chain: Chain) -> None:
    window = Window(GRANTED)
    took = [chain.step(window) for _ in range(STEPS)]
    assert took[-1] <= 1.01 * chain.step(Window(GRANTED), GRANTED)


@pytest.mark.parametrize(
    ("name", "fewest", "most"),
    [("a quick link", 2, 4), ("a slow device", 2, 4), ("a slow edge", 2, 4), ("a long way", 8, 8)],
)
def test_what_would_only_wait_is_not_sent(name: str, fewest: int, most: int) -> None:
    window, chain = Window(GRANTED), CHAINS[name]
    for _ in range(STEPS):
        chain.step(window)
    assert fewest <= window.size <= most


def test_it_follows_a_link_that_changes() -> None:
    window = Window(GRANTED)
    sizes = []
    for chain in ("a quick link", "a long way", "a quick link"):
        for _ in range(STEPS):
            CHAINS[chain].step(window)
        sizes.append(window.size)
    assert sizes[0] == sizes[2] < sizes[1] == GRANTED


@pytest.mark.parametrize("granted", [1, 2])
def test_it_stays_within_what_is_granted(granted: int) -> None:
    window = Window(granted)
    for _ in range(STEPS):
        CHAINS["a long way"].step(window)
        assert window.size == granted


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_step_that_tells_nothing_changes_nothing(count: int) -> None:
    window = Window(GRANTED)
    window.begin_step()
    for _ in range(count):
        window.launched(0.5, 1.0)
        window.landed(1.0)  # a clock that did not move
    window.end_step()
    assert window.size == GRANTED


@pytest.mark.process
def test_a_device_s_window_is_told_and_changes_no_bit(tmp_path: Path) -> None:
    found = []
    for number, delay in enumerate((0.0, 250.0)):
        folder = tmp_path / str(number)
        values = small_run(
            tiny("llama"),
            training={"micro_batches": 4, "local_steps": 2},
            network={"credits": 4},
        )
        link = {"link": {"delay_ms": delay}} if delay else {}
        values["devices"] = [device("a", completions(folder / "a.jsonl", 0), 1, **link)]
        outcome = finished(played(folder, values))
        records = read_records(outcome.folder / "metrics.jsonl")
        told = [record.snapshot.window for record in records if isinstance(record, RoundRecord)][-1]
        # 0.5 s there and back take all four, as long as an answer does not take half of that.
        assert (4 if delay else 2) <= told <= 4
        found.append(adapter(outcome))
    assert_same_bits(*found)
