"""PEFT's parameter names: global, whatever the cut, so that parts of an adapter fit together."""

from __future__ import annotations

from sfl.plan import Span

PREFIX = "base_model.model."


_A, _B = ".lora_A.weight", ".lora_B.weight"


def lora_names(module: str) -> tuple[str, str]:
    """Names of A and B over the linear layer `module`."""
    return f"{PREFIX}{module}{_A}", f"{PREFIX}{module}{_B}"


def is_lora_a(name: str) -> bool:
    """Whether a parameter is the A of a layer."""
    return name.endswith(_A)


def is_lora_b(name: str) -> bool:
    """Whether a parameter is the B of a layer."""
    return name.endswith(_B)


def lora_b_of(name: str) -> str:
    """Name of the B that belongs to an A."""
    return name.removesuffix(_A) + _B


def saved_name(parameter: str) -> str:
    """Name of a parameter of a module that is trained whole."""
    return f"{PREFIX}{parameter}"


def block_of(name: str) -> int | None:
    """Number of the block that a parameter is in; None for the head's.

    In transformers' names the first number of a path counts the blocks.
    """
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def belongs_to(name: str, span: Span) -> bool:
    """Whether a parameter is in `span`; those of the head are where the span has the head."""
    block = block_of(name)
    return span.head if block is None else block in span
