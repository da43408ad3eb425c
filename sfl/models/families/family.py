"""What a family of models must tell: names of its parts, and how to call them.

Families call transformers' own modules in the order in which transformers calls them; no block is
rewritten. They know nothing of cuts, adapters or files, and importing one imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sfl.models.kv.attention import CachedMask
    from sfl.models.packed import Packing

Task = Literal["causal_lm", "sequence_classification"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of a model that decisions need."""

    num_layers: int
    hidden_size: int
    context_length: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts are in transformers' class for one model type and task, by module name.

    `base` is the base model's attribute. `saved` are head modules that are always trained whole;
    `saved_if_missing` are trained whole where the checkpoint lacks them. `tied` is the head's
    tensor and the one it shares its values with. `ignored` are checkpoint tensors (a regular
    expression on their end) that the class does not have. `saved_dense` counts the square layers
    [H, H] within the `saved` modules, beside the layer that ends in the classes.
    """

    package: str
    config_class: str
    model_class: str
    base: str
    blocks: str
    embedding: tuple[str, ...]
    head: tuple[str, ...]
    saved: tuple[str, ...] = ()
    saved_dense: int = 0
    saved_if_missing: tuple[str, ...] = ()
    tied: tuple[str, str] | None = None
    ignored: str = r"(?!)"


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """transformers' tokenizer class of a model type, which counts where its folder names none.

    `direct`: AutoTokenizer takes it too, so that it can be loaded without AutoTokenizer, which is
    slow. `trusted`: AutoTokenizer also believes a folder that names a class of no model.
    """

    name: str
    direct: bool = True
    trusted: bool = True


@dataclass(frozen=True, slots=True)
class Padding:
    """How sequences are laid out in a batch: lengths [B], attention_mask [B, T] of 0 and 1.

    Right-padded, positions are [1, T]. Packed one behind the other (`packing`), positions are
    [1, num_tokens], and the mask is None where attention never looks at padding. With `cached` the
    tokens follow those that conversations have.
    """

    lengths: Tensor
    attention_mask: Tensor | None
    positions: Tensor
    packing: Packing | None = None
    cached: CachedMask | None = None

    def mask(self, make: Callable[..., Any], config: Any, hidden: Tensor, **options: Any) -> Any:
        """The mask that transformers' `make` gives for this batch, as blocks are handed it."""
        if self.cached is not None:
            return self.cached
        packing = self.packing
        if packing is None:
            return make(
                config=config,
                inputs_embeds=hidden,
                attention_mask=self.attention_mask,
                **options,
            )
        from sfl.models.packed import PackedMask

        rows = 1 if packing.one_by_one else packing.num_sequences
        shape = hidden.new_empty(1).expand(rows, packing.width, 1)
        mask = make(
            config=config, inputs_embeds=shape, attention_mask=self.attention_mask, **options
        )
        return PackedMask(mask, packing)


@runtime_checkable
class Windowed(Protocol):
    """A family some of whose blocks look at a window of the last tokens only."""

    def windows(self, config: Mapping[str, Any]) -> tuple[int, frozenset[int]]:
        """Tokens of the window, and the blocks that look at no more; (0, none) without one."""


@runtime_checkable
class Family(Protocol):
    """One file per family."""

    name: str

    @property
    def model_types(self) -> tuple[str, ...]:
        """Of config.json."""

    tasks: tuple[Task, ...]
    causal: bool
    """Whether no token looks at a later one; a classifier then reads the last, else the first."""
    transposed: bool
    """Whether linear layers are stored [in, out], as transformers' Conv1D does."""
    mlp_tensors: int
    """Tensors of the MLP's width that one block keeps for its backward: of a gated MLP gate, silu,
    up and their product; of an activation function the input and output of each of its steps."""
    mlp_tensors_fused: int
    """The same where an activation function keeps its input only: computed in one step
    (`sfl.models.fused`) or in pieces (`sfl.models.piecewise`)."""

    def sizes(self, config: Mapping[str, Any]) -> Sizes:
        """Sizes from config.json. Raises KeyError for an entry that is missing."""

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Why this variant of the family cannot run, or None."""

    def layout(self, config: Mapping[str, Any], task: Task) -> Layout:
        """Names of the parts."""

    def targets(self, model_type: str) -> tuple[str, ...]:
        """All linear layers of a block's attention and MLP."""

    def tokenizer(self, model_type: str) -> TokenizerClass:
        """The tokenizer of a model type."""

    def drops(self, config: Mapping[str, Any]) -> bool:
        """Whether config.json switches any dropout on; what it lacks is as transformers has it."""

    def embed(self, model: nn.Module, input_ids: Tensor, padding: Padding) -> Tensor:
        """[B, T] -> [B, T, H], up to the first block."""

    def context(self, model: nn.Module, hidden: Tensor, padding: Padding) -> Any:
        """What all blocks of one forward share: masks and positions."""

    def block(self, block: nn.Module, index: int, hidden: Tensor, context: Any) -> Tensor:
        """[B, T, H] -> [B, T, H] through one block."""

    def head(self, model: nn.Module, hidden: Tensor, padding: Padding, task: Task) -> Tensor:
        """[B, T, H] -> logits: [B, T, V] of a language model, [B, C] of a classifier."""
