"""The adapter that a run begins with: made once, keyed by (seed, parameter name).

Where every round begins with LoRA of its own, each node makes it, keyed by the round as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sfl.adapters.manifest import AdapterManifest, ParameterSpec
from sfl.adapters.names import is_lora_a, is_lora_b
from sfl.errors import ProtocolError
from sfl.keys import derive_seed

NORMAL_STD = 0.02
"""Standard deviation that transformers gives new linear layers (BERT's, GPT-2's, Llama's)."""

Values = Mapping[str, npt.NDArray[np.float32]]


def initial_adapter(
    manifest: AdapterManifest, seed: int, given: Values | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """First values of all parameters, float32, sorted by name.

    `given` are the checkpoint's values of parameters whose spec says so. Raises ProtocolError
    where one of them is missing or of another shape.
    """
    return {
        spec.name: _given(spec, given or {}) if spec.init == "given" else _draw(spec, seed)
        for spec in sorted(manifest.parameters, key=lambda spec: spec.name)
    }


def check_given(manifest: AdapterManifest, given: Values) -> None:
    """Raise ProtocolError unless `given` are the finite values that a manifest says it gives."""
    wanted = {spec.name: spec for spec in manifest.parameters if spec.init == "given"}
    if odd := sorted(set(given).difference(wanted)):
        raise ProtocolError(f"{odd[0]} was sent, and the checkpoint has no such tensor")
    for name, spec in wanted.items():
        if not np.isfinite(_given(spec, given)).all():
            raise ProtocolError(f"the checkpoint's {name} is not finite")


def fresh_lora(
    shapes: Mapping[str, tuple[int, ...]], seed: int, round_: int
) -> dict[str, npt.NDArray[np.float32]]:
    """LoRA that a round begins with: A keyed by (seed, round, name), B zero.

    Of two ranks the smaller one's A is the first rows of the larger one's.
    """
    key = derive_seed(seed, round_, "fresh")
    values = {}
    for name, shape in shapes.items():
        if is_lora_a(name):
            values[name] = _draw(ParameterSpec(name, shape, "kaiming", shape[1]), key)
        elif is_lora_b(name):
            values[name] = np.zeros(shape, np.float32)
    return values


def _given(spec: ParameterSpec, given: Values) -> npt.NDArray[np.float32]:
    value = given.get(spec.name)
    if value is None or value.shape != spec.shape:
        raise ProtocolError(f"the checkpoint's {spec.name} {list(spec.shape)} was not sent")
    return np.ascontiguousarray(value, dtype=np.float32)


def _draw(spec: ParameterSpec, seed: int) -> npt.NDArray[np.float32]:
    if spec.init in ("zeros", "ones"):
        return np.full(spec.shape, float(spec.init == "ones"), np.float32)
    key = derive_seed(seed, spec.name, "init")
    generator = np.random.Generator(np.random.Philox(key=key))
    if spec.init == "normal":
        return generator.normal(0.0, NORMAL_STD, spec.shape).astype(np.float32)
    # kaiming_uniform(a=sqrt(5)), PEFT's choice for A: bound = sqrt(6 / ((1 + 5) * fan_in)).
    bound = 1.0 / math.sqrt(spec.fan_in)
    return generator.uniform(-bound, bound, spec.shape).astype(np.float32)
