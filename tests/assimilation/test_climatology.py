import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import Climatology, DenseCovariance, cycle
from skyens.observations import Diagonal, Index, Observation

MEAN = {"x": np.array([1.0, 2.0]), "clock": np.array(0)}
BACKGROUND = {"x": jnp.zeros((4, 2), jnp.float32), "clock": jnp.arange(4)}
OBSERVATION = Observation(
    np.array([5.0, np.nan]), lambda state: state["x"], Diagonal(1.0)
)


def test_every_member_is_the_mean():
    analysis, info = jax.jit(Climatology.__call__)(
        Climatology(MEAN), BACKGROUND, OBSERVATION
    )
    np.testing.assert_array_equal(analysis["x"], [[1, 2]] * 4)
    assert analysis["x"].dtype == jnp.float32
    np.testing.assert_array_equal(analysis["clock"], np.arange(4))
    assert (int(info.used), int(info.masked)) == (0, 1)
    assert float(info.chi_square) == float(info.degrees_of_freedom) == 0


def test_with_a_covariance_they_are_draws():
    full = np.array([[2.0, 1.0], [1.0, 3.0]])
    method = Climatology(MEAN["x"], DenseCovariance(full))
    see = Observation(np.zeros(1), Index(np.array([0])), Diagonal(1.0))
    draws, _ = method(jnp.zeros((20_000, 2)), see, key=jr.key(0))
    np.testing.assert_allclose(draws.mean(0), MEAN["x"], atol=0.07)
    np.testing.assert_allclose(np.cov(draws.T), full, atol=0.2)


def test_its_error_on_lorenz_63_is_the_spread_of_the_climate():
    # DAPPER's row for Climatology: 7.6.
    step = dynamics.Lorenz63()
    start = jnp.asarray([1.509, -1.531, 25.46])
    truth = dynamics.rollout(step, start, 25_000)[24::25]
    see = lambda value: Observation(value, Index(np.arange(3)), Diagonal(2.0))
    result = cycle(
        step,
        Climatology(truth.mean(0)),
        start[None],
        see,
        truth,
        key=jr.key(0),
        steps_between=25,
    )
    error = np.sqrt(np.mean((result.analyses[:, 0] - truth) ** 2, axis=1)).mean()
    assert 7.6 * 0.95 < error < 7.6 * 1.05


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`mean` has shapes"):
        Climatology(np.ones(3))(BACKGROUND["x"], OBSERVATION)
    with pytest.raises(ValueError, match="`key` is needed to draw"):
        Climatology(np.ones(2), DenseCovariance(np.eye(2)))(
            BACKGROUND["x"], OBSERVATION
        )
