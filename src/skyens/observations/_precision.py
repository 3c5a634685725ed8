"""The dtype to compute residuals in."""

import jax.numpy as jnp
import numpy as np


def wide(dtype: np.dtype) -> np.dtype:
    """Return `dtype`, or float32 for the 16-bit ones.

    A difference of two bfloat16 near 54,000 m2 s-2 is a multiple of 256, and LAPACK
    knows no 16-bit numbers.
    """
    return dtype if jnp.finfo(dtype).bits >= 32 else np.dtype(np.float32)
