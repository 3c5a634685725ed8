"""Kalman inversion: parameters of a model, from ensembles of its runs.

A method moves an ensemble of parameters once, `method(ensemble, observation, *, key) ->
(ensemble, info)`; `invert` does so until it converges. The observation's operator is
the forward model, from parameters to what is measured, so its masks and its errors are
those of every other observation. No derivative of the model is needed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Scalar

from skyens.assimilation._ensemble import (
    as_pytree,
    count_members,
    matmul,
    predict_members,
    split,
    whiten,
    wide,
)
from skyens.observations import Observation


class InversionInfo(eqx.Module):
    """What one step of an inversion says of itself; `invert` stacks it over steps.

    `used`, `masked` and `rejected` count the entries of the observation. `failed`
    counts the members whose prediction, or parameters, were not finite: they had no say
    and were drawn anew from the others. `misfit` is `|R^-1/2 (y - G)|^2 / used` at the
    start of the step, the mean over members: near 1 where all is explained. `time` is
    the pseudo-time reached; `method` the successor, which remembers it.
    """

    used: Int[Array, "..."]
    masked: Int[Array, "..."]
    rejected: Int[Array, "..."]
    failed: Int[Array, "..."]
    misfit: Float[Array, "..."]
    time: Float[Array, "..."]
    converged: Bool[Array, "..."]
    method: Any = None


class Inversion(eqx.Module):
    """What `invert` leaves behind.

    `ensemble` are the last parameters; `infos` have a leading axis of steps, and repeat
    the last one after convergence. `steps` were taken; `method` is as its memory left
    it.
    """

    ensemble: PyTree[Array]
    infos: InversionInfo
    steps: Int[Array, ""]
    converged: Bool[Array, ""]
    method: Any


def invert(
    method: Callable[..., tuple[Any, Any]],
    ensemble0: PyTree[Array],
    observation: Observation,
    *,
    key: Key[Array, ""],
    steps: int = 50,
) -> Inversion:
    """Return the parameters that explain an observation, by so many steps at most.

    All runs in one `jax.lax.scan`; after convergence the model is run no more (but
    under `jax.vmap`, where it idles until the last has converged).

    Args:
        method: `EKI`, `UKI`, `EKS`, or a callable as they are. A method with
            `start(ensemble0) -> (method, ensemble)` is asked for both first.
        ensemble0: draws from the prior, any pytree with a leading member axis; leaves
            of integers stay as they are.
        observation: of the parameters, by the model.
        key: for what is drawn at random, failed members at least.
        steps: the largest number of steps.

    Raises:
        ValueError: `steps` is below 1, there are fewer than two members, or leaves
            disagree on their number.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    count_members(ensemble0)
    ensemble = jax.tree.map(jnp.asarray, ensemble0)
    start = getattr(method, "start", None)
    if start is not None:
        method, ensemble = start(ensemble)
    memory, fixed = eqx.partition(as_pytree(method), eqx.is_array)

    def advance(carry, number):
        ensemble, memory, _ = carry
        method = eqx.combine(memory, fixed)
        ensemble, info = method(ensemble, observation, key=jr.fold_in(key, number))
        if info.method is not None:
            memory = eqx.filter(info.method, eqx.is_array)
        told = eqx.tree_at(lambda info: info.method, info, None, is_leaf=_is_none)
        return ensemble, memory, told

    def body(carry, number):
        done = carry[2].converged
        carry = jax.lax.cond(done, lambda carry, _: carry, advance, carry, number)
        return carry, (carry[2], ~done)

    shape = jax.eval_shape(advance, (ensemble, memory, None), jnp.asarray(0))[2]
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    (ensemble, memory, last), (infos, moved) = jax.lax.scan(
        body, (ensemble, memory, nothing), jnp.arange(steps)
    )
    method = eqx.combine(memory, fixed)
    return Inversion(ensemble, infos, jnp.sum(moved), last.converged, method)


class GaussianPrior(eqx.Module):
    """A Gaussian law of parameters, flattened in C order, leaf after leaf."""

    mean: Float[Array, "parameter"]
    factor: Float[Array, "parameter parameter"]

    def __init__(
        self,
        mean: PyTree[Any],
        covariance: Float[Array | np.ndarray, "parameter parameter"],
    ):
        """Set `mean`, one pytree of parameters, and `covariance`, of its flattening.

        Raises:
            ValueError: the covariance does not fit the mean.
            EquinoxRuntimeError: the covariance is not positive definite.
        """
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], mean)
        self.mean = flatten(split(one, None)[0])[0]
        if covariance.shape != (self.mean.size,) * 2:
            raise ValueError(
                f"`covariance` of shape {covariance.shape} does not fit a `mean` of "
                f"{self.mean.size} entries."
            )
        factor = jnp.linalg.cholesky(jnp.asarray(covariance, self.mean.dtype))
        self.factor = eqx.error_if(
            factor, ~jnp.isfinite(factor), "`covariance` must be positive definite."
        )

    def whiten(self, departure: Float[Array, "*batch parameter"]) -> Array:
        """Return departures in units of the prior's standard deviations."""
        flat = departure.reshape(-1, departure.shape[-1]).T
        white = jax.scipy.linalg.solve_triangular(
            self.factor.astype(flat.dtype), flat, lower=True
        )
        return white.T.reshape(departure.shape)


def moments(
    ensemble: PyTree[Array],
) -> tuple[Float[Array, "parameter"], Float[Array, "parameter parameter"]]:
    """Return mean and unbiased covariance of an ensemble's parameters, flattened.

    Raises:
        ValueError: there are no more members than parameters, so that the covariance
            cannot have an inverse.
    """
    flat = flatten(split(ensemble, None)[0])
    members, size = flat.shape
    if members <= size:
        raise ValueError(
            f"a prior of {size} parameters needs more members than that, got {members};"
            " or give it: prior=GaussianPrior(mean, covariance)."
        )
    mean = jnp.mean(flat, axis=0)
    anomalies = flat - mean[None, :]
    return mean, matmul(anomalies.T, anomalies) / (members - 1)


def prior_of(ensemble: PyTree[Array]) -> GaussianPrior:
    """Return the Gaussian law with the mean and the covariance of an ensemble.

    Raises:
        ValueError: there are no more members than parameters.
        EquinoxRuntimeError: the covariance is not positive definite.
    """
    return GaussianPrior(*moments(ensemble))


class Look(NamedTuple):
    """An ensemble of parameters and what it predicts, the failed members left out.

    Failed members have anomalies of 0. `inflate` makes up for them in a transform that
    divides by the number of all members.
    """

    mean: Float[Array, "parameter"]
    anomalies: Float[Array, "member parameter"]
    innovation: Float[Array, "observation"]
    predicted: Float[Array, "member observation"]
    healthy: Bool[Array, "member"]
    count: Float[Array, ""]
    inflate: Float[Array, ""]

    def misfits(self) -> tuple[Scalar, Scalar]:
        """Mean and variance over members of half the squared whitened residual."""
        half = jnp.sum((self.innovation[None, :] - self.predicted) ** 2, axis=1) / 2
        mean = _mean(half, self.healthy, self.count)
        return mean, _mean((half - mean) ** 2, self.healthy, self.count)


def look(
    flat: Float[Array, "member parameter"],
    ensemble: PyTree[Array],
    observation: Observation,
) -> Look:
    """Run the model for each member, and set those aside that fail."""
    predictions, healthy = predict_healthy(flat, ensemble, observation)
    count = jnp.sum(healthy).astype(flat.dtype)
    mean, anomalies = _centre(flat, healthy, count)
    center, departures = _centre(
        predictions, healthy, jnp.sum(healthy).astype(predictions.dtype)
    )
    innovation, predicted = whiten(observation, center, departures)
    innovation = jnp.where(jnp.any(healthy), innovation, 0)
    inflate = jnp.sqrt((len(flat) - 1) / jnp.maximum(count - 1, 1))
    return Look(mean, anomalies, innovation, predicted, healthy, count, inflate)


def predict_healthy(
    flat: Float[Array, "member parameter"],
    ensemble: PyTree[Array],
    observation: Observation,
) -> tuple[Float[Array, "member *observation"], Bool[Array, "member"]]:
    """Return predictions, 0 for members that fail, and which do not."""
    predictions = observation.unwrap(predict_members(ensemble, observation))
    predictions = predictions.astype(wide(predictions.dtype))
    seen = jnp.where(observation.mask[None], predictions, 0)
    every = tuple(range(1, seen.ndim))
    healthy = jnp.all(jnp.isfinite(seen), axis=every)
    healthy = healthy & jnp.all(jnp.isfinite(flat), axis=1)
    fine = jnp.expand_dims(healthy, every)
    return jnp.where(fine, seen, 0), healthy


def draw_failed(
    moved: Float[Array, "member parameter"],
    seen: Look,
    flat: Float[Array, "member parameter"],
    *,
    key: Key[Array, ""],
) -> Float[Array, "member parameter"]:
    """Return `moved` with the failed members drawn from the Gaussian of the others.

    With fewer than two healthy ones there is no such law: all stay as in `flat`.
    """
    mean, anomalies = _centre(moved, seen.healthy, seen.count)
    draw = jr.normal(key, (len(moved), len(moved)), moved.dtype)
    spread = jnp.sqrt(jnp.maximum(seen.count - 1, 1))
    drawn = mean[None, :] + matmul(draw, anomalies) / spread
    result = jnp.where(seen.healthy[:, None], moved, drawn)
    return jnp.where(seen.count >= 2, result, flat)


def needed_key(key: Key[Array, ""] | None) -> Key[Array, ""]:
    """Return the key.

    Raises:
        ValueError: it is None.
    """
    if key is None:
        raise ValueError("`key` is needed, to draw failed members anew; give one.")
    return key


def flatten(parameters: PyTree[Array]) -> Float[Array, "member parameter"]:
    """Return each member's real leaves side by side, in the widest of their dtypes.

    Raises:
        ValueError: a leaf is complex.
    """
    leaves = jax.tree.leaves(parameters)
    if wrong := [leaf.dtype for leaf in leaves if jnp.iscomplexobj(leaf)]:
        raise ValueError(
            f"parameters must be real, got {wrong[0]}; give real and imaginary part as "
            "two leaves."
        )
    dtype = wide(max((leaf.dtype for leaf in leaves), key=lambda d: jnp.finfo(d).bits))
    rows = [leaf.astype(dtype).reshape(len(leaf), -1) for leaf in leaves]
    return jnp.concatenate(rows, axis=1)


def unflatten(
    flat: Float[Array, "member parameter"], parameters: PyTree[Array]
) -> PyTree[Array]:
    """Return `flat` in the structure and dtypes of `parameters`, any member count."""
    leaves, structure = jax.tree.flatten(parameters)
    sizes = [int(np.prod(leaf.shape[1:])) for leaf in leaves]
    columns = jnp.split(flat, np.cumsum(sizes)[:-1], axis=1)
    shaped = [
        part.reshape(len(flat), *leaf.shape[1:]).astype(leaf.dtype)
        for part, leaf in zip(columns, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shaped)


def _centre(values, healthy, count):
    fine = jnp.expand_dims(healthy, tuple(range(1, values.ndim)))
    values = jnp.where(fine, values, 0)
    mean = jnp.sum(values, axis=0) / jnp.maximum(count, 1)
    return mean, jnp.where(fine, values - mean[None], 0)


def _mean(values, healthy, count):
    total = jnp.sum(jnp.where(healthy, values, 0))
    return total / jnp.maximum(count, 1).astype(values.dtype)


def _is_none(node):
    return node is None
