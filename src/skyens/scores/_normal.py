"""Scores of a normal forecast distribution, in closed form."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from skyens.scores._location_scale import crps_location_scale
from skyens.scores._normal_functions import LOG_ROOT_TWO_PI, REACH, balance, density
from skyens.scores._parameters import bring_together, positive


def crps_normal(
    mean: Float[Array, "..."], std: Float[Array, "..."], truth: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return the CRPS of normal distributions, point by point; lower is better.

    `std (w (2 Phi(w) - 1) + 2 phi(w) - 1 / sqrt(pi))` with `w = (truth - mean) / std`.
    Where `std` is 0 it is the absolute error, with the one-sided derivative in `std`;
    where `std` is negative it is NaN. Half precision is computed in float32.

    Args:
        mean: of the distribution, in any units.
        std: its standard deviation, in the same units.
        truth: what happened, in the same units. The three broadcast.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Gneiting et al. (2005), Mon. Wea. Rev. 133, 1098-1118, equation 5.
    """
    dtype, points = bring_together(mean=mean, std=std, truth=truth)
    mean, std, truth = points
    return crps_location_scale(_slopes, REACH, truth - mean, std).astype(dtype)


def log_score_normal(
    mean: Float[Array, "..."], std: Float[Array, "..."], truth: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return minus the log density of normal distributions; lower is better.

    `w^2 / 2 + log std + log(2 pi) / 2` with `w = (truth - mean) / std`. NaN where
    `std` is not positive. Half precision is computed in float32.

    Args:
        mean: of the distribution, in any units.
        std: its standard deviation, in the same units.
        truth: what happened, in the same units. The three broadcast.

    Returns:
        The score in nats, of a density per unit of the truth.

    Raises:
        ValueError: the shapes do not broadcast.

    Source: Gneiting & Raftery (2007), J. Amer. Stat. Assoc. 102, 359-378.
    """
    dtype, points = bring_together(mean=mean, std=std, truth=truth)
    mean, std, truth = points
    std = positive(std)
    standardised = (truth - mean) / std
    return (0.5 * standardised**2 + jnp.log(std) + LOG_ROOT_TWO_PI).astype(dtype)


def _slopes(standardised):
    return balance(standardised), 2 * density(standardised) - 1 / math.sqrt(math.pi)
