"""Model families.

A further family is one file with the `Family` protocol and one line here.
"""

from __future__ import annotations

from sfl.models.families.bert import BertLike
from sfl.models.families.family import Family
from sfl.models.families.gpt2 import Gpt2
from sfl.models.families.llama import LlamaLike
from sfl.node.plugins import Registry

_ALL: tuple[Family, ...] = (LlamaLike(), Gpt2(), BertLike())

FAMILIES: Registry[Family] = Registry(
    "sfl.families", Family, {kind: family for family in _ALL for kind in family.model_types}
)
"""By the model type of config.json; packages may bring more."""
