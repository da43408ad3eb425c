"""Tiny random models of every listed class, as Hugging Face folders, and their PEFT references."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn

from sfl.adapters.initial import initial_adapter
from sfl.adapters.lora import build_manifest
from sfl.adapters.manifest import AdapterManifest
from sfl.config import LoraSettings
from sfl.models.families.family import Task
from sfl.models.folder import ModelFolder, open_model
from tests.house.files import edit
from tests.house.paths import MODEL

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # the models are tiny; more threads only wait for each other

FOLDERS = TemporaryDirectory(prefix="sfl-models-")
VOCAB, LABELS, LAYERS, PAD = 61, 3, 3, 0
DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**DECODER, "tie_word_embeddings": True},
    "mistral": {**DECODER, "sliding_window": 4},
    "qwen2": {
        **DECODER,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen3": DECODER,
    "gemma": DECODER,
    "gemma2": {**DECODER, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **DECODER,
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "final_logit_softcapping": 30.0,
    },
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 64,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "bert": {**ENCODER, "pad_token_id": PAD},
    "roberta": {**ENCODER, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2},
    "distilbert": {
        "vocab_size": VOCAB,
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": LAYERS,
        "n_heads": 4,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
        "pad_token_id": PAD,
    },
}
ENCODERS = ("bert", "roberta", "distilbert")
CASES: list[tuple[str, Task]] = [
    (kind, task)
    for kind in CONFIGS
    for task in ("causal_lm", "sequence_classification")
    if not (kind in ENCODERS and task == "causal_lm")
]
AUTO = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
}


@cache
def model_folder(kind: str, extra: str = "{}", masked_lm: bool = False) -> Path:
    """A folder with random weights: a language model's (a bare encoder's for encoders).

    `extra` is JSON of further config entries. `masked_lm` makes a checkpoint without a pooler.
    """
    folder = Path(FOLDERS.name) / f"{kind}-{model_folder.cache_info().misses}"
    config = transformers.AutoConfig.for_model(kind, **{**CONFIGS[kind], **json.loads(extra)})
    make = transformers.AutoModelForCausalLM
    if kind in ENCODERS:
        make = transformers.AutoModelForMaskedLM if masked_lm else transformers.AutoModel
    torch.manual_seed(7)
    model = make.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # so that no norm is 1 and no bias 0
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def opened(kind: str, extra: str = "{}") -> ModelFolder:
    """The folder, opened."""
    return open_model(model_folder(kind, extra))


def manifest_of(folder: ModelFolder, task: Task, lora: LoraSettings) -> AdapterManifest:
    """The manifest for the tests' number of classes."""
    return build_manifest(folder, task, LABELS, lora)


def busy_values(manifest: AdapterManifest, seed: int = 0) -> dict[str, np.ndarray]:
    """Initial values with noise on top, so that no B is zero and every gradient counts."""
    random = np.random.default_rng(seed)
    return {
        name: (value + random.normal(0, 0.1, value.shape)).astype(np.float32)
        for name, value in initial_adapter(
            manifest, seed, {p.name: np.zeros(p.shape, np.float32) for p in manifest.parameters}
        ).items()
    }


def base_model(folder: Path, task: Task, **more: Any) -> nn.Module:
    """The unsplit model, as any user of transformers loads it."""
    if task == "sequence_classification":
        more |= {"num_labels": LABELS}
    model: nn.Module = AUTO[task].from_pretrained(folder, **more)
    return model


def peft_model(
    folder: ModelFolder,
    task: Task,
    manifest: AdapterManifest,
    values: Mapping[str, np.ndarray],
    **more: Any,
) -> PeftModel:
    """The reference: PEFT in one process with the same first values, in training mode."""
    config = LoraConfig(**{**manifest.peft_config, "inference_mode": False})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 an old name
        model = get_peft_model(base_model(folder.path, task, **more), config)
    result = set_peft_model_state_dict(model, {n: torch.tensor(v) for n, v in values.items()})
    assert not result.unexpected_keys
    return model.train()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of a PEFT model by the names that PEFT saves under."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            plain = name.replace("modules_to_save.default.", "").replace(".default", "")
            found[plain] = parameter.grad
    return found


def batch(lengths: tuple[int, ...], task: Task, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """(input ids [B, T], lengths [B], labels): right-padded, the first tokens unscored."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(3, VOCAB, (len(lengths), width), generator=generator)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    ids = ids.masked_fill(~mask, PAD)
    if task == "sequence_classification":
        return ids, torch.tensor(lengths), torch.arange(len(lengths)) % LABELS
    labels = ids.masked_fill(~mask, -100)
    labels[:, :2] = -100
    return ids, torch.tensor(lengths), labels


def decoder_without_padding(folder: Path) -> Path:
    """A GPT-2 of random weights; neither its config nor its tokenizer names a pad token."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "gpt2",
        vocab_size=1280,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder)
    edit(folder / "tokenizer_config.json", lambda content: content.pop("pad_token"))
    return folder
