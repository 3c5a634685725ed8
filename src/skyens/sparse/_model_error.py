"""What a model lacks, from pairs of states: a regression on candidate terms."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree

from skyens.sparse._library import Library
from skyens.sparse._quadratures import TRAPEZOID, Quadrature

Coefficients = Float[Array, "*of term"] | np.ndarray


class ModelErrorPairs(eqx.Module):
    """A regression for what a model lacks: `values = matrix @ coefficients`."""

    columns: PyTree[Float[Array, "..."]]  # (pair, term, *state) for each leaf
    target: PyTree[Float[Array, "..."]]  # (pair, *state): error per unit of time

    def of(self, select: Callable[[PyTree], PyTree]) -> "ModelErrorPairs":
        """Return the regression of a part of the state.

        `select(state)` says which: one layer (`lambda state: state[0]`), each with
        coefficients of its own, or what is far enough from a boundary.
        """
        every = jax.vmap(jax.vmap(select))
        return ModelErrorPairs(every(self.columns), jax.vmap(select)(self.target))

    @property
    def matrix(self) -> Float[Array, "row term"]:
        """All rows of the regression, for `compress`."""
        leaves = jax.tree.leaves(self.columns)
        last = [jnp.moveaxis(leaf, 1, -1) for leaf in leaves]
        return jnp.concatenate([leaf.reshape(-1, leaf.shape[-1]) for leaf in last])

    @property
    def values(self) -> Float[Array, " row"]:
        """What the rows should sum to, for `compress`."""
        return jnp.concatenate(
            [jnp.ravel(leaf) for leaf in jax.tree.leaves(self.target)]
        )


def model_error_pairs(
    step: Callable,
    before: PyTree,
    after: PyTree,
    library: Library,
    *,
    dt: ArrayLike,
    quadrature: Quadrature = TRAPEZOID,
    forcings: PyTree = None,
    known: Coefficients | None = None,
    observed: PyTree = None,
) -> ModelErrorPairs:
    """Return the regression for the terms that a model lacks, or has wrong.

    The target is `(after - step(before)) / dt`. Its columns are the library's terms as
    the model itself would have carried them through the step (`quadrature`), so that
    long steps are as good as short ones; and better, where the states are noisy, as
    noise in the target goes with `1 / dt`. Coefficients are those of tendencies: add
    `library.tendency(state, coefficients)` to the right side of the model's equation.

    Residuals of this regression are structured and not white: choose terms by the
    elbow of the backward path rather than by evidence or z.

    What an analysis says of a model's error is biased: an analysis leans on the model
    that made it, by as much as its observations are in error. So make it with the best
    model there is, that of an earlier fit for one, and give what was `observed` too:
    the target is then of the observations, the columns are still of the analyses.

    The regression asks what the model makes of true states, and the model must bear
    them for a step. Without the fourth derivative of the Kuramoto-Sivashinsky equation
    a wave k grows as `exp(k^2 dt)`. In steps of 0.01 the missing term is found all the
    same, in steps of 0.1 to some percent and by `Trapezoid` only (the state that
    `Simpson` takes for the middle is none of nature's), and in steps of 0.5 the model
    overflows. With a rough damping of 0.3 it is found in all of these.

    Args:
        step: `step(state, forcing=None, *, key=None) -> state`, the model over `dt`.
        before: states, stacked on a leading axis of pairs.
        after: states of the truth (analyses) `dt` later, each of the same pair.
        library: the candidate terms, each with tendencies like the state.
        dt: the length of the step, the same for all pairs.
        quadrature: `Endpoint()`, `Trapezoid()` or `Simpson(half_step)`, the best one
            where the model can take half a step.
        forcings: what the world prescribes in each pair, stacked as the states are.
        known: coefficients of an earlier fit, which improve the state in the middle of
            `Simpson`'s steps.
        observed: the states after the steps as they were observed, like `after`, with
            errors that neither `before` nor `after` know much of. NaN where there is
            no observation, for `compress(..., drop_missing=True)`.

    Raises:
        ValueError: `before` and `after` differ in structure or shape, have no pairs,
            `observed` differs from them, or `dt` is not one positive number.
        EquinoxRuntimeError: terms are not finite where the states are (looked for where
            the values are known; under tracing they go into the columns), or two half
            steps are no step.

    Source: Mojgani et al. (2022), Chaos 32, 061105, for the regression; Alekseev (1961)
    and Groebner (1960) for the columns.
    """
    dt = check_pairs(before, after, dt)
    if observed is None:
        observed = after
    else:
        check_pairs(observed, after, dt, names=("observed", "after"))
    states = before, after, observed
    found = _pairs(step, states, library, dt, quadrature, forcings, known)
    return _check_terms(found, library)


@eqx.filter_jit
def _pairs(step, states, library, dt, quadrature, forcings, known):
    lacks = None if known is None else Tendency(library, jnp.asarray(known))

    def of_pair(states, forcing):
        before, after, observed = states
        bind = lambda step: lambda state: step(state, forcing)
        # First, so that it is the model that finds fault with a state that is none.
        end = bind(step)(before)
        columns = quadrature.columns(
            bind, step, before, after, library.fields, dt, lacks
        )
        off = lambda truth, model: (truth - model) / dt
        return columns, jax.tree.map(off, observed, end)

    return ModelErrorPairs(*jax.vmap(of_pair)(states, forcings))


class Tendency(eqx.Module):
    """The library's terms, summed; coefficients as `CorrectedStep` takes them."""

    library: Library
    coefficients: Array

    def __call__(self, state):
        """Return what the model lacks in this state."""

        def total(fields):
            own = jnp.moveaxis(self.coefficients.astype(fields.dtype), -1, 0)
            between = (1,) * (fields.ndim - own.ndim)
            return jnp.sum(own.reshape(*own.shape, *between) * fields, axis=0)

        return jax.tree.map(total, self.library.fields(state))


def check_step(dt) -> float:
    """Return the one length of a step, checked."""
    if np.ndim(dt) or not 0 < dt < np.inf:
        raise ValueError(
            "`dt` must be one positive number: all pairs are one step of the model "
            "apart. Make a regression for each length of the step and add the "
            f"problems; got {dt}."
        )
    return float(dt)


def check_pairs(before, after, dt, *, names=("before", "after")) -> float:
    """Check that states before and after a step belong together; return its length."""
    start, end = names
    first, last = jax.tree.structure(before), jax.tree.structure(after)
    if first != last:
        raise ValueError(
            f"`{start}` and `{end}` must be states of one structure, got {first} and "
            f"{last}."
        )
    shapes = [
        (jnp.shape(a), jnp.shape(b))
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]
    pairs = {shape[0] if shape else 0 for both in shapes for shape in both}
    if any(a != b for a, b in shapes) or len(pairs) != 1 or 0 in pairs:
        raise ValueError(
            f"`{start}` and `{end}` must agree in shape and lie on one leading axis of "
            f"at least one pair, got ({start}, {end}) of {shapes}."
        )
    return check_step(dt)


def _check_terms(found, library):
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(found)):
        return found
    rows = np.isfinite(np.asarray(found.values))
    wrong = np.sum(~np.isfinite(np.asarray(found.matrix)[rows]), axis=0)
    if not wrong.any():
        return found
    named = zip(library.names, wrong, strict=True)
    told = ", ".join(f"{name} ({many} rows)" for name, many in named if many)
    message = f"`library` has terms that are not finite where the states are: {told}."
    return eqx.error_if(found, np.asarray(True), message)
