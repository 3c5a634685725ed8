"""One analysis by weights that are the same everywhere in the state."""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
from skyens.assimilation._transform import Anomalies, Decompose
from skyens.observations import Observation


class Weighing(NamedTuple):
    """What a filter makes of whitened anomalies and innovation.

    `expected` are the weights `(members - 1 + Y Y')^-1 Y d` that the consistency of
    the background is judged by, `mean` those of the analysis mean and `change` is
    `T - I` of its anomalies; `inflation`, where one was found, multiplies both as the
    background's anomalies would be multiplied.
    """

    expected: Float[Array, "member"]
    mean: Float[Array, "member"]
    change: Float[Array, "member member"]
    freedom: Float[Array, ""]
    inflation: Float[Array, ""] | None = None
    converged: Bool[Array, ""] | None = None


class SquareRootFilter(eqx.Module):
    """What deterministic filters with one set of weights everywhere share."""

    inflation: Float[Array, ""]
    rotate: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)
    decompose: Decompose = eqx.field(static=True)

    def __init__(
        self,
        inflation: float | Float[Array, ""] = 1.0,
        rotate: bool = False,
        *,
        where: Callable[[Any], Any] | None = None,
        decompose: Decompose = None,
    ):
        """Set how to transform.

        Args:
            inflation: factor of the analysis anomalies, dimensionless, above 0.
            rotate: whether to mix the members at random, which keeps mean and
                covariance and makes the ensemble more Gaussian; it needs a key.
            where: the part of the state to update, `lambda state: state.wind` say;
                otherwise all its leaves of real or complex numbers.
            decompose: None (products of matrices where they are accurate, else `svd`),
                `svd` (accurate) or `gram` (by eigenvectors).

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
        return update(
            background,
            observation,
            self._weigh,
            inflation=self.inflation,
            rotate=self.rotate,
            where=self.where,
            key=key,
        )

    @abc.abstractmethod
    def _weigh(
        self, anomalies: Anomalies, innovation: Float[Array, "observation"]
    ) -> Weighing: ...


def update(
    background: PyTree[Array],
    observation: Observation,
    weigh: Callable[[Anomalies, Float[Array, "observation"]], Weighing],
    *,
    inflation: Float[Array, ""],
    rotate: bool,
    where: Callable[[Any], Any] | None,
    key: Key[Array, ""] | None,
) -> tuple[PyTree[Array], Info]:
    """Return the analysis ensemble and what there is to say of it, as `ETKF` does.

    Raises:
        ValueError: there are fewer than two members, leaves disagree on their number,
            or a rotation has no key.
    """
    members = count_members(background)
    part, rest = split(background, where)
    innovation, anomalies = observe(background, observation)
    number = counts(observation)
    turn = random_turn(rotate, members, anomalies.dtype, key)
    weighing = weigh(anomalies, innovation)
    weights, found = weighing.mean, weighing.inflation
    if found is not None:
        weights, inflation = found * weights, inflation.astype(found.dtype) * found
    active = number["used"] > 0
    matrix = increment_matrix(weights, weighing.change, active, inflation, turn)
    analysis = jax.tree.map(partial(recombine, matrix), part)
    info = Info(
        **number,
        chi_square=chi_square(innovation, anomalies, weighing.expected, number["used"]),
        degrees_of_freedom=weighing.freedom,
        inflation=found,
        converged=weighing.converged,
    )
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
