"""`python -m tests.faults [WORD ...]`: play the fault matrix and print it.

With words only cells whose names have all of them; with `-WORD` none that has it. Exit code 1 where
a cell does not hold.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.cells import ALL
from tests.faults.lab import Verdict, tried

MOST = 160
"""Characters of each thing that is wrong."""


def row(verdict: Verdict) -> str:
    seconds = "-" if verdict.seconds is None else f"{verdict.seconds:.1f}"
    equal = "equal" if verdict.equal else "NOT EQUAL"
    said = "; ".join(one[:MOST] for one in verdict.wrong)
    wrong = "holds" if not verdict.wrong else f"DOES NOT HOLD: {said}"
    return f"| {verdict.name} | {seconds} | {verdict.replayed} | {equal} | {wrong} |"


def main() -> None:
    words = sys.argv[1:]
    keep = os.environ.get("SFL_FAULTS_LOGS")
    failed = 0
    say("| fault | seconds to its next work | begun again | adapter | verdict |")
    say("|---|---|---|---|---|")
    for cell in ALL:
        if not all(is_of(cell.name, word) for word in words):
            continue
        with TemporaryDirectory() as folder:
            verdict = tried(Path(folder), cell)
        say(row(verdict))
        failed += bool(verdict.wrong)
        if keep and verdict.wrong:
            (Path(keep) / f"{cell.name.replace(chr(47), chr(32))}.log").write_text(verdict.logs)
    sys.exit(failed > 0)


def is_of(name: str, word: str) -> bool:
    """Whether a cell is one of those that a word means."""
    return word[1:] not in name if word.startswith("-") else word in name


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
