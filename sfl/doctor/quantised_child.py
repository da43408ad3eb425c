"""`python -m sfl.doctor.quantised_child`: a line of JSON for each product that was tried.

Apart from its parent, since a library that does not fit this machine ends the whole process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

SHAPE = (64, 256, 512)  # rows, inputs, outputs


def main() -> None:
    """Try everything in turn; each result is out before the next may crash."""
    import torch

    try:
        import bitsandbytes
    except ModuleNotFoundError as error:
        if error.name != "bitsandbytes":
            raise
        _say(missing=True)
        return
    _say(version=str(getattr(bitsandbytes, "__version__", "of unknown version")))
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for kind, multiply in (("nf4", _nf4), ("int8", _int8)):
            _try(kind, device, multiply)


def _try(kind: str, device: str, multiply: Callable[[Any, Any], Any]) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    num_rows, num_inputs, num_outputs = SHAPE
    rows = torch.randn(num_rows, num_inputs, generator=generator)
    weight = torch.randn(num_outputs, num_inputs, generator=generator)
    exact = rows @ weight.T
    try:
        product = multiply(rows.to(device), weight.to(device)).float().cpu()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        _say(kind=kind, device=device, error=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    _say(kind=kind, device=device, relative_error=float((product - exact).norm() / exact.norm()))


def _nf4(rows: Any, weight: Any) -> Any:
    import bitsandbytes

    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    return bitsandbytes.matmul_4bit(rows, packed.t(), state)


def _int8(rows: Any, weight: Any) -> Any:
    from bitsandbytes import functional

    coded, scales, _ = functional.int8_vectorwise_quant(rows.half())
    weight_coded, weight_scales, _ = functional.int8_vectorwise_quant(weight.half())
    product = functional.int8_linear_matmul(coded, weight_coded)
    return functional.int8_mm_dequant(product, scales, weight_scales)


def _say(**result: Any) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
