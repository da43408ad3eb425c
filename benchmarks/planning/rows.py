"""Rows of tables of planners, and what all scenes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sfl.planners import Choice, State

Choices = Mapping[str, Choice]


def flops(hidden: int, length: int, sequences: int) -> float:
    """Of a forward through one block with an MLP four times as wide."""
    tokens = sequences * length
    return 24.0 * hidden * hidden * tokens + 4.0 * sequences * length * length * hidden


def uniform(state: State, cut: int, clock: float = 1.0) -> dict[str, Choice]:
    """The same for everybody."""
    return {device.name: Choice(cut, edge_clock=clock) for device in state.devices}


def table(*titles: str) -> Callable[..., None]:
    """Print the head; returns what prints a row."""
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles), flush=True)
    return lambda *cells: print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def saved(ours: float, other: float) -> str:
    """By how much ours is above or below."""
    return f"{ours / other - 1.0:+.0%}" if other > 0.0 else "-"


def cuts_of(choices: Choices) -> str:
    """Of each device, in a word."""
    return "-".join(str(one.cut_layer) for one in choices.values())


def both(found: tuple[float, float]) -> tuple[str, str]:
    """Seconds and joules."""
    return f"{found[0]:.3f}", f"{found[1]:.0f}"


def against(ours: tuple[float, float], found: tuple[float, float]) -> tuple[str, str]:
    """Ours over what was found, in seconds and joules."""
    return saved(ours[0], found[0]), saved(ours[1], found[1])
