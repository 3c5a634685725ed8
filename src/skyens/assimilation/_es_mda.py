"""The ensemble smoother with multiple data assimilation (ES-MDA).

The same observations are assimilated several times, the i-th with the error variance
multiplied by a_i, where `sum 1 / a_i = 1`. In the linear case that is the analysis with
all at once; otherwise each part is small, and the predictions are made anew in between.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, Scalar

from skyens.assimilation._ensemble import (
    Info,
    as_pytree,
    chi_square,
    count_members,
    counts,
    matmul,
    observe,
    recombine,
    split,
)
from skyens.assimilation._ensemble_window import observe_window
from skyens.assimilation._transform import Anomalies, Decomposition, svd, transform
from skyens.observations import Observation


class ESMDA(eqx.Module):
    """Ensemble smoother with multiple data assimilation.

    Without a `step` it is a method for one `Observation`, whose operator may be a whole
    model: from parameters to what is measured, say. With a `step` it is a window
    method: background and analysis stand at the start of the window, and the
    observations are stacked on a leading axis, entry i being seen `(i + 1) *
    steps_between` steps later.

    The analysis is by the symmetric square root, or, with `perturb`, of perturbed
    observations as in the source. There is no inflation in it, see `Inflated`.

    Sources: Emerick & Reynolds (2013), Computers & Geosciences 55, 3-15; Raanes et al.
    (2019), Nonlin. Processes Geophys. 26, 325-338, for the square root.
    """

    factors: Float[Array, "part"]
    step: Callable[..., Any] | None
    steps_between: int = eqx.field(static=True)
    perturb: bool = eqx.field(static=True)
    where: Callable[[Any], Any] | None = eqx.field(static=True)
    decompose: Callable[[Anomalies], Decomposition] = eqx.field(static=True)

    def __init__(
        self,
        factors: int | Sequence[float] | Float[Array | np.ndarray, "part"] = 4,
        *,
        step: Callable[..., Any] | None = None,
        steps_between: int = 1,
        perturb: bool = False,
        where: Callable[[Any], Any] | None = None,
        decompose: Callable[[Anomalies], Decomposition] = svd,
    ):
        """Set in which parts to assimilate.

        Args:
            factors: those of the error variance, `sum(1 / factors) = 1`, one for each
                part; or a number of equal parts. Falling ones (9.33, 7, 4, 2) are
                gentle where the first prediction is far off.
            step: `step(state, forcing=None, *, key=None) -> state`, for windows.
            steps_between: steps from one observation of a window to the next.
            perturb: whether to perturb the observations, which needs a key.
            where: the part of the state to update.
            decompose: `svd` (accurate) or `gram` (fast).

        Raises:
            ValueError: `factors` or `steps_between` is below 1.
            EquinoxRuntimeError: the inverse factors are not positive, or do not add
                up to 1.
        """
        if isinstance(factors, int):
            if factors < 1:
                raise ValueError(f"`factors` must be at least 1, got {factors}.")
            factors = np.full(factors, float(factors))
        if steps_between < 1:
            raise ValueError(
                f"`steps_between` must be at least 1, got {steps_between}."
            )
        array = jnp.asarray(factors, float)
        total = jnp.sum(1 / array)
        # Published factors are rounded to three digits: 9.333, 7.0, 4.0, 2.0.
        wrong = jnp.any(~(array > 0)) | ~(jnp.abs(total - 1) < 1e-3)
        self.factors = eqx.error_if(
            array, wrong, "`factors` must be positive, the sum of their inverses 1."
        )
        self.step = None if step is None else as_pytree(step)
        self.steps_between = steps_between
        self.perturb = perturb
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
                number, or `perturb` has no key.
        """
        if self.perturb and key is None:
            raise ValueError(
                "`key` is needed to perturb the observations; give one, or "
                "perturb=False."
            )
        members = count_members(background)
        update, rest = split(background, self.where)
        number = counts(observation)
        noise_key, step_key = (None, None) if key is None else jr.split(key)

        def see(matrix):
            ensemble = jax.tree.map(partial(recombine, matrix), update)
            ensemble = eqx.combine(ensemble, rest)
            if self.step is None:
                return observe(ensemble, observation)
            return observe_window(
                self.step,
                ensemble,
                observation,
                steps_between=self.steps_between,
                key=step_key,
            )

        shares = 1 / self.factors
        result = assimilate_in_parts(
            see,
            shares / jnp.sum(shares),
            members,
            number["used"],
            self.decompose,
            key=noise_key if self.perturb else None,
        )
        matrix = result.weights[None, :] + result.change
        analysis = jax.tree.map(partial(recombine, matrix), update)
        info = Info(
            **number,
            chi_square=result.chi_square,
            degrees_of_freedom=result.degrees_of_freedom,
            iterations=jnp.asarray(len(shares)),
        )
        return eqx.combine(analysis, rest), info


class Parts(NamedTuple):
    """What all parts together make of the background."""

    weights: Float[Array, "member"]
    change: Float[Array, "member member"]
    chi_square: Float[Array, ""]
    degrees_of_freedom: Float[Array, ""]


def assimilate_in_parts(
    see: Callable[
        [Float[Array, "member member"]],
        tuple[Float[Array, "observation"], Anomalies],
    ],
    shares: Float[Array, "part"],
    members: int,
    used: Int[Array, ""],
    decompose: Callable[[Anomalies], Decomposition],
    *,
    key: Key[Array, ""] | None = None,
) -> Parts:
    """Return weights of the mean and `T - I` after a part for each of the `shares`.

    Args:
        see: from what takes the background's anomalies to increments, to the innovation
            and the predicted anomalies of that ensemble, whitened.
        shares: the parts' weights `1 / a_i`.
        members: of the ensemble.
        used: how many observations have a say.
        decompose: as in `ETKF`.
        key: perturbs the observations; None for the square root.
    """
    # The dtype of what is predicted; the model is not run for it.
    dtype = jax.eval_shape(see, jnp.zeros((members, members)))[0].dtype
    identity = jnp.eye(members, dtype=dtype)

    @jax.checkpoint
    def part(matrix, x):
        share, number = x
        innovation, anomalies = see(matrix)
        expected, _ = transform(anomalies, innovation, decompose)
        # Meant for the first part, where it is about the background.
        consistency = chi_square(innovation, anomalies, expected, used)
        root = jnp.sqrt(share)
        scaled = root * anomalies
        weigh = lambda seen: transform(scaled, seen, decompose)
        weights, change = weigh(root * innovation)
        if key is not None:
            noise = jr.normal(jr.fold_in(key, number), anomalies.shape, dtype)
            drawn = jax.vmap(lambda seen: weigh(seen)[0])(noise)
            # Without perturbations T = (N - 1) C^-1, the square of the root's.
            change = 2 * change + matmul(change, change) + drawn
        current = identity + matrix
        current = current - jnp.mean(current, axis=0, keepdims=True)
        return matrix + matmul(weights[None, :] + change, current), consistency

    start = jnp.zeros((members, members), dtype)
    numbers = jnp.arange(len(shares))
    matrix, consistency = jax.lax.scan(part, start, (shares.astype(dtype), numbers))
    weights = jnp.mean(matrix, axis=0)
    change = matrix - weights[None, :]
    freedom = jnp.where(used > 0, _freedom(identity + matrix), 0)
    return Parts(weights, change, consistency[0], freedom)


def _freedom(matrix) -> Scalar:
    """Trace of `I - T'T` among the anomalies, T being the matrix without its mean."""
    centred = matrix - jnp.mean(matrix, axis=0, keepdims=True)
    centred = centred - jnp.mean(centred, axis=1, keepdims=True)
    return len(matrix) - 1 - jnp.sum(centred**2)
