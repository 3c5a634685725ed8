"""Functions as pytrees, so that whatever holds them passes through `jax.jit`."""

from collections.abc import Callable

import jax


def as_pytree(function: Callable) -> Callable:
    """Return a callable that `jax.jit` takes and returns, which no bare function is."""
    bare = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if bare else function
