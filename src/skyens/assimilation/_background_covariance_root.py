"""The symmetric root of a covariance matrix, with a derivative that always exists."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.assimilation._ensemble import matmul


@jax.custom_jvp
def symmetric_root(matrix: Float[Array, "size size"]) -> Float[Array, "size size"]:
    """Return the symmetric positive semidefinite S with `S S = matrix`.

    Eigenvalues that are rounding, or negative, count as 0. The derivative is that of
    Daleckii and Krein, which exists where eigenvectors have none (equal eigenvalues);
    it is 0 along directions of no variance, where the root has no derivative.
    """
    return _decompose(matrix)[2]


@symmetric_root.defjvp
def _symmetric_root_jvp(primals, tangents):
    (matrix,), (change,) = primals, tangents
    vectors, roots, root = _decompose(matrix)
    change = (change + change.T) / 2
    inner = matmul(matmul(vectors.T, change), vectors)
    both = roots[:, None] + roots[None, :]
    inner = jnp.where(both > 0, inner / jnp.where(both > 0, both, 1), 0)
    return root, matmul(matmul(vectors, inner), vectors.T)


def _decompose(matrix):
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    noise = len(values) * float(jnp.finfo(matrix.dtype).eps) * jnp.max(jnp.abs(values))
    kept = values > noise
    roots = jnp.where(kept, jnp.sqrt(jnp.where(kept, values, 1)), 0)
    return vectors, roots, matmul(vectors * roots[None, :], vectors.T)
