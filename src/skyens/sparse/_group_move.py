"""The best change of one group of terms, which share one prior variance."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from skyens.sparse._ascent import tolerance
from skyens.sparse._evidence import Statistics, System


def group_move(
    system: System,
    same: Float[Array, "term term"],
    ratio: Float[Array, "term"],
    now: Statistics,
    enabled,
) -> tuple[Float[Array, "term"], Int[Array, ""]]:
    """Return the ratios after the best change of one group, and 1, or 0 if none gains.

    A ratio changed by d in one group multiplies the determinant by that of `I + d B`
    and takes `d q^T (I + d B)^-1 q` from the misfit, B and q being the group's parts of
    bend and pull. The eigenvalues of B make both a sum. Ratios are tried at powers of
    two; Newton steps find what lies between.
    """
    terms = len(ratio)
    finfo = jnp.finfo(ratio.dtype)
    bend = jnp.where(same > 0, now.bend, 0)
    # Eigenvectors stay within their group if each group's eigenvalues are its own.
    apart = 2 * jnp.max(jnp.sum(jnp.abs(bend), axis=1)) + finfo.eps
    group = jnp.argmax(same, axis=1)
    shift = apart * group.astype(ratio.dtype)
    values, vectors = jnp.linalg.eigh(bend + jnp.diag(shift))
    home = group[jnp.argmax(jnp.abs(vectors), axis=0)]
    values = jnp.maximum(values - shift[home], 0)
    pulled = (vectors.T @ now.pull) ** 2
    first, last = -8, round(-2 * math.log2(finfo.eps))
    tries = jnp.exp2(jnp.arange(first, last).astype(ratio.dtype))
    tries = jnp.append(jnp.zeros_like(tries, shape=(1,)), tries)[:, None]
    old = ratio[home][None]
    change = tries - old
    # Not below what is left of a term that the data determine wholly.
    growth = jnp.maximum(1 + change * values[None], finfo.eps)
    members = (home[:, None] == jnp.arange(terms)[None]).astype(ratio.dtype)
    total = lambda parts: parts @ members  # over each group, at its first term
    explained = total(change * pulled[None] / growth)
    if system.variance is None:
        least = jnp.maximum(1 - explained / now.misfit, finfo.eps**2)
        fit = -0.5 * system.rows * jnp.log(least)
    else:
        fit = 0.5 * explained / system.variance
    gain = fit - 0.5 * total(jnp.log(growth))
    best = jnp.argmax(jnp.max(gain, axis=0))
    height = jnp.argmax(gain[:, best])
    better = enabled & (gain[height, best] >= tolerance(system))
    new = jnp.where(same[best] > 0, tries[height, 0], ratio)
    return jnp.where(better, new, ratio), better.astype(int)
