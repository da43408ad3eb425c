"""Encoders built like BERT: BERT, RoBERTa, DistilBERT; sequence classification only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sfl.models.families.family import Layout, Padding, Sizes, Task, TokenizerClass

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCKS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
}
STEMS = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
TOKENIZERS = {
    "bert": TokenizerClass("BertTokenizer"),
    "roberta": TokenizerClass("RobertaTokenizer"),
    "distilbert": TokenizerClass("BertTokenizer", direct=False),
}


class BertLike:
    """Attention in both directions, a classifier over the first token."""

    name = "bert"
    model_types = tuple(BLOCKS)
    tasks: tuple[Task, ...] = ("sequence_classification",)
    causal = False
    transposed = False
    mlp_tensors = mlp_tensors_fused = 2  # gelu's input and output

    def sizes(self, config: Mapping[str, Any]) -> Sizes:
        """Sizes from config.json; RoBERTa's positions begin behind its pad id."""
        distil = config["model_type"] == "distilbert"
        unused = config.get("pad_token_id", 1) + 1 if config["model_type"] == "roberta" else 0
        return Sizes(
            num_layers=config["n_layers" if distil else "num_hidden_layers"],
            hidden_size=config["dim" if distil else "hidden_size"],
            context_length=config["max_position_embeddings"] - unused,
            vocab_size=config["vocab_size"],
        )

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """BERT as a decoder is another model."""
        return "it is set up as a decoder (is_decoder)" if config.get("is_decoder") else None

    def layout(self, config: Mapping[str, Any], task: Task) -> Layout:
        """Names of the parts. A BERT checkpoint of masked language modelling has no pooler."""
        kind: str = config["model_type"]
        pooler = ("bert.pooler",) if kind == "bert" else ()
        saved = ("pre_classifier", "classifier") if kind == "distilbert" else ("classifier",)
        return Layout(
            package=kind,
            config_class=f"{STEMS[kind]}Config",
            model_class=f"{STEMS[kind]}ForSequenceClassification",
            base=kind,
            blocks=BLOCKS[kind],
            embedding=(f"{kind}.embeddings",),
            head=(*pooler, *saved),
            saved=saved,
            saved_dense=0 if kind == "bert" else 1,
            saved_if_missing=pooler,
            ignored=r"\.embeddings\.(position|token_type)_ids",
        )

    def targets(self, model_type: str) -> tuple[str, ...]:
        """All linear layers of attention and MLP."""
        if model_type == "distilbert":
            return ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")
        return ("query", "key", "value", "dense")

    def tokenizer(self, model_type: str) -> TokenizerClass:
        """WordPiece, or RoBERTa's byte-level BPE."""
        return TOKENIZERS[model_type]

    def drops(self, config: Mapping[str, Any]) -> bool:
        """Dropout of embeddings, attention, MLP and head."""
        defaults = (
            {"dropout": 0.1, "attention_dropout": 0.1, "seq_classif_dropout": 0.2}
            if config["model_type"] == "distilbert"
            else {
                "hidden_dropout_prob": 0.1,
                "attention_probs_dropout_prob": 0.1,
                "classifier_dropout": None,
            }
        )
        return any(config.get(name, default) for name, default in defaults.items())

    def embed(self, model: nn.Module, input_ids: Tensor, padding: Padding) -> Tensor:
        """[B, T] -> [B, T, H]."""
        parts: Any = model
        config: Any = model.config
        position_ids = padding.positions if padding.packing is not None else None
        if config.model_type == "roberta":
            # 1, 2, .. behind the pad id, and the pad id itself on padding.
            counted = padding.positions + 1
            if padding.packing is None and padding.attention_mask is not None:
                counted = counted * padding.attention_mask
            position_ids = counted + config.pad_token_id
        embeddings = getattr(parts, config.model_type).embeddings
        embedded: Tensor = embeddings(input_ids=input_ids, position_ids=position_ids)
        return embedded

    def context(self, model: nn.Module, hidden: Tensor, padding: Padding) -> Tensor | None:
        """The mask of padding, None where there is none."""
        # Loaded with the model's own code by now; naming it above would load torch.
        from transformers.masking_utils import create_bidirectional_mask

        mask: Tensor | None = padding.mask(create_bidirectional_mask, model.config, hidden)
        return mask

    def block(self, block: nn.Module, index: int, hidden: Tensor, context: Tensor | None) -> Tensor:
        """[B, T, H] -> [B, T, H]."""
        output: Tensor = block(hidden, attention_mask=context)
        return output

    def head(self, model: nn.Module, hidden: Tensor, padding: Padding, task: Task) -> Tensor:
        """[B, T, H] -> [B, C], from the first token."""
        parts: Any = model
        config: Any = model.config
        logits: Tensor
        if config.model_type == "roberta":
            logits = parts.classifier(hidden)  # takes the first token by itself
        elif config.model_type == "distilbert":
            pooled = parts.pre_classifier(hidden[:, 0]).relu()
            logits = parts.classifier(parts.dropout(pooled))
        else:
            logits = parts.classifier(parts.dropout(parts.bert.pooler(hidden)))
        return logits
