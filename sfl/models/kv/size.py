"""What keys and values take, and which models' cannot be kept, by config.json alone. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfl.errors import ConfigError
from sfl.models.families.family import Family
from sfl.models.folder import ModelFolder
from sfl.models.kv.pages import PAGE_TOKENS

CHANGING = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies follow the longest text that is computed."""


def kv_width(config: Mapping[str, Any]) -> int:
    """Numbers that one token keeps in one block: keys and values of all their heads."""
    heads = config.get("num_attention_heads") or config["n_head"]
    hidden = config.get("hidden_size") or config["n_embd"]
    width = config.get("head_dim") or hidden // heads
    return int(2 * (config.get("num_key_value_heads") or heads) * width)


def page_bytes(config: Mapping[str, Any], num_blocks: int, itemsize: int) -> int:
    """Bytes of a page over so many blocks, in a dtype of `itemsize` bytes."""
    return PAGE_TOKENS * num_blocks * kv_width(config) * itemsize


def cannot_keep(family: Family, config: Mapping[str, Any]) -> str | None:
    """Why conversations with this model cannot be kept, or None."""
    if not family.causal:
        return "its tokens look at later ones"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = {rope.get("rope_type", rope.get("type"))}
    kinds |= {inner.get("rope_type") for inner in rope.values() if isinstance(inner, dict)}
    if kinds & set(CHANGING):
        return "its rotary positions depend on the longest text in a batch"
    return None


def check_kept(key: str, folder: ModelFolder) -> None:
    """Raises ConfigError, which names the setting, where no conversation with the model is kept."""
    if (problem := cannot_keep(folder.family, folder.config)) is not None:
        raise ConfigError(key, folder.name, problem, "Serve another model.")
