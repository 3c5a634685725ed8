import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.assimilation import kalman_update
from skyens.observations import Dense, Diagonal, Linear, Observation

update = jax.jit(kalman_update)


def problem(seed=0, states=4, count=3):
    generator = np.random.default_rng(seed)
    factor = generator.normal(size=(states, states))
    noise = generator.normal(size=(count, count))
    return (
        jnp.asarray(generator.normal(size=states)),
        jnp.asarray(factor @ factor.T + 0.1 * np.eye(states)),
        generator.normal(size=(count, states)),
        noise @ noise.T + 0.1 * np.eye(count),
        generator.normal(size=count),
    )


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    mask=st.lists(st.booleans(), min_size=3, max_size=3).map(np.asarray),
)
def test_it_is_the_information_form_of_what_the_mask_keeps(seed, mask):
    mean, covariance, matrix, error, value = problem(seed)
    observation = Observation(value, Linear(matrix), Dense(error), mask)
    analysis, remaining = update(mean, covariance, observation)
    seen, inverse = matrix[mask], np.linalg.inv(error[np.ix_(mask, mask)])
    prior = np.linalg.inv(covariance)
    expected = np.linalg.inv(prior + seen.T @ inverse @ seen)
    information = prior @ mean + seen.T @ inverse @ value[mask]
    np.testing.assert_allclose(remaining, expected, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(analysis, expected @ information, rtol=1e-7, atol=1e-8)


def test_the_mean_is_any_pytree_and_a_gradient_exists():
    mean, covariance, matrix, _, value = problem()
    expected = update(
        mean, covariance, Observation(value, Linear(matrix), Diagonal(1.0))
    )
    split = {"a": mean[:1].reshape(1, 1), "b": mean[1:]}
    see = lambda state: (
        jnp.asarray(matrix) @ jnp.concatenate([state["a"][0], state["b"]])
    )
    parts, remaining = update(split, covariance, Observation(value, see, Diagonal(1.0)))
    chex.assert_trees_all_equal_shapes(parts, split)
    joined = jnp.concatenate([parts["a"][0], parts["b"]])
    chex.assert_trees_all_close((joined, remaining), expected, rtol=1e-12)

    def loss(std):
        observation = Observation(value, Linear(matrix), Diagonal(std))
        analysis, remaining = kalman_update(mean, covariance, observation)
        return jnp.sum(analysis**2) + jnp.trace(remaining)

    slope = jax.jit(jax.grad(loss))(0.7)
    change = jax.jit(loss)(0.7 + 1e-5) - jax.jit(loss)(0.7 - 1e-5)
    np.testing.assert_allclose(slope, change / 2e-5, rtol=1e-7)


def test_a_nonlinear_operator_is_linearised_at_the_mean():
    mean, covariance, matrix, _, value = problem()
    curved = Observation(value, lambda x: jnp.sin(matrix @ x), Diagonal(0.5))
    slope = np.cos(matrix @ mean)[:, None] * matrix
    shifted = value - np.sin(matrix @ mean) + slope @ mean
    straight = Observation(shifted, Linear(slope), Diagonal(0.5))
    chex.assert_trees_all_close(
        update(mean, covariance, curved),
        update(mean, covariance, straight),
        rtol=1e-11,
        atol=1e-12,
    )


def test_single_precision_stays_and_keeps_the_covariance_symmetric():
    mean, covariance, matrix, _, value = problem()
    observation = Observation(value, Linear(matrix), Diagonal(1e-3))
    analysis, remaining = update(
        mean.astype(jnp.float32), covariance.astype(jnp.float32), observation
    )
    assert analysis.dtype == remaining.dtype == jnp.float32
    np.testing.assert_allclose(remaining, remaining.T, atol=1e-6)
    # Joseph's form: no negative variance beyond rounding of the prior's size.
    largest = float(jnp.linalg.eigvalsh(covariance)[-1])
    assert float(jnp.linalg.eigvalsh(remaining)[0]) > -1e-6 * largest


def test_wrong_use_is_reported():
    observation = Observation(np.zeros(1), lambda x: x[:1].real, Diagonal(1.0))
    with pytest.raises(
        ValueError, match=r"\(2, 2\) does not fit a `mean` of 3 entries"
    ):
        kalman_update(jnp.ones(3), jnp.eye(2), observation)
    with pytest.raises(ValueError, match="`mean` must be real, got complex"):
        kalman_update(jnp.ones(2, complex), jnp.eye(2), observation)
