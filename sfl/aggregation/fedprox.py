"""FedProx: devices that drift apart are held back (Li et al., 1812.06127, eq. 2)."""

from __future__ import annotations

from sfl.aggregation.fedavg import FedAvg


class FedProx(FedAvg):
    """FedAvg in the cloud; device and edge each minimise `loss + mu/2 |w - w_global|^2`.

    Their optimizers add `mu (w - w_global)` to the gradients, value by value, so where the model is
    cut makes no difference (`sfl/stage/optimizer.py`). Memory there: one more copy of the adapter.
    """
