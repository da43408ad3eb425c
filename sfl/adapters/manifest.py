"""What a model's complete adapter consists of; the cloud makes its values from this alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sfl.errors import ProtocolError

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
            return cls(parameters, int(content["num_layers"]), dict(content["peft_config"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"malformed adapter manifest: {error!r}") from None


def _spec(name: str, shape: list[int], init: Init, fan_in: int) -> ParameterSpec:
    if init not in get_args(Init):
        raise ValueError(f"unknown init {init!r}")
    return ParameterSpec(str(name), tuple(int(size) for size in shape), init, int(fan_in))
