"""Calibration: bias correction, and regressions of a distribution on the ensemble."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree

from skyens.scores._sums import ratio, root


class BiasCorrection(eqx.Module):
    """Take the mean error of past forecasts off new ones, by lead time or place.

    The error is what the statistic `Bias` gives of a training period, here of members
    `(member, lead_time, ...)`:

        bias = Bias()
        state = bias.update(bias.init((leads,)), ensemble, truth)
        correct = BiasCorrection(bias.finalize(state))

    Leads without any valid forecast have bias 0 and stay as they are.
    """

    bias: Float[Array, "*kept"]  # forecast minus truth, in the field's units

    def __call__(
        self, ensemble: Float[Array, "member *kept_and_field"]
    ) -> Float[Array, "member *kept_and_field"]:
        """Return the members without the bias of their leading axes, same dtype.

        Raises:
            ValueError: the axes after the members do not begin with those of `bias`.
        """
        kept = self.bias.shape
        if ensemble.shape[1 : 1 + len(kept)] != kept:
            raise ValueError(
                f"`bias` is for axes {kept} after the members, but `ensemble` has the "
                f"shape {ensemble.shape}."
            )
        trailing = (1,) * (ensemble.ndim - 1 - len(kept))
        return ensemble - self.bias.astype(ensemble.dtype).reshape(1, *kept, *trailing)


class Distribution(NamedTuple):
    """A forecast distribution by two numbers, in the units of the truth."""

    location: Float[Array, "*case"]
    scale: Float[Array, "*case"]


class Fit(NamedTuple):
    """How a fit went."""

    score: Float[Array, ""]  # the mean score over the training cases
    cases: Int[Array, ""]  # that were valid
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


class EMOS(eqx.Module):
    """Ensemble model output statistics, or nonhomogeneous regression.

    A distribution whose location follows the mean `m` of the members, and whose scale
    follows their standard deviation `s` (over M):

        location = intercept + slopes @ [m, covariates]
        scale = sqrt(base^2 + factor^2 s^2) exp(scale_slopes @ covariates)

    `family(location, scale, truth)` is the score of that distribution, such as
    `crps_normal`, or a Module of your own with parameters to fit beside. Made by
    `fit_emos`. Leads, stations and seasons of their own come from `jax.vmap`.

    Source: Gneiting et al. (2005), Mon. Wea. Rev. 133, 1098-1118.
    """

    family: Callable[..., Float[Array, "..."]]
    intercept: Float[Array, ""]
    slopes: Float[Array, " predictor"]  # of the mean, then of the covariates
    base: Float[Array, ""]
    factor: Float[Array, ""]
    scale_slopes: Float[Array, " covariate"]

    def __call__(
        self,
        ensemble: Float[Array, "member *case"],
        covariates: Float[Array, "*case covariate"] | None = None,
    ) -> Distribution:
        """Return the distribution of each case, in the units of the truth.

        Raises:
            ValueError: there are no members, or `covariates` are not those of the fit.
        """
        mean, variance = _moments(ensemble)
        covariates = _covariates(covariates, mean)
        if covariates.shape[-1] != self.scale_slopes.shape[-1]:
            raise ValueError(
                f"`covariates` must be {self.scale_slopes.shape[-1]} a case, as in the "
                f"fit, got {covariates.shape[-1]}."
            )
        location = self.intercept + self.slopes[0] * mean
        location += covariates @ self.slopes[1:]
        scale = root(self.base**2 + self.factor**2 * variance)
        return Distribution(location, scale * jnp.exp(covariates @ self.scale_slopes))

    def score(
        self,
        ensemble: Float[Array, "member *case"],
        truth: Float[Array, "*case"],
        covariates: Float[Array, "*case covariate"] | None = None,
    ) -> Float[Array, "*case"]:
        """Return the score of each case by the family."""
        return self.family(*self(ensemble, covariates), truth)


def fit_emos(
    family: Callable[..., Float[Array, "..."]],
    ensemble: Float[Array, "member ..."],
    truth: Float[Array, "..."],
    *,
    covariates: Float[Array, "..."] | None = None,
    weights: Float[Array, "..."] | None = None,
    where: Bool[Array, "..."] | None = None,
    max_steps: int = 500,
) -> tuple[EMOS, Fit]:
    """Return the regression that minimises the mean score over the cases.

    By BFGS on standardised predictors, from a location that is the least-squares fit on
    the mean and a scale that is that of its residuals. Arrays in `family` are
    fitted beside. A case whose truth, member or covariate is not finite does not count.

    Args:
        family: `family(location, scale, truth)` is the score of each case, lower is
            better, differentiable, for every real location and positive scale.
        ensemble: members of the training cases, `(member, case)`.
        truth: what happened, `(case,)`, in the units wanted of the distribution.
        covariates: more predictors of location and scale: season, the share of dry
            members, height; `(case, covariate)`.
        weights: of the cases; equal if left out.
        where: cases to use.
        max_steps: of BFGS. A fit that has not converged by then is returned as it is,
            and `Fit.converged` is False.

    Returns:
        The regression and how its fit went, in the dtype of `ensemble`. Without any
        valid case the score is 0 and `cases` is 0.

    Raises:
        ValueError: there are no members, the shapes do not fit, or `max_steps` is not
            positive.
    """
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    cases = truth.shape
    for name, array in {"weights": weights, "where": where}.items():
        if array is not None and array.shape != cases:
            raise ValueError(
                f"`{name}` must have the cases {cases}, got {array.shape}."
            )
    if ensemble.shape[1:] != cases:
        raise ValueError(
            f"`ensemble` of shape {ensemble.shape} must be members of the cases of "
            f"`truth`, {cases}."
        )
    ensemble, truth = jnp.asarray(ensemble), jnp.asarray(truth)
    dtype = jnp.result_type(ensemble, truth)
    covariates = _covariates(covariates, truth).astype(dtype)
    finite = jnp.isfinite(truth) & jnp.isfinite(ensemble).all(axis=0)
    finite &= jnp.isfinite(covariates).all(axis=-1)
    valid = finite if where is None else finite & where
    truth = jnp.where(valid, truth, 0).astype(dtype)
    ensemble = jnp.where(valid[None], ensemble, 0).astype(dtype)
    covariates = jnp.where(valid[:, None], covariates, 0)
    weights = jnp.ones(cases, dtype) if weights is None else weights.astype(dtype)
    weights = jnp.where(valid, weights, 0)
    weights = ratio(weights, jnp.sum(weights)[None])
    start, restore = _standardise(family, ensemble, truth, covariates, weights)
    parameters, rest = eqx.partition(start, eqx.is_inexact_array)

    def loss(parameters: PyTree, _: None) -> Float[Array, ""]:
        emos = restore(eqx.combine(parameters, rest))
        return jnp.sum(weights * emos.score(ensemble, truth, covariates))

    # Below the root of the rounding error a minimum is flat.
    tolerance = float(jnp.finfo(dtype).eps) ** 0.5
    solution = optx.minimise(
        loss,
        optx.BFGS(rtol=tolerance, atol=tolerance),
        parameters,
        max_steps=max_steps,
        throw=False,
    )
    emos = restore(eqx.combine(solution.value, rest))
    return emos, Fit(
        score=loss(solution.value, None),
        cases=jnp.sum(valid),
        steps=jnp.asarray(solution.stats["num_steps"]),
        converged=solution.result == optx.RESULTS.successful,
    )


def _moments(
    ensemble: Float[Array, "member *case"],
) -> tuple[Float[Array, "*case"], Float[Array, "*case"]]:
    if ensemble.shape[0] < 1:
        raise ValueError(f"`ensemble` has no members: its shape is {ensemble.shape}.")
    return jnp.mean(ensemble, axis=0), jnp.var(ensemble, axis=0)


def _covariates(covariates: Array | None, cases: Array) -> Array:
    if covariates is None:
        return jnp.zeros((*cases.shape, 0), cases.dtype)
    if covariates.shape[:-1] != cases.shape:
        raise ValueError(
            f"`covariates` must be (case, covariate) with the cases {cases.shape}, got "
            f"{covariates.shape}."
        )
    return covariates


def _standardise(
    family: Callable[..., Float[Array, "..."]],
    ensemble: Float[Array, "member case"],
    truth: Float[Array, " case"],
    covariates: Float[Array, "case covariate"],
    weights: Float[Array, " case"],
) -> tuple[EMOS, Callable[[EMOS], EMOS]]:
    """Return a start in standard units, and what brings such a regression to units."""
    mean, variance = _moments(ensemble)
    predictors = jnp.concatenate([mean[:, None], covariates], axis=1)
    centre = weights @ predictors
    width = root(weights @ (predictors - centre[None]) ** 2)
    width = jnp.where(width > 0, width, 1)
    truth_centre = weights @ truth
    truth_width = root(weights @ (truth - truth_centre) ** 2)
    truth_width = jnp.where(truth_width > 0, truth_width, 1)
    spread = root(weights @ variance)
    spread = jnp.where(spread > 0, spread, 1)
    correlation = (weights * (truth - truth_centre)) @ (mean - centre[0])
    correlation = jnp.clip(correlation / (truth_width * width[0]), -1, 1)
    residual = jnp.maximum(root(1 - correlation**2), 0.1)

    zeros = jnp.zeros(covariates.shape[-1], truth.dtype)
    start = EMOS(
        family=family,
        intercept=jnp.zeros((), truth.dtype),
        slopes=jnp.concatenate([correlation[None], zeros]),
        # Half of the residual variance is constant, half follows the spread.
        base=residual * 0.5**0.5,
        factor=residual * 0.5**0.5,
        scale_slopes=zeros,
    )

    def restore(emos: EMOS) -> EMOS:
        slopes = emos.slopes * truth_width / width
        scale_slopes = emos.scale_slopes / width[1:]
        level = truth_width * jnp.exp(-scale_slopes @ centre[1:])
        return EMOS(
            family=emos.family,
            intercept=truth_centre + truth_width * emos.intercept - slopes @ centre,
            slopes=slopes,
            base=jnp.abs(emos.base) * level,
            factor=jnp.abs(emos.factor) * level / spread,
            scale_slopes=scale_slopes,
        )

    return start, restore


def ensemble_copula_coupling(
    ensemble: Float[Array, "..."], quantiles: Float[Array, "..."], *, axis: int = 0
) -> Float[Array, "..."]:
    """Return calibrated members: `quantiles` in the order of the raw members.

    Calibration gives a distribution at each place by itself. Members that take its
    quantiles in the order in which the raw members stand there keep the raw ensemble's
    patterns in space and time. Raw members that are equal keep the order of their
    numbers.

    Args:
        ensemble: the raw members along `axis`.
        quantiles: as many values of the calibrated distribution along `axis`, in any
            order, such as those at `(k - 1/2) / M`.
        axis: of the members.

    Raises:
        ValueError: the shapes differ.

    Source: Schefzik, Thorarinsdottir & Gneiting (2013), Stat. Sci. 28, 616-640.
    """
    if ensemble.shape != quantiles.shape:
        raise ValueError(
            "`quantiles` must have the shape of `ensemble`, got "
            f"{quantiles.shape} and {ensemble.shape}."
        )
    order = jnp.argsort(ensemble, axis=axis, stable=True)
    ranks = jnp.argsort(order, axis=axis)
    return jnp.take_along_axis(jnp.sort(quantiles, axis=axis), ranks, axis=axis)
