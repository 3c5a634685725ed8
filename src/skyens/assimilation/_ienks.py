"""The iterative ensemble Kalman smoother: Gauss-Newton in the span of the members.

The state at the start of a window is the background's mean plus `w A`, A its anomalies,
and w minimises

    J(w) = |R^-1/2 (y - H(M(x + w A)))|^2 / 2 + z |w|^2 / 2,   z = N - 1,

for N members, M being the model through the window. Each iteration runs the ensemble
`x + (w + T) A`, and its whitened predictions give the innovation d and the anomalies
Y, which `T^-1` takes back to the background's: `Y0 = T^-1 Y`. Then, with
`C = z I + Y0 Y0'`,

    w <- C^-1 Y0 (d + Y0' w),    T <- (N - 1)^1/2 C^-1/2,

the update of an ETKF about another point. What is nonlinear is so met where it matters,
at the analysis.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree, Scalar

from skyens.assimilation._ensemble import (
    Info,
    as_pytree,
    chi_square,
    count_members,
    counts,
    matmul,
    recombine,
    split,
)
from skyens.assimilation._ensemble_window import observe_window
from skyens.assimilation._es_mda import assimilate_in_parts
from skyens.assimilation._global_update import (
    degrees_of_freedom,
    increment_matrix,
    positive_inflation,
    random_turn,
)
from skyens.assimilation._transform import Anomalies, Decomposition, svd, transform
from skyens.observations import Observation


class IEnKS(eqx.Module):
    """Iterative ensemble Kalman smoother, in its transform form.

    A window method: background and analysis stand at the *start* of the window, and
    `observations` is one `Observation` stacked on a leading axis, of which entry i is
    seen `(i + 1) * steps_between` steps later. The lag is the length of the window. In
    `cycle(step, IEnKS(step), ensemble, observe, data, window=L, shift=1)` windows of
    the length L move by one datum, and each datum enters once, at the end of its window
    (Bocquet & Sakov's single data assimilation); with `window=1` it is the iterative
    ensemble Kalman filter. The analysis at the window's end is the forecast from that
    at its start.

    The analysis anomalies are multiplied by `inflation`; where no observation is used
    the background comes back as it is. Where an iteration makes the model blow up the
    analysis is NaN: shorter windows, or `mda`, are safer.

    The model is taken as perfect. A step that draws at random gets the same keys in
    each iteration.

    Sources: Sakov et al. (2012), Mon. Wea. Rev. 140, 1988-2004; Bocquet & Sakov
    (2014), Q. J. R. Meteorol. Soc. 140, 1521-1535; Bocquet & Sakov (2012), Nonlin.
    Processes Geophys. 19, 383-399, and Raanes et al. (2019), Q. J. R. Meteorol. Soc.
    145, 53-75, for the finite size.
    """

    step: Callable[..., Any]
    inflation: Float[Array, ""]
    tolerance: Float[Array, ""]
    xN: Float[Array, ""] | None
    steps_between: int = eqx.field(static=True)
    iterations: int = eqx.field(static=True)
    mda: bool = eqx.field(static=True)
    rotate: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        step: Callable[..., Any],
        inflation: float | Float[Array, ""] = 1.0,
        *,
        steps_between: int = 1,
        iterations: int = 10,
        tolerance: float | Float[Array, ""] = 1e-5,
        xN: float | Float[Array, ""] | None = None,
        mda: bool = False,
        rotate: bool = False,
        where: Callable[[Any], Any] | None = None,
        decompose: Callable[[Anomalies], Decomposition] = svd,
    ):
        """Set the model of the window, and how to iterate.

        Args:
            step: `step(state, forcing=None, *, key=None) -> state`, for one member.
            inflation: factor of the analysis anomalies, dimensionless, above 0.
            steps_between: steps from one observation to the next.
            iterations: at most so many runs of the ensemble through the window.
            tolerance: no more of them once `|dw|^2 < tolerance * members`; 0 for all.
            xN: makes it the finite-size smoother, which finds an inflation of the
                background by itself, as `EnKFN` does: 1 is the theory, larger is surer
                of the ensemble. None for the plain one.
            mda: assimilate the observations `iterations` times with as many times the
                error variance (multiple data assimilation), in place of Gauss-Newton.
            rotate: whether to mix the members at random, which needs a key.
            where: the part of the state to update.
            decompose: `svd` (accurate) or `gram` (fast).

        Raises:
            ValueError: `steps_between` or `iterations` is below 1, or `xN` is
                given together with `mda`.
            EquinoxRuntimeError: `inflation` or `xN` is not above 0, `tolerance` is
                negative.
        """
        sizes = {"steps_between": steps_between, "iterations": iterations}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}.")
        if mda and xN is not None:
            raise ValueError(
                "`mda` has no finite-size form: leave `xN` out, or set mda=False."
            )
        self.step = as_pytree(step)
        self.inflation = positive_inflation(inflation)
        tolerance = jnp.asarray(tolerance, float)
        self.tolerance = eqx.error_if(
            tolerance, ~(tolerance >= 0), "`tolerance` must not be negative."
        )
        self.xN = None
        if xN is not None:
            size = jnp.asarray(xN, float)
            self.xN = eqx.error_if(size, ~(size > 0), "`xN` must be above 0.")
        self.steps_between = steps_between
        self.iterations = iterations
        self.mda = mda
        self.rotate = rotate
        self.where = where
        self.decompose = decompose

    def __call__(
        self,
        background: PyTree[Array],
        observations: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the analysis ensemble at the window's start, and what to say of it.

        The info's consistency is that of the first iteration, of the background; its
        `inflation` is the factor found with `xN`.

        Raises:
            ValueError: the observations are not stacked, there are fewer than two
                members, leaves disagree on their number, or a rotation has no key.
        """
        members = count_members(background)
        update, rest = split(background, self.where)
        number = counts(observations)
        turn_key, step_key = (None, None) if key is None else jax.random.split(key)

        def see(matrix):
            ensemble = jax.tree.map(partial(recombine, matrix), update)
            return observe_window(
                self.step,
                eqx.combine(ensemble, rest),
                observations,
                steps_between=self.steps_between,
                key=step_key,
            )

        if self.mda:
            shares = jnp.full(self.iterations, 1 / self.iterations)
            weights, change, consistency, freedom = assimilate_in_parts(
                see, shares, members, number["used"], self.decompose
            )
            found = {
                "degrees_of_freedom": freedom,
                "iterations": jnp.asarray(self.iterations),
            }
        else:
            weights, change, consistency, found = self._minimise(
                see, members, number["used"]
            )
        turn = random_turn(self.rotate, members, change.dtype, turn_key)
        active = number["used"] > 0
        matrix = increment_matrix(weights, change, active, self.inflation, turn)
        analysis = jax.tree.map(partial(recombine, matrix), update)
        info = Info(**number, chi_square=consistency, **found)
        return eqx.combine(analysis, rest), info

    def _minimise(self, see, members, used):
        """Weights w and `T - I` at the minimum, chi-square, and what was found."""
        # The dtype of what is predicted; the model is not run for it.
        dtype = jax.eval_shape(see, jnp.zeros((members, members)))[0].dtype
        identity = jnp.eye(members, dtype=dtype)

        @jax.checkpoint
        def improve(carry):
            weights, change, _, _, iteration, _ = carry
            innovation, anomalies = see(weights[None, :] + change)
            first = jnp.linalg.solve(identity + change, anomalies)
            aim = innovation + matmul(weights, first)
            expected, root = transform(first, aim, self.decompose)
            # Meant for the first iteration, where it is about the background.
            consistency = chi_square(innovation, anomalies, expected, used)
            moved, factor = expected, jnp.ones((), dtype)
            if self.xN is not None:
                factor = jnp.where(used > 0, _inflation(self.xN, root, weights), 1)
                moved, root = transform(factor * first, aim, self.decompose)
                moved = factor * moved
            freedom = degrees_of_freedom(root)
            root = factor * root + (factor - 1) * identity
            small = jnp.sum((moved - weights) ** 2) < self.tolerance.astype(dtype) * (
                members
            )
            return (moved, root, factor, freedom, iteration + 1, small), consistency

        def iterate(carry, _):
            skip = lambda carry: (carry, jnp.zeros((), dtype))
            return jax.lax.cond(carry[-1], skip, improve, carry)

        one = jnp.ones((), dtype)
        start = (
            jnp.zeros(members, dtype),
            jnp.zeros((members, members), dtype),
            one,
            0 * one,
            jnp.asarray(0),
            used == 0,
        )
        end, consistency = jax.lax.scan(iterate, start, None, length=self.iterations)
        weights, change, factor, freedom, iterations, converged = end
        found = {
            "degrees_of_freedom": freedom,
            "iterations": iterations,
            "converged": converged,
            "inflation": None if self.xN is None else factor,
        }
        return weights, change, consistency[0], found


def _inflation(
    xN: Scalar,
    root: Float[Array, "member member"],
    weights: Float[Array, "member"],
) -> Scalar:
    """The factor of the background's anomalies, `((N - 1) / z)^1/2`."""
    members = len(weights)
    e, c = (members + 1) / members, members / (members - 1)
    # The mode of its law moves towards 1 where the observations say little.
    unexplained = 1 - degrees_of_freedom(root) / members
    mode = (e / c) ** (unexplained / 2)
    size = xN.astype(root.dtype)
    return jnp.sqrt((size * e / mode + jnp.sum(weights**2)) / (size * c * mode))
