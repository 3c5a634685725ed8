"""What every ensemble method does to an ensemble: see it, centre it, recombine it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Int, Key, PyTree, Scalar

from skyens.observations import Observation


class Info(eqx.Module):
    """What an analysis says of itself; arrays, so that cycles can stack it.

    `used`, `masked` and `rejected` count the entries of the observation: those that
    had a say, those that were absent, those that quality control refused. `chi_square`
    is the squared innovation
    over what ensemble and errors expect of it, `d' (R + H P H')^-1 d / used`: near 1
    where they are consistent, above 1 where the background is overconfident, 0 where
    nothing is used. `degrees_of_freedom` is the number of independent pieces of
    information that the analysis takes from the observations, one number or a map.
    `method` is the successor of a method with memory, None for others.

    The others are None where a method has no such thing: `overflow`, neighbours that a
    localisation had no room for, and `unreached`, observations that are near no point;
    `inflation`, the factor that was found; `iterations`, and whether they `converged`;
    `log_evidence`, the log-density of the observations given those before them;
    `effective_size`, the number of equally weighted particles that are worth as much;
    `smoothed`, what a smoother now knows of the past.
    """

    used: Int[Array, "..."]
    masked: Int[Array, "..."]
    rejected: Int[Array, "..."]
    chi_square: Float[Array, "..."]
    degrees_of_freedom: Float[Array, "..."]
    method: Any = None
    overflow: Int[Array, "..."] | None = None
    unreached: Int[Array, "..."] | None = None
    inflation: Float[Array, "..."] | None = None
    iterations: Int[Array, "..."] | None = None
    converged: Bool[Array, "..."] | None = None
    log_evidence: Float[Array, "..."] | None = None
    effective_size: Float[Array, "..."] | None = None
    smoothed: Any = None


class Recorded(eqx.Module):
    """The operator of what the members showed earlier, before the analysis time.

    An observation within a window is predicted when the forecast passes its time. The
    filter at the end of the window then takes these predictions, one for each member:
    its own state no longer knows them.
    """

    predictions: Float[Array, "member *observation"]

    def __call__(self, state: PyTree[Any]) -> Float[Array, "*observation"]:
        """Refuse: only whole ensembles have these predictions.

        Raises:
            ValueError: always; variational and particle methods cannot use it.
        """
        raise ValueError(
            "what was recorded along a window belongs to the members, not to one "
            "state: use a filter of ensembles, or a method that holds the step."
        )


def predict_members(
    background: PyTree[Array], observation: Observation
) -> Float[Array, "member *observation"]:
    """Return what each member shows, or has shown where that was recorded."""
    if isinstance(observation.operator, Recorded):
        return observation.operator.predictions
    return jax.vmap(observation.predict)(background)


def as_pytree(function: Callable) -> Callable:
    """Return a callable that `jax.jit` takes and returns, which no function is."""
    bare = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if bare else function


def count_members(ensemble: PyTree[Array], *, least: int = 2) -> int:
    """Return the size of the leading axis that all leaves share.

    Raises:
        ValueError: they share none, or there are fewer than `least` members.
    """
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(ensemble)}
    if len(sizes) != 1 or () in sizes:
        shapes = [leaf.shape for leaf in jax.tree.leaves(ensemble)]
        raise ValueError(
            "every leaf of an ensemble has the same leading `member` axis, got the "
            f"shapes {shapes}."
        )
    ((members,),) = sizes
    if members < least:
        plural = "s" if least > 1 else ""
        raise ValueError(
            f"the ensemble needs at least {least} member{plural}, got {members}."
        )
    return members


def split(
    ensemble: PyTree[Array | np.ndarray], where: Callable[[Any], Any] | None
) -> tuple[PyTree[Array | None], PyTree[Array | None]]:
    """Return the leaves to update and the others, None in each other's places.

    Those to update are the inexact ones, or those in the part of the state that
    `where` returns.

    Raises:
        ValueError: `where` selects integers, or nothing is selected.
    """
    ensemble = jax.tree.map(jnp.asarray, ensemble)  # NumPy's would count as static
    if where is None:
        selected = jax.tree.map(eqx.is_inexact_array, ensemble)
    else:
        nothing = jax.tree.map(lambda _: False, ensemble)
        everything = lambda part: jax.tree.map(lambda _: True, part)
        selected = eqx.tree_at(where, nothing, replace_fn=everything)
    update, rest = eqx.partition(ensemble, selected)
    leaves = jax.tree.leaves(update)
    if not leaves:
        raise ValueError("there is nothing to update: no leaf is selected.")
    if wrong := [leaf.dtype for leaf in leaves if not eqx.is_inexact_array(leaf)]:
        raise ValueError(f"`where` selects leaves of {wrong[0]}, not of real numbers.")
    return update, rest


def centre(
    ensemble: Inexact[Array, "member *state"],
) -> tuple[Inexact[Array, "*state"], Inexact[Array, "member *state"]]:
    """Return mean and anomalies, accurate for small spreads about large values too."""
    first = ensemble[:1]
    shifted = ensemble - first
    mean = jnp.mean(shifted, axis=0, keepdims=True)
    return (first + mean)[0], shifted - mean


def observe(
    background: PyTree[Array], observation: Observation
) -> tuple[Float[Array, "observation"], Float[Array, "member observation"]]:
    """Return innovation of the mean prediction, and predicted anomalies; both whitened.

    Both are flat and 0 where masked. An error that is not Gaussian, or depends on what
    is predicted, is the Gaussian one that stands for it at the mean prediction.
    """
    prediction = observation.unwrap(predict_members(background, observation))
    mean, anomalies = centre(prediction.astype(wide(prediction.dtype)))
    return whiten(observation, mean, anomalies)


def whiten(
    observation: Observation,
    prediction: Float[Array, "*observation"],
    anomalies: Float[Array, "member *observation"],
) -> tuple[Float[Array, "observation"], Float[Array, "member observation"]]:
    """Return the innovation of a prediction, and anomalies about it; both whitened."""
    error = observation.gaussian_error(prediction)
    white = lambda residual: error.whiten(residual, observation.mask)
    innovation = white(observation.residual(prediction))
    white = jax.vmap(white)(jnp.where(observation.mask[None], anomalies, 0))
    return innovation.reshape(-1), white.reshape(white.shape[0], -1)


def counts(observation: Observation) -> dict[str, Int[Array, ""]]:
    """Return how many entries are `used`, `masked` and `rejected`, for an `Info`."""
    used, rejected = jnp.sum(observation.mask), jnp.sum(observation.rejected)
    masked = observation.mask.size - used - rejected
    return {"used": used, "masked": masked, "rejected": rejected}


def chi_square(
    innovation: Float[Array, "observation"],
    anomalies: Float[Array, "member observation"],
    weights: Float[Array, "member"],
    used: Int[Array, ""],
) -> Scalar:
    """Return `d' (I + Y'Y / (members - 1))^-1 d / used`, 0 where nothing is used.

    The `weights` are those of the mean, `(members - 1 + Y Y')^-1 Y d`.
    """
    explained = matmul(weights, anomalies)
    total = jnp.sum(innovation * (innovation - explained))
    return total / jnp.maximum(used, 1).astype(total.dtype)


def recombine(
    matrix: Float[Array, "member member"], ensemble: Inexact[Array, "member *state"]
) -> Inexact[Array, "member *state"]:
    """Return `ensemble + matrix @ anomalies`, in the dtype of the ensemble.

    It is the increment that is computed, so no accuracy is lost to a large mean, and a
    matrix of zeros returns the very same ensemble.
    """
    dtype = wide(ensemble.dtype)
    _, anomalies = centre(ensemble.astype(dtype))
    increment = matmul(matrix.astype(dtype), anomalies.reshape(len(anomalies), -1))
    increment = increment.reshape(ensemble.shape)
    return (ensemble.astype(dtype) + increment).astype(ensemble.dtype)


def rotation(
    members: int, dtype: np.dtype, *, key: Key[Array, ""]
) -> Float[Array, "member member"]:
    """Return a random orthogonal matrix that keeps the mean of the members.

    It is uniform (Haar) among those that map the vector of ones to itself.
    """
    ones = np.full(members, members**-0.5)
    # A Householder reflection takes the first axis to `ones`, the rest across it.
    normal = ones + np.eye(1, members)[0]
    normal = normal / np.linalg.norm(normal)
    basis = np.eye(members) - 2 * np.outer(normal, normal)
    complement = jnp.asarray(basis[:, 1:], dtype)
    q, r = jnp.linalg.qr(white_noise(key, (members - 1, members - 1), dtype))
    q = q * jnp.sign(jnp.diagonal(r))[None, :]  # without it, QR is not uniform
    turned = matmul(matmul(complement, q), complement.T)
    return turned + jnp.asarray(np.outer(ones, ones), dtype)


def white_noise(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: np.dtype
) -> Float[Array, "..."]:
    """Return independent standard normal numbers, drawn in 32 bits and so in half time.

    Their grain is 1e-7 and their tails end beyond 5 standard deviations, far below the
    sampling noise of any ensemble.
    """
    return jr.normal(key, shape, jnp.float32).astype(dtype)


def matmul(a: Inexact[Array, "..."], b: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """Multiply in full precision: no accelerator may round to fewer bits."""
    return jnp.matmul(a, b, precision="highest")


def wide(dtype: np.dtype) -> np.dtype:
    """Return `dtype`, or float32 for the 16-bit ones, which hold no small anomalies."""
    return dtype if jnp.finfo(dtype).bits >= 32 else np.dtype(np.float32)
