"""`docs/reference/modules.md`, from each module's first line: `python -m tools.modules_page`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parent.parent

TOPS = ("sfl", "device_agent", "edge_server", "cloud_aggregator", "tools")

INTRO = """\
# Modules

<!-- Written by `python -m tools.modules_page > docs/reference/modules.md`; a test holds it. -->

One line for each module: the first line of its docstring. The packages stand in the order of their
names. [Architecture](../architecture.md) says which may import which.
"""


def document() -> str:
    """The whole page."""
    sections = [
        _section(package, list(files)) for package, files in groupby(_files(), lambda f: f.parent)
    ]
    return "\n".join([INTRO, *sections])


def _files() -> Iterator[Path]:
    """Every module, a package's own before those in it."""
    for top in TOPS:
        files = (path.relative_to(ROOT) for path in (ROOT / top).rglob("*.py"))
        written = (path for path in files if not path.stem.endswith("_pb2"))
        yield from sorted(written, key=lambda path: (str(path.parent), path.stem))


def _section(package: Path, files: list[Path]) -> str:
    own = next((_first_line(file) for file in files if file.stem == "__init__"), "")
    rows = [f"| `{file.stem}` | {_first_line(file)} |" for file in files if file.stem[0] != "_"]
    lines = [f"## {package}", "", own, ""]
    return "\n".join(lines + (["| module | |", "|---|---|", *rows, ""] if rows else []))


def _first_line(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
    line = " ".join(docstring.partition("\n\n")[0].split())
    return line.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    """Print the page."""
    sys.stdout.write(document())


if __name__ == "__main__":
    main()
