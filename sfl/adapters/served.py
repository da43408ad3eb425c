"""An adapter in PEFT's format that is to be served beside others, whoever has trained it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfl.adapters.artifact import WEIGHTS, load_adapter
from sfl.adapters.lora import Adapter, LoraBank
from sfl.adapters.names import PREFIX, belongs_to, is_lora_a, is_lora_b
from sfl.errors import ModelError, ProtocolError
from sfl.plan import Span

Values = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """Its values by PEFT's names, what B A is multiplied by, and what tells it from another."""

    values: Values
    scaling: float
    digest: str

    @property
    def target_modules(self) -> tuple[str, ...]:
        """Layers that it changes, by the last part of their names."""
        return tuple(sorted({name.split(".")[-3] for name in self.values if is_lora_a(name)}))

    def part(self, spans: tuple[Span, ...]) -> dict[str, npt.NDArray[Any]]:
        """What of it belongs to some blocks."""
        return {
            name: value
            for name, value in self.values.items()
            if any(belongs_to(name, span) for span in spans)
        }


def open_served(folder: Path) -> ServedAdapter:
    """Read a PEFT folder. Raises ModelError for what is no plain LoRA of linear layers."""
    values, config = load_adapter(folder)
    if (problem := _problem(values, config)) is not None:
        raise ModelError("serve.adapters", str(folder), problem, "Serve a plain LoRA.")
    scaling = config["lora_alpha"] / (
        math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    )
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes() + f"{scaling}".encode()).hexdigest()
    return ServedAdapter(values, scaling, digest)


def _problem(values: Values, config: Mapping[str, Any]) -> str | None:
    if not isinstance(config, Mapping):
        return "its adapter_config.json is not a table"
    if (
        config.get("peft_type") != "LORA"
        or config.get("use_dora")
        or config.get("alora_invocation_tokens")
    ):
        return "it is not a LoRA"
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return "its layers have several ranks or alphas"
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        return "its adapter_config.json has no r and lora_alpha"
    if rank < 1 or not math.isfinite(alpha):
        return f"its adapter_config.json has r = {rank} and lora_alpha = {alpha}"
    strange = [
        name
        for name, value in values.items()
        if not name.startswith(PREFIX) or not (is_lora_a(name) or is_lora_b(name))
    ]
    if strange or not values:
        return f"{strange[0]} is trained whole" if strange else "it has no values"
    if not all(np.isfinite(value).all() for value in values.values()):
        return "it holds NaN or infinite values"
    return None


def place(bank: LoraBank, name: str, span: Span, values: Values, scaling: float) -> Adapter:
    """The part of an adapter over a span, in its layers. Raises ProtocolError where it does not
    fit."""
    own = {key: value for key, value in values.items() if belongs_to(key, span)}
    ranks = {value.shape[0] for key, value in own.items() if is_lora_a(key)}
    if len(ranks) > 1:
        raise ProtocolError(f"adapter {name}: its layers have the ranks {sorted(ranks)}")
    rank = ranks.pop() if ranks else 1
    adapter = bank.add(name, span, rank, names=own.keys(), scaling=scaling)
    try:
        adapter.load(own)
    except ProtocolError as error:
        bank.remove(name)
        raise ProtocolError(f"adapter {name}: {error}") from None
    return adapter
