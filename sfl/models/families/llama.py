"""Llama and the decoders built like it: Mistral, Qwen2, Qwen3, Gemma 1 to 3 (text)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfl.models.families.family import Layout, Padding, Sizes, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Variant:
    """What differs from type to type: names in transformers, and what its forward looks at."""

    package: str
    stem: str
    config_class: str
    classifier: str
    tied: bool = False
    layer_types: bool = False
    """Whether each block's attention is full or sliding by `config.layer_types`."""
    rope_per_type: bool = False


def _variant(package: str, stem: str, **more: Any) -> Variant:
    return Variant(package, stem, f"{stem}Config", f"{stem}ForSequenceClassification", **more)


VARIANTS: dict[str, Variant] = {
    "llama": _variant("llama", "Llama"),
    "mistral": _variant("mistral", "Mistral"),
    "qwen2": _variant("qwen2", "Qwen2", layer_types=True),
    "qwen3": _variant("qwen3", "Qwen3", layer_types=True),
    "gemma": _variant("gemma", "Gemma", tied=True),
    "gemma2": _variant("gemma2", "Gemma2", tied=True, layer_types=True),
    "gemma3_text": Variant(
        "gemma3",
        "Gemma3",
        "Gemma3TextConfig",
        "Gemma3TextForSequenceClassification",
        tied=True,
        layer_types=True,
        rope_per_type=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Context:
    """Mask and rotary embedding of each kind of attention, and each block's kind."""

    kinds: tuple[str, ...]
    masks: dict[str, Tensor | None]
    rotary: dict[str, tuple[Tensor, Tensor]]
    positions: Tensor


class LlamaLike:
    """Rotary positions, RMS norms, gated MLP."""

    name = "llama"
    model_types = tuple(VARIANTS)
    tasks: tuple[Task, ...] = ("causal_lm", "sequence_classification")
    causal = True

    def sizes(self, config: Mapping[str, Any]) -> Sizes:
        """Sizes from config.json."""
        return Sizes(
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            context_length=config["max_position_embeddings"],
            vocab_size=config["vocab_size"],
        )

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Embedding models built on Gemma 3 attend in both directions."""
        if config.get("use_bidirectional_attention"):
            return "its attention looks ahead (use_bidirectional_attention)"
        return None

    def layout(self, config: Mapping[str, Any], task: Task) -> Layout:
        """Names of the parts."""
        variant = VARIANTS[config["model_type"]]
        causal = task == "causal_lm"
        tied = causal and config.get("tie_word_embeddings", variant.tied)
        end = "lm_head" if causal else "score"
        return Layout(
            package=variant.package,
            config_class=variant.config_class,
            model_class=f"{variant.stem}ForCausalLM" if causal else variant.classifier,
            base="model",
            blocks="model.layers",
            embedding=("model.embed_tokens",),
            head=("model.norm", end),
            saved=() if causal else (end,),
            tied=("lm_head.weight", "model.embed_tokens.weight") if tied else None,
            ignored=r"rotary_emb\.inv_freq",
        )

    def targets(self, model_type: str) -> tuple[str, ...]:
        """The seven projections."""
        return ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def drops(self, config: Mapping[str, Any]) -> bool:
        """Dropout on attention weights is the only one."""
        return bool(config.get("attention_dropout", 0.0))

    def embed(self, model: nn.Module, input_ids: Tensor, padding: Padding) -> Tensor:
        """[B, T] -> [B, T, H]; Gemma's module scales by itself."""
        base: Any = model.model
        embedded: Tensor = base.embed_tokens(input_ids)
        return embedded

    def context(self, model: nn.Module, hidden: Tensor, padding: Padding) -> Context:
        """Masks and rotary embeddings as the unsplit forward makes them."""
        # Loaded with the model's own code by now; naming it above would load torch.
        from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

        makers = {
            "full_attention": create_causal_mask,
            "sliding_attention": create_sliding_window_causal_mask,
        }
        config: Any = model.config
        kinds = _kinds(config)
        masks = {
            kind: padding.mask(makers[kind], config, hidden, past_key_values=None)
            for kind in sorted(set(kinds))
        }
        return Context(kinds, masks, _rotary(model, hidden, padding, kinds), padding.positions)

    def block(self, block: nn.Module, index: int, hidden: Tensor, context: Context) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        kind = context.kinds[index]
        output: Tensor = block(
            hidden,
            attention_mask=context.masks[kind],
            position_embeddings=context.rotary[kind],
            position_ids=context.positions,
            past_key_values=None,
        )
        return output

    def head(self, model: nn.Module, hidden: Tensor, padding: Padding, task: Task) -> Tensor:
        """Final norm and LM head, soft-capped in Gemma; or the score of the last real token."""
        parts: Any = model
        hidden = parts.model.norm(hidden)
        logits: Tensor
        if task == "sequence_classification":
            logits = parts.score(hidden)
            return last_token(logits, padding)
        logits = parts.lm_head(hidden)
        cap = getattr(parts.config, "final_logit_softcapping", None)
        if cap is not None:
            logits = (logits / cap).tanh() * cap
        return logits


def last_token(logits: Tensor, padding: Padding) -> Tensor:
    """[B, T, C] -> [B, C], at each row's last real token."""
    rows = padding.lengths.new_ones(len(logits)).cumsum(0) - 1
    return logits[rows, padding.lengths - 1]


def _kinds(config: Any) -> tuple[str, ...]:
    if VARIANTS[config.model_type].layer_types:
        return tuple(config.layer_types)
    sliding = config.model_type == "mistral" and config.sliding_window is not None
    kind = "sliding_attention" if sliding else "full_attention"
    return tuple(kind for _ in range(config.num_hidden_layers))


def _rotary(
    model: nn.Module, hidden: Tensor, padding: Padding, kinds: tuple[str, ...]
) -> dict[str, tuple[Tensor, Tensor]]:
    base: Any = model.model
    config: Any = model.config
    positions = padding.positions
    if VARIANTS[config.model_type].rope_per_type:
        return {kind: base.rotary_emb(hidden, positions, kind) for kind in sorted(set(kinds))}
    shared = base.rotary_emb(hidden, position_ids=positions)
    return dict.fromkeys(kinds, shared)
