"""What a model's complete adapter consists of; the cloud makes its values from this alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sfl.errors import ProtocolError
from sfl.node.text import plain

_MOST_VALUES = 1 << 32
_MOST_DIMENSIONS = 8
_LONGEST_NAME = 512

Init = Literal["kaiming", "zeros", "normal", "ones", "given"]


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One trainable tensor: PEFT's name, shape, and how its first values are made.

    `fan_in` is the number of inputs that one output sums over. `given` values are the
    checkpoint's.
    """

    name: str
    shape: tuple[int, ...]
    init: Init
    fan_in: int


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """Every trainable tensor of the model, sorted by name, and adapter_config.json's content."""

    parameters: tuple[ParameterSpec, ...]
    num_layers: int
    peft_config: Mapping[str, Any]

    def to_json(self) -> str:
        """As one line of JSON."""
        parameters = [[p.name, list(p.shape), p.init, p.fan_in] for p in self.parameters]
        return json.dumps(
            {
                "parameters": parameters,
                "num_layers": self.num_layers,
                "peft_config": dict(self.peft_config),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> AdapterManifest:
        """The inverse of `to_json`. Raises ProtocolError."""
        try:
            content = json.loads(text)
            parameters = tuple(_spec(*fields) for fields in content["parameters"])
            if sum(math.prod(spec.shape) for spec in parameters) > _MOST_VALUES:
                raise ValueError("more values than an adapter has")
            if len({spec.name for spec in parameters}) != len(parameters):
                raise ValueError("a parameter is named twice")
            num_layers = _size(content["num_layers"], 1 << 16)
            return cls(parameters, num_layers, dict(content["peft_config"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ProtocolError(f"malformed adapter manifest: {plain(repr(error))}") from None


def _spec(name: Any, shape: Any, init: Any, fan_in: Any) -> ParameterSpec:
    if init not in get_args(Init):
        raise ValueError(f"unknown init {init!r:.40}")
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or plain(name) != name:
        raise ValueError(f"{name!r:.40} is not a name of a parameter")
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{shape!r:.40} is not a shape")
    sizes = tuple(_size(size, _MOST_VALUES) for size in shape)
    return ParameterSpec(name, sizes, init, _size(fan_in, _MOST_VALUES))


def _size(value: Any, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{value!r:.40} is not a size")
    return value
