"""Plug-ins of other packages: found late, refused clearly, said with their versions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfl.aggregation.traits import Traits
from sfl.config import RunConfig
from sfl.config.plugins import require_installed, require_same, with_packages
from sfl.errors import ConfigError
from sfl.node.plugins import Package, Registry, installed

GROUP = "sfl.strategies"
MINE = Traits("house_rules:Mine", folds=True)


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that Python looks into for packages."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("house_rules", None)


def install(folder: Path, points: str, code: str = "", package: str = "house-rules") -> None:
    info = folder / f"{package.replace('-', '_')}-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    (folder / "house_rules.py").write_text(
        f"from sfl.aggregation.traits import Traits\nMINE = {MINE!r}\n{code}\n"
    )


def registry() -> Registry[Traits]:
    return Registry(GROUP, Traits, {"plain": Traits("math:pi")})


def test_a_plug_in_is_imported_when_its_name_is_asked_for(brought: Path) -> None:
    install(brought, "mine = house_rules:MINE")
    known = registry()
    assert "mine" in known and "other" not in known and list(known) == ["plain", "mine"]
    assert known.package("mine") == Package("house-rules", "2.0") == installed("house-rules")
    assert "house_rules" not in sys.modules
    assert known["mine"] == MINE and len(known) == 2
    assert known.package("plain") is None and known.package("other") is None


def test_nothing_is_looked_for_where_a_name_is_built_in(
    brought: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", None)
    known = registry()
    assert known["plain"].implementation == "math:pi" and known.package("plain") is None
    assert known.implementation("plain", "math:pi") > 3


@pytest.mark.parametrize(
    ("points", "code", "said"),
    [
        ("mine = house_rules:MINE", "import no_such_thing", "ModuleNotFoundError: No module named"),
        ("mine = house_rules:YOURS", "", "AttributeError"),
        ("mine = house_rules:MINE", "raise SystemError('two\\nlines')", "SystemError: two lines"),
        ("mine = house_rules:__name__", "", "is a str, not a Traits"),
        ("mine = house_rules:MINE", "import sys; sys.exit('a script')", "SystemExit: a script"),
        ("mine = house_rules:MINE", "raise SystemExit", "(SystemExit)"),
    ],
)
def test_a_plug_in_that_cannot_be_taken_names_its_package_and_group(
    brought: Path, points: str, code: str, said: str
) -> None:
    install(brought, points, code)
    with pytest.raises(ConfigError) as caught:
        registry()["mine"]
    text = str(caught.value)
    assert said in text and "house-rules==2.0" in text and GROUP in text and "\n" not in text


def test_two_packages_of_one_name_are_refused_when_it_is_asked_for(brought: Path) -> None:
    install(brought, "mine = house_rules:MINE\nyours = house_rules:MINE")
    install(brought, "mine = house_rules:MINE", package="other-rules")
    known = registry()
    assert list(known) == ["plain", "mine", "yours"] and "mine" in known and len(known) == 3
    assert known["yours"] == MINE and known.package("yours") == Package("house-rules", "2.0")
    for ask in (known.__getitem__, known.package):
        with pytest.raises(ConfigError, match=r"the name is taken by (house|other)-rules==2\.0"):
            ask("mine")


def test_a_name_that_is_built_in_stays_what_it_is(brought: Path) -> None:
    install(brought, "mine = house_rules:MINE\nplain = house_rules:MINE")
    known = registry()
    assert list(known) == ["plain", "mine"] and known["mine"] == MINE
    assert known["plain"] == Traits("math:pi") and known.package("plain") is None


@pytest.mark.parametrize(
    ("code", "said"),
    [("", "house_rules:Mine cannot be imp"), ("def __getattr__(name): exit(3)", "SystemExit: 3")],
)
def test_code_behind_a_plug_in_that_is_broken_names_the_package(
    brought: Path, code: str, said: str
) -> None:
    install(brought, "mine = house_rules:MINE", code)
    with pytest.raises(ConfigError, match=rf"house-rules==2\.0: .*{said}"):
        registry().implementation("mine", MINE.implementation)


def run(*plugins: str) -> RunConfig:
    return RunConfig.model_validate(
        {"run": {"plugins": plugins}, "model": {"path": "m"}, "devices": [{"name": "a"}]}
    )


def test_a_run_says_the_versions_that_are_installed(brought: Path) -> None:
    install(brought, "mine = house_rules:MINE")
    assert with_packages(run(), None).run.plugins == ()
    assert with_packages(run(), Package("house-rules", "2.0")).run.plugins == ("house-rules==2.0",)
    assert with_packages(run("house-rules==1.0")).run.plugins == ("house-rules==2.0",)


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("no-such-rules==1.0", "is not installed here"),
        ("house-rules==1.0", "has version 2.0 here"),
    ],
)
def test_a_node_without_the_package_says_so_in_one_line(
    brought: Path, package: str, said: str
) -> None:
    install(brought, "mine = house_rules:MINE")
    with pytest.raises(ConfigError) as caught:
        require_same(json.dumps({"run": {"plugins": ["house-rules==2.0", package]}}))
    assert said in str(caught.value) and f"pip install {package}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "[]", "{}", '{"run": 1}', '{"run": {"plugins": "x==1"}}', "[" * 100_000),
        json.dumps({"run": {"plugins": [1, "", "../x==1", "x", "x==1\n", "x" * 200 + "==1"]}}),
    ],
)
def test_what_a_peer_says_of_packages_may_be_anything(text: str) -> None:
    require_same(text)


def test_a_file_of_an_older_version_runs_and_one_without_its_package_does_not(
    brought: Path,
) -> None:
    install(brought, "mine = house_rules:MINE")
    require_installed({"run": {"plugins": ["house-rules==1.0"]}})
    with pytest.raises(ConfigError, match="is not installed here"):
        require_installed({"run": {"plugins": ["no-such-rules==1.0"]}})
