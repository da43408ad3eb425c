"""A teacher and a student out of one run: the fine-tuned model, and the base's first blocks.

    sfl run examples/quickstart/homes.toml --set run.id='"teacher"'
    sfl export --run teacher examples/distil/teacher --merge
    python examples/distil/prepare.py examples/quickstart/model examples/distil/student --blocks 2

The student is an ordinary folder: `config.json` says fewer blocks, and the weights of the others
are left out. Without a word from the teacher it is a poor model.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

BLOCK = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
"""The number of a tensor's block, in the names of Llama's kind and of GPT-2's."""
COUNTS = ("num_hidden_layers", "n_layer")


def kept(names: Iterator[str], blocks: int) -> list[str]:
    """Names of all tensors but those of later blocks."""
    numbers = {name: BLOCK.search(name) for name in names}
    return [name for name, found in numbers.items() if found is None or int(found[1]) < blocks]


def write_student(source: Path, folder: Path, blocks: int) -> None:
    """The first blocks of the model in `source`, with its embedding, head and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt", ".model", ".jinja") and path.is_file():
            shutil.copy(path, folder)
    config = json.loads((source / "config.json").read_text())
    count = next(name for name in COUNTS if name in config)
    if not 0 < blocks < config[count]:
        raise SystemExit(f"--blocks {blocks}: the model has {config[count]}; choose fewer")
    config[count] = blocks
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    with safe_open(source / "model.safetensors", framework="numpy") as tensors:
        own = {name: tensors.get_tensor(name) for name in kept(iter(tensors.keys()), blocks)}
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Write the folder, and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of a model, in one safetensors file")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--blocks", type=int, default=2, help="blocks that the student has")
    own = parser.parse_args()
    if not (own.source / "model.safetensors").is_file():
        raise SystemExit(f"{own.source}: no model.safetensors in it")
    write_student(own.source, own.folder, own.blocks)
    sys.stdout.write(f"{own.folder}: the first {own.blocks} blocks of {own.source}\n")


if __name__ == "__main__":
    main()
