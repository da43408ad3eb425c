"""The adapters that a run's folder keeps: the latest, the best, and those of rounds if wanted."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from sfl.node.files import on_disk
from sfl.node.numbered import of_rounds, round_name, round_of
from sfl.report.projection import RunProjection
from sfl.rounds import AdapterReady, Event, Fact, RunEnded


class KeptAdapters:
    """`adapter`, `adapter_best` and `adapters/round-*`; these of all rounds where that is wanted.

    Whenever its process is killed, no adapter is half there.
    """

    def __init__(self, folder: Path, every_round: bool, best_round: int | None = None) -> None:
        self.best_round = best_round
        """Of which round `adapter_best` is."""
        self._folder = folder
        self._every_round = every_round

    def choose_best(
        self, best: int | None, latest: int | None = None, needed: int | None = None
    ) -> None:
        """Keep the adapter of the round that is best so far, if any is. Raises DiskError.

        `latest` is the last round that has an adapter, where another may be in the making; from
        that of `needed` on devices are still at work.
        """
        # Who reports late may make a round the best whose adapter is gone by then.
        if best is not None and best != self.best_round and self.replace("adapter_best", best):
            self.best_round = best
        self._prune(latest if latest is None or needed is None else min(latest, needed))

    def replace(self, name: str, round_: int) -> bool:
        """Make `name` a copy of a round's adapter; false where that is gone. Raises DiskError."""
        source = self._folder / "adapters" / round_name(round_)
        if not source.is_dir():
            return False
        aside, target = self._folder / f".{name}.new", self._folder / name
        with on_disk(self._folder):
            try:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                for file in source.iterdir():
                    shutil.copyfile(file, aside / file.name)
                shutil.rmtree(target, ignore_errors=True)
                aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return True

    def drop_rounds(self) -> None:
        """Remove the adapters of rounds, unless all are wanted."""
        if not self._every_round:
            with contextlib.suppress(OSError):
                _remove(self._folder / "adapters")

    def forget_after(self, round_: int) -> None:
        """Remove what is there of later rounds, none of which has closed. Raises DiskError."""
        for folder in of_rounds(self._folder / "adapters"):
            if round_of(folder) > round_:
                with on_disk(self._folder):
                    _remove(folder)

    def _prune(self, latest: int | None) -> None:
        """Keep only the adapters that may still turn out best, unless all are wanted."""
        if self._every_round:
            return
        rounds = of_rounds(self._folder / "adapters")
        last = round_of(rounds[-1]) if latest is None and rounds else latest or 0
        for folder in rounds:
            if round_of(folder) < last:
                with on_disk(self._folder):
                    _remove(folder)


class KeptRounds:
    """The rounds that `KeptAdapters` made `adapter` and `adapter_best` of, by the journal alone.

    A cloud that is killed while it keeps a round's adapter may not have made them yet. Then the
    adapters of those rounds are still there.
    """

    def __init__(self, every_round: bool, chooses: bool = True) -> None:
        """An asynchronous run chooses none: its adapters are not evaluated by the same devices."""
        self.latest: int | None = None
        self.best: int | None = None
        self._every_round = every_round
        self._chooses = chooses

    def take(self, event: Event | Fact, told: RunProjection) -> None:
        """What comes next, and all that was told with it."""
        if isinstance(event, AdapterReady) and event.round:
            self.latest = event.round
            self._choose(told.rounds.best_round(), event.round - 1)
        elif isinstance(event, RunEnded) and self.latest is not None:
            self._choose(told.rounds.best_round(), self.latest)

    def _choose(self, best: int | None, oldest: int) -> None:
        """The best so far, where its adapter is there: those before `oldest` were removed."""
        if self._chooses and best is not None and (self._every_round or best >= oldest):
            self.best = best


def _remove(folder: Path) -> None:
    """All at once for whoever looks, also where this process is killed meanwhile."""
    aside = folder.with_name(f".{folder.name}.old")
    if folder.is_dir():
        folder.rename(aside)
    if aside.is_dir():
        shutil.rmtree(aside)
