"""Whether a checkpoint holds what its config.json promises, by its headers and without torch.

Every block has what its neighbours have, and the embedding its rows. What else may be wrong,
`build_span` finds, which knows every shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sfl.errors import ModelError
from sfl.models.families.family import Layout, Task
from sfl.models.folder import ModelFolder, TensorEntry, checkpoint_tensors
from sfl.models.jsonfile import FIELD

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


def check_weights(folder: ModelFolder, task: Task) -> None:
    """Raise ModelError where a tensor is missing, or of another shape than it must have.

    A model whose weights are not here yet is taken on trust.
    """
    if not folder.tensors:
        return
    layout = folder.family.layout(folder.config, task)
    entries = checkpoint_tensors(folder, layout)
    _check_embedding(folder, layout, entries)
    _check_blocks(folder, layout, entries)


def _check_embedding(
    folder: ModelFolder, layout: Layout, entries: Mapping[str, TensorEntry]
) -> None:
    wanted = (folder.vocab_size, folder.hidden_size)
    for name, entry in entries.items():
        embedding = name.startswith(layout.embedding) and name.endswith(EMBEDDINGS)
        if embedding and entry.shape != wanted:
            raise ModelError(
                FIELD,
                str(folder.path),
                f"{entry.name} is {list(entry.shape)}, config.json asks for {list(wanted)}",
                "Fetch both again, or save both together with model.save_pretrained(folder).",
            )


def _check_blocks(folder: ModelFolder, layout: Layout, entries: Mapping[str, TensorEntry]) -> None:
    blocks: list[dict[str, tuple[int, ...]]] = [{} for _ in range(folder.num_layers)]
    for name, entry in entries.items():
        if not name.startswith(f"{layout.blocks}."):
            continue
        number, _, inner = name.removeprefix(f"{layout.blocks}.").partition(".")
        if inner and number.isdecimal() and int(number) < folder.num_layers:
            blocks[int(number)][inner] = entry.shape
    usual = Counter(inner for block in blocks for inner in block)
    for index, block in enumerate(blocks):
        for inner, count in usual.items():
            if inner not in block and 2 * count > folder.num_layers:
                raise _lacking(folder, f"{layout.blocks}.{index}.{inner}")
    if not usual:
        raise _lacking(folder, f"{layout.blocks}.0")


def _lacking(folder: ModelFolder, name: str) -> ModelError:
    return ModelError(FIELD, str(folder.path), f"its weights lack {name}", "Fetch the model again.")
