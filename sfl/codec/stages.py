"""The stages that a codec may be made of, by name: what settings may know of them without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfl.codec.spec import expand, read_calls
from sfl.node.plugins import Registry

Kind = Literal["transform", "quantiser", "coder"]
"""In the order in which they stand: values to values, values to symbols or bytes, either to fewer
bytes. A codec has any number of transforms, one quantiser and at most one coder."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One name. `make` is `module:function`, which takes the arguments as they are written."""

    kind: Kind
    make: str
    exact: bool = False
    """Whether every bit comes back; the stage that is made says the same."""


_HERE = "sfl.codec"

_BUILT_IN = {
    "delta": Stage("transform", f"{_HERE}.memory:make_delta"),
    "topk": Stage("transform", f"{_HERE}.topk:make_topk"),
    "none": Stage("quantiser", f"{_HERE}.cast:make_none", exact=True),
    "fp16": Stage("quantiser", f"{_HERE}.cast:make_fp16"),
    "bf16": Stage("quantiser", f"{_HERE}.cast:make_bf16"),
    "int8": Stage("quantiser", f"{_HERE}.blocks:make_int8"),
    "int": Stage("quantiser", f"{_HERE}.blocks:make_int"),
    "stochastic": Stage("quantiser", f"{_HERE}.blocks:make_stochastic"),
    "uniform": Stage("quantiser", f"{_HERE}.uniform:make_uniform"),
    "zstd": Stage("coder", f"{_HERE}.zstd:make_zstd", exact=True),
    "rans": Stage("coder", f"{_HERE}.rans:make_rans", exact=True),
}
"""A further stage is one file, and one line here."""

STAGES = Registry("sfl.codecs", Stage, _BUILT_IN)
"""By the name in a codec's setting; packages may bring more."""


def names(kind: Kind) -> list[str]:
    """What the stages of a kind are called that are built in."""
    return [name for name, stage in _BUILT_IN.items() if stage.kind == kind]


def is_exact(codec: str) -> bool:
    """Whether every stage of a setting leaves every bit as it was; not where it is no codec."""
    if codec == "auto":  # a setting without stages: no package is asked for one of that name
        return False
    try:
        calls = read_calls(expand(codec))
    except ValueError:
        return False
    return all(call.name in STAGES and STAGES[call.name].exact for call in calls)
