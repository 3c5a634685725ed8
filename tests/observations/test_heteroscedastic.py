import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from skyens.assimilation import ETKF
from skyens.observations import (
    Dense,
    Diagonal,
    Error,
    Heteroscedastic,
    Observation,
    Proportional,
    StudentT,
)

VALUE = np.asarray([3.0, np.nan, -1.0])
STATE = jnp.asarray([2.0, 1.0, 0.0])
see = lambda state: state
ERROR = Heteroscedastic(Proportional(0.5, 0.2))
STD = np.sqrt(0.5**2 + (0.2 * np.asarray(STATE)) ** 2)


class HeteroscedasticTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_the_law_is_that_of_the_prediction(self):
        observation = Observation(VALUE, see, ERROR)
        density = self.variant(lambda o, state: o.log_prob(state))(observation, STATE)
        expected = stats.norm.logpdf(VALUE[[0, 2]], STATE[np.asarray([0, 2])], STD[::2])
        np.testing.assert_allclose(density, expected.sum(), rtol=1e-12)
        innovation = self.variant(lambda o, state: o.innovation(state))
        white = innovation(observation, STATE)
        np.testing.assert_allclose(white, [1 / STD[0], 0, -1 / STD[2]], rtol=1e-12)
        assert isinstance(ERROR, Error)


def test_density_weighs_the_size_of_the_law_and_innovations_do_not_differentiate_it():
    observation = Observation(VALUE, see, ERROR)
    step = 1e-6
    for i in (0, 2):
        moved = [observation.log_prob(STATE.at[i].add(h)).item() for h in (step, -step)]
        slope = jax.grad(observation.log_prob)(STATE)[i]
        np.testing.assert_allclose(slope, (moved[0] - moved[1]) / (2 * step), rtol=1e-6)
    _, operator = observation.linearise(STATE)
    np.testing.assert_allclose(
        operator.as_matrix(), np.diag([1 / STD[0], 0, 1 / STD[2]]), rtol=1e-12
    )


def test_parameters_of_the_law_are_trained_through_a_filter():
    background = jr.normal(jr.key(0), (4, 3)) + STATE[None]

    def loss(error):
        analysis, _ = ETKF()(background, Observation(VALUE, see, error))
        return jnp.sum(analysis**2)

    slopes = jax.grad(loss)(ERROR)
    for name in ("floor", "fraction"):
        where = lambda error, name=name: getattr(error.law, name)
        moved = [
            loss(eqx.tree_at(where, ERROR, where(ERROR) + h)) for h in (1e-5, -1e-5)
        ]
        np.testing.assert_allclose(
            where(slopes), (moved[0] - moved[1]) / 2e-5, rtol=1e-6
        )


def test_any_law_may_depend_on_the_prediction():
    robust = Heteroscedastic(lambda p: StudentT(0.5 + 0.1 * jnp.abs(p), 3.0))
    observation = Observation(VALUE, see, robust)
    expected = Observation(VALUE, see, StudentT(0.5 + 0.1 * jnp.abs(STATE), 3.0))
    for method in ("innovation", "log_prob"):
        np.testing.assert_allclose(
            getattr(observation, method)(STATE), getattr(expected, method)(STATE)
        )
    frozen = observation.about(STATE)
    assert isinstance(frozen.error, Diagonal)
    np.testing.assert_allclose(frozen.innovation(STATE), expected.innovation(STATE))
    full = Heteroscedastic(lambda p: Dense(jnp.diag(1 + p**2)), independent=False)
    white = Observation(VALUE, see, full).innovation(STATE)
    np.testing.assert_allclose(white, [1 / np.sqrt(5), 0, -1], rtol=1e-12)


def test_predictions_that_are_nan_reach_no_law():
    state = jnp.asarray([2.0, 1.0, jnp.nan])
    for error in (ERROR, Heteroscedastic(lambda p: Diagonal(0.5 + jnp.abs(p)))):
        masked = Observation(VALUE, see, error, np.asarray([True, True, False]))
        chex.assert_tree_all_finite(masked.innovation(state))
        chex.assert_tree_all_finite(jax.grad(masked.log_prob)(state))
        seen = Observation(VALUE, see, error).innovation(state)
        assert np.isnan(seen).tolist() == [False, False, True]


def test_samples_are_of_the_law_at_the_prediction():
    observation = Observation(VALUE, see, ERROR)
    draw = lambda key: observation.sample(STATE, key=key)
    samples = jax.vmap(draw)(jr.split(jr.key(1), 4000))
    # four standard errors of a standard deviation of 4,000
    np.testing.assert_allclose(np.std(samples, axis=0), STD, rtol=4 / np.sqrt(8000))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_that_of_the_state(dtype):
    observation = Observation(VALUE, see, ERROR)
    state = STATE.astype(dtype)
    assert observation.innovation(state).dtype == dtype
    assert observation.log_prob(state).dtype == dtype
    assert observation.sample(state, key=jr.key(0)).dtype == dtype


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="depends on what is predicted: ask"):
        ERROR.whiten(STATE, jnp.ones(3, bool))
    with pytest.raises(ValueError, match="depends on what is predicted: ask"):
        ERROR.log_prob(STATE, jnp.ones(3, bool))
    mixed = Heteroscedastic(lambda p: Dense(jnp.diag(1 + p**2)))
    with pytest.raises(ValueError, match="returned a Dense with independent=False"):
        Observation(VALUE, see, mixed)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`floor` must be finite and abo"):
        Proportional(0.0, 0.1)
    with pytest.raises(ValueError, match=r"`floor` of shape \(2,\) does not broadcast"):
        Observation(VALUE, see, Heteroscedastic(Proportional(np.ones(2), 0.1)))
