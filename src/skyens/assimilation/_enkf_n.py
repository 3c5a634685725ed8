"""The finite-size ensemble Kalman filter: inflation found at each analysis.

An ensemble of N members knows the mean and the covariance of the background with
sampling errors. Integrated over what they may be, the background is no longer Gaussian;
its analysis is that of an ETKF whose background anomalies are multiplied by the factor
l that minimises the dual cost

    J(l) = sum_i (V'd)_i^2 / (N - 1 + l^2 s_i^2) + e / l^2 + c ln l^2,

s and V being the singular values and vectors of the whitened predicted anomalies, and d
the whitened innovation.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree, Scalar

from skyens.assimilation._ensemble import Info, matmul
from skyens.assimilation._global_update import (
    Weighing,
    degrees_of_freedom,
    positive_inflation,
    update,
)
from skyens.assimilation._transform import (
    Anomalies,
    Decomposition,
    svd,
    transform,
    transform_jvp,
)
from skyens.observations import Observation

NEWTON_STEPS = 16  # eight do, but for innovations that are very surprising


class EnKFN(eqx.Module):
    """Finite-size ensemble transform Kalman filter (EnKF-N), in its dual form.

    It inflates the background's anomalies by a factor that accounts for sampling
    errors and that it finds anew from each innovation; `info.inflation` is that factor,
    and `info.converged` says whether Newton's method reached it. There is no inflation
    to tune where the model is good. What the members lack for other reasons can be
    given by `inflation`, a further factor of the analysis anomalies. Where no
    observation is used the background comes back as it is, uninflated.

    The gradient is that of the minimum itself, by the implicit function theorem.

    Sources: Bocquet (2011), Nonlin. Processes Geophys. 18, 735-750; Bocquet et al.
    (2015), Nonlin. Processes Geophys. 22, 645-662; Raanes et al. (2019), Q. J. R.
    Meteorol. Soc. 145, 53-75.
    """

    xN: Float[Array, ""]
    inflation: Float[Array, ""]
    rotate: bool = eqx.field(static=True)
    nullity: int = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        xN: float | Float[Array, ""] = 1.0,
        rotate: bool = False,
        *,
        inflation: float | Float[Array, ""] = 1.0,
        nullity: int = 0,
        where: Callable[[Any], Any] | None = None,
        decompose: Callable[[Anomalies], Decomposition] = svd,
    ):
        """Set how sure the inflation is.

        Args:
            xN: factor of the effective ensemble size in the law of the inflation, above
                0; larger than 1 keeps it nearer to its mode. 1 is the theory, 2 suits
                strong observations of a good model.
            rotate: whether to mix the members at random, which needs a key.
            inflation: further factor of the analysis anomalies, above 0.
            nullity: number of directions of the anomalies known to be empty, from 0.
            where: the part of the state to update.
            decompose: `svd` (accurate) or `gram` (fast).

        Raises:
            ValueError: `nullity` is below 0.
            EquinoxRuntimeError: `xN` or `inflation` is not above 0.
        """
        if nullity < 0:
            raise ValueError(f"`nullity` must be at least 0, got {nullity}.")
        size = jnp.asarray(xN, float)
        self.xN = eqx.error_if(size, ~(size > 0), "`xN` must be above 0.")
        self.inflation = positive_inflation(inflation)
        self.rotate = rotate
        self.nullity = nullity
        self.where = where
        self.decompose = decompose

    def __call__(
        self,
        background: PyTree[Array],
        observation: Observation,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], Info]:
        """Return the analysis ensemble, and what there is to say of it.

        Raises:
            ValueError: there are fewer than two members, leaves disagree on their
                number, or a rotation has no key.
        """

        def weigh(anomalies, innovation):
            # One decomposition serves the anomalies whatever factor they have.
            fixed = jax.lax.stop_gradient((anomalies, innovation))
            u, s, scaled = self.decompose(fixed[0])

            def transformed(factor):
                now = jax.lax.stop_gradient(factor)
                known = u, now * s, now * scaled
                return transform_known(factor * anomalies, innovation, known)

            expected, plain = transformed(jnp.ones((), anomalies.dtype))
            e, c = self._coefficients(plain)
            at, slope, converged = minimise_dual(
                s**2, matmul(scaled.T, fixed[1]) ** 2, len(anomalies), e, c
            )
            # One more step, of no length, whose derivative is that of the minimum.
            weights, _ = transformed(at)
            gradient = c - e / at**2 - jnp.sum(weights**2)
            step = -gradient / slope
            found = at * jnp.exp(step - jax.lax.stop_gradient(step))
            weights, root = transformed(found)
            return Weighing(
                expected, weights, root, degrees_of_freedom(root), found, converged
            )

        return update(
            background,
            observation,
            weigh,
            inflation=self.inflation,
            rotate=self.rotate,
            where=self.where,
            key=key,
        )

    def _coefficients(self, root: Float[Array, "member member"]):
        """Return e and c, with the prior's mode moved towards 1 as it weighs more."""
        members = root.shape[0]
        e, c = (members + 1) / members, (members + self.nullity) / (members - 1)
        # The mean over members of (N - 1) / (N - 1 + s^2)
        unexplained = 1 - degrees_of_freedom(root) / members
        mode = (e / c) ** (unexplained / 2)
        size = self.xN.astype(root.dtype)
        return size * e / mode, size * c * mode


@jax.custom_jvp
def transform_known(
    anomalies: Anomalies,
    innovation: Float[Array, "observation"],
    decomposition: Decomposition,
) -> tuple[Float[Array, "member"], Float[Array, "member member"]]:
    """Return `transform(anomalies, innovation)` by a decomposition that is known."""
    return transform(anomalies, innovation, lambda _: decomposition)


@transform_known.defjvp
def _transform_known_jvp(primals, tangents):
    *primals, decomposition = primals
    return transform_jvp(lambda _: decomposition, primals, tangents[:2])


def minimise_dual(
    square: Float[Array, "rank"],
    projection: Float[Array, "rank"],
    members: int,
    e: Scalar,
    c: Scalar,
) -> tuple[Scalar, Scalar, Bool[Array, ""]]:
    """Return the minimum l of the dual cost that is reached first from below.

    Newton's method in ln l: a step that leaves the bracket, or goes the wrong way,
    is replaced by one to the bracket's middle, or by 1 upwards while nothing bounds it.

    Args:
        square: squared singular values s^2 of the whitened anomalies.
        projection: `(s V'd)^2`.
        members: of the ensemble.
        e: coefficient of `1 / l^2`, and
        c: of `ln l^2`.

    Returns:
        l, the derivative of `c - e / l^2 - |w(l)|^2` in ln l there (half the cost's
        second derivative), and whether the last step was small.
    """
    square, projection, e, c = jax.lax.stop_gradient((square, projection, e, c))
    spread = members - 1

    def slopes(x):
        factor = jnp.exp(2 * x)
        total = spread + factor * square
        terms = factor * projection / total**2
        first = c - e / factor - jnp.sum(terms)
        turn = 2 * terms * (spread - factor * square) / total
        return first, 2 * e / factor - jnp.sum(turn)

    def newton(_, carry):
        x, low, high, _ = carry
        first, second = slopes(x)
        low, high = jnp.where(first < 0, x, low), jnp.where(first < 0, high, x)
        convex = second > 0
        step = -first / jnp.where(convex, second, 1)
        middle = jnp.where(high < jnp.inf, (low + high) / 2, low + 1)
        inside = convex & (x + step >= low) & (x + step <= high) & (jnp.abs(step) <= 1)
        moved = jnp.where(inside, x + step, middle)
        return moved, low, high, jnp.abs(moved - x)

    low = jnp.log(e / c) / 2  # where the prior alone has its minimum
    start = jnp.maximum(low, 0), low, jnp.full_like(low, jnp.inf), low
    x, _, _, last = jax.lax.fori_loop(0, NEWTON_STEPS, newton, start)
    # Convergence is quadratic: the error after a step is near the step's square.
    converged = last < jnp.finfo(x.dtype).eps ** 0.5
    _, second = slopes(x)
    return jnp.exp(x), jnp.where(second > 0, second, 1), converged
