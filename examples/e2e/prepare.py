"""E2E NLG (`slots||sentence`) as prompt/completion JSONL, split in two ways.

    python examples/e2e/prepare.py path/to/valid.txt out/

`train.jsonl`, `eval.jsonl`: rows shuffled, 4,000 / 600; rows of one slot record fall on both sides,
so this split shows optimisation. `strict-*.jsonl` holds out whole slot records (15% of the distinct
ones): it shows generalisation. The data set: Novikova et al., 2017 (CC BY-SA 4.0).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

Row = tuple[str, str]


def read(path: Path) -> list[Row]:
    """All rows of a file: slots and sentence."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("||", 1) for line in lines if "||" in line)
    return [(slots, sentence) for slots, sentence in pairs]


def random_split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """4,000 rows to train on, 600 to evaluate on."""
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    return shuffled[:4000], shuffled[4000:4600]


def strict_split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """No slot record on both sides: the last 15% of the shuffled distinct ones are held out."""
    records = sorted({slots for slots, _ in rows})
    random.Random(0).shuffle(records)
    held_out = set(records[int(0.85 * len(records)) :])
    train = [row for row in rows if row[0] not in held_out]
    evaluation = [row for row in rows if row[0] in held_out]
    random.Random(0).shuffle(train)
    return train, evaluation


def write(path: Path, rows: Iterable[Row]) -> None:
    """Rows as prompt/completion JSONL."""
    lines = (json.dumps({"prompt": f"{slots} = ", "completion": text}) for slots, text in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main(source: Path, out: Path) -> None:
    """Write both splits into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = read(source)
    for prefix, (train, evaluation) in (
        ("", random_split(rows)),
        ("strict-", strict_split(rows)),
    ):
        write(out / f"{prefix}train.jsonl", train)
        write(out / f"{prefix}eval.jsonl", evaluation)
        print(f"{out}/{prefix}*.jsonl: {len(train)} to train on, {len(evaluation)} held out")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
