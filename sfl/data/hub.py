"""Reading a Hugging Face dataset: a folder saved by `datasets`, a folder of files, or a name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfl.config import DataSettings
from sfl.config.wording import did_you_mean
from sfl.data.cache import has_cache, own_cache
from sfl.data.classes import class_names, name_classes
from sfl.data.plain import NoSuchSplit, read_plain
from sfl.errors import DataError
from sfl.models.hub import HF_HOME, NO_HOME
from sfl.node.textfile import NotText, refuse_pointer

_PROBE_SECONDS = 10.0
_MOST_FILES = 1000
"""Files looked at for what is wrong with a folder."""


def read_dataset(
    name: str, path: Path, settings: DataSettings, field: str
) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    """Places and fields of the rows of `data.split` and `data.subset`, class numbers as names.

    Also says of which format its files are, or "dataset". Raises DataError, naming the splits or
    the subsets that there are, Malformed and NotText.
    """
    import datasets

    datasets.disable_progress_bars()
    saved = _saved(path, settings.subset)
    if saved is None and not path.is_dir():
        find_on_hub(name, field)
    try:
        plain = read_plain(path, settings) if saved is None else None
    except NoSuchSplit as error:
        raise _no_such("split", name, settings.split, error.known, field) from None
    return plain or (list(_rows(name, saved, settings, field)), "dataset")


def _rows(
    name: str, saved: Path | None, settings: DataSettings, field: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    if saved:
        yield from _named(_from_disk(saved, name, settings, field), name, field)
        return
    with own_cache() as cache:
        yield from _named(_load(name, settings, field, cache), name, field)


def _named(dataset: Any, name: str, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Places and fields of all rows, class numbers as names."""
    classes = class_names(dataset.features.to_dict())
    try:
        for number, row in enumerate(dataset, 1):
            place = f"row {number}"
            yield place, name_classes(dict(row), classes, place)
    except (ImportError, OSError) as error:  # pictures and sound need libraries of their own
        raise DataError(
            field, name, f"its rows cannot be read: {_first_line(error)}", "Give rows of text."
        ) from None


def _saved(path: Path, subset: str) -> Path | None:
    """The folder that `save_to_disk` made: `path`, or the one in it that the subset names."""
    # The name may be another machine's: a folder within this one, and none that is elsewhere.
    plainly = subset not in ("", ".", "..") and Path(subset).name == subset
    inner = [path / subset] if plainly else []
    for folder in [*inner, path]:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            return folder
    return None


def _from_disk(folder: Path, name: str, settings: DataSettings, field: str) -> Any:
    import datasets

    try:
        found: Any = datasets.load_from_disk(str(folder))
    except (LookupError, TypeError, AttributeError):
        damaged = ValueError("dataset_info.json, state.json or dataset_dict.json is damaged")
        raise _unreadable(folder, name, field, damaged) from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(folder, name, field, error) from None
    split = settings.split
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise _no_such("split", name, split, list(found), field)
        return found[split]
    if split not in ("train", str(found.split)):
        own = [] if found.split is None else [str(found.split)]
        raise _no_such("split", name, split, own, field)
    return found


def _load(name: str, settings: DataSettings, field: str, cache: str | None) -> Any:
    import datasets

    subset, split = settings.subset or None, settings.split
    try:
        return datasets.load_dataset(name, subset, split=split, cache_dir=cache)
    except (
        OSError,
        ValueError,
        RuntimeError,
        ImportError,
        datasets.exceptions.DatasetsError,
    ) as error:
        _explain(name, settings, field)
        raise _unreadable(Path(name).expanduser(), name, field, error) from None


def _explain(name: str, settings: DataSettings, field: str) -> None:
    """Raise DataError where the split or the subset is what is wrong."""
    import datasets

    subset = settings.subset
    try:
        subsets = datasets.get_dataset_config_names(name)
        if subset and subset not in subsets:
            raise _no_such("subset", name, subset, subsets, field)
        if not subset and len(subsets) > 1 and "default" not in subsets:
            raise DataError(
                field,
                name,
                f"has more than one subset: {', '.join(subsets)}",
                "Name one in data.subset.",
            )
        splits = datasets.get_dataset_split_names(name, subset or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
        return  # the first error says more
    if settings.split.partition("[")[0] not in splits:
        raise _no_such("split", name, settings.split, splits, field)


def _no_such(what: str, name: str, value: str, known: list[str], field: str) -> DataError:
    has = ", ".join(known) or "one only, without a name"
    also = " (training) or data.eval_split (evaluation)" if what == "split" else ""
    return DataError(
        field,
        name,
        f"has no such {what} as {value!r}; it has: {has}",
        f"{did_you_mean(value, known)}Name one in data.{what}{also}.",
    )


def _unreadable(path: Path, name: str, field: str, error: Exception) -> DataError:
    """The error as a sentence; a folder whose files were never fetched says so."""
    files = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else iter(())
    for file, _ in zip(files, range(_MOST_FILES), strict=False):
        try:
            with file.open("rb") as opened:
                refuse_pointer(opened.read(100))
        except NotText as pointer:
            return DataError(field, str(file), pointer.problem, pointer.fix)
        except OSError:
            continue
    problem = f"not a dataset that can be read: {_first_line(error)}"
    return DataError(field, name, problem, "Check it.")


def find_on_hub(name: str, field: str) -> None:
    """Ask the hub once: `load_dataset` itself would try for 23 s before it says no."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:  # only the cache counts
        _find_in_cache(name, field, Path(constants.HF_HOME), Path(constants.HF_HUB_CACHE))
        return
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
    if not has_cache():
        raise DataError(field, name, f"is on the hub, and {NO_HOME}", HF_HOME)


def _find_in_cache(name: str, field: str, home: Path, hub: Path) -> None:
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
    places = (prepared / name.replace("/", "___"), hub / f"datasets--{name.replace('/', '--')}")
    # `datasets` makes names of its own kinds lower case.
    if not any(place.exists() or place.with_name(place.name.lower()).exists() for place in places):
        raise DataError(
            field,
            name,
            "no such file or folder, and the cache has no dataset of that name (HF_HUB_OFFLINE is "
            "set, so the hub is not asked)",
            "Check the path.",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
