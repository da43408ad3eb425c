"""Which tests run beside which, and fixtures of all tests.

A test that starts a process, or takes seconds, is marked `process`: `make quick` leaves it out.
One that measures the machine, or seconds on it, is marked `alone`: `make test` runs it by itself.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.house.forks import NURSERIES

if TYPE_CHECKING:
    from tests.house.named import Runs
    from tests.house.postgres import Postgres
    from tests.house.s3 import S3


WAITING = {"GOMP_SPINCOUNT": "4000", "OPENBLAS_NUM_THREADS": "1"}
"""How threads wait in a node (`sfl.node.process`), read when torch and numpy are: by default they
spin, and take the cores of the workers beside this one."""
_ours: set[str] = set()


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background jobs ignore Ctrl-C, and so would all that they start.

    Not in the child before its exec (`preexec_fn`): gRPC's threads do not outlive a fork.
    """
    if not hasattr(config, "workerinput"):
        folder = TemporaryDirectory(prefix="sfl-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ[NURSERIES] = folder.name
    _ours.update(WAITING.keys() - os.environ.keys())
    os.environ.update({name: WAITING[name] for name in _ours})
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long a machine takes says nothing of what it computes.
    hypothesis.settings.register_profile(
        "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("any machine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers take a module's half at a time: long ones first, quick ones fill the gaps."""
    if not hasattr(config, "workerinput"):  # not a worker of pytest-xdist
        return
    halves = {item: (_is_process(item), item.nodeid.partition("::")[0]) for item in items}
    sizes = Counter(halves.values())
    for item, (process, module) in halves.items():
        item.add_marker(pytest.mark.xdist_group(f"{module}{'*' if process else ''}"))
    items.sort(key=lambda item: (not halves[item][0], -sizes[halves[item]], halves[item][1]))


def pytest_collection_finish() -> None:
    """What is imported stays: looking for garbage among it takes a tenth of a second each time."""
    for name in _ours:
        os.environ.pop(name, None)  # processes of tests see to that themselves
    gc.collect()
    gc.freeze()
    # One core a test process: workers stand side by side, and models are tiny.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def _is_process(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("process", "alone"))


@pytest.fixture(autouse=True)
def no_process_unless_marked(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who starts a process says so."""
    if _is_process(request.node):
        return

    def refused(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        raise AssertionError(f"{args} is started: mark the test with pytest.mark.process")

    monkeypatch.setattr(subprocess.Popen, "__init__", refused)


@pytest.fixture
def quiet_peft() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5 for an old name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@pytest.fixture
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    """Runs by name, made once for all workers, to be read only (tests/house/named.py)."""
    from tests.house.named import Runs

    base = tmp_path_factory.getbasetemp()
    runs = Runs((base.parent if hasattr(request.config, "workerinput") else base) / "named")
    yield runs
    runs.assert_untouched()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server, for tests that are marked `process`."""
    from tests.house.postgres import served

    yield from served()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A real S3 server, for tests that are marked `process`."""
    from tests.house.s3 import served

    yield from served()
