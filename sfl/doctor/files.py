"""A run's, a device's or an edge's file: whether it holds what it should, and what it names."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from device_agent.consent import Consent
from sfl.config import (
    DeviceConfig,
    EdgeConfig,
    LocalDevice,
    RunConfig,
    load_device,
    load_edge,
    load_run,
)
from sfl.data.examine import Examiner
from sfl.data.load import ENDINGS
from sfl.doctor.report import Check, problem
from sfl.errors import ModelError, SflError
from sfl.launch.preflight import check_budgets, check_settings
from sfl.launch.run import bounded
from sfl.models.folder import ModelFolder, open_model
from sfl.models.hub import cached
from sfl.paths import expanded
from sfl.textfile import NotText, read_text
from sfl.transport.cut import check_codecs

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
        tables = {}.keys()  # load_run says what is wrong
    if tables == {"device"}:
        return load_device(path, overrides)
    if tables == {"edge"}:
        return load_edge(path, overrides)
    return load_run(path, overrides)


def check_config(path: Path, config: Config, model: ModelFolder | None) -> Check:
    """Whether the file's settings fit together and fit the model."""
    kind = {RunConfig: "run", DeviceConfig: "device", EdgeConfig: "edge"}[type(config)]
    text = f"{path}: a{'n' if kind == 'edge' else ''} {kind}'s file"
    try:
        if isinstance(config, RunConfig):
            check_codecs(config)
            if model is not None:
                check_settings(bounded(config, model.context_length), model)
                check_budgets(config, model)
            text += f", {len(config.devices)} device{'s' * (len(config.devices) != 1)}"
        if isinstance(config, DeviceConfig):
            Consent(config).check_sources()
    except SflError as error:
        return problem("file", error)
    if isinstance(config, DeviceConfig) and not config.edge:
        return Check("file", "warning", f"{text}, that names no edge", 'Add edge = "HOST:PORT".')
    return Check("file", "ok", text, figures={"kind": kind})


def check_data(config: RunConfig | DeviceConfig) -> Iterator[Check]:
    """Every data file that lies on this machine, read once; names on the hub are left alone."""
    if isinstance(config, DeviceConfig):
        # How its fields are called, the run says; so only its being there is looked at.
        for field, source in _sources("device", config):
            if _is_file(source) and not expanded(source, field).exists():
                fix = "Correct the path; it is relative to the file."
                yield Check("data", "problem", f"{field} = {str(source)!r}: no such file", fix)
        return
    examiner, said = Examiner(config.settings), set()
    for entry in config.devices:
        if entry.train is None and config.data.train is None:
            continue  # its own file, on its own machine, names its data
        try:
            examiner.look_at(entry)
        except SflError as error:
            if str(error) not in said:
                yield problem("data", error)
            said.add(str(error))
    if said:
        return
    files, rows = examiner.files, examiner.rows
    yield Check(
        "data",
        "ok",
        f"{rows:,} row{'s' * (rows != 1)} in {files} file{'s' * (files != 1)}",
        figures={"files": files, "rows": rows},
    )


def model_name(config: Config | None) -> str | None:
    """The model that a file names."""
    if isinstance(config, RunConfig):
        return config.model.path
    return config.model if config is not None else None


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


def _sources(prefix: str, local: LocalDevice) -> Iterator[tuple[str, Path | str]]:
    for key in (
        "train",
        "eval",
        "shared_train",
        "shared_eval",
    ):  # the last two: a device's own file
        if source := getattr(local, key, None):
            yield f"{prefix}.{key}", source


def _is_file(source: Path | str) -> bool:
    path = expanded(source, "data")
    return path.is_file() or path.suffix in ENDINGS
