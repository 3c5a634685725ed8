"""A model with what it lacked, and its coefficients refined through the model."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from skyens.sparse._library import Library
from skyens.sparse._model_error import (
    Coefficients,
    Tendency,
    check_pairs,
    check_step,
)
from skyens.sparse._quadratures import TRAPEZOID, Quadrature


class CorrectedStep(eqx.Module):
    """A step with what its model lacks, a step itself.

    It solves the model's equation with `library.tendency(state, coefficients)` added,
    by the quadrature's own rule: of first order in `dt` with `Endpoint`, of second with
    `Trapezoid` and of third with `Simpson`. A call steps the model, its derivative and
    the library a few times. Its coefficients are a leaf to train.

    What is added is explicit: stable where `dt` times the terms' own fastest rate is
    about 1, whatever the model's scheme. Terms are of the equation, so a shorter step
    of the same model may have them; a stiff one belongs into the model's own scheme.
    """

    step: Callable
    library: Library
    coefficients: Float[Array, "*of term"]
    quadrature: Quadrature
    dt: float = eqx.field(static=True)

    def __init__(
        self,
        step: Callable,
        library: Library,
        coefficients: Coefficients,
        *,
        dt: ArrayLike,
        quadrature: Quadrature = TRAPEZOID,
    ):
        """Set model and error.

        Args:
            step: `step(state, forcing=None, *, key=None)`, the model over `dt`.
            library: the candidate terms, as `model_error_pairs` takes them.
            coefficients: one for each term; or `(*of, term)`, where the leading axes
                are the state's first ones, such as its layers.
            dt: the length of the step.
            quadrature: `Endpoint()`, `Trapezoid()` or `Simpson(half_step)`.

        Raises:
            ValueError: `dt` is not one positive number.
        """
        self.step, self.library, self.quadrature = step, library, quadrature
        self.coefficients = jnp.asarray(coefficients)
        self.dt = check_step(dt)

    def __call__(
        self,
        state: PyTree,
        forcing: PyTree = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> PyTree:
        """Return the state `dt` later, in its dtype."""
        lacks = Tendency(self.library, self.coefficients)
        bind = lambda step: lambda state: step(state, forcing, key=key)
        return self.quadrature.advance(bind, self.step, state, lacks, self.dt)


class RefinedError(eqx.Module):
    """What `refine` found."""

    coefficients: Float[Array, "*of term"]
    residual_before: Float[Array, ""]  # rms of the steps' errors over `dt`
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


def refine(
    step: Callable,
    before: PyTree,
    after: PyTree,
    library: Library,
    coefficients: Coefficients,
    *,
    dt: ArrayLike,
    quadrature: Quadrature = TRAPEZOID,
    forcings: PyTree = None,
    steps: int = 20,
) -> RefinedError:
    """Return coefficients for which the corrected step itself fits the pairs.

    Least squares of `corrected(before) - after` by the method of Levenberg and
    Marquardt, a damped Gauss-Newton; coefficients that are 0 stay so, and the others
    are varied in units of what they were. Arguments are those of `model_error_pairs`.

    Args:
        step: the model over `dt`.
        before: states, stacked on a leading axis of pairs.
        after: states of the truth `dt` later.
        library: the candidate terms.
        coefficients: where to start, as `CorrectedStep` takes them.
        dt: the length of the step.
        quadrature: by which the corrected step is made.
        forcings: what the world prescribes in each pair.
        steps: how many steps of the minimiser at most; `converged` says whether they
            were enough.

    Raises:
        ValueError: as `model_error_pairs`, or `steps` is below 1.
    """
    dt = check_pairs(before, after, dt)
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    start = jnp.asarray(coefficients)

    def residuals(relative, _):
        corrected = CorrectedStep(
            step, library, start * (1 + relative), dt=dt, quadrature=quadrature
        )
        found = jax.vmap(corrected)(before, forcings)
        off = jax.tree.map(lambda a, b: jnp.ravel(a - b) / dt, found, after)
        off = jnp.concatenate(jax.tree.leaves(off))
        return off / jnp.sqrt(jnp.asarray(off.size, off.dtype))

    size = lambda relative: jnp.sqrt(jnp.sum(residuals(relative, None) ** 2))
    initial = jnp.zeros_like(start)
    tolerance = float(jnp.finfo(start.dtype).eps) ** 0.5
    solution = optx.least_squares(
        residuals,
        optx.LevenbergMarquardt(rtol=tolerance, atol=tolerance),
        initial,
        options={"jac": "fwd"},  # few coefficients, many residuals
        max_steps=steps,
        throw=False,
    )
    return RefinedError(
        coefficients=start * (1 + solution.value),
        residual_before=size(initial),
        residual=size(solution.value),
        steps=jnp.asarray(solution.stats["num_steps"]),
        converged=solution.result == optx.RESULTS.successful,
    )
