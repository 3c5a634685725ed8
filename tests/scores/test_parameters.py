"""What holds for every family: the forecast is described by parameters."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import integrate, stats

from skyens import scores


class Censored(NamedTuple):
    """A distribution with what lies beyond the limits put at them."""

    base: Any
    lower: float
    upper: float

    def cdf(self, x):
        inner = np.where(x < self.lower, 0.0, self.base.cdf(x))
        return np.where(x >= self.upper, 1.0, inner)

    def sf(self, x):
        inner = np.where(x < self.lower, 1.0, self.base.sf(x))
        return np.where(x >= self.upper, 0.0, inner)

    def ppf(self, p):
        return np.clip(self.base.ppf(p), self.lower, self.upper)

    def logpdf(self, x):
        if x == self.lower:
            return self.base.logcdf(x)
        return self.base.logsf(x) if x == self.upper else self.base.logpdf(x)


def truncated(mean, std, lower, upper):
    limits = (lower - mean) / std, (upper - mean) / std
    return stats.truncnorm(*limits, loc=mean, scale=std)


class Family(NamedTuple):
    crps: Callable[..., Any]
    log_score: Callable[..., Any]
    distribution: Callable[..., Any]  # of the parameters
    names: tuple[str, ...]
    parameters: tuple[float, ...]
    truths: tuple[float, ...]
    scale: int | None  # which parameter must not be negative

    def arrays(self, truths=None, dtype=jnp.float64):
        """Return the parameters, one each, and the truths as arrays."""
        truths = self.truths if truths is None else truths
        parameters = [jnp.full(len(truths), x, dtype) for x in self.parameters]
        return [*parameters, jnp.asarray(truths, dtype)]


def family(name, distribution, names, parameters, truths, scale, **limits):
    crps, log_score = (
        getattr(scores, f"{kind}_{name}") for kind in ("crps", "log_score")
    )
    if limits:
        crps = functools.partial(crps, **limits)
        log_score = functools.partial(log_score, **limits)
    return Family(crps, log_score, distribution, names, parameters, truths, scale)


AROUND = (-2.5, 0.4, 0.9, 6.0)
ABOVE = (0.01, 0.8, 1.7, 9.0)
FAMILIES = {
    "normal": family("normal", stats.norm, ("mean", "std"), (0.4, 1.3), AROUND, 1),
    "logistic": family(
        "logistic", stats.logistic, ("location", "scale"), (0.3, 0.7), AROUND, 1
    ),
    "laplace": family(
        "laplace", stats.laplace, ("location", "scale"), (0.3, 0.7), AROUND, 1
    ),
    "student_t": family(
        "student_t", stats.t, ("df", "location", "scale"), (3.7, 0.3, 0.8), AROUND, 2
    ),
    "gamma": family(
        "gamma",
        lambda shape, scale: stats.gamma(shape, scale=scale),
        ("shape", "scale"),
        (2.3, 0.7),
        ABOVE,
        1,
    ),
    "lognormal": family(
        "lognormal",
        lambda mean, std: stats.lognorm(std, scale=np.exp(mean)),
        ("mean_log", "std_log"),
        (0.2, 0.7),
        ABOVE,
        1,
    ),
    "exponential": family(
        "exponential",
        lambda scale: stats.expon(scale=scale),
        ("scale",),
        (1.3,),
        ABOVE,
        0,
    ),
    "censored_normal": family(
        "censored_normal",
        lambda mean, std: Censored(stats.norm(mean, std), 0.0, 4.0),
        ("mean", "std"),
        (-0.4, 1.9),
        (0.0, 0.3, 2.7, 4.0),
        1,
        lower=0.0,
        upper=4.0,
    ),
    "truncated_normal": family(
        "truncated_normal",
        lambda mean, std: truncated(mean, std, 0.0, np.inf),
        ("mean", "std"),
        (-0.4, 1.9),
        (0.0, 0.3, 2.7, 7.0),
        1,
        lower=0.0,
    ),
    "censored_shifted_gamma": family(
        "censored_shifted_gamma",
        lambda shape, scale, shift: Censored(
            stats.gamma(shape, loc=-shift, scale=scale), 0.0, np.inf
        ),
        ("shape", "scale", "shift"),
        (1.4, 1.9, 0.8),
        (0.0, 0.3, 2.7, 9.0),
        1,
    ),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def integral(distribution, truth):
    """Return the integral of (F(x) - 1{truth <= x})^2, piece by piece."""
    levels = [1e-13, 1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.9]
    edges = {float(truth), *(float(distribution.ppf(p)) for p in levels)}
    # From the upper end mirrored levels lose digits; steps out to no tail do not.
    last = float(distribution.ppf(0.999))
    step = last - float(distribution.ppf(0.1))
    edges |= {last + step * out for out in (0, 1, 3, 10, 40)}
    quad = functools.partial(integrate.quad, epsabs=1e-14, epsrel=1e-12, limit=200)
    below = lambda x: distribution.cdf(x) ** 2
    above = lambda x: distribution.sf(x) ** 2
    total, edges = 0.0, sorted(edges)
    for start, stop in itertools.pairwise(edges):
        total += quad(below if stop <= truth else above, start, stop)[0]
    # The rest of a heavy tail.
    return total + quad(above, edges[-1], np.inf)[0] + quad(below, -np.inf, edges[0])[0]


@every_family
def test_the_crps_is_the_integral_over_the_distribution(family):
    distribution = family.distribution(*family.parameters)
    expected = np.array([integral(distribution, truth) for truth in family.truths])
    score = jax.jit(family.crps)(*family.arrays())
    chex.assert_trees_all_close(score, expected, rtol=1e-10)


@every_family
def test_the_log_score_is_minus_the_log_density_or_probability(family):
    distribution = family.distribution(*family.parameters)
    expected = -np.array([distribution.logpdf(truth) for truth in family.truths])
    score = jax.jit(family.log_score)(*family.arrays())
    chex.assert_trees_all_close(score, expected, rtol=1e-11)


def central(function, args, index, step=1e-3):
    """Return central differences in one argument, of fourth order in the step."""
    move = lambda by: [x + by * step * (index == j) for j, x in enumerate(args)]
    far, near, low, lower = (function(*move(by)) for by in (2, 1, -1, -2))
    difference = lambda a, b, c, d: (8 * (b - c) - (a - d)) / (12 * step)
    return jax.tree.map(difference, far, near, low, lower)


@every_family
@pytest.mark.parametrize("kind", ["crps", "log_score"])
def test_slopes_are_those_of_central_differences(family, kind):
    score, args = getattr(family, kind), family.arrays(family.truths[1:3])
    indices = tuple(range(len(args)))
    slopes = jax.jit(jax.grad(lambda *args: score(*args).sum(), indices))(*args)
    value = jax.jit(score)
    for i, slope in enumerate(slopes):
        chex.assert_trees_all_close(slope, central(value, args, i), atol=1e-8)


@pytest.mark.parametrize("name", ["normal", "laplace", "gamma", "lognormal"])
def test_curvatures_are_those_of_central_differences(name):
    family = FAMILIES[name]
    args = family.arrays(family.truths[1:3])
    indices = tuple(range(len(args)))
    total = lambda *args: family.crps(*args).sum()
    slopes = jax.jit(jax.grad(total, indices))
    curvatures = jax.jit(jax.hessian(total, indices))(*args)
    for i in indices:
        expected = central(slopes, args, i)
        actual = tuple(jnp.diagonal(curvatures[j][i]) for j in indices)
        chex.assert_trees_all_close(actual, expected, atol=1e-8)


@every_family
@pytest.mark.parametrize("kind", ["crps", "log_score"])
def test_it_is_proper(family, kind):
    count = 2000
    levels = (np.arange(count) + 0.5) / count
    truths = family.distribution(*family.parameters).ppf(levels)
    score = jax.jit(getattr(family, kind))
    args = family.arrays(truths)
    right = score(*args).mean()
    for i in range(len(family.parameters)):
        for factor in (0.7, 1.4):
            wrong = [x * factor if i == j else x for j, x in enumerate(args)]
            # A fraction of the squared departure, above the error of the mean.
            assert score(*wrong).mean() > right + 1e-4


@every_family
def test_half_and_single_precision_are_kept(family):
    exact = [np.asarray(f(*family.arrays())) for f in (family.crps, family.log_score)]
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        rounded = family.arrays(dtype=dtype)
        tolerance = 8 * float(jnp.finfo(dtype).eps)
        for score, expected in zip((family.crps, family.log_score), exact, strict=True):
            result = score(*rounded)
            assert result.dtype == dtype
            # Rounding the truth moves a score by its slope.
            limit = tolerance * (1 + 3 * np.abs(expected) + np.abs(family.truths))
            limit *= 1 + 1 / np.maximum(np.abs(family.truths), 0.1)
            error = np.abs(np.asarray(result, float) - expected)
            assert (error < limit).all(), (error, limit)


@every_family
def test_a_negative_scale_is_not_a_number_and_none_is_the_absolute_error(family):
    args = family.arrays()
    times = lambda factor: [
        factor * x if i == family.scale else x for i, x in enumerate(args)
    ]
    known = times(-1)
    assert jnp.isnan(family.crps(*known)).all()
    assert jnp.isnan(family.log_score(*known)).all()
    sure, tight = times(0), times(1e-12)
    score, slopes = jax.jit(
        jax.value_and_grad(
            lambda *args: family.crps(*args).sum(), tuple(range(len(args)))
        )
    )(*sure)
    chex.assert_trees_all_close(score, family.crps(*tight).sum(), atol=1e-10)
    chex.assert_tree_all_finite(slopes)


@every_family
def test_shapes_broadcast_or_are_named(family):
    *parameters, truth = family.arrays()
    grid = family.crps(*(x[:1] for x in parameters), truth)
    each = jax.vmap(family.crps)(*parameters, truth)
    chex.assert_trees_all_close(grid, each, rtol=1e-13)
    with pytest.raises(
        ValueError, match=f"not broadcast: `{family.names[0]}`.*`truth`"
    ):
        family.crps(*parameters, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"\(4,\).* \(3,\)"):
        family.log_score(*parameters, jnp.zeros(3))


LOCATED = {name: FAMILIES[name] for name in ("normal", "logistic", "laplace")}


@pytest.mark.parametrize("family", LOCATED.values(), ids=LOCATED)
@settings(deadline=None, max_examples=20)
@given(offset=st.integers(-500_000, 500_000), steps=st.integers(-200, 200))
def test_single_precision_is_exact_at_any_offset(family, offset, steps):
    score = _jitted(family)
    error = steps / 16  # exact in float32 at that offset
    at = lambda x, dtype: jnp.asarray(x, dtype)
    near = score(at(0, jnp.float64), at(0.5, jnp.float64), at(error, jnp.float64))
    far = score(*(at(x, jnp.float32) for x in (offset, 0.5, offset + error)))
    chex.assert_trees_all_close(far.astype(float), near, rtol=2e-6)


@functools.cache
def _jitted(family):
    return jax.jit(family.crps)
