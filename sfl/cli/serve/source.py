"""Which model is talked to: a run's, with its adapter or another one, or a model without a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sfl.cli.base import adapter_folder, open_base
from sfl.config import RunConfig, load_run
from sfl.errors import ConfigError, ModelError
from sfl.models.folder import ModelFolder, open_model
from sfl.report.runs import find_run

CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Source:
    """As the options say. `model` is the run's base, if it is elsewhere, or the model itself."""

    run: str | None
    output_dir: Path
    best: bool = False
    base: bool = False
    adapter: Path | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """What answers: settings with cut and layout, the model, and the adapter on it if any."""

    config: RunConfig
    model: ModelFolder
    adapter: Path | None


def open_source(source: Source) -> Opened:
    """Find it all. Raises ConfigError, ModelError."""
    if source.adapter is not None:
        _check_adapter(source.adapter)
    if source.run is None:
        return _without_run(source)
    folder = find_run(source.run, source.output_dir)
    config = load_run(folder / "config.toml")
    if config.model.task != "causal_lm":
        raise ConfigError("model.task", config.model.task, "has no text to generate", "Use eval.")
    adapter = source.adapter
    if adapter is None and not source.base:
        adapter = adapter_folder(folder, source.best)
    return Opened(config, open_base(config, source.model), adapter)


def _without_run(source: Source) -> Opened:
    """A cut after the first block, and texts as they are."""
    name = source.model or _base_of(source.adapter)
    values = {"model": {"path": name, "dtype": "float32"}, "devices": [{"name": "device"}]}
    config = RunConfig.model_validate(values)
    try:
        model = open_model(name)
    except ModelError as error:
        if source.model is not None:
            raise
        problem = f"its model {name!r} cannot be opened ({error.problem})"
        fix = "Give the model: --model PATH."
        raise ModelError("--adapter", str(source.adapter), problem, fix) from None
    model.check_task("causal_lm")
    return Opened(config, model, source.adapter)


def _check_adapter(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        fix = "Give a folder in PEFT's format, such as a run's adapter."
        raise ConfigError("--adapter", str(folder), f"there is no {CONFIG} in it", fix)


def _base_of(adapter: Path | None) -> str:
    """The model that an adapter says it is of. Raises ConfigError where it says none."""
    if adapter is None:
        raise ConfigError("--run", None, "nothing says which model answers", "Or give --model.")
    try:
        said = json.loads((adapter / CONFIG).read_text("utf-8-sig"))
        name = said.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        problem = f"{CONFIG} cannot be read ({error})"
        raise ConfigError("--adapter", str(adapter), problem, "Give another one.") from None
    if not isinstance(name, str) or not name:
        problem = f"{CONFIG} does not name its model"
        raise ConfigError("--adapter", str(adapter), problem, "Give the model: --model PATH.")
    return name
