"""Compression of a regression: n rows become as many as there are terms, once."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int


class SparseProblem(eqx.Module):
    """All that a regression `y = Phi w + noise` needs to know of its rows.

    The sum of squares `|y - Phi w|^2` (weighted) is `|target - factor w|^2 + rest`.
    Problems of the same terms add up: over cycles, shards and streams; `zeros` starts
    a sum.
    """

    factor: Float[Array, "term term"]
    target: Float[Array, "term"]
    rest: Float[Array, ""]  # what no coefficients explain, squared
    rows: Float[Array, ""]  # how many rows of positive weight there are
    log_weights: Float[Array, ""]  # the sum of the weights' logarithms
    names: tuple[str, ...] | None = eqx.field(static=True)

    @classmethod
    def zeros(
        cls,
        terms: int,
        dtype: DTypeLike = float,
        *,
        names: Sequence[str] | None = None,
    ) -> "SparseProblem":
        """Return the problem without rows.

        Raises:
            ValueError: `terms` is not positive, or `names` does not fit.
        """
        if terms < 1:
            raise ValueError(f"`terms` must be positive, got {terms}.")
        names = _check_names(names, terms)
        zero = jnp.zeros((), dtype)
        square = jnp.zeros((terms, terms), dtype)
        return cls(square, jnp.zeros(terms, dtype), zero, zero, zero, names)

    def __add__(self, other: "SparseProblem") -> "SparseProblem":
        """Return the problem of the rows of both.

        Raises:
            ValueError: they have other terms.
        """
        if self.factor.shape != other.factor.shape or self.names != other.names:
            raise ValueError(
                "problems must have the same terms to add up, got "
                f"{self.names or len(self.target)} and "
                f"{other.names or len(other.target)}."
            )
        factor, target, rest = _triangle(
            jnp.concatenate([self._square(), other._square()])
        )
        return SparseProblem(
            factor,
            target,
            rest,
            self.rows + other.rows,
            self.log_weights + other.log_weights,
            self.names,
        )

    @property
    def empty(self) -> Bool[Array, "term"]:
        """Which columns are 0 in every row: their coefficients are 0, unsupported."""
        return jnp.all(self.factor == 0, axis=0)

    def _square(self):
        last = jnp.append(jnp.zeros_like(self.target), jnp.sqrt(self.rest))[None]
        return jnp.concatenate(
            [jnp.concatenate([self.factor, self.target[:, None]], axis=1), last]
        )


def compress(
    library_matrix: Float[Array, "row term"],
    target: Float[Array, "_"],
    weights: Float[Array, "_"] | None = None,
    *,
    names: Sequence[str] | None = None,
    drop_missing: bool = False,
) -> SparseProblem:
    """Return the problem `target = library_matrix w + noise`, its rows compressed.

    The triangle comes from the normal matrix and its Cholesky factor where the measured
    condition number of columns and target together keeps half of the digits of the
    dtype, from a QR factorisation else: in float32, of collinear columns, and where
    nearly no noise is left. Columns may have any scale; those that are 0 everywhere
    are allowed and never found (`problem.empty` tells them), and so is a constant one,
    an intercept. Gradients need columns that are linearly independent.

    Args:
        library_matrix: one column for each candidate term.
        target: what they are to explain.
        weights: the inverse noise variance of each row in relative terms, not
            negative; a row of weight 0 is left out. 1 if None.
        names: of the terms, for messages and prints.
        drop_missing: leave out rows that hold NaN (or infinity) instead of failing.

    Raises:
        ValueError: shapes or names do not fit, or there is no row or term.
        EquinoxRuntimeError: a value is not finite (the first rows are named) and
            `drop_missing` is false, or a weight is negative or not finite; under
            tracing too.
    """
    rows, terms = library_matrix.shape
    if rows == 0 or terms == 0:
        raise ValueError(
            f"`library_matrix` needs rows and terms, its shape is ({rows}, {terms})."
        )
    if target.shape != (rows,) or (weights is not None and weights.shape != (rows,)):
        raise ValueError(
            f"`target` and `weights` must have one entry for each of {rows} rows, got "
            f"{target.shape} and {None if weights is None else weights.shape}."
        )
    names = _check_names(names, terms)
    table = jnp.concatenate([library_matrix, target[:, None]], axis=1)
    count = jnp.asarray(rows, table.dtype)
    log_weights = jnp.zeros((), table.dtype)
    if drop_missing or weights is not None:
        table, count, log_weights = _weighted(table, weights, drop_missing)
    # The largest of a column is NaN or infinite where any of it is.
    size = lax.stop_gradient(jnp.max(jnp.abs(table), axis=0))
    wrong = ~jnp.all(jnp.isfinite(size))
    size = eqx.error_if(size, wrong, _missing(table))
    factor, rest_target, rest = _compressed(table, size)
    return SparseProblem(factor, rest_target, rest, count, log_weights, names)


def _weighted(table, weights, drop_missing: bool):
    """Return the rows times the roots of their weights, their count and log-weights."""
    present = jnp.all(jnp.isfinite(table), axis=1)
    if drop_missing:
        table = jnp.where(present[:, None], table, 0)
    weight = jnp.ones(len(table), table.dtype) if weights is None else weights
    wrong = ~jnp.isfinite(weight) | (weight < 0)
    weight = eqx.error_if(
        weight, jnp.any(wrong), "`weights` must be finite and not negative."
    )
    used = present & (weight > 0)
    safe = jnp.where(used, weight, 1)
    table = table * jnp.where(used, jnp.sqrt(safe), 0)[:, None]
    return table, jnp.sum(used).astype(table.dtype), jnp.sum(jnp.log(safe))


def _compressed(table: Float[Array, "row column"], size: Float[Array, "column"]):
    """Return factor, target and rest of a table whose last column is the target."""
    scale = _powers_of_two(size)
    table = table * (1 / scale)[None]  # exact, and quicker than to divide
    gram, condition = gram_and_condition(table)
    # Squaring costs a relative eps * condition; keep half of the digits, and two more.
    fine = condition * jnp.finfo(table.dtype).eps ** 0.5 < 0.01
    triangle = lax.cond(fine, _cholesky, _qr, (gram, table))
    return _split(triangle * scale[None])


def gram_and_condition(table):
    """Return the normal matrix of a table, and a bound on its condition when scaled."""
    gram = table.T @ table
    size = jnp.sqrt(jnp.diagonal(lax.stop_gradient(gram)))
    size = jnp.where(size > 0, size, 1)
    correlation = lax.stop_gradient(gram) / (size[:, None] * size[None])
    lower = jnp.linalg.cholesky(correlation)
    inverse = lax.linalg.triangular_solve(
        lower, jnp.eye(len(size), dtype=table.dtype), left_side=True, lower=True
    )
    # Of Frobenius norms, above that of the spectrum; NaN where there is no factor.
    norm = lambda square: jnp.sqrt(jnp.sum(square**2))
    return gram, norm(correlation) * norm(inverse.T @ inverse)


def _cholesky(both):
    return jnp.linalg.cholesky(both[0]).T


def _qr(both):
    return upper_triangle(both[1])


def upper_triangle(table: Float[Array, "row column"]) -> Float[Array, "column column"]:
    """Return the triangle of a QR factorisation, square for any number of rows."""
    short = max(table.shape[1] - table.shape[0], 0)
    return jnp.linalg.qr(jnp.pad(table, ((0, short), (0, 0))), mode="r")


def _triangle(table):
    scale = _powers_of_two(jnp.max(jnp.abs(table), axis=0))
    return _split(upper_triangle(table / scale[None]) * scale[None])


def _split(triangle):
    terms = triangle.shape[1] - 1
    return triangle[:terms, :terms], triangle[:terms, terms], triangle[-1, -1] ** 2


def _powers_of_two(size):
    """Return the power of two next to each size: dividing by it loses no digit."""
    size = lax.stop_gradient(size)
    known = jnp.isfinite(size) & (size > 0)
    return jnp.where(known, jnp.exp2(jnp.round(jnp.log2(jnp.where(known, size, 1)))), 1)


def _missing(table) -> str:
    mend = "Mend them, or pass `drop_missing=True` to leave them out."
    if isinstance(table, Tracer):
        return f"`library_matrix` or `target` has rows that are not finite. {mend}"
    rows = np.flatnonzero(~np.isfinite(np.asarray(table)).all(axis=1)).tolist()
    return (
        f"{len(rows)} of {len(table)} rows of `library_matrix` or `target` are not "
        f"finite, the first of them {rows[:5]}. {mend}"
    )


def _check_names(names, terms: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    names = tuple(names)
    if len(names) != terms or len(set(names)) != terms:
        raise ValueError(
            f"`names` must be {terms} different names, one for each column, got "
            f"{len(names)}: {names}."
        )
    return names


def collinear(problem: SparseProblem) -> Int[Array, "term"]:
    """Return the groups of terms whose columns depend on each other linearly.

    Each term gets the number of the first term of its group, its own where it stands
    alone. Within a group the data cannot tell how the coefficients are shared:
    duplicates are such a group. Of fewer rows than terms, where all depend on all, only
    the pairs of parallel columns are reported.
    """
    factor = problem.factor
    terms = len(factor)
    size = jnp.sqrt(jnp.sum(factor**2, axis=0))
    unit = factor / jnp.where(size > 0, size, 1)[None]
    _, singular, rows = jnp.linalg.svd(unit)
    limit = jnp.finfo(factor.dtype).eps * 32 * terms * jnp.max(singular)
    null = jnp.where(singular < limit, 1, 0).astype(factor.dtype)
    shared = jnp.abs((rows.T * null[None]) @ rows) > 1e-3
    # The residue of one column after another: parallel columns leave nothing.
    cosine = unit.T @ unit
    residue = jax.vmap(
        lambda column, share: jnp.sum(
            (unit - column[:, None] * share[None]) ** 2, axis=0
        )
    )(unit.T, cosine)
    parallel = residue < limit**2
    joined = jnp.where(problem.rows < terms, parallel, shared)
    joined = joined & (size > 0)[None] & (size > 0)[:, None]
    joined = joined | jnp.eye(terms, dtype=bool)
    labels = jnp.arange(terms)
    spread = lambda _, labels: jnp.min(jnp.where(joined, labels[None], terms), axis=1)
    return lax.fori_loop(0, terms, spread, labels)
