"""A small model with the tokens of a larger one: its embedding and head, and one trained block."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sfl.cli.draft import Wanted, draft_for_model
from sfl.stage.serving.exits import WEIGHTS

TOKENIZER = "tokenizer*", "special_tokens_map.json", "chat_template*"


def make_small(model: Path, folder: Path) -> Path:
    """An exit at cut 0 is a block over the embedding: written as a model of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    learnt = folder / "exit"
    draft_for_model(str(model), None, 0, learnt, Wanted())
    loader: Any = AutoModelForCausalLM
    small = loader.from_pretrained(model, num_hidden_layers=1, dtype=torch.float32)
    values = {
        re.sub(r"layers\.\d+\.", "layers.0.", name): value
        for name, value in load_file(learnt / WEIGHTS).items()
    }
    strange = small.load_state_dict(values, strict=False).unexpected_keys
    assert not strange, strange
    to = folder / "small"
    small.save_pretrained(to)
    for pattern in TOKENIZER:
        for file in model.glob(pattern):
            shutil.copyfile(file, to / file.name)
    return to
