"""The settings that a run was asked for, as its journal has them: a run that goes on keeps them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from typing import Any

from sfl.config import RunConfig, dump_toml
from sfl.errors import ConfigError
from sfl.rounds import RunAsked
from sfl.rounds.journal import Entry

SETTLED = frozenset(
    {"layout", "chat_template", "chat_template_digest", "dtype", "quantised", "micro_batches"}
)
"""Fields that the run itself fills in, and writes into `config.toml`."""
ELSEWHERE = frozenset({"id", "output_dir", "listen", "insecure", "cache_dir", "journal"})
"""Fields that may change with the machine that a run goes on at."""
SECTIONS = frozenset({"codec", "metrics", "tls", "artifacts", "launch", "tracing"})
"""Sections of such fields, wherever they are."""


def asked(config: RunConfig) -> RunAsked:
    """What a run that begins is asked for."""
    return RunAsked(_text(config))


def require_same(entries: Iterable[Entry], config: RunConfig) -> None:
    """Raises ConfigError where `config.toml` was changed since the run began."""
    for entry in entries:
        if isinstance(entry.event, RunAsked):
            before = dict(_leaves(tomllib.loads(entry.event.settings)))
            now = dict(_leaves(tomllib.loads(_text(config))))
            for field in sorted(before.keys() | now.keys()):
                if _counts(field) and before.get(field) != now.get(field):
                    problem = f"the run began with {before.get(field)!r}"
                    fix = "Put that back into its config.toml, or begin another run."
                    raise ConfigError(field, str(now.get(field)), problem, fix)
            return


def _text(config: RunConfig) -> str:
    """As `config.toml` has it, where `auto` is said in full."""
    training = config.training.model_copy(update={"computation": config.computation})
    return dump_toml(config.model_copy(update={"training": training}))


def _counts(field: str) -> bool:
    *sections, name = field.split(".")
    return name not in SETTLED | ELSEWHERE and not SECTIONS & {*sections, name}


def _leaves(value: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """Each field by its path; entries of a list go by their names, or their numbers."""
    if isinstance(value, dict):
        for key, own in value.items():
            yield from _leaves(own, f"{field}.{key}" if field else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, own in enumerate(value):
            yield from _leaves(own, f"{field}.{own.get('name', number)}")
    else:
        yield field, value
