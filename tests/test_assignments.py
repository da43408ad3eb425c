"""What a device does in a round stands in its assignment, and a node reads it nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.house.paths import ROOT

NODES = ("device_agent", "edge_server", "sfl/stage", "sfl/transport")
READS = {"devices", "device", "plan", "rank", "scaling", "codecs"}
RANGES = {"plans_of", "cuts_of", "ways_of", "largest_span"}
"""Functions of `sfl.config.ranges`, which read all cuts that an entry allows."""

BEFORE_THE_FIRST_ROUND = {
    ("edge_server/base.py", "_span"): "an edge loads its blocks before any device has joined",
    ("edge_server/floor.py", "spans"): "it serves the files of all cuts that a device may have",
    ("sfl/transport/device/end.py", "_most_bytes"): "sums are of all blocks that it may have",
    ("device_agent/consent.py", "_codecs"): "a device declines what is to come before it joins",
    ("sfl/transport/device/stream_codecs.py", "check_codecs"): "an edge refuses to open without",
    ("sfl/transport/device/stream_codecs.py", "remembers_samples"): "it makes a folder for them",
    ("device_agent/loaded.py", "loads"): "a device asks whether what it has loaded is still due",
    ("sfl/transport/frames/words.py", "to_settings"): "who is let in is told of all devices",
    ("sfl/transport/device/link.py", "__init__"): "a link that is slowed for an experiment",
    ("sfl/transport/device/training.py", "__init__"): "the same, towards the device",
}
"""Functions of nodes that read a device's entry all the same, and why."""


def test_nodes_obey_their_assignment_and_look_nowhere_else() -> None:
    found = {
        (str(path.relative_to(ROOT)), function.name)
        for folder in NODES
        for path in sorted((ROOT / folder).rglob("*.py"))
        for function in _functions(path)
        if any(_reads_an_entry(node) for node in ast.walk(function))
    }
    assert found == set(BEFORE_THE_FIRST_ROUND)


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _reads_an_entry(node: ast.AST) -> bool:
    """`settings.rank`, `self.settings.devices`, `plans_of(settings, ...)` and the like."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in RANGES:
        return True
    if not isinstance(node, ast.Attribute) or node.attr not in READS:
        return False
    of = node.value
    name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
    return name in ("settings", "_settings", "run_settings")
