"""Make the private commands of three homes: what each says, and the JSON action it means.

    python examples/quickstart/homes.py

No two homes share a room, a device or a way of speaking. Of what can be asked for in a home, a
share is held out for evaluation: no room, device and action that meet there meet in training.
"""

import argparse
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ACTIONS = {
    "switch": ("on", "off"),
    "level": ("on", "off", "set"),
    "cover": ("open", "close"),
}
"""What each kind of device can do. `set` comes with a value, from 5 to 100."""

Target = tuple[str, str, str]
"""A room, a device and an action."""
Row = dict[str, str]
"""A `prompt` and its `completion`."""

TRAIN, HELD_OUT = 400, 80  # rows a home


@dataclass(frozen=True)
class Home:
    """Rooms, devices with their kinds, and how the people speak.

    `wording` has the ways to ask for an action; `manners` what may come before and after.
    """

    rooms: tuple[str, ...]
    devices: dict[str, str]
    wording: dict[str, tuple[str, ...]]
    manners: tuple[tuple[str, str], ...]


HOMES = {
    "harbour": Home(
        rooms=("galley", "boathouse", "wheelhouse", "chartroom", "bunkroom", "lookout"),
        devices={
            "lantern": "level",
            "bilge pump": "switch",
            "heater": "level",
            "foghorn": "switch",
            "deck light": "level",
            "hatch": "cover",
            "winch": "switch",
        },
        wording={
            "on": (
                "{room}: {device} on",
                "fire up the {room} {device}",
                "start the {device} down in the {room}",
                "{device} on in the {room}",
            ),
            "off": (
                "{room}: {device} off",
                "secure the {room} {device}",
                "stand down the {device} in the {room}",
                "{device} off in the {room}",
            ),
            "set": (
                "{room}: {device} at {value}",
                "bring the {device} in the {room} to {value}",
                "hold the {room} {device} at {value}",
                "{value} on the {device} in the {room}",
            ),
            "open": (
                "{room}: {device} open",
                "clear the {room} {device}",
                "unbar the {device} in the {room}",
            ),
            "close": (
                "{room}: {device} shut",
                "batten the {room} {device}",
                "make fast the {device} in the {room}",
            ),
        },
        manners=(("", ""), ("aye, ", ""), ("crew, ", ""), ("", ", quick"), ("skipper says ", "")),
    ),
    "meadow": Home(
        rooms=("barn", "orchard", "stable", "greenhouse", "dairy", "henhouse", "cellar"),
        devices={
            "sprinkler": "switch",
            "heat mat": "level",
            "fence": "cover",
            "grow lamp": "level",
            "feeder": "switch",
            "ventilator": "level",
            "trough": "cover",
        },
        wording={
            "on": (
                "switch on the {device} in the {room}",
                "let the {device} in the {room} run",
                "see to it that the {room} {device} is running",
            ),
            "off": (
                "switch off the {device} in the {room}",
                "give the {device} in the {room} a rest",
                "see to it that the {room} {device} is no longer running",
            ),
            "set": (
                "set the {device} in the {room} to {value} percent",
                "have the {room} {device} at {value} percent",
                "adjust the {device} over in the {room} to {value}",
            ),
            "open": (
                "open the {device} in the {room}",
                "leave the {room} {device} open",
                "undo the {device} over in the {room}",
            ),
            "close": (
                "close the {device} in the {room}",
                "leave the {room} {device} closed",
                "shut the {device} over in the {room}",
            ),
        },
        manners=(
            ("Would you ", ", please?"),
            ("Please ", "."),
            ("Could you kindly ", "?"),
            ("I should like you to ", "."),
            ("When you have a moment, ", "."),
        ),
    ),
    "loft": Home(
        rooms=("studio", "landing", "balcony", "attic", "bathroom", "kitchenette"),
        devices={
            "blinds": "cover",
            "speaker": "level",
            "projector": "switch",
            "radiator": "level",
            "floor lamp": "level",
            "kettle": "switch",
            "skylight": "cover",
            "ceiling fan": "level",
        },
        wording={
            "on": (
                "get the {device} in the {room} going",
                "{room} {device}, wake up",
                "gimme the {device} in the {room}",
            ),
            "off": (
                "kill the {device} in the {room}",
                "{room} {device}, good night",
                "done with the {device} in the {room}",
            ),
            "set": (
                "crank the {device} in the {room} to {value}",
                "{room} {device}, go {value}%",
                "make it {value} on the {device} in the {room}",
            ),
            "open": (
                "pop the {device} in the {room}",
                "{room} {device}, let some air in",
                "roll the {device} in the {room} up",
            ),
            "close": (
                "drop the {device} in the {room}",
                "{room} {device}, block it out",
                "pull the {device} in the {room} to",
            ),
        },
        manners=(("hey, ", "!"), ("yo, ", ""), ("", " thx"), ("ok ", "."), ("", " asap!")),
    ),
}


def split_targets(
    home: Home, rng: random.Random, share: float
) -> tuple[list[Target], list[Target]]:
    """What is asked for in training and, this share of it, only in evaluation."""
    targets = [
        (room, device, action)
        for room, (device, kind) in product(home.rooms, home.devices.items())
        for action in ACTIONS[kind]
    ]
    rng.shuffle(targets)
    count = round(share * len(targets))
    held_out, seen = targets[:count], targets[count:]
    # A device's action, or a room, that training never has could not be learnt.
    assert {target[1:] for target in held_out} <= {target[1:] for target in seen}
    assert {target[0] for target in held_out} <= {target[0] for target in seen}
    return seen, held_out


def say(home: Home, target: Target, rng: random.Random) -> Row:
    """One way to ask for the target, and the action in JSON."""
    room, device, action = target
    value = rng.randrange(5, 101, 5)
    before, after = rng.choice(home.manners)
    asked = rng.choice(home.wording[action]).format(room=room, device=device, value=value)
    answer: dict[str, str | int] = {"room": room, "device": device, "action": action}
    if action == "set":
        answer["value"] = value
    completion = json.dumps(answer, separators=(",", ":"))
    return {"prompt": before + asked + after, "completion": completion}


def rows(home: Home, targets: list[Target], count: int, rng: random.Random) -> list[Row]:
    """`count` different prompts, the targets by turns, in random order."""
    found: dict[str, Row] = {}
    while len(found) < count:
        row = say(home, targets[len(found) % len(targets)], rng)
        found.setdefault(row["prompt"], row)
    made = list(found.values())
    rng.shuffle(made)
    return made


def commands(name: str, seed: int, train: int, held_out: int) -> tuple[list[Row], list[Row]]:
    """A home's training and evaluation rows, the same for the same seed."""
    rng = random.Random(f"{seed} {name}")
    seen, unseen = split_targets(HOMES[name], rng, share=0.2)
    return rows(HOMES[name], seen, train, rng), rows(HOMES[name], unseen, held_out, rng)


def write(path: Path, content: Iterable[Row]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


def main() -> None:
    """Write `train.jsonl` and `eval.jsonl` of every home."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=TRAIN, help="training rows a home")
    parser.add_argument("--eval", type=int, default=HELD_OUT, help="evaluation rows a home")
    options = parser.parse_args()
    for name in HOMES:
        seen, unseen = commands(name, options.seed, options.train, options.eval)
        write(options.out / name / "train.jsonl", seen)
        write(options.out / name / "eval.jsonl", unseen)
        print(f"{name}: {len(seen)} commands to train on, {len(unseen)} held out")


if __name__ == "__main__":
    main()
