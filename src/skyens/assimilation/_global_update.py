"""One analysis by weights that are the same everywhere in the state."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Key, PyTree

from skyens.assimilation._ensemble import (
    Info,
    chi_square,
    count_members,
    counts,
    observe,
    recombine,
    split,
)
from skyens.assimilation._etkf import Anomalies, increment_matrix, random_turn
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
