"""The settings that a run was asked for, as its journal has them: a run that goes on keeps them."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sfl.config import RunConfig, dump_toml
from sfl.config.codec import common_codec
from sfl.errors import ConfigError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.report.journal import StoredJournal
from sfl.rounds import DeviceReady, NodeHeard, RunAsked, Settle, TextForm
from sfl.rounds.journal import Entry
from sfl.rounds.values import DeviceFacts

ELSEWHERE = frozenset({"id", "output_dir", "listen", "insecure", "cache_dir", "journal"})
"""Fields that may change with the machine that a run goes on at."""
SECTIONS = frozenset({"metrics", "tls", "artifacts", "launch", "tracing"})
"""Sections of such fields, wherever they are."""


def asked(config: RunConfig) -> RunAsked:
    """What a run that begins is asked for."""
    return RunAsked(_text(config))


def require_same_run(journal: StoredJournal, config: RunConfig) -> None:
    """Raises ConfigError where `config.toml` was changed since the run began, and DiskError.

    It may have what the run itself has settled.
    """
    entries = list(journal.entries())
    ready = (entry.event for entry in entries if isinstance(entry.event, DeviceReady))
    require_same(entries, config, [event.form for event in ready if event.form is not None])
    # Only by its own settings can be told where it is.
    state = journal.latest().state(config.settings)
    form = state.forms.chosen if state.form_used else None
    require_same(entries, config, [] if form is None else [form])


def require_same(
    entries: Sequence[Entry], config: RunConfig, forms: Iterable[TextForm] = ()
) -> None:
    """The same for one whose rows may become text in one of these ways."""
    if (before := settings_of(entries)) is None:
        return  # an older version began it
    was, now = dict(_leaves(before)), dict(_leaves(tomllib.loads(_text(config))))
    settled = _settled(entries, config, forms)
    for field in sorted(was.keys() | now.keys()):
        value = now.get(field)
        if _counts(field) and value != was.get(field) and value not in settled[field]:
            raise _changed(field, value, [was.get(field), *settled[field]])


def settings_of(entries: Iterable[Entry]) -> dict[str, Any] | None:
    """What a run was asked for, if its journal says so."""
    for entry in entries:
        if isinstance(entry.event, RunAsked):
            return tomllib.loads(entry.event.settings)
    return None


def _changed(field: str, value: Any, right: list[Any]) -> ConfigError:
    problem = f"the run began with {right[0]!r}"
    if len(right) > 1:
        problem += f", and settled on {right[-1]!r}"
    fix = "Put that back into its config.toml, or begin another run."
    return ConfigError(field, str(value), problem, fix)


def _settled(
    told: Iterable[Entry], config: RunConfig, forms: Iterable[TextForm]
) -> Mapping[str, list[Any]]:
    """What the run itself has put into each field, the latest last."""
    found: dict[str, list[Any]] = defaultdict(list)
    for entry in told:
        for field, value in _settled_by(entry.event, config):
            found[field].append(value)
    for form in forms:
        found["data.layout"].append(form.layout)
        found["data.chat_template"].append(bool(form.chat_template))
        found["data.chat_template_digest"].append(form.chat_template)
    return found


def _settled_by(event: object, config: RunConfig) -> Iterator[tuple[str, Any]]:
    match event:
        case NodeHeard():
            yield from _said(event.snapshot)
        case DeviceReady(facts=DeviceFacts() as facts) if facts.snapshot:
            yield from _said(facts.snapshot, event.device)
        case Settle():
            yield "training.micro_batches", event.micro_batches
            yield from _codecs(event.codecs, config)


def _said(text: str, device: str = "") -> Iterator[tuple[str, Any]]:
    """What a node says that it does with its base and its batches."""
    snapshot = NodeSnapshot.from_json(text)
    if snapshot.kind == "cloud":
        return
    node = "edge" if snapshot.kind == "edge" else f"devices.{device or snapshot.name}"
    yield f"{node}.dtype", snapshot.dtype
    yield f"{node}.quantised", snapshot.quantised
    yield f"{node}.micro_batches", snapshot.micro_batches


def _codecs(chosen: Mapping[str, str], config: RunConfig) -> Iterator[tuple[str, Any]]:
    """What most devices chose holds for all; a device may have its own."""
    if not chosen:
        return
    for role in ("activation", "gradient"):
        yield f"codec.{role}", common_codec(chosen)
        for entry in config.devices:
            yield f"devices.{entry.name}.codec.{role}", chosen.get(entry.name, common_codec(chosen))


def _text(config: RunConfig) -> str:
    """As `config.toml` has it, where `auto` is said in full."""
    training = config.training.model_copy(update={"computation": config.computation})
    return dump_toml(config.model_copy(update={"training": training}))


def _counts(field: str) -> bool:
    *sections, name = field.split(".")
    return name not in ELSEWHERE and not SECTIONS & {*sections, name}


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
