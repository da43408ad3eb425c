"""The classes of a model's own head, against those of the run."""

from __future__ import annotations

from collections.abc import Sequence

from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder, checkpoint_tensors


def check_class_order(folder: ModelFolder, labels: Sequence[str]) -> None:
    """Raise ConfigError where the model's head has the run's classes, but in another order.

    Training would begin with their scores exchanged, and a class number would mean another class
    than to the model. A head for other classes is a beginning like any other.
    """
    own = _own_classes(folder) if labels else []
    if _folded(own) != _folded(labels) and sorted(_folded(own)) == sorted(_folded(labels)):
        raise ConfigError(
            "model.labels",
            list(labels),
            "the model's config.json has these classes in another order, and its head with them",
            f"Write them as the model has them: {own}.",
        )


def _own_classes(folder: ModelFolder) -> list[str]:
    """Class names by number, where the checkpoint has a head for them."""
    named = folder.config.get("id2label")
    if not isinstance(named, dict) or not _has_head(folder):
        return []
    try:
        return [str(named[number]) for number in sorted(named, key=int)]
    except ValueError:
        return []  # not numbered


def _has_head(folder: ModelFolder) -> bool:
    layout = folder.family.layout(folder.config, "sequence_classification")
    heads = tuple(f"{module}." for module in layout.saved)
    return any(name.startswith(heads) for name in checkpoint_tensors(folder, layout))


def _folded(names: Sequence[str]) -> list[str]:
    return [name.strip().casefold() for name in names]
