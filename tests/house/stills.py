"""A run's folder as a killed cloud leaves it, at many moments; and that it ends the same."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfl.errors import ConfigError
from sfl.report.records import RoundRecord, read_records
from sfl.report.resume import resumed
from tests.house.federation import Outcome, finished
from tests.house.retold import assert_retold
from tests.house.twin import Twin

WEIGHTS = "adapter_model.safetensors"


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / WEIGHTS).read_bytes()).hexdigest()


Copied = Callable[[Path], None]


def nothing(still: Path) -> None:
    """All is in the folder."""


class Stills:
    """A run's folder as a killed cloud leaves it, before each of some calls."""

    def __init__(self, aside: Path, twin: Twin, copied: Copied = nothing) -> None:
        """`copied` copies what is not in the folder, and tells the copy's settings of it."""
        self.copied = copied
        self.aside = aside
        self.twin = twin
        self.taken: list[tuple[Path, str]] = []
        self._alone = threading.RLock()  # the journal and the averaging write in two threads

    def take(self, when: str) -> None:
        """The run's folder, and what device and edge remember then."""
        beside = self.aside / f"{len(self.taken):04d}"
        still = beside / "runs" / self.twin.folder.name
        shutil.copytree(self.twin.folder, still, ignore=shutil.ignore_patterns(".cloud.lock"))
        for _ in range(100):
            shutil.rmtree(beside / "cache", ignore_errors=True)
            with contextlib.suppress(shutil.Error, FileNotFoundError):  # amid a snapshot
                if self.twin.cache.is_dir():
                    shutil.copytree(self.twin.cache, beside / "cache")
                break
        self.copied(still)
        self.taken.append((still, when))

    def before(self, patched: pytest.MonkeyPatch, owner: type, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def watched(own: Any, *given: Any, **named: Any) -> Any:
            with self._alone:
                self.take(name)  # what comes after one write is what comes before the next
                return original(own, *given, **named)

        patched.setattr(owner, name, watched)


def stills_of(
    folder: Path, values: dict[str, Any], writes: Any, copied: Copied = nothing
) -> tuple[Outcome, Stills]:
    """A run, and its folder before each of its cloud's writes."""
    return stills_of_twin(folder, Twin(folder, values), writes, copied)


def stills_of_twin(
    folder: Path, twin: Twin, writes: Any, copied: Copied = nothing
) -> tuple[Outcome, Stills]:
    """The same of a run that is prepared."""
    stills = Stills(folder / "stills", twin, copied)
    with pytest.MonkeyPatch.context() as patched:
        for owner, name in writes:
            stills.before(patched, owner, name)
        outcome = finished(twin.run())
    return outcome, stills


def assert_same_end(outcome: Outcome, whole: Outcome) -> None:
    assert digest(outcome.folder) == digest(whole.folder)
    ours, theirs = outcome.summary, whole.summary
    for key in ("rounds", "best_round", "eval_loss_before", "eval_loss_after", "tokens_trained"):
        assert ours[key] == theirs[key], key
    records = read_records(outcome.folder / "metrics.jsonl")
    scored = Counter((r.round, r.device) for r in records if isinstance(r, RoundRecord))
    assert set(scored.values()) == {1}
    assert len(records) == len(read_records(whole.folder / "metrics.jsonl"))
    left = {path.name for path in whole.folder.iterdir()}
    assert {path.name for path in outcome.folder.iterdir()} == left
    assert_retold(outcome.folder, outcome.folder.parent / "retold")


def over(folder: Path) -> bool:
    try:
        resumed(str(folder))
    except ConfigError as error:
        assert "has ended" in str(error)
        return True
    return False
