"""A device of a run that lies: for the benchmarks and tests of what protects the others.

    python benchmarks/hostile_device.py device.toml --values 1000
    python benchmarks/hostile_device.py device.toml --examples 9223372036854775808 --values 0.5

It joins, trains and reports as any other, with a certificate of its own where the run asks for one;
but it says that it has so many examples, and each value of its part of the adapter is plus or minus
the number given, or is moved by it with `--moved`, by a coin.

    python benchmarks/hostile_device.py device.toml --holds 2 --until FILE

That one tells no lies, but has its part of round 2 ready only once FILE is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sfl.node.process import quiet_environment


def lying(options: argparse.Namespace) -> type:
    """A link that puts lies into what it sends."""
    import numpy as np

    from sfl.data.example import Dataset
    from sfl.rounds.values import DeviceFacts
    from sfl.stage.messages import RoundOutcome
    from sfl.transport.device.link import DeviceLink

    coin = np.random.default_rng(options.seed)

    def lie(values: np.ndarray) -> np.ndarray:
        signs = coin.choice(np.array([-1.0, 1.0]), values.shape)
        told = options.values * signs + (values if options.moved else 0.0)
        return np.asarray(told, np.float32)

    class LyingLink(DeviceLink):
        def deliver(self, outcome: RoundOutcome, *said: object) -> None:
            if options.values is not None and outcome.round >= options.from_round:
                told = {name: lie(values) for name, values in outcome.values.items()}
                outcome = replace(outcome, values=told)
            while outcome.round == options.holds and not options.until.exists():
                time.sleep(0.05)
            super().deliver(outcome)

        def facts(self, dataset: Dataset) -> DeviceFacts:
            facts = super().facts(dataset)
            if options.examples is not None:
                facts = replace(facts, num_examples=options.examples)
            return facts

    return LyingLink


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--examples", type=int)
    parser.add_argument("--values", type=float)
    parser.add_argument("--moved", action="store_true")
    parser.add_argument("--from-round", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--holds", type=int)
    parser.add_argument("--until", type=Path)
    options = parser.parse_args()
    quiet_environment()

    import typer

    import device_agent.agent
    from device_agent.command import device

    setattr(device_agent.agent, "DeviceLink", lying(options))  # noqa: B010 - its own is imported
    try:
        device(options.config)
    except typer.Exit as end:
        raise SystemExit(end.exit_code) from None


if __name__ == "__main__":
    main()
