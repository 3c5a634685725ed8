import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import ETKF
from skyens.observations import (
    Biased,
    Chain,
    Diagonal,
    Index,
    LinearBias,
    LogPressure,
    Observation,
    WindDirection,
)
from skyens.training import trainable

SEE = Index(np.asarray([0, 2, 3]))
PREDICTORS = np.asarray([[1.0, 2.0, 3.0], [0.5, -0.5, 0.0]])
STATE = jr.normal(jr.key(0), (5,))


class BiasedTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_the_bias_is_added_to_what_is_seen(self):
        see = self.variant(lambda operator, state: operator(state))
        seen = np.asarray(STATE)[[0, 2, 3]]
        each = np.asarray([1.0, -1.0, 0.5])
        for bias in (each, lambda state: jnp.asarray(each)):
            np.testing.assert_allclose(see(Biased(SEE, bias), STATE), seen + each)
        np.testing.assert_allclose(see(Biased(SEE, 2), STATE), seen + 2)
        linear = LinearBias(np.asarray([0.1, -2.0]), PREDICTORS, 0.3)
        expected = seen + np.asarray([0.1, -2.0]) @ PREDICTORS + 0.3
        np.testing.assert_allclose(see(Biased(SEE, linear), STATE), expected)
        depends = LinearBias(np.asarray([0.1]), lambda state: state[None, :3] ** 2)
        expected = seen + 0.1 * np.asarray(STATE)[:3] ** 2
        np.testing.assert_allclose(see(Biased(SEE, depends), STATE), expected)


def test_offset_and_coefficients_are_parameters_and_predictors_are_not():
    model = Biased(SEE, LinearBias(np.zeros(2), PREDICTORS, np.zeros(3)))
    wanted = trainable(model)
    assert wanted.bias.coefficients
    assert wanted.bias.offset
    assert not wanted.bias.predictors
    truth = np.asarray([0.7, -0.2])
    value = SEE(STATE) + truth @ PREDICTORS

    @jax.jit
    def fall(_, model):
        loss = lambda model: -Observation(value, model, Diagonal(1.0)).log_prob(STATE)
        slope = eqx.filter_grad(loss)(model).bias.coefficients
        at = lambda model: model.bias.coefficients
        return eqx.tree_at(at, model, at(model) - 0.06 * slope)

    fitted = jax.lax.fori_loop(0, 800, fall, model)
    np.testing.assert_allclose(fitted.bias.coefficients, truth, atol=1e-6)


def test_a_filter_estimates_a_bias_that_is_part_of_the_state():
    members = {
        "x": jr.normal(jr.key(1), (200, 5)),
        "bias": 2 * jr.normal(jr.key(2), (200, 1)),
    }
    operator = Biased(Chain(lambda state: state["x"], SEE), lambda state: state["bias"])
    value = np.asarray([3.0, 3.2, 2.8])
    analysis, _ = ETKF()(members, Observation(value, operator, Diagonal(0.3)))
    # Prior variances 1, 4 and 0.09: weight of the bias 3 * 4 / (3 * 4 + 1.09).
    expected = 3.0 * 12 / (12 + 1.09)
    np.testing.assert_allclose(analysis["bias"].mean(), expected, atol=0.35)


def test_coordinates_and_period_are_those_of_the_operator():
    column = LogPressure(np.asarray([1e4, 1e5]), np.asarray([5e4]))
    assert Biased(column).coordinates == column.coordinates
    assert Biased(SEE).coordinates is None
    assert Biased(SEE).period is None
    assert Biased(WindDirection(), 3.0).period == 360


def test_dtype_is_that_of_the_operator():
    model = Biased(SEE, LinearBias(np.zeros(2), PREDICTORS))
    assert model(STATE.astype(jnp.float32)).dtype == jnp.float32


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"\(2, 3\) need one coefficient each, got 3"):
        LinearBias(np.zeros(3), PREDICTORS)
    late = LinearBias(np.zeros(3), lambda state: jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"\(2, 3\) need one coefficient each, got 3"):
        late(STATE)
    with pytest.raises(ValueError, match=r"`bias` of shape \(2,\) does not broadcast"):
        Biased(SEE, np.ones(2))(STATE)
