"""The logarithmic score of the probabilities of events."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from skyens.scores._checks import check_known, check_probability
from skyens.scores._members import check_together, score_dtype, wide_dtype


def log_score_binary(
    probability: Float[Array, "..."], event: Bool[Array, "..."], *, least: float = 0.0
) -> Float[Array, "..."]:
    """Return minus the logarithm of the probability given to what happened.

    In nats. It is infinite, with gradient 0, where that was said to be impossible: the
    score is so by design, and one such case is worth a look. `least` is for those who
    rather bound it: probabilities of what happened count as no less than that.

    Args:
        probability: of the event, in [0, 1].
        event: whether it happened; broadcasts against `probability`.
        least: the smallest probability that counts, in [0, 1).

    Raises:
        ValueError: `least` lies outside [0, 1), or the shapes do not broadcast.
        EquinoxRuntimeError: a known probability lies outside [0, 1].

    Source: Good (1952), J. R. Stat. Soc. B 14, 107-114.
    """
    shape = check_together(probability=probability, event=event)
    dtype = score_dtype(probability)
    probability = check_probability("probability", probability)
    probability = jnp.broadcast_to(probability.astype(wide_dtype(dtype)), shape)
    event = jnp.broadcast_to(event, shape)
    given = jnp.where(event, probability, 1 - probability)
    score = _surprise(given, least)
    # Minus log(1 - p), which a small p would lose in the difference.
    small = ~event & (probability < 0.5) & (given > least)
    score = jnp.where(small, -jnp.log1p(-jnp.where(small, probability, 0)), score)
    return score.astype(dtype)


def log_score_categorical(
    probabilities: Float[Array, "..."],
    category: Int[Array, "..."],
    *,
    axis: int = -1,
    least: float = 0.0,
) -> Float[Array, "..."]:
    """Return minus the logarithm of the probability given to the category that came.

    In nats, and infinite where that is 0, as `log_score_binary` is.

    Args:
        probabilities: of the categories along `axis`, adding up to 1.
        category: which came, from 0; broadcasts against `probabilities` without `axis`.
        axis: of the categories.
        least: the smallest probability that counts, in [0, 1).

    Raises:
        ValueError: `least` lies outside [0, 1), or there is no such axis, or the shapes
            do not broadcast.
        EquinoxRuntimeError: known probabilities lie outside [0, 1] or do not add up to
            1, or a known category does not exist; a traced one gives NaN.

    Source: Good (1952), J. R. Stat. Soc. B 14, 107-114.
    """
    if not -probabilities.ndim <= axis < probabilities.ndim:
        raise ValueError(
            f"`axis` is {axis}, but `probabilities` have shape {probabilities.shape}."
        )
    dtype = score_dtype(probabilities)
    size = probabilities.shape[axis]
    probabilities = check_probability("probabilities", probabilities)
    probabilities = jnp.moveaxis(probabilities.astype(wide_dtype(dtype)), axis, -1)
    # What rounding to the dtype given can make of a sum of so many terms.
    slack = size * float(jnp.finfo(dtype).eps)
    check_known(
        "probabilities",
        "adding up to 1",
        jnp.sum(probabilities, axis=-1),
        lambda x: ~(np.abs(x - 1) > slack),
    )
    exists = lambda x: (x >= 0) & (x < size)
    wish = f"categories, from 0 to {size - 1}"
    category = check_known("category", wish, category, exists)
    shape = check_together(probabilities=probabilities[..., 0], category=category)
    probabilities = jnp.broadcast_to(probabilities, (*shape, size))
    category = jnp.broadcast_to(category, shape)
    index = jnp.clip(category, 0, size - 1)[..., None]
    given = jnp.take_along_axis(probabilities, index, axis=-1)[..., 0]
    score = jnp.where(exists(category), _surprise(given, least), jnp.nan)
    return score.astype(dtype)


def _surprise(probability, least):
    """Return minus the logarithm, with gradient 0 where it is infinite or cut."""
    if not 0 <= least < 1:
        raise ValueError(f"`least` must lie in [0, 1), got {least}.")
    floor = np.inf if least == 0 else -np.log(least)
    low = probability <= least
    return jnp.where(low, floor, -jnp.log(jnp.where(low, 1, probability)))
