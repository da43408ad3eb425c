"""How long sentences and lines of README.md, CONTRIBUTING.md and docs/ are, beside our aims.

    python -m tools.prose                  # a line for each page, and all of them together
    python -m tools.prose --worst docs/edge.md    # that page's longest sentences and lines

Exit code 1 where a page breaks a limit. Code blocks, tables, headings and generated pages do not
count. The words of `tools.words` are looked for in every line, code and tables included.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools import words

ROOT = Path(__file__).parent.parent

AIM_MEDIAN = 13.0
AIM_ABOVE_40 = 0.012
AIM_P90 = 25.0
"""25 words at most as a rule."""

MAX_MEDIAN = 15.0
"""What a single page may have; its neighbours bring the whole to the aim."""
MAX_LINE = 100

GENERATED = "<!-- Written by "
"""In the first lines of a page: its text stands in the code that writes it."""

MIN_WORDS = 3
"""Shorter than that is a label, not a sentence."""

_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)]|>|!!!|\?\?\?)\s+")
_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_CODE = re.compile(r"`[^`]*`")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_END = re.compile(r"(?<=[.!?])[\"'”)*_]*\s+(?=[\"'“(*_]*[A-Z0-9`])")
_NO_END = re.compile(r"\b(e\.g|i\.e|vs|cf|al)\.")


@dataclass(frozen=True, slots=True)
class Page:
    """One page: the words of each of its sentences, and its lines that count."""

    name: str
    sentences: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def words(self) -> list[int]:
        """Words of each sentence."""
        return [len(sentence.split()) for sentence in self.sentences]


@dataclass(frozen=True, slots=True)
class Measure:
    """What a page's sentences and lines come to."""

    sentences: int
    median: float
    p90: float
    above_25: float
    above_40: float
    longest_line: int


def paragraphs(text: str) -> Iterator[str]:
    """A page's running text, a paragraph or a list item each, on one line."""
    held: list[str] = []
    for line in [*_prose_lines(text), ""]:
        item = _ITEM.match(line)
        if (not line.strip() or item) and held:
            yield " ".join(held)
            held = []
        if line.strip():
            held.append(line[item.end() :] if item else line.strip())


def _prose_lines(text: str) -> Iterator[str]:
    """Its lines; an empty one in the place of a heading, a table's row or a block of code."""
    for line in _without_code(_COMMENT.sub("", text).splitlines()):
        yield "" if line.lstrip().startswith(("#", "|", "<", "===")) else line


def _without_code(lines: list[str]) -> Iterator[str]:
    fence = ""
    for line in lines:
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and not fence:
            fence = mark[1]
            yield ""
        elif fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
        else:
            yield line


def sentences(text: str) -> Iterator[str]:
    """A page's sentences, links as their words and inline code as one word."""
    for paragraph in paragraphs(text):
        plain = _LINK.sub(r"\1", _CODE.sub("`code`", paragraph))
        for sentence in _END.split(_NO_END.sub(r"\1", plain)):
            if len(sentence.split()) >= MIN_WORDS:
                yield sentence.strip()


def counted_lines(text: str) -> Iterator[str]:
    """Lines that may be too long: no table, no code; a link that fills its line cannot be cut."""
    for line in _without_code(_COMMENT.sub("", text).splitlines()):
        uncut = " " not in _ITEM.sub("", line).strip() or re.match(r"\s*!?\[[^\]]*\][(:]", line)
        if not line.lstrip().startswith(("|", "<")) and not uncut:
            yield line


def read(path: Path, root: Path = ROOT) -> Page:
    """One page of the project."""
    text = path.read_text()
    name = path.relative_to(root).as_posix()
    return Page(name, tuple(sentences(text)), tuple(counted_lines(text)))


def paths(root: Path = ROOT) -> list[Path]:
    """README.md, CONTRIBUTING.md and every page of docs/ that is written by hand."""
    found = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]
    return [path for path in found if GENERATED not in path.read_text()[:500]]


def pages(root: Path = ROOT) -> list[Page]:
    """Those of `paths`, read."""
    return [read(path, root) for path in paths(root)]


def forbidden(root: Path = ROOT) -> list[words.Found]:
    """The words of `tools.words` that these pages say."""
    return [
        found
        for path in paths(root)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for found in words.in_line(line, f"{path.relative_to(root).as_posix()}:{number}")
    ]


def measure(page: Page) -> Measure:
    """What its sentences and lines come to; a page without a sentence has zeros."""
    words = sorted(page.words) or [0]
    return Measure(
        sentences=len(page.sentences),
        median=statistics.median(words),
        p90=words[int(0.9 * (len(words) - 1))],
        above_25=sum(count > 25 for count in words) / len(words),
        above_40=sum(count > 40 for count in words) / len(words),
        longest_line=max(map(len, page.lines), default=0),
    )


def faults(page: Page) -> list[str]:
    """Which limits a page breaks. A single sentence above 40 words is let pass."""
    found = measure(page)
    long = sum(count > 40 for count in page.words)
    checks = (
        (found.median > MAX_MEDIAN, f"median {found.median:g} words, not {MAX_MEDIAN:g}"),
        (found.p90 > AIM_P90, f"p90 {found.p90:g} words, not {AIM_P90:g}"),
        (long > max(1, AIM_ABOVE_40 * found.sentences), f"{long} sentences above 40 words"),
        (found.longest_line > MAX_LINE, f"a line of {found.longest_line}, not {MAX_LINE}"),
    )
    return [fault for broken, fault in checks if broken]


def together(found: list[Page]) -> Page:
    """All pages as one."""
    return Page(
        "all",
        tuple(sentence for page in found for sentence in page.sentences),
        tuple(line for page in found for line in page.lines),
    )


def row(page: Page) -> str:
    """A page's line of the table."""
    found = measure(page)
    return (
        f"{page.name:<36}{found.sentences:>10}{found.median:>8g}{found.p90:>6g}"
        f"{found.above_25:>8.1%}{found.above_40:>8.1%}{found.longest_line:>9}"
    )


def table(found: list[Page]) -> str:
    """Every page, all of them, and the aims."""
    head = f"{'page':<36}{'sentences':>10}{'median':>8}{'p90':>6}{'> 25':>8}{'> 40':>8}{'line':>9}"
    aims = f"{'aim':<36}{'':>10}{f'12-{AIM_MEDIAN:g}':>8}{AIM_P90:>6g}{'':>8}{AIM_ABOVE_40:>8.1%}"
    body = [row(page) for page in found]
    return "\n".join([head, *body, row(together(found)), f"{aims}{MAX_LINE:>9}"])


def worst(page: Page, count: int = 10) -> str:
    """A page's longest sentences, and its lines that are too long."""
    longest = sorted(page.sentences, key=lambda sentence: -len(sentence.split()))[:count]
    lines = [f"line of {len(line)}: {line}" for line in page.lines if len(line) > MAX_LINE]
    return "\n".join([*(f"{len(text.split()):>3}  {text}" for text in longest), *lines])


def main(arguments: list[str]) -> int:
    """Print the table, or what is worst on the pages named after `--worst`."""
    if arguments[:1] == ["--worst"]:
        print("\n".join(worst(read(Path(name).resolve())) for name in arguments[1:]))
        return 0
    found = pages()
    print(table(found))
    broken = [(page.name, faults(page)) for page in found]
    for name, why in broken:
        if why:
            print(f"{name}: {'; '.join(why)} (python -m tools.prose --worst {name})")
    said = forbidden()
    print("\n".join(map(str, said)), end="\n" if said else "")
    return int(bool(said) or any(why for _, why in broken))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
