"""Runs that tests only read: each is made once, whoever asks first, for all processes of a session.

    def test_it(runs: Runs) -> None:
        outcome = runs("vanilla")

What a test reads it leaves as it is; who changes a run takes `copied(outcome, tmp_path)`.
`tests/README.md` says which test reads which run.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.house.federation import Outcome, finished, run
from tests.house.files import write_jsonl
from tests.house.fleets import CLASSES, classified, completions, device, settings, tiny
from tests.house.tiny_models import decoder_without_padding
from tests.house.twin import played

Values = dict[str, Any]
Seen = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Named:
    """How a run is made: its settings for a folder, and by what."""

    values: Callable[[Path], Values]
    processes: bool = True
    """By `sfl run`; otherwise by the federation in one process."""
    options: tuple[str, ...] = ()

    def made(self, folder: Path) -> Outcome:
        values = self.values(folder)
        return finished(
            run(folder, values, *self.options) if self.processes else played(folder, values)
        )


def vanilla(folder: Path) -> Values:
    """Three devices with different cuts and amounts of data, interleaved in one edge."""
    values = settings(
        own(folder, "llama"), run={"rounds": 2}, training={"micro_batches": 1, "local_epochs": 1}
    )
    del values["training"]["local_steps"]
    values["devices"] = [
        device(name, completions(folder / f"{name}.jsonl", seed, count), cut)
        for name, seed, count, cut in (("a", 1, 14, 0), ("b", 2, 30, 1), ("c", 3, 22, 2))
    ]
    return values


def u_shaped(folder: Path) -> Values:
    """A classifier on a mixed fleet, with codecs for everything and others in later rounds."""
    values = settings(
        own(folder, "bert"),
        run={"topology": "u_shaped", "rounds": 3},
        model={"task": "sequence_classification", "labels": CLASSES},
        codec={
            "activation": "int8 | zstd",
            "gradient": "fp16",
            "adapter": "int8 | zstd",
            # Another codec for one device from the second round on, which keeps its rows on disk.
            "schedule": [
                {"from_round": 2, "device": "a", "activation": "delta(sample) | int(8) | rans"},
                {"from_round": 3, "hidden": "sft", "tail_gradient": "compact"},
            ],
        },
        training={"micro_batches": 2},
    )
    values["devices"] = [
        device("a", classified(folder / "a.jsonl", 1), 1, tail_layers=1),
        device("b", classified(folder / "b.jsonl", 2, 20), 0, tail_layers=2),
    ]
    return values


def shared_data(folder: Path) -> Values:
    """Two devices that divide the run's data; what may be is left to the machine."""
    values = settings(
        own(folder, "llama"),
        run={"rounds": 1},
        model={"dtype": "auto"},
        training={"local_steps": 2},
        data={"train": str(completions(folder / "all.jsonl", 1, 30))},
    )
    values["devices"] = [
        {"name": "d0", "cut_layer": 0, "threads": 1, "dtype": "autocast"},
        {"name": "d1", "cut_layer": 0, "threads": 1},
    ]
    return values


WORDS = ("lamp", "heater", "door", "kitchen", "now", "please")


def classifier(folder: Path) -> Values:
    """Texts of unequal lengths, on a decoder that names no pad token."""
    rows = [
        {"text": " ".join(WORDS[: 1 + number % 6]), "label": ("off", "on")[number % 2]}
        for number in range(20)
    ]
    return {
        "run": {"rounds": 1},
        "model": {
            "path": str(decoder_without_padding(folder / "models" / "gpt2")),
            "task": "sequence_classification",
            "labels": ["off", "on"],
            "max_length": 64,
        },
        "lora": {"rank": 4},
        "training": {"batch_size": 4, "local_steps": 2},
        "data": {"eval_fraction": 0.4},
        "devices": [
            {"name": "a", "cut_layer": 1, "train": str(write_jsonl(folder / "a.jsonl", rows))}
        ],
    }


RUNS = {
    "vanilla": Named(vanilla),
    "tls": Named(vanilla, options=("--tls", "--log-format", "json")),
    "u_shaped": Named(u_shaped),
    "shared_data": Named(shared_data),
    "classifier": Named(classifier, processes=False),
}


def own(folder: Path, kind: str) -> Path:
    """A tiny model that stays when the process that made it is gone."""
    return Path(shutil.copytree(tiny(kind), folder / "model", dirs_exist_ok=True))


def copied(outcome: Outcome, to: Path) -> Outcome:
    """A run of one's own, with its data and model, to be changed at will."""
    home = outcome.folder.parents[1]
    shutil.copytree(home, to, dirs_exist_ok=True)
    folder = to / outcome.folder.relative_to(home)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace(str(home), str(to)))
    return Outcome(outcome.code, outcome.output, folder)


class Runs:
    """The runs of a session, in a folder that all its processes share."""

    def __init__(self, shelf: Path) -> None:
        self._shelf = shelf
        self._seen: dict[str, Seen] = {}

    def __call__(self, name: str) -> Outcome:
        home = self._shelf / name
        home.mkdir(parents=True, exist_ok=True)
        made = self._shelf / f"{name}.json"
        with (self._shelf / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                outcome = RUNS[name].made(home)
                made.write_text(json.dumps([outcome.output, str(outcome.folder)]))
        output, folder = json.loads(made.read_text())
        self._seen.setdefault(name, seen(home))
        return Outcome(0, output, Path(folder))

    def assert_untouched(self) -> None:
        """Nothing that a test asked for was changed by it."""
        for name, before in self._seen.items():
            assert seen(self._shelf / name) == before, f"run {name!r} was changed: take a copy"


def seen(home: Path) -> Seen:
    """Size and time of every file; an open journal has files of its own beside it."""
    files = (path for path in home.rglob("*") if path.is_file() and "sqlite" not in path.name)
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
