"""The house holds: imports run one way, and each heavy library stays in its room."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.house.paths import ROOT

# A module may import from its own level (within its own package) and from any lower one.
LEVELS = (
    (
        "sfl",
        "sfl.errors",
        "sfl.keys",
        "sfl.plan",
        "sfl.urls",
        "sfl.v1",
        "sfl.node",
        "sfl.codec.spec",
    ),
    ("sfl.aggregation.traits", "sfl.codec.stages", "sfl.stage.orders"),
    ("sfl.config", "sfl.cost", "sfl.node.options"),
    (
        "sfl.rounds",
        "sfl.jobs",
        "sfl.planners",
        "sfl.serving",
        "sfl.node.certificates",
        "sfl.node.pausing",
        "sfl.report.runs",
        "sfl.stage.window",
        "sfl.transport.shaper",
    ),
    ("sfl.simulate",),
    (
        "sfl.codec",
        "sfl.models",
        "sfl.adapters",
        "sfl.aggregation",
        "sfl.data",
        "sfl.metrics",
        "sfl.store",
    ),
    ("sfl.stage", "sfl.report"),
    ("sfl.transport",),
    ("sfl.service",),
    ("device_agent", "edge_server", "cloud_aggregator"),
    ("sfl.cli",),
)
SAME_LEVEL = {
    ("sfl.node", "sfl.errors"),
    ("sfl.config", "sfl.plan"),
    ("sfl.plan", "sfl.errors"),
    ("sfl.errors", "sfl.urls"),
    ("sfl.rounds", "sfl.planners"),
    ("sfl.adapters", "sfl.models"),
    ("sfl.data", "sfl.models"),
    ("sfl.aggregation", "sfl.adapters"),
}
ROOMS = {
    "grpc": ("sfl.transport",),
    "google.protobuf": ("sfl.transport", "sfl.v1"),
    "sfl.v1": ("sfl.transport", "sfl.v1"),
    "prometheus_client": ("sfl.metrics",),
    "typer": (
        "sfl.cli",
        "sfl.node.options",
        "device_agent",
        "edge_server",
        "cloud_aggregator",
    ),
    "rich": ("sfl.cli", "sfl.report"),
    "datasets": ("sfl.data",),
    "aiohttp": ("device_agent.serving.endpoint", "device_agent.serving.node"),
    "opentelemetry": ("sfl.report.traces",),
    "sfl.stage.training": (
        "sfl.stage.training",
        "sfl.transport.device.adapter_work",
        "sfl.transport.device.inproc",
        "sfl.transport.device.trained",
        "sfl.transport.device.training",
        "sfl.transport.stage.served",
        "edge_server.host",
        "edge_server.sharing",
        "edge_server.stage_host",
        "edge_server.training",
    ),
    "sqlalchemy": (
        "sfl.store",
        "sfl.report.journal",
        "sfl.report.served",
        "sfl.service.queue",
    ),
    "fsspec": ("sfl.store.place",),
    "botocore": ("sfl.store.place",),
    "alembic": ("sfl.store.schema", "sfl.store.migrations"),
    "psycopg": ("sfl.store.postgres",),
    "cryptography": ("sfl.node.certificates.authority", "sfl.node.certificates.signing"),
}
PURE = (
    "sfl.errors",
    "sfl.keys",
    "sfl.plan",
    "sfl.urls",
    "sfl.aggregation.traits",
    "sfl.codec.spec",
    "sfl.codec.stages",
    "sfl.config",
    "sfl.cost",
    "sfl.jobs",
    "sfl.planners",
    "sfl.rounds",
    "sfl.serving",
    "sfl.stage.orders",
    "sfl.node.pausing",
    "sfl.simulate",
    "sfl.stage.window",
    "sfl.transport.shaper",
)
IMPURE = {"torch", "numpy", "grpc", "time", "random", "socket", "asyncio", "transformers"}


def named(*packages: str) -> Iterator[tuple[str, Path]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not path.stem.endswith("_pb2"):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                yield name.removesuffix(".__init__"), path


MODULES = dict(named("sfl", "device_agent", "edge_server", "cloud_aggregator"))
TESTS = dict(named("tests"))


@cache
def imports(module: str) -> tuple[str, ...]:
    """What a module imports, wherever in it; each file is parsed once."""
    return tuple(_imports((MODULES | TESTS)[module]))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> tuple[int, str] | None:
    """Level and package of one of our own modules, by its longest known prefix."""
    best: tuple[int, str] | None = None
    for level, names in enumerate(LEVELS):
        for name in names:
            inside = module == name or (name != "sfl" and module.startswith(name + "."))
            if inside and (best is None or len(name) > len(best[1])):
                best = (level, name)
    return best


@pytest.mark.parametrize("module", MODULES)
def test_arrows_run_downward_only(module: str) -> None:
    here = room(module)
    assert here is not None, f"{module} has no place in the house: add it to LEVELS"
    for imported in imports(module):
        there = room(imported) or ((0, "sfl") if imported in ("sfl.__version__",) else None)
        if there is None or there[1] in (here[1], "sfl"):
            continue
        pair = (here[1], there[1])
        assert there[0] < here[0] or pair in SAME_LEVEL, f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_each_library_stays_in_its_room(module: str) -> None:
    for imported in imports(module):
        for library, rooms in ROOMS.items():
            if imported == library or imported.startswith(library + "."):
                assert module.startswith(rooms), f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_decisions_are_pure(module: str) -> None:
    if module.startswith(PURE):
        roots = {name.split(".")[0] for name in imports(module)}
        assert not roots & IMPURE, f"{module} imports {roots & IMPURE}"


@pytest.mark.parametrize("module", TESTS)
def test_what_tests_share_is_in_the_house(module: str) -> None:
    for imported in imports(module):
        parts = imported.split(".")
        assert parts[0] not in ("house", "conftest") and not parts[0].startswith("test_"), imported
        if parts[0] == "tests":
            shared = ("house", "fuzz", "faults")
            assert parts[1] in shared, f"{module} imports {imported}: see tests/house"


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "cloud_aggregator.aggregator",
            {"torch", "transformers", "peft", "datasets", "cryptography"},
        ),
        ("sfl.service.server", {"torch", "transformers", "peft", "datasets", "cryptography"}),
        ("sfl.service.agent", {"torch", "transformers", "peft", "sqlalchemy", "cryptography"}),
        ("device_agent.agent", {"peft", "datasets", "pandas", "pyarrow", "cryptography"}),
        ("sfl.cli.app", {"torch", "transformers", "grpc", "numpy", "cryptography"}),
        ("sfl.cli.doctor.command", {"torch", "transformers", "grpc", "numpy"}),
        ("sfl.planners.registry", {"torch", "transformers", "grpc", "numpy"}),
        ("sfl.models.memory.footprint", {"torch", "transformers", "grpc", "numpy"}),
    ],
)
def test_what_a_process_does_not_load(module: str, absent: set[str]) -> None:
    assert not loaded_by(module) & absent


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(loaded.stdout.split())


@pytest.mark.process
@pytest.mark.parametrize(
    "module",
    [
        "cloud_aggregator.aggregator",
        "edge_server.server",
        "device_agent.agent",
        "sfl.cli.launch.run",
    ],
)
def test_a_run_without_a_planner_loads_none(module: str) -> None:
    """What stays is what nodes exchange and show, whoever decides."""
    packages = ("sfl.planners.", "sfl.cost.")
    loaded = {name for name in loaded_by(module) if name.startswith(packages)}
    assert loaded <= {
        "sfl.planners.decision",
        "sfl.planners.plans",
        "sfl.planners.told",
        "sfl.cost.energy",
        "sfl.cost.queueing",
        "sfl.cost.shown",
    }
