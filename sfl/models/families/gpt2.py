"""GPT-2: learned positions, linear layers stored transposed (Conv1D)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sfl.models.families.family import Layout, Padding, Sizes, Task, TokenizerClass
from sfl.models.families.llama import last_token

if TYPE_CHECKING:
    from torch import Tensor, nn


class Gpt2:
    """GPT-2 as a language model or with a classifier over the last token."""

    name = "gpt2"
    model_types: tuple[str, ...] = ("gpt2",)
    tasks: tuple[Task, ...] = ("causal_lm", "sequence_classification")
    causal = True
    transposed = True
    mlp_tensors = 5  # the steps of gelu_new
    mlp_tensors_fused = 2

    def sizes(self, config: Mapping[str, Any]) -> Sizes:
        """Sizes from config.json."""
        return Sizes(
            num_layers=config["n_layer"],
            hidden_size=config["n_embd"],
            context_length=config["n_positions"],
            vocab_size=config["vocab_size"],
        )

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Blocks that read an encoder have no place here."""
        return "it has cross-attention" if config.get("add_cross_attention") else None

    def layout(self, config: Mapping[str, Any], task: Task) -> Layout:
        """Names of the parts."""
        causal = task == "causal_lm"
        tied = causal and config.get("tie_word_embeddings", True)
        end = "lm_head" if causal else "score"
        return Layout(
            package="gpt2",
            config_class="GPT2Config",
            model_class="GPT2LMHeadModel" if causal else "GPT2ForSequenceClassification",
            base="transformer",
            blocks="transformer.h",
            embedding=("transformer.wte", "transformer.wpe"),
            head=("transformer.ln_f", end),
            saved=() if causal else (end,),
            tied=("lm_head.weight", "transformer.wte.weight") if tied else None,
            ignored=r"\.attn\.(masked_)?bias",  # causal masks in checkpoints of long ago
        )

    def targets(self, model_type: str) -> tuple[str, ...]:
        """Attention in and out (`c_proj` is the MLP's output too), MLP in."""
        return ("c_attn", "c_proj", "c_fc")

    def tokenizer(self, model_type: str) -> TokenizerClass:
        """Byte-level BPE."""
        return TokenizerClass("GPT2Tokenizer")

    def drops(self, config: Mapping[str, Any]) -> bool:
        """Embedding, attention and residual dropout."""
        return any(config.get(name, 0.1) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"))

    def embed(self, model: nn.Module, input_ids: Tensor, padding: Padding) -> Tensor:
        """[B, T] -> [B, T, H]: token plus position."""
        base: Any = model.transformer
        embedded: Tensor = base.drop(base.wte(input_ids) + base.wpe(padding.positions))
        return embedded

    def context(self, model: nn.Module, hidden: Tensor, padding: Padding) -> Tensor | None:
        """The causal mask, None where the kernel needs none."""
        # Loaded with the model's own code by now; naming it above would load torch.
        from transformers.masking_utils import create_causal_mask

        mask: Tensor | None = padding.mask(
            create_causal_mask, model.config, hidden, past_key_values=None
        )
        return mask

    def block(self, block: nn.Module, index: int, hidden: Tensor, context: Tensor | None) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        output: Tensor = block(hidden, past_key_values=None, attention_mask=context)
        return output

    def head(self, model: nn.Module, hidden: Tensor, padding: Padding, task: Task) -> Tensor:
        """Final norm and LM head, or the score of the last real token."""
        parts: Any = model
        hidden = parts.transformer.ln_f(hidden)
        logits: Tensor
        if task == "sequence_classification":
            logits = parts.score(hidden)
            return last_token(logits, padding)
        logits = parts.lm_head(hidden)
        return logits
