"""How long the sentences of public docstrings are, and words that the project does not use.

    python -m tools.docstrings                # what all of them come to, and every word found
    python -m tools.docstrings --worst 20     # the longest sentences

Exit code 1 where a limit is broken. Words are looked for in all docstrings, comments and messages.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.prose import Measure, Page, measure, sentences

ROOT = Path(__file__).parent.parent
PACKAGES = ("sfl", "device_agent", "edge_server", "cloud_aggregator", "tools")

AIM_MEDIAN = 13.0
AIM_P90 = 25.0
"""The docs' own (`tools.prose`)."""

WORDS = {
    "at hand": "available",
    "lies": "is",
    "lie": "are",
    "lend": "give",
    "lends": "gives",
    "lent": "given",
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "parting": "cleanup",
    "partings": "cleanups",
    "resting": "swapped out, or paused",
    "owe": "name what is due",
    "owes": "name what is due",
    "owed": "due",
}
"""Words that a reader stumbles over, and what to say."""

KEPT = ("`resting`", "devices may lie (")
"""A field of an event, and a device that tells what is not so."""


@dataclass(frozen=True, slots=True)
class Found:
    """A word in a file's line, and what to say for it."""

    where: str
    word: str
    better: str


def files(root: Path = ROOT) -> Iterator[Path]:
    """What is written by hand, without tests."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if "_pb2" not in path.name and path != Path(__file__):
                yield path


def docstrings(source: str) -> Iterator[str]:
    """Those of the module, and of its public classes and functions; of attributes too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = getattr(node, "name", "")
            text = ast.get_docstring(node)
            if text and not name.startswith("_"):
                yield text


def page(root: Path = ROOT) -> Page:
    """All public docstrings as one page; their indented examples do not count."""
    found: list[str] = []
    for path in files(root):
        for text in docstrings(path.read_text()):
            running = "\n".join(re.sub(r"^ {4,}.*$", "", line) for line in text.splitlines())
            found += sentences(running)
    return Page("public docstrings", tuple(found), ())


def told(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment and every string, docstrings and messages among them."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            yield from enumerate(token.string.splitlines(), token.start[0])


def words(source: str, name: str) -> Iterator[Found]:
    """The words of `WORDS` that a source says."""
    for number, line in told(source):
        for word, better in WORDS.items():
            if re.search(rf"\b{word}\b", line, re.IGNORECASE) and not _is_kept(line):
                yield Found(f"{name}:{number}", word, better)


def _is_kept(line: str) -> bool:
    """Also a string of one word: a key."""
    return any(name in line for name in KEPT) or re.fullmatch(r"\W*\w+\W*", line) is not None


def all_words(root: Path = ROOT) -> list[Found]:
    """Those of every file."""
    return [
        found
        for path in files(root)
        for found in words(path.read_text(), path.relative_to(root).as_posix())
    ]


def faults(found: Measure) -> list[str]:
    """Which limits the docstrings break."""
    checks = (
        (found.median > AIM_MEDIAN, f"median {found.median:g} words, not {AIM_MEDIAN:g}"),
        (found.p90 > AIM_P90, f"p90 {found.p90:g} words, not {AIM_P90:g}"),
    )
    return [fault for broken, fault in checks if broken]


def main(arguments: list[str]) -> int:
    """Print what they come to, and what is wrong."""
    whole = page()
    if arguments[:1] == ["--worst"]:
        longest = sorted(whole.sentences, key=lambda sentence: -len(sentence.split()))
        print("\n".join(f"{len(s.split()):>3}  {s}" for s in longest[: int(arguments[1])]))
        return 0
    found = measure(whole)
    print(
        f"public docstrings: {found.sentences} sentences, median {found.median:g} words, "
        f"p90 {found.p90:g}, {found.above_25:.1%} above 25, {found.above_40:.1%} above 40"
    )
    broken = [*faults(found), *(f"{f.where}: {f.word!r}; say {f.better!r}" for f in all_words())]
    print("\n".join(broken), end="\n" if broken else "")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
