"""`python -m sfl.cli.doctor.quantised_child`: a line of JSON for each product that was tried.

Apart from its parent, since a library that does not fit this machine ends the whole process.
"""

from __future__ import annotations

import json
import sys
from typing import Any, get_args

from sfl.config.node import Quantised

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
        for kind in get_args(Quantised):
            if kind != "none":
                _try(kind, device)


def _try(kind: Quantised, device: str) -> None:
    """A product with a layer as a node would hold it, against the exact weights."""
    import torch

    from sfl.models.quantised import QuantisedLinear

    generator = torch.Generator().manual_seed(0)
    num_rows, num_inputs, num_outputs = SHAPE
    rows = torch.randn(num_rows, num_inputs, generator=generator)
    weight = torch.randn(num_outputs, num_inputs, generator=generator)
    exact = rows @ weight.T
    try:
        layer = QuantisedLinear(num_inputs, num_outputs, kind)
        layer.quantise(weight)
        product = layer.to(device)(rows.to(device)).float().cpu()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        _say(kind=kind, device=device, error=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    _say(kind=kind, device=device, relative_error=float((product - exact).norm() / exact.norm()))


def _say(**result: Any) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
