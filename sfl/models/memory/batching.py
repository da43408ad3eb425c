"""Whether an edge can compute jobs of several devices as one batch, by settings and config.json."""

from __future__ import annotations

from sfl.config import EdgeConfig, RunSettings
from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder
from sfl.plan import Holder


def check_batching(
    folder: ModelFolder, settings: RunSettings, own: EdgeConfig, holder: Holder = "edge"
) -> None:
    """Raise ConfigError where `batch_devices` asks for what this run never does."""
    if own.batch_devices == 1:
        return
    hindrance = _hindrance(folder, settings, holder)
    if hindrance is not None:
        problem, remedy = hindrance
        raise ConfigError(
            f"{'edge' if holder == 'edge' else 'stage'}.batch_devices",
            own.batch_devices,
            f"no two jobs of this run can be one batch: {problem}",
            f"Set it to 1, or {remedy}.",
        )


def _hindrance(
    folder: ModelFolder, settings: RunSettings, holder: Holder
) -> tuple[str, str] | None:
    """What stands in the way, and how it is removed."""
    if settings.stages.adapters == "shared" and settings.loss_server == holder:
        return "stages.adapters is shared", "stages.adapters to per_device"
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
