"""Packages whose plug-ins a run uses: found by the names in its settings, said in `run.plugins`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sfl.aggregation.traits import STRATEGIES
from sfl.codec.spec import expand, read_calls
from sfl.codec.stages import STAGES
from sfl.config.base import MOST_CHARACTERS, PACKAGE
from sfl.config.codec import CodecChange
from sfl.config.planner import POLICIES
from sfl.config.run import RunConfig
from sfl.errors import ConfigError
from sfl.node.plugins import Package, installed
from sfl.stage.orders import ORDERS

FIELD = "run.plugins"


def with_packages(config: RunConfig, *more: Package | None) -> RunConfig:
    """The same run with all the packages that it uses, and `more`, as they are installed here."""
    own = filter(None, (*_used(config), *more))
    names = {package.name for package in own} | {p.partition("==")[0] for p in config.run.plugins}
    said = tuple(str(package) for name in sorted(names) if (package := installed(name)))
    if said == config.run.plugins:
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"plugins": said})})


def _used(config: RunConfig) -> Iterator[Package | None]:
    yield STRATEGIES.package(config.aggregation.strategy)
    yield ORDERS.package(config.edge.order)
    yield POLICIES.package(config.planner.policy)
    for spec in _specs((config.codec, *(d.codec for d in config.devices), *config.codec.schedule)):
        try:
            calls = read_calls(expand(spec))
        except ValueError:
            continue  # what is wrong with it is said where it is parsed
        yield from (STAGES.package(call.name) for call in calls)


def _specs(changes: Iterable[Any]) -> Iterator[str]:
    for change in changes:
        specs = {getattr(change, role) for role in CodecChange.model_fields}
        yield from specs - {None, "auto"}


def require_installed(table: object) -> None:
    """Raise ConfigError for a package of `run.plugins`, in settings as read, that is not here."""
    for package in _said(table):
        if installed(package.partition("==")[0]) is None:
            raise _missing(package, "is not installed here")


def require_same(text: str) -> None:
    """Raise ConfigError unless every package of `run.plugins` is here as the cloud has it.

    `text` is a peer's, and may be anything.
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return
    for package in _said(table):
        own = installed(package.partition("==")[0])
        if own is None:
            raise _missing(package, "is not installed here")
        if str(own) != package:
            raise _missing(package, f"has version {own.version} here")


def _said(table: object) -> Iterator[str]:
    run = table.get("run") if isinstance(table, Mapping) else None
    said = run.get("plugins") if isinstance(run, Mapping) else None
    for package in said if isinstance(said, list) else ():
        known = isinstance(package, str) and len(package) <= MOST_CHARACTERS
        if known and re.fullmatch(PACKAGE, package):
            yield package


def _missing(package: str, problem: str) -> ConfigError:
    return ConfigError(
        FIELD,
        package,
        f"the run uses plug-ins of this package, which {problem}",
        f"Install it: pip install {package}.",
    )
