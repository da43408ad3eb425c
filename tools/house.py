"""The house measured: `python -m tools.house [CHECKOUT]`, or `make house`.

Prints a table of what makes code easy or hard to read: entries and arrows between rooms, sizes of
files, functions and classes, and where knowledge stands that belongs elsewhere. Two checkouts are
printed side by side, and with `--times` the seconds of `make quick` and `make test` in each:
`python -m tools.house BEFORE AFTER --times`, or `make house BEFORE=dir TIMES=1`.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tools import prose

SHELLS = ("device_agent", "edge_server", "cloud_aggregator")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """One source file, parsed."""

    name: str
    lines: int
    tree: ast.Module

    @property
    def room(self) -> str:
        """The entry under `sfl/` that it belongs to, or its shell."""
        parts = self.name.split(".")
        return ".".join(parts[:2]) if parts[0] == "sfl" else parts[0]


@dataclass(frozen=True, slots=True)
class ClassSize:
    """A class by its lines and its fields: annotated in its body, or set on self in a method."""

    name: str
    lines: int
    fields: int


def modules(root: Path) -> list[Module]:
    """Every source file of the product that was not generated."""
    paths = (path for top in ("sfl", *SHELLS) for path in sorted((root / top).rglob("*.py")))
    return [_module(root, path) for path in paths if not path.stem.endswith("_pb2")]


def _module(root: Path, path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    return Module(name, text.count("\n"), ast.parse(text))


def entries(root: Path) -> int:
    """What stands directly under `sfl/`, without caches."""
    return sum(1 for path in (root / "sfl").iterdir() if path.name != "__pycache__")


def arrows(house: Iterable[Module]) -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second."""
    house = list(house)
    rooms = {module.room for module in house}
    return {
        (module.room, there)
        for module in house
        for there in _imported_rooms(module, rooms)
        if there != module.room
    }


def _imported_rooms(module: Module, rooms: set[str]) -> Iterator[str]:
    for node in ast.walk(module.tree):
        for name in _imported(node):
            room = Module(name, 0, module.tree).room
            if room in rooms:
                yield room


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def functions(house: Iterable[Module]) -> list[int]:
    """Lines of each function and method, docstring included."""
    return [
        _length(node)
        for module in house
        for node in ast.walk(module.tree)
        if isinstance(node, Function)
    ]


def classes(house: Iterable[Module]) -> list[ClassSize]:
    """All classes, the largest first."""
    found = [
        ClassSize(f"{module.name}.{node.name}", _length(node), len(_fields(node)))
        for module in house
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    ]
    return sorted(found, key=lambda one: -one.lines)


def _length(node: Function | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _fields(node: ast.ClassDef) -> set[str]:
    declared = {
        one.target.id
        for one in node.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }
    return declared | {
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute)
        and isinstance(one.ctx, ast.Store)
        and isinstance(one.value, ast.Name)
        and one.value.id == "self"
    }


def generated_outside_transport(house: Iterable[Module]) -> int:
    """Uses of a `_pb2` module outside of `sfl.transport`."""
    return sum(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id.endswith("_pb2")
        for module in house
        if module.room != "sfl.transport"
        for node in ast.walk(module.tree)
    )


def plan_builders(house: Iterable[Module]) -> int:
    """Calls that build a plan, from its numbers or from its spans.

    The parser of transport's words is one: it reads the spans that the cloud said.
    """
    return sum(
        isinstance(node, ast.Call) and ast.unparse(node.func) in ("SplitPlan", "Plan", "Plan.split")
        for module in house
        for node in ast.walk(module.tree)
    )


def p90(values: list[int]) -> int:
    """The value that a tenth of them exceed."""
    return sorted(values)[int(0.9 * (len(values) - 1))]


def _middle(values: list[int]) -> str:
    return f"{statistics.median(values):g} / {p90(values)} / {max(values)}"


def _test_cases(root: Path) -> int:
    paths = (root / "tests").rglob("*.py")
    return sum(
        len(re.findall(r"^\s*(?:async )?def test_", path.read_text(encoding="utf-8"), re.M))
        for path in paths
    )


def _words(root: Path) -> str:
    found = prose.measure(prose.together(prose.pages(root)))
    return f"{found.median:g} / {found.p90:g} / {found.above_40:.1%} / {found.longest_line}"


def _largest(house: list[Module]) -> str:
    return "; ".join(
        f"{one.name.rsplit('.', 1)[1]} {one.lines}/{one.fields}" for one in classes(house)[:4]
    )


ROWS: dict[str, Callable[[Path, list[Module]], object]] = {
    "files / lines": lambda root, house: f"{len(house)} / {sum(m.lines for m in house):,}",
    "entries under sfl/": lambda root, house: entries(root),
    "rooms": lambda root, house: len({m.room for m in house}),
    "arrows between rooms": lambda root, house: len(arrows(house)),
    "lines a file, median / p90 / most": lambda root, house: _middle([m.lines for m in house]),
    "lines a function, median / p90 / most": lambda root, house: _middle(functions(house)),
    "largest classes, lines/fields": lambda root, house: _largest(house),
    "classes above 200 lines": lambda root, house: sum(c.lines > 200 for c in classes(house)),
    "uses of _pb2 outside transport": lambda root, house: generated_outside_transport(house),
    "places that build a plan, the parser of words too": lambda root, house: plan_builders(house),
    "test functions": lambda root, house: _test_cases(root),
    "words a sentence of the docs, median / p90 / above 40 / longest line": (
        lambda root, house: _words(root)
    ),
}


def table(roots: list[Path]) -> str:
    """The rows, a column for each checkout."""
    houses = [modules(root) for root in roots]
    lines = [["", *(str(root) for root in roots)]]
    for row, value in ROWS.items():
        columns = (str(value(root, house)) for root, house in zip(roots, houses, strict=True))
        lines.append([row, *columns])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def seconds_of(root: Path, target: str) -> str:
    """How long `make TARGET` takes in a checkout, and whether it passed."""
    if subprocess.run(["make", "-n", "-C", str(root), target], capture_output=True).returncode:
        return "no such target"
    began = time.monotonic()
    code = subprocess.run(["make", "-C", str(root), target], capture_output=True).returncode
    return f"{time.monotonic() - began:.0f} s{'' if code == 0 else ', FAILED'}"


def main() -> None:
    """Print the table of the checkouts named, or of this one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path()])
    parser.add_argument("--times", action="store_true", help="also run make quick and make test")
    arguments = parser.parse_args()
    print(table(arguments.checkouts))
    for root in arguments.checkouts if arguments.times else []:
        for target in ("quick", "test"):
            print(f"make {target} in {root}: {seconds_of(root, target)}", flush=True)


if __name__ == "__main__":
    main()
