"""Llama and the decoders built like it: Mistral, Qwen2, Qwen3, Gemma 1 to 3 (text)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sfl.models.families.family import Layout, Padding, Sizes, Task, TokenizerClass

if TYPE_CHECKING:
    from torch import Tensor, nn


_LLAMA = TokenizerClass("LlamaTokenizer")
_QWEN = TokenizerClass("Qwen2Tokenizer")
_GEMMA = TokenizerClass("GemmaTokenizer")


@dataclass(frozen=True, slots=True)
class Variant:
    """What differs from type to type: names in transformers, and what its forward looks at.

    The class of its config.json and of its classifier begin with `stem` where nothing else is said.
    """

    package: str
    stem: str
    tokenizer: TokenizerClass = _LLAMA
    config_class: str = ""
    classifier: str = ""
    tied: bool = False
    layer_types: bool = False
    """Whether each block's attention is full or sliding by `config.layer_types`."""
    sliding: bool = False
    """Whether all of it slides where `config.sliding_window` says how far."""
    rope_per_type: bool = False


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
    variants: ClassVar[Mapping[str, Variant]] = {
        "llama": Variant("llama", "Llama"),
        "mistral": Variant(
            "mistral", "Mistral", TokenizerClass("LlamaTokenizer", direct=False), sliding=True
        ),
        "qwen2": Variant(
            "qwen2", "Qwen2", TokenizerClass("Qwen2Tokenizer", trusted=False), layer_types=True
        ),
        "qwen3": Variant("qwen3", "Qwen3", _QWEN, layer_types=True),
        "gemma": Variant("gemma", "Gemma", _GEMMA, tied=True),
        "gemma2": Variant("gemma2", "Gemma2", _GEMMA, tied=True, layer_types=True),
        "gemma3_text": Variant(
            "gemma3",
            "Gemma3",
            _GEMMA,
            config_class="Gemma3TextConfig",
            classifier="Gemma3TextForSequenceClassification",
            tied=True,
            layer_types=True,
            rope_per_type=True,
        ),
    }
    """By model type. A family of another package may be these blocks under types of its own."""
    tasks: tuple[Task, ...] = ("causal_lm", "sequence_classification")
    causal = True
    transposed = False
    mlp_tensors = mlp_tensors_fused = 4  # gate, silu, up and their product

    @property
    def model_types(self) -> tuple[str, ...]:
        """Of config.json."""
        return tuple(self.variants)

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
        variant = self.variants[config["model_type"]]
        causal = task == "causal_lm"
        tied = causal and config.get("tie_word_embeddings", variant.tied)
        end = "lm_head" if causal else "score"
        classifier = variant.classifier or f"{variant.stem}ForSequenceClassification"
        return Layout(
            package=variant.package,
            config_class=variant.config_class or f"{variant.stem}Config",
            model_class=f"{variant.stem}ForCausalLM" if causal else classifier,
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

    def tokenizer(self, model_type: str) -> TokenizerClass:
        """The variant's."""
        return self.variants[model_type].tokenizer

    def drops(self, config: Mapping[str, Any]) -> bool:
        """Dropout on attention weights is the only one."""
        return bool(config.get("attention_dropout", 0.0))

    def windows(self, config: Mapping[str, Any]) -> tuple[int, frozenset[int]]:
        """As transformers fills in what config.json lacks."""
        window = config.get("sliding_window", 4096)
        kinds = _kinds_by_json(config, self.variants[config["model_type"]])
        sliding = {index for index, kind in enumerate(kinds) if kind == "sliding_attention"}
        return (window, frozenset(sliding)) if window and sliding else (0, frozenset())

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
        variant = self.variants[config.model_type]
        kinds = _kinds(config, variant)
        masks = {
            kind: padding.mask(makers[kind], config, hidden, past_key_values=None)
            for kind in sorted(set(kinds))
        }
        rotary = _rotary(model, hidden, padding, kinds, variant)
        return Context(kinds, masks, rotary, padding.positions)

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


def _kinds(config: Any, variant: Variant) -> tuple[str, ...]:
    if variant.layer_types:
        return tuple(config.layer_types)
    sliding = variant.sliding and config.sliding_window is not None
    kind = "sliding_attention" if sliding else "full_attention"
    return tuple(kind for _ in range(config.num_hidden_layers))


def _kinds_by_json(config: Mapping[str, Any], variant: Variant) -> Sequence[str]:
    """The same by config.json, where entries may be missing; unknown ones are taken for full."""
    layers = range(config["num_hidden_layers"])
    full, slides = "full_attention", "sliding_attention"
    if variant.sliding:
        return [slides for _ in layers]
    if not variant.layer_types or config.get("use_sliding_window") is False:
        return [full for _ in layers]
    if config.get("layer_types"):
        kinds: Sequence[str] = config["layer_types"]
        return kinds
    if variant.package == "gemma2":
        return [slides if (index + 1) % 2 else full for index in layers]
    if variant.package == "gemma3":
        pattern = config.get("sliding_window_pattern", 6)
        return [slides if (index + 1) % pattern else full for index in layers]
    if not config.get("use_sliding_window"):
        return [full for _ in layers]
    first = config.get("max_window_layers", 28)
    return [slides if index >= first else full for index in layers]


def _rotary(
    model: nn.Module, hidden: Tensor, padding: Padding, kinds: tuple[str, ...], variant: Variant
) -> dict[str, tuple[Tensor, Tensor]]:
    base: Any = model.model
    positions = padding.positions
    if variant.rope_per_type:
        return {kind: base.rotary_emb(hidden, positions, kind) for kind in sorted(set(kinds))}
    shared = base.rotary_emb(hidden, position_ids=positions)
    return dict.fromkeys(kinds, shared)
