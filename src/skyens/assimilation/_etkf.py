"""The ensemble transform Kalman filter, and the transform all its relatives share.

For N members with whitened predicted anomalies Y, `(member, observation)`, and the
whitened innovation d, let `C = (N - 1) I + Y Y'`. The analysis ensemble is the mean
plus `(w + T) A`, A the background's anomalies, every row of w the same, with

    w = C^-1 Y d,    T = (N - 1)^1/2 C^-1/2.

Sources: Bishop et al. (2001), Mon. Wea. Rev. 129, 420-436; Hunt et al. (2007),
Physica D 230, 112-126.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree, Scalar

from skyens.assimilation._ensemble import (
    Info,
    chi_square,
    count_members,
    counts,
    matmul,
    observe,
    recombine,
    rotation,
    split,
)
from skyens.observations import Observation

Anomalies = Float[Array, "member observation"]
Decomposition = tuple[
    Float[Array, "member rank"], Float[Array, "rank"], Float[Array, "observation rank"]
]


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
    decompose: Callable[[Anomalies], Decomposition],
) -> tuple[Float[Array, "member"], Float[Array, "member member"]]:
    """Return the weights w of the mean and `T - I`.

    Its derivative is that of the symmetric functions of C (Daleckii and Krein), which
    exists where singular vectors have none: with fewer observations than members,
    equal members, everything masked. It is meant to be differentiated once.
    """
    u, s, scaled = decompose(anomalies)
    return _functions(u, s, scaled, innovation)


@transform.defjvp
def transform_jvp(decompose, primals, tangents):
    """Return what `transform` does, and its derivative along the tangents."""
    (y, d), (dy, dd) = primals, tangents
    u, s, scaled = decompose(y)
    spread = y.shape[0] - 1
    eigenvalue = spread + s**2
    weights, change = _functions(u, s, scaled, d)
    # dw = C^-1 (dY (d - Y'w) + Y (dd - dY'w))
    right = matmul(dy, d - matmul(weights, y)) + matmul(y, dd - matmul(weights, dy))
    inside = matmul(u.T, right) * (1 / eigenvalue - 1 / spread)
    dweights = right / spread + matmul(u, inside)
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


class ETKF(eqx.Module):
    """Ensemble transform Kalman filter: deterministic, with the symmetric square root.

    The analysis ensemble has the mean and the covariance of the Kalman update with the
    ensemble's covariance. Its anomalies are then multiplied by `inflation`; where no
    observation is used the background comes back as it is, uninflated.

    A NaN in a background that an unmasked observation sees makes the analysis NaN.

    Sources: Bishop et al. (2001); Hunt et al. (2007); Sakov & Oke (2008), Mon. Wea.
    Rev. 136, 1042-1053, for the rotation.
    """

    inflation: Float[Array, ""]
    rotate: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        inflation: float | Float[Array, ""] = 1.0,
        rotate: bool = False,
        *,
        where: Callable[[Any], Any] | None = None,
        decompose: Callable[[Anomalies], Decomposition] = svd,
    ):
        """Set how to transform.

        Args:
            inflation: factor of the analysis anomalies, dimensionless, above 0.
            rotate: whether to mix the members at random, which keeps mean and
                covariance and makes the ensemble more Gaussian; it needs a key.
            where: the part of the state to update, `lambda state: state.wind` say;
                otherwise all its leaves of real or complex numbers.
            decompose: `svd` (accurate) or `gram` (fast).

        Raises:
            EquinoxRuntimeError: `inflation` is not above 0.
        """
        self.inflation = positive_inflation(inflation)
        self.rotate = rotate
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

        `background` is any pytree with a leading member axis; each leaf keeps its
        dtype. The leaves that are not updated come back as they are.

        Raises:
            ValueError: there are fewer than two members, leaves disagree on their
                number, or a rotation has no key.
        """
        members = count_members(background)
        update, rest = split(background, self.where)
        innovation, anomalies = observe(background, observation)
        number = counts(observation)
        turn = random_turn(self.rotate, members, anomalies.dtype, key)
        weights, change = transform(anomalies, innovation, self.decompose)
        matrix = increment_matrix(
            weights, change, number["used"] > 0, self.inflation, turn
        )
        analysis = jax.tree.map(partial(recombine, matrix), update)
        consistency = chi_square(innovation, anomalies, weights, number["used"])
        freedom = degrees_of_freedom(change)
        info = Info(**number, chi_square=consistency, degrees_of_freedom=freedom)
        return eqx.combine(analysis, rest), info


def increment_matrix(
    weights: Float[Array, "member"],
    change: Float[Array, "member member"],
    active: Bool[Array, ""],
    inflation: Float[Array, ""],
    turn: Float[Array, "member member"] | None,
) -> Float[Array, "member member"]:
    """Return `w + inflation * turn @ T - I`, which takes anomalies to increments.

    `change` is `T - I`. Where not `active` there is no inflation.
    """
    inflation = jnp.where(active, inflation.astype(change.dtype), 1)
    identity = jnp.eye(len(weights), dtype=change.dtype)
    if turn is None:
        matrix = inflation * change + (inflation - 1) * identity
    else:
        matrix = inflation * (turn + matmul(turn, change)) - identity
    return matrix + weights[None, :]


def degrees_of_freedom(change: Float[Array, "member member"]) -> Scalar:
    """Return the trace of `Y Y' C^-1`, that is of `I - T^2`, from `change = T - I`."""
    return -jnp.sum(change**2) - 2 * jnp.trace(change)


def random_turn(
    rotate: bool, members: int, dtype: Any, key: Key[Array, ""] | None
) -> Float[Array, "member member"] | None:
    """Return the rotation of the members, None for none.

    Raises:
        ValueError: a rotation has no key.
    """
    if not rotate:
        return None
    if key is None:
        raise ValueError(
            "`key` is needed to rotate at random; give one, or rotate=False."
        )
    return rotation(members, dtype, key=key)


def positive_inflation(inflation: float | Float[Array, ""]) -> Float[Array, ""]:
    """Return `inflation` as an array.

    Raises:
        EquinoxRuntimeError: it is not above 0.
    """
    inflation = jnp.asarray(inflation, float)
    return eqx.error_if(
        inflation, ~(inflation > 0), "`inflation` must be above 0; 1 is none."
    )


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
