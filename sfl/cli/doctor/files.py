"""A run's, a device's or an edge's file: whether it holds what it should, and what it names."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

from device_agent.consent import SOURCES, Consent
from sfl.cli.doctor.report import Check, problem
from sfl.cli.launch.nearby import perhaps_meant, pointed
from sfl.cli.launch.preflight import check_budgets, check_decisions, check_settings
from sfl.cli.launch.run import bounded
from sfl.config import (
    DataSettings,
    DeviceConfig,
    EdgeConfig,
    RunConfig,
    load_device,
    load_edge,
)
from sfl.config.load import load_planned, load_stage
from sfl.config.node import StageConfig
from sfl.data.examine import Examiner
from sfl.data.sources import Source, check_own, require_there, sources
from sfl.data.unread import check_all_read
from sfl.errors import ModelError, SflError
from sfl.models.folder import ModelFolder, open_model
from sfl.models.hub import cached
from sfl.node.paths import expanded
from sfl.node.textfile import NotText, read_text
from sfl.transport.device.stream_codecs import check_codecs

Config = RunConfig | DeviceConfig | EdgeConfig


@dataclass(frozen=True, slots=True)
class NotHere(Exception):
    """A hub model that was not fetched yet; the doctor fetches nothing."""

    name: str


def load_config(path: Path, overrides: Iterable[str]) -> Config:
    """The file as what it is by its tables. Raises ConfigError."""
    try:
        tables = tomllib.loads(read_text(path)).keys()
    except (OSError, ValueError, NotText):
        tables = {}.keys()  # load_planned says what is wrong
    if tables == {"device"}:
        return load_device(path, overrides)
    if tables == {"edge"}:
        return load_edge(path, overrides)
    if tables == {"stage"}:
        return load_stage(path, overrides)
    return load_planned(path, overrides)


_KINDS: dict[type[Config], str] = {
    RunConfig: "run",
    DeviceConfig: "device",
    EdgeConfig: "edge",
    StageConfig: "stage",
}


def check_config(path: Path, config: Config, model: ModelFolder | None) -> Check:
    """Whether the file's settings fit together and fit the model."""
    kind = _KINDS[type(config)]
    text = f"{path}: a{'n' if kind == 'edge' else ''} {kind}'s file"
    try:
        if isinstance(config, RunConfig):
            check_codecs(config)
            check_decisions(config)
            if model is not None:
                check_settings(bounded(config, model.context_length), model)
                check_budgets(config, model)
            text += f", {len(config.devices)} device{'s' * (len(config.devices) != 1)}"
        if isinstance(config, DeviceConfig):
            Consent(config).check_sources()
    except SflError as error:
        return problem("file", error)
    if isinstance(config, DeviceConfig) and not (config.edge or config.edges):
        return Check("file", "warning", f"{text}, which names no edge", 'Add edge = "HOST:PORT".')
    return Check("file", "ok", text, figures={"kind": kind})


def check_data(
    config: RunConfig | DeviceConfig, model: ModelFolder | None, folders: Sequence[Path]
) -> Iterator[Check]:
    """Every data file that is on this machine, read once; names on the hub are left alone.

    A relative path may lead from one of the `folders`.
    """
    if isinstance(config, DeviceConfig):
        yield from _check_own_data(config, folders)
        return
    examiner = Examiner(config.settings, None if model is None else model.path)
    # Without data here, a device's own file, on its own machine, names them.
    entries = [e for e in config.devices if e.train is not None or config.data.train is not None]
    looks = [partial(examiner.look_at, entry) for entry in entries]
    said = set()
    for look in (*looks, partial(check_all_read, config.settings)):
        try:
            look()
        except SflError as error:
            if str(error) not in said:
                yield problem("data", pointed(error, folders))
            said.add(str(error))
    pairs = [] if said else [sources(e, e.name, config.settings) for e in entries]
    yield from _on_hub([s for pair in pairs for s in pair if s is not None], folders)
    if said:
        return
    files, rows = examiner.files, examiner.rows
    yield Check(
        "data",
        "ok",
        f"{rows:,} row{'s' * (rows != 1)} in {files} file{'s' * (files != 1)}",
        figures={"files": files, "rows": rows},
    )


def _on_hub(found: Iterable[Source], folders: Sequence[Path]) -> Iterator[Check]:
    """What is taken for a dataset's name on the hub, where it may be a mistyped path."""
    for name, source in {str(source.name): source for source in found}.items():
        if not source.is_here and (near := perhaps_meant(name, folders)):
            text = f"{source.field} = {name!r}: no such file or folder, so it is read as a"
            fix = f"{near}Else it is fetched when a run begins."
            yield Check("data", "warning", f"{text} dataset's name on the hub", fix)


def _check_own_data(config: DeviceConfig, folders: Sequence[Path]) -> Iterator[Check]:
    """Of a device's own file. How fields are called, the run says; so they are only looked for."""
    found = {
        key: Source(named, f"device.{key}", DataSettings(), shared=key.startswith("shared"))
        for key in SOURCES
        if (named := getattr(config, key)) is not None
    }
    trained_on = found.get("train", found.get("shared_train"))
    read = [source for source in (trained_on, found.get("eval")) if source is not None]
    looks = [partial(require_there, source) for source in found.values()]
    for look in (*looks, partial(check_own, config, "device", read)):
        try:
            look()
        except SflError as error:
            yield problem("data", pointed(error, folders))
    yield from _on_hub(found.values(), folders)


def model_name(config: Config | None) -> tuple[str, str | None]:
    """The setting of a file that names a model, and the model."""
    match config:
        case RunConfig():
            return "model.path", config.model.path
        case DeviceConfig():
            return "device.model", config.model
        case EdgeConfig():
            return "edge.model", config.model
        case None:
            return "--model", None
        case _:
            assert_never(config)


def open_local(name: str) -> ModelFolder:
    """Open a model without asking the hub. Raises ModelError, NotHere."""
    path = expanded(name, "model.path")
    if path.is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return open_model(name)
    folder = cached(name)
    if folder is None:
        raise NotHere(name)
    try:
        return open_model(str(folder))
    except ModelError:
        raise NotHere(name) from None  # its configuration only
