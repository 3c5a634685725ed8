"""How sure a sparse answer is: bootstraps and stability selection."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Bool, Float, Key, PyTree

from skyens.sparse._compress import (
    SparseProblem,
    gram_and_condition,
    upper_triangle,
)


def bootstrap(
    library_matrix: Float[Array, "row term"],
    target: Float[Array, "_"],
    fit: Callable[[SparseProblem], PyTree[Array]],
    *,
    resamples: int = 64,
    block: int = 1,
    key: Key[Array, ""] | None = None,
) -> PyTree[Array]:
    """Return fits to rows drawn with replacement, along a leading axis.

    Args:
        library_matrix: one column for each candidate term; finite.
        target: what they are to explain; finite.
        fit: what to do with a problem, such as `lambda p: rvm(p).mean`.
        resamples: how many fits.
        block: how many rows in succession are drawn together, where errors are
            correlated along rows; it divides their number.
        key: for the draws.

    Raises:
        ValueError: `key` is missing, `resamples` is not positive, or `block` does not
            divide the rows.
    """
    keys, blocks = _check(library_matrix, target, resamples, block, key)
    draw = lambda key: jnp.bincount(
        jr.randint(key, (blocks,), 0, blocks), length=blocks
    )
    counts = jax.vmap(draw)(keys)
    return _fits(library_matrix, target, counts, block, fit)


def stability_selection(
    library_matrix: Float[Array, "row term"],
    target: Float[Array, "_"],
    select: Callable[[SparseProblem], Bool[Array, "term"]],
    *,
    resamples: int = 64,
    block: int = 1,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "term"]:
    """Return how often each term is selected from a random half of the rows.

    Terms selected in more than 0.9 of the halves are stable.

    Args:
        library_matrix: one column for each candidate term; finite.
        target: what they are to explain; finite.
        select: the rule, such as `lambda p: abs(rvm(p).z) > 4`.
        resamples: how many halves.
        block: how many rows in succession stay together; it divides their number.
        key: for the draws.

    Raises:
        ValueError: `key` is missing, `resamples` is not positive, or `block` does not
            divide the rows.

    Source: Meinshausen & Buehlmann (2010), J. R. Stat. Soc. B 72, 417-473.
    """
    keys, blocks = _check(library_matrix, target, resamples, block, key)
    halves = lambda key: (jr.permutation(key, blocks) < (blocks + 1) // 2).astype(int)
    counts = jax.vmap(halves)(keys)
    chosen = _fits(library_matrix, target, counts, block, select)
    return jnp.mean(chosen.astype(target.dtype), axis=0)


def _fits(library_matrix, target, counts, block, fit):
    table = jnp.concatenate([library_matrix, target[:, None]], axis=1)
    scale = jnp.max(jnp.abs(table), axis=0)
    scale = jnp.where(scale > 0, scale, 1)
    table = table / scale[None]
    weights = jnp.repeat(counts, block, axis=1).astype(table.dtype)
    rows = jnp.sum(weights, axis=1)
    _, condition = gram_and_condition(table)
    # A resample is conditioned a little worse than the whole.
    fine = condition * jnp.finfo(table.dtype).eps ** 0.5 < 1e-3

    def by_gram(weight):
        return jnp.linalg.cholesky((table * weight[:, None]).T @ table).T

    by_qr = lambda weight: upper_triangle(table * jnp.sqrt(weight)[:, None])

    # One branch for all of them: inside of `vmap` both would run.
    triangles = lax.cond(
        fine, lambda w: lax.map(by_gram, w), lambda w: lax.map(by_qr, w), weights
    )
    triangles = triangles * scale[None, None]

    def one(upper, count):
        zero = jnp.zeros_like(count)
        problem = SparseProblem(
            upper[:-1, :-1], upper[:-1, -1], upper[-1, -1] ** 2, count, zero, None
        )
        return fit(problem)

    return jax.vmap(one)(triangles, rows)


def _check(library_matrix, target, resamples, block, key):
    if key is None:
        raise ValueError("resampling draws rows: `key` must be given.")
    if resamples < 1:
        raise ValueError(f"`resamples` must be positive, got {resamples}.")
    rows = len(library_matrix)
    if target.shape != (rows,):
        raise ValueError(
            f"`target` must have one entry for each of {rows} rows, got {target.shape}."
        )
    if block < 1 or rows % block:
        raise ValueError(f"`block` must divide the {rows} rows, got {block}.")
    return jr.split(key, resamples), rows // block
