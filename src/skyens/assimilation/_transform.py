"""The transform that square-root filters share, and the gain of perturbed ones.

For N members with whitened predicted anomalies Y, `(member, observation)`, and the
whitened innovation d, let `C = (N - 1) I + Y Y'`. The analysis ensemble is the mean
plus `(w + T) A`, A the background's anomalies, every row of w the same, with

    w = C^-1 Y d,    T = (N - 1)^1/2 C^-1/2.

Sources: Bishop et al. (2001), Mon. Wea. Rev. 129, 420-436; Hunt et al. (2007),
Physica D 230, 112-126.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from skyens.assimilation._ensemble import matmul
from skyens.assimilation._square_root import inverse_root

Anomalies = Float[Array, "member observation"]
Decomposition = tuple[
    Float[Array, "member rank"], Float[Array, "rank"], Float[Array, "observation rank"]
]
# How to take functions of C; None for products of matrices while they are accurate.
Decompose = Callable[[Anomalies], Decomposition] | None


def svd(anomalies: Anomalies) -> Decomposition:
    """Return U, s and V s of the thin decomposition `Y = U s V'`.

    It is accurate however precise the observations are, in float32 too.
    """
    u, s, v = jnp.linalg.svd(anomalies, full_matrices=False)
    return u, s, v.T * s[None, :]


def gram(anomalies: Anomalies) -> Decomposition:
    """Return U, s and V s by the smaller of the matrices `Y Y'` and `Y'Y`.

    It is two to four times faster than `svd`, and squares the condition: errors of the
    analysis are near `eps * s**2 / members`. Good where the spread of the predictions
    is not hundreds of times the observation error.
    """
    if anomalies.shape[0] <= anomalies.shape[1]:
        square, u = jnp.linalg.eigh(matmul(anomalies, anomalies.T))
        s = _root(jnp.maximum(square, 0))
        return u, s, matmul(anomalies.T, u)
    _, v = jnp.linalg.eigh(matmul(anomalies.T, anomalies))
    scaled = matmul(anomalies, v)
    s = _root(jnp.sum(scaled**2, axis=0))
    return scaled / jnp.where(s > 0, s, 1)[None, :], s, v * s[None, :]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def transform(
    anomalies: Anomalies,
    innovation: Float[Array, "observation"],
    decompose: Decompose,
) -> tuple[Float[Array, "member"], Float[Array, "member member"]]:
    """Return the weights w of the mean and `T - I`.

    Its derivative is that of the symmetric functions of C (Daleckii and Krein), which
    exists where singular vectors have none: with fewer observations than members,
    equal members, everything masked. It is meant to be differentiated once.
    """
    if decompose is not None:
        return _functions(*decompose(anomalies), innovation)
    spread = len(anomalies) - 1
    square = matmul(anomalies, anomalies.T) / spread
    identity = jnp.eye(len(anomalies), dtype=square.dtype)
    root = inverse_root(identity + square)
    right = matmul(anomalies, innovation) / spread
    return where_accurate(
        square,
        (matmul(root, matmul(root, right)), root - identity),
        lambda anomalies: _functions(*svd(anomalies), innovation),
        anomalies,
    )


@transform.defjvp
def transform_jvp(decompose, primals, tangents):
    """Return what `transform` does, and its derivative along the tangents."""
    (y, d), (dy, dd) = primals, tangents
    u, s, scaled = (decompose or svd)(y)
    spread = y.shape[0] - 1
    eigenvalue = spread + s**2
    weights, change = _functions(u, s, scaled, d)
    # dw = C^-1 dY (d - Y'w) + C^-1 Y (dd - dY'w), where C^-1 Y needs no difference
    right = matmul(dy, d - matmul(weights, y))
    inside = matmul(u.T, right) * (1 / eigenvalue - 1 / spread)
    seen = matmul(scaled.T, dd - matmul(weights, dy)) / eigenvalue
    dweights = right / spread + matmul(u, inside + seen)
    # dT in the basis U (block `inner`) and between it and its complement, where C is
    # the constant N - 1 (block `outer`).
    moved = matmul(dy, scaled)
    inner = matmul(u.T, moved)
    outer = moved - matmul(u, inner)
    root, base = jnp.sqrt(eigenvalue), spread**0.5
    i, j = root[:, None], root[None, :]
    inner = (inner + inner.T) * (-base / (i * j * (i + j)))
    half = matmul(outer / (-root * (root + base))[None, :], u.T)
    return (weights, change), (
        dweights,
        matmul(matmul(u, inner), u.T) + half + half.T,
    )


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def gain(anomalies: Anomalies, decompose: Decompose) -> Anomalies:
    """Return `K = C^-1 Y`, which takes whitened innovations to weights.

    Its derivative exists wherever that of `transform` does.
    """
    if decompose is not None:
        return _gain(*decompose(anomalies), anomalies)
    spread = len(anomalies) - 1
    square = matmul(anomalies, anomalies.T) / spread
    identity = jnp.eye(len(anomalies), dtype=square.dtype)
    factor = jnp.linalg.cholesky(identity + square)
    inverse = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
    inverse = matmul(inverse.T, inverse) / spread
    return where_accurate(
        square,
        matmul(inverse, anomalies),
        lambda anomalies: _gain(*svd(anomalies), anomalies),
        anomalies,
    )


@gain.defjvp
def _gain_jvp(decompose, primals, tangents):
    (y,), (dy,) = primals, tangents
    u, s, scaled = (decompose or svd)(y)
    k = _gain(u, s, scaled, y)
    # dK = C^-1 dY (I - Y'K) - C^-1 Y dY'K, where C^-1 Y needs no difference
    spread = len(y) - 1
    eigenvalue = (spread + s**2)[:, None]
    right = dy - matmul(dy, matmul(y.T, k))
    inside = matmul(u.T, right) * (1 / eigenvalue - 1 / spread)
    seen = matmul(scaled.T, matmul(dy.T, k)) / eigenvalue
    return k, right / spread + matmul(u, inside - seen)


def mean_weights(
    anomalies: Anomalies, innovation: Float[Array, "observation"]
) -> Float[Array, "member"]:
    """Return the weights w of the mean alone, by Cholesky's factor of C."""
    identity = jnp.eye(len(anomalies), dtype=anomalies.dtype)
    square = (len(anomalies) - 1) * identity + matmul(anomalies, anomalies.T)
    right = matmul(anomalies, innovation)
    return jax.scipy.linalg.solve(square, right, assume_a="pos")


def accurate(square: Float[Array, "*batch member member"]) -> Bool[Array, ""]:
    """Return whether products of `I + square` may take the place of decompositions.

    They square the condition of the anomalies. What they may lose is kept below
    `eps**(3/4)`, 7e-6 in float32 and 2e-12 in float64, in all of a batch.
    """
    largest = jnp.sqrt(jnp.max(jnp.sum(square**2, axis=(-2, -1)), initial=0))
    return ~(largest > jnp.finfo(square.dtype).eps ** -0.25)  # NaN stays NaN


def where_accurate(
    square: Float[Array, "*batch member member"],
    products: PyTree[Array],
    exact: Callable[..., PyTree[Array]],
    *inputs: Array,
) -> PyTree[Array]:
    """Return what `products` gave for `I + square`, or else `exact(*inputs)`."""

    def body(carry):
        # Tied to what the loop changes, or the compiler would compute it before.
        tied, _ = jax.lax.optimization_barrier((inputs, carry[0]))
        return jnp.ones_like(carry[0]), exact(*tied)

    # A loop of one pass at most: unlike `cond`, a batch runs it only if one needs it.
    start = accurate(square), products
    return jax.lax.while_loop(lambda carry: ~carry[0], body, start)[1]


def _gain(u, s, scaled, anomalies):
    """`U s / (N - 1 + s^2) V'`; `anomalies` tell the number of members."""
    factor = 1 / (len(anomalies) - 1 + s**2)
    return matmul(u * factor[None, :], scaled.T)


def _functions(u, s, scaled, innovation):
    """Weights w and `T - I`.

    `Y d` is taken as `U (V s)' d`: where a singular value is nothing but rounding, so
    is the direction of its column of U, and only the s keeps it out.
    """
    spread = u.shape[0] - 1
    weights = matmul(u, matmul(scaled.T, innovation) / (spread + s**2))
    # sqrt(spread / (spread + s^2)) - 1, without cancellation
    root = jnp.sqrt(spread + s**2)
    shrinkage = -(s**2) / (root * (root + spread**0.5))
    return weights, matmul(u * shrinkage[None, :], u.T)


def _root(square: Array) -> Array:
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
