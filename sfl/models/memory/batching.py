"""Whether an edge can compute jobs of several devices as one batch, by settings and config.json."""

from __future__ import annotations

from sfl.config import EdgeConfig, RunSettings
from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder


def check_batching(folder: ModelFolder, settings: RunSettings, own: EdgeConfig) -> None:
    """Raise ConfigError where `edge.batch_devices` asks for what this run never does."""
    if own.batch_devices == 1:
        return
    hindrance = _hindrance(folder, settings)
    if hindrance is not None:
        problem, remedy = hindrance
        raise ConfigError(
            "edge.batch_devices",
            own.batch_devices,
            f"no two jobs of this run can be one batch: {problem}",
            f"Set it to 1, or {remedy}.",
        )


def _hindrance(folder: ModelFolder, settings: RunSettings) -> tuple[str, str] | None:
    """What stands in the way, and how it is removed."""
    if settings.run.topology != "vanilla":
        return f"run.topology is {settings.run.topology}", "run.topology to vanilla"
    if settings.computation != "lean":
        why = "training.computation is reference"
        if settings.training.computation == "auto":
            why = "training.computation auto is reference where no codec changes a bit"
        return why, "training.computation to lean"
    if settings.lora.dropout:
        return "lora.dropout is drawn for each device alone", "lora.dropout to 0"
    if folder.family.drops(folder.config):
        return (
            f"{folder.name} has dropout of its own, which is drawn for each device alone",
            "the dropouts of the model's config.json to 0",
        )
    return None
