from typing import Any

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from hypothesis import given, settings, strategies as st
from scipy import stats

from skyens.diffusion._whitened import Whitened, condition, factorise, solve, whiten
from skyens.observations import Dense, Linear, Observation

# What is known of its types has no matrices.
NORMAL: Any = stats.multivariate_normal
SIZE, COUNT = 4, 3


def problem(seed, seen=(True, True, True)):
    """Return an observation of a (2, 2) state, and its parts that are seen."""
    rng = np.random.default_rng(seed)
    matrix, value = rng.normal(size=(COUNT, SIZE)), rng.normal(size=COUNT)
    factor = rng.normal(size=(COUNT, COUNT))
    noise = factor @ factor.T / 10 + 0.1 * np.eye(COUNT)
    look = lambda state: Linear(matrix)(state.ravel())
    observation = Observation(np.where(seen, value, np.nan), look, Dense(noise))
    rows = np.flatnonzero(seen)
    return observation, (matrix[rows], noise[np.ix_(rows, rows)], value[rows])


@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 2**31),
    seen=st.lists(st.booleans(), min_size=COUNT, max_size=COUNT).filter(any),
    variance=st.floats(0, 100),
)
def test_densities_are_those_of_the_values_that_are_seen(seed, seen, variance):
    observation, (matrix, noise, value) = problem(seed, seen)
    state = np.random.default_rng(seed + 1).normal(size=(2, 2))
    white = whiten(observation, jnp.asarray(state))
    found = white.log_density(variance * white.gram())
    law = stats.multivariate_normal(
        matrix @ state.ravel(), noise + variance * matrix @ matrix.T
    )
    np.testing.assert_allclose(found, law.logpdf(value), rtol=1e-9, atol=1e-9)


def test_rows_go_forth_and_back():
    observation, _ = problem(0)
    white = whiten(observation, jnp.zeros((2, 2)))
    change = jr.normal(jr.key(0), (2, 2))
    moved = whiten(observation, change)
    left = white.innovation - white.along(change)
    chex.assert_trees_all_close(left, moved.innovation, rtol=1e-12)
    weight = jnp.array([1.0, -2.0, 0.5])
    inner = jnp.sum(white.back(weight) * change)
    chex.assert_trees_all_close(inner, weight @ white.along(change), rtol=1e-12)


def test_draws_given_the_values_have_the_moments_of_the_kalman_filter():
    observation, (matrix, noise, value) = problem(1)
    white, variance, inflation = whiten(observation, jnp.zeros((2, 2))), 2.0, 0.3
    number = lambda value: jnp.asarray(value)
    draw = lambda key: condition(white, number(variance), number(inflation), key=key)
    changes, fits = jax.jit(jax.vmap(draw))(jr.split(jr.key(0), 20_000))
    flat = np.asarray(changes).reshape(-1, SIZE)
    error = noise + inflation * matrix @ matrix.T
    total = error + variance * matrix @ matrix.T
    gain = variance * np.linalg.solve(total, matrix).T
    mean, covariance = gain @ value, variance * (np.eye(SIZE) - gain @ matrix)
    gap = flat.mean(0) - mean
    statistic = 20_000 * gap @ np.linalg.solve(covariance, gap)
    assert statistic < stats.chi2(SIZE).ppf(0.9999)
    variances = np.diag(covariance)
    chance = np.sqrt((np.outer(variances, variances) + covariance**2) / 20_000)
    assert (np.abs(np.cov(flat.T) - covariance) < 4.5 * chance).all()
    expected = [NORMAL.logpdf(value, matrix @ one, error) for one in flat[:5]]
    np.testing.assert_allclose(fits[:5], expected, rtol=1e-9)


def test_what_is_no_covariance_gives_way_to_its_diagonal():
    spread = jnp.array([[2.0, -9.0], [-9.0, -5.0]])
    chex.assert_trees_all_close(
        factorise(spread), jnp.diag(jnp.sqrt(jnp.array([3.0, 1])))
    )
    total = lambda spread: jnp.sum(solve(spread, jnp.ones(2)) ** 2)
    chex.assert_tree_all_finite(jax.grad(total)(spread))
    # One that is fine stays so, though not quite symmetric.
    fine = jnp.array([[2.0, 0.3], [0.1, 1.0]])
    chex.assert_trees_all_close(
        factorise(fine), np.linalg.cholesky([[3.0, 0.2], [0.2, 2.0]])
    )


def test_what_is_not_finite_stays_so():
    assert not jnp.isfinite(factorise(jnp.full((2, 2), jnp.nan))).all()


def test_float32_stays():
    observation, _ = problem(2)
    white = whiten(observation, jnp.zeros((2, 2), jnp.float32))
    assert isinstance(white, Whitened)
    change, fit = condition(white, jnp.float32(1), jnp.float32(0.5), key=jr.key(0))
    density = white.log_density(white.gram())
    assert {part.dtype for part in (change, fit, density)} == {jnp.dtype("float32")}
