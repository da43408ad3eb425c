"""Whether a device should rest: a pure decision over its settings, its board and the clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import time
from typing import Literal, get_args

from sfl.config.pausing import PauseSettings, read_hours
from sfl.node.board import Board, matches

Reason = Literal["heat", "charge", "hours", "metered"]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True)
class Pause:
    """Why a device rests: a word for metrics, and a sentence for people."""

    reason: Reason
    text: str


def decide(rules: PauseSettings, board: Board, clock: time, was: Pause | None) -> Pause | None:
    """Why the device should rest now, or None.

    `clock` is the local time of day, `was` what was decided before: a device that rests because of
    heat or charge goes on only beyond the second bound, so that it does not flutter. A rule whose
    sensor is not there does not hold.
    """
    return (
        _heat(rules, board, was)
        or _charge(rules, board, was)
        or _metered(rules, board)
        or _hours(rules, clock)
    )


def blind_rules(rules: PauseSettings, board: Board) -> list[str]:
    """The settings that nothing on this board answers, so that they do not hold."""
    asked = (
        ("above_celsius", rules.above_celsius, board.temperature),
        ("below_percent", rules.below_percent, board.charge),
        ("metered", rules.metered or None, board.metered),
        ("metered_interfaces", rules.metered_interfaces or None, board.interface or None),
    )
    return [name for name, wanted, found in asked if wanted is not None and found is None]


def _heat(rules: PauseSettings, board: Board, was: Pause | None) -> Pause | None:
    if rules.above_celsius is None or board.temperature is None:
        return None
    resting = was is not None and was.reason == "heat"
    bound = rules.cools_to if resting else rules.above_celsius
    if board.temperature <= bound:
        return None
    text = f"{board.temperature:.0f} °C, above {rules.above_celsius:g}"
    return Pause("heat", f"{text}; continues at {rules.cools_to:g}")


def _charge(rules: PauseSettings, board: Board, was: Pause | None) -> Pause | None:
    if rules.below_percent is None or board.charge is None:
        return None
    resting = was is not None and was.reason == "charge"
    bound = rules.charges_to if resting else rules.below_percent
    percent = round(100 * board.charge, 6)
    if percent >= bound:
        return None
    text = f"battery at {percent:.0f}%, below {rules.below_percent:g}%"
    return Pause("charge", f"{text}; continues at {rules.charges_to:g}%")


def _metered(rules: PauseSettings, board: Board) -> Pause | None:
    named = bool(board.interface) and matches(board.interface, rules.metered_interfaces)
    if not named and not (rules.metered and board.metered):
        return None
    return Pause("metered", f"{board.interface} is metered")


def _hours(rules: PauseSettings, clock: time) -> Pause | None:
    if not rules.hours or any(_within(clock, *read_hours(span)) for span in rules.hours):
        return None
    return Pause("hours", f"{clock:%H:%M} is outside {', '.join(rules.hours)}")


def _within(clock: time, begin: time, end: time) -> bool:
    """Whether a time of day is in a span, its end left out; it may go over midnight."""
    return begin <= clock < end if begin < end else clock >= begin or clock < end
