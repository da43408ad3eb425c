"""Model families, model folders and spans: the part of a model that one node holds.

A further family is one file with the `Family` protocol and one line here.
"""

from __future__ import annotations

from sfl.models.bert import BertLike
from sfl.models.family import Family
from sfl.models.gpt2 import Gpt2
from sfl.models.llama import LlamaLike

_ALL: tuple[Family, ...] = (LlamaLike(), Gpt2(), BertLike())

FAMILIES: dict[str, Family] = {kind: family for family in _ALL for kind in family.model_types}
