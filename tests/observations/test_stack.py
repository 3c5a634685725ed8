import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import ETKF
from skyens.observations import (
    Block,
    Dense,
    Diagonal,
    Heteroscedastic,
    Index,
    Linear,
    Observation,
    Proportional,
    StudentT,
    stack,
)

STATE = jr.normal(jr.key(0), (6,))
COVARIANCE = np.asarray([[1.0, 0.3], [0.3, 0.5]])


def sources():
    matrix = np.random.default_rng(0).normal(size=(4, 6))
    return [
        Observation(
            np.asarray([1.0, np.nan]),
            Index(np.asarray([0, 3])),
            Diagonal(0.5),
            coordinates={"latitude": np.asarray([10.0, 20.0])},
        ),
        Observation(
            np.asarray([[0.1, 2.0], [3.0, np.nan]]),
            lambda state: Linear(matrix)(state).reshape(2, 2),
            Block(np.stack([COVARIANCE, 2 * COVARIANCE])),
            coordinates={"pressure": np.asarray([5e4, 8e4])},
        ),
        Observation(
            np.asarray(-0.4), lambda state: state[0] * state[1], StudentT(0.3, 3.0)
        ),
        Observation(
            np.asarray([5.0, 1.0]),
            lambda state: 3 * state[4:],
            Heteroscedastic(Proportional(0.5, 0.2)),
            np.asarray([True, False]),
            period=4.0,
        ),
    ]


class StackTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_says_what_its_sources_say(self):
        def whole(sources, state):
            observation = stack(sources)
            return (
                observation.predict(state),
                observation.innovation(state),
                observation.log_prob(state),
                observation.solve(observation.residual(observation.predict(state))),
            )

        parts = sources()
        flat = lambda arrays: np.concatenate([np.ravel(array) for array in arrays])
        seen = self.variant(whole)(parts, STATE)
        prediction, innovation, density, solution = seen  # pyright: ignore[reportGeneralTypeIssues]
        np.testing.assert_allclose(prediction, flat([o.predict(STATE) for o in parts]))
        expected = flat([o.innovation(STATE) for o in parts])
        np.testing.assert_allclose(innovation, expected, rtol=1e-12)
        total = sum(o.log_prob(STATE) for o in parts)
        np.testing.assert_allclose(density, total, rtol=1e-12)
        solved = [o.solve(o.residual(o.predict(STATE))) for o in parts]
        np.testing.assert_allclose(solution, flat(solved), rtol=1e-12, atol=1e-15)


def test_masks_rejections_coordinates_and_periods_are_side_by_side():
    parts = sources()
    parts[1] = parts[1].reject(parts[1].value > 2.5)
    observation = stack(parts)
    assert observation.mask.tolist() == [1, 0, 1, 1, 0, 0, 1, 1, 0]
    assert observation.rejected.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    nan, inf = np.nan, np.inf
    where = observation.coordinates
    assert where is not None
    np.testing.assert_array_equal(where["latitude"], [10.0, 20.0, *[nan] * 7])
    np.testing.assert_array_equal(
        where["pressure"], [nan, nan, 5e4, 8e4, 5e4, 8e4, *[nan] * 3]
    )
    np.testing.assert_array_equal(observation.period, [*[inf] * 7, 4.0, 4.0])
    assert stack(sources()[2:3]).coordinates is None
    assert stack(sources()[:2]).period is None


def test_linear_sources_linearise_side_by_side_and_pull_back():
    parts = sources()[:2]
    observation = stack(parts)
    innovation, operator = observation.linearise(STATE)
    rows = [part.linearise(STATE)[1].as_matrix().reshape(-1, 6) for part in parts]
    expected = np.concatenate(rows)
    np.testing.assert_allclose(operator.as_matrix(), expected, rtol=1e-12, atol=1e-15)
    pulled = observation.pullback(lambda z: z["x"])
    np.testing.assert_allclose(pulled.innovation({"x": STATE}), innovation)
    nested = stack([stack(parts[:1]), *parts[1:]])
    np.testing.assert_allclose(nested.innovation(STATE), innovation)


def test_a_filter_takes_all_sources_at_once_as_it_would_one_after_the_other():
    first = Observation(np.asarray([1.0]), Index(np.asarray([0])), Diagonal(0.5))
    second = Observation(
        np.asarray([-1.0, 0.5]), Index(np.asarray([2, 5])), Dense(COVARIANCE)
    )
    background = jr.normal(jr.key(1), (8, 6))
    together, info = ETKF()(background, stack([first, second]))
    between, _ = ETKF()(background, first)
    apart, _ = ETKF()(between, second)
    np.testing.assert_allclose(together.mean(0), apart.mean(0), rtol=1e-10)
    np.testing.assert_allclose(np.cov(together.T), np.cov(apart.T), atol=1e-12)
    assert info.used == 3


def test_stations_and_soundings_of_a_window_stack_under_vmap_and_pass_a_scan():
    one = lambda value: Observation(value, Index(np.asarray([0, 1])), Diagonal(0.5))
    other = lambda value: Observation(value, lambda state: state[2], StudentT(1.0, 4.0))
    values = jr.normal(jr.key(2), (5, 2)), jr.normal(jr.key(3), (5,))
    window = jax.vmap(lambda a, b: stack([one(a), other(b)]))(*values)
    score = lambda carry, observation: (carry, observation.log_prob(STATE))
    _, densities = jax.jit(lambda w: jax.lax.scan(score, None, w))(window)
    expected = [
        one(a).log_prob(STATE) + other(b).log_prob(STATE)
        for a, b in zip(*values, strict=True)
    ]
    np.testing.assert_allclose(densities, expected, rtol=1e-12)


def test_errors_are_independent_if_all_are_and_have_one_covariance():
    parts = sources()
    assert not stack(parts).error.independent
    assert stack([parts[0], *parts[2:]]).error.independent
    covariance = stack(parts[:2]).error.covariance  # pyright: ignore[reportAttributeAccessIssue]
    expected = np.zeros((6, 6))
    expected[:2, :2] = 0.25 * np.eye(2)
    expected[2:4, 2:4], expected[4:, 4:] = COVARIANCE, 2 * COVARIANCE
    np.testing.assert_allclose(covariance, expected, rtol=1e-14)


def test_samples_scatter_as_each_source_says():
    observation = stack(sources()[:2])
    draw = lambda key: observation.sample(STATE, key=key)
    samples = jax.vmap(draw)(jr.split(jr.key(4), 4000))
    covariance = observation.error.covariance  # pyright: ignore[reportAttributeAccessIssue]
    # A sample covariance of n draws is off by about scale^2 * sqrt(2 / n) = 0.02.
    assert np.abs(np.cov(samples.T) - covariance).max() < 0.1
    np.testing.assert_allclose(
        np.mean(samples, axis=0), observation.predict(STATE), atol=0.07
    )


def test_all_masked_and_nan_states_do_no_harm():
    blind = [
        Observation(
            np.full(o.value.shape, np.nan), o.operator, o.error, period=o.period
        )
        for o in sources()
    ]
    observation = stack(blind)
    assert observation.log_prob(STATE) == 0
    np.testing.assert_array_equal(jax.grad(observation.log_prob)(STATE), 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_follows_the_state(dtype):
    def seen(state):
        observation = stack(sources())
        sample = observation.sample(state, key=jr.key(0))
        return observation.predict(state), sample, observation.innovation(state)

    prediction, sample, innovation = jax.eval_shape(seen, STATE.astype(dtype))
    assert prediction.dtype == sample.dtype == dtype
    assert innovation.dtype == jnp.float32


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="nothing to stack"):
        stack([])
    short = Observation(np.zeros(2), lambda state: state[:3], Diagonal(1.0))
    one = Observation(np.zeros(3), lambda state: state[:2], Diagonal(1.0))
    # The sizes would add up.
    with pytest.raises(ValueError, match=r"returned the shape \(3,\), `value` has \(2"):
        stack([short, one]).predict(STATE)
    error = stack([short, one]).error
    with pytest.raises(ValueError, match=r"of 5 entries, got an array of shape \(4,\)"):
        error.whiten(jnp.ones(4), jnp.ones(4, bool))
