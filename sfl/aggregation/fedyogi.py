"""FedYogi: FedAdam that forgets large gradients slowly (Reddi et al., 2003.00295, alg. 2)."""

from __future__ import annotations

import numpy as np

from sfl.aggregation.contribution import Array
from sfl.aggregation.fedadam import FedAdam


class FedYogi(FedAdam):
    """`v = v - (1 - b2) g^2 sign(v - g^2)`: v moves by what is added, not by a share of itself.

    The rest, state and memory are FedAdam's.
    """

    def _second_moment(self, v: Array, squared: Array) -> Array:
        moved: Array = v - (1.0 - self.betas[1]) * squared * np.sign(v - squared)
        return moved
