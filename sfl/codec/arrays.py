"""Types of the arrays that codecs pass on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint16]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
