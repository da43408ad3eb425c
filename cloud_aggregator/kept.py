"""The adapters that a run's folder keeps: the latest, the best, and those of rounds if wanted."""

from __future__ import annotations

import shutil
from pathlib import Path

from cloud_aggregator.effective import EffectiveConfig
from sfl.node.files import on_disk


class KeptAdapters:
    """`adapter`, `adapter_best` and `adapters/round-*`."""

    def __init__(self, config: EffectiveConfig, folder: Path) -> None:
        self.best_round: int | None = None
        self._config = config
        self._folder = folder

    def choose_best(self, best: int | None) -> None:
        """Keep the adapter of the round that is best so far, if any is."""
        if best is not None and best != self.best_round:
            self.best_round = best
            self.replace("adapter_best", best)
        self._prune()

    def replace(self, name: str, round_: int) -> None:
        """Make `name` a copy of a round's adapter; a reader never sees half of it."""
        source = self._folder / "adapters" / f"round-{round_:04d}"
        if not source.is_dir():
            return
        aside, target = self._folder / f".{name}.new", self._folder / name
        with on_disk(self._folder):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for file in source.iterdir():
                shutil.copyfile(file, aside / file.name)
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)

    def drop_rounds(self) -> None:
        """Remove the adapters of rounds, unless all are wanted."""
        if not self._config.current.run.keep_round_adapters:
            shutil.rmtree(self._folder / "adapters", ignore_errors=True)

    def _prune(self) -> None:
        """Keep only the adapters that may still turn out best, unless all are wanted."""
        if self._config.current.run.keep_round_adapters:
            return
        for folder in sorted((self._folder / "adapters").glob("round-*"))[:-1]:
            with on_disk(self._folder):
                shutil.rmtree(folder)
