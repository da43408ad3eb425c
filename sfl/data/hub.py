"""Reading a Hugging Face dataset: a folder saved by `datasets`, a folder of files, or a name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfl.data.classes import name_classes, tell_something
from sfl.errors import DataError

_PROBE_SECONDS = 10.0


def read_dataset(
    name: str, path: Path, split: str, field: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Places and fields of one split's rows, class numbers as names. Raises DataError."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if not path.is_dir():
            _find_on_hub(name, field)
            dataset = datasets.load_dataset(name, split=split)
        elif (path / "state.json").is_file():
            dataset = datasets.load_from_disk(str(path))
        elif (path / "dataset_dict.json").is_file():
            dataset = _one_split(datasets.load_from_disk(str(path)), name, split)
        else:
            dataset = datasets.load_dataset(str(path), split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            field, name, f"not a dataset that can be read: {_first_line(error)}", "Check it."
        ) from None

    classes = {
        column: feature.names
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel) and tell_something(feature.names)
    }
    for number, row in enumerate(dataset, 1):
        place = f"row {number}"
        yield place, name_classes(dict(row), classes, place)


def _one_split(splits: Any, name: str, split: str) -> Any:
    if split not in splits:
        raise DataError(
            "data.split", split, f"{name} has no such split", f"It has: {', '.join(splits)}."
        )
    return splits[split]


def _find_on_hub(name: str, field: str) -> None:
    """Ask the hub once: `load_dataset` itself would try for 23 s before it says no."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return  # only the cache counts
    try:
        HfApi().dataset_info(name, timeout=_PROBE_SECONDS)
    except (HTTPError, OSError, ValueError) as error:
        raise DataError(
            field,
            name,
            f"no such file or folder, and the hub gives no dataset of that name "
            f"({_first_line(error)})",
            "Check the path; HF_HUB_OFFLINE=1 takes a copy from the cache.",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
