"""The linear layers of a model's blocks by the headers of its checkpoint, without reading it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from sfl.errors import ConfigError
from sfl.models.families.family import Task
from sfl.models.folder import ModelFolder, checkpoint_tensors

FIELD = "lora.target_modules"


def linear_names(folder: ModelFolder, task: Task) -> set[str]:
    """Paths of the modules within blocks whose weight is a matrix."""
    layout = folder.family.layout(folder.config, task)
    return {
        name.removesuffix(".weight")
        for name, entry in checkpoint_tensors(folder, layout).items()
        if name.startswith(f"{layout.blocks}.")
        and name.endswith(".weight")
        and len(entry.shape) == 2
    }


def ends_in(name: str, ends: Sequence[str]) -> bool:
    """Whether a module's path ends in one of `ends`, as PEFT matches `target_modules`."""
    return any(name == end or name.endswith(f".{end}") for end in ends)


def check_target_names(folder: ModelFolder, task: Task, names: Sequence[str]) -> None:
    """Raise ConfigError, naming what exists, for a name that is the end of no layer's path.

    A model whose weights are not here yet is taken on trust.
    """
    layers = linear_names(folder, task) if folder.tensors and names else set()
    known = sorted({name.rpartition(".")[2] for name in layers})
    for wanted in names if layers else ():
        if not any(ends_in(name, [wanted]) for name in layers):
            near = difflib.get_close_matches(wanted, known, 1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                FIELD,
                wanted,
                "no linear layer of the model's blocks has this name",
                f"{hint}Choose from {', '.join(known)}.",
            )


def check_rank(folder: ModelFolder, task: Task, rank: int) -> None:
    """Raise ConfigError where the rank is more than any layer of the model's blocks could have.

    An adapter of such a rank costs memory, and can be no other than a smaller one.
    """
    layout = folder.family.layout(folder.config, task)
    entries = checkpoint_tensors(folder, layout)
    widest = max(
        (min(entries[f"{name}.weight"].shape) for name in linear_names(folder, task)), default=rank
    )
    if rank > widest:
        raise ConfigError(
            "lora.rank",
            rank,
            f"no linear layer of {layout.blocks} has a rank of more than {widest}",
            f"Choose at most {widest}; 4 to 64 are usual.",
        )
