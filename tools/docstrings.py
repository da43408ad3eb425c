"""How long the sentences of public docstrings are, and words that the project does not use.

    python -m tools.docstrings                # what all of them come to, and every word found
    python -m tools.docstrings --worst 20     # the longest sentences

Exit code 1 where a limit is broken. The words of `tools.words` are looked for in all docstrings,
comments and messages, and in the names that the code gives.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tools import words as forbidden
from tools.prose import Measure, Page, measure, sentences
from tools.words import Found

ROOT = Path(__file__).parent.parent
PACKAGES = ("sfl", "device_agent", "edge_server", "cloud_aggregator", "tools")

AIM_MEDIAN = 13.0
AIM_P90 = 25.0
"""The docs' own (`tools.prose`)."""


def files(root: Path = ROOT) -> Iterator[Path]:
    """What is written by hand, without tests."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if "_pb2" not in path.name and path != Path(forbidden.__file__):
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


def names(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every class, function, parameter, variable and attribute it defines."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield node.lineno, name
            case ast.AsyncFunctionDef(name=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name


def words(source: str, file: str) -> Iterator[Found]:
    """The words that a source says, in its texts and in its names."""
    for number, line in told(source):
        if not _is_key(line):
            yield from forbidden.in_line(line, f"{file}:{number}")
    for number, name in names(source):
        yield from forbidden.in_name(name, f"{file}:{number}")


def _is_key(line: str) -> bool:
    """Whether it is a string of one word."""
    return re.fullmatch(r"\W*\w+\W*", line) is not None


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
    broken = [*faults(found), *map(str, all_words())]
    print("\n".join(broken), end="\n" if broken else "")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
