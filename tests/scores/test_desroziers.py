import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.scores import Desroziers


@jax.jit
def consistency(ensemble, truth, error, analysis=None, weights=None, where=None):
    stat = Desroziers()
    more = {"observation_error": error, "analysis": analysis}
    state = stat.update(stat.init(), ensemble, truth, weights, where, **more)
    return stat.finalize(state)


def cycle(seed, *, background=2.0, error=1.0, points=10_000, members=20):
    """Draw truths of members' law, observations, and the analysis of an optimal gain.

    `members` are exchangeable with the truth, of variance `background^2`.
    """
    rng = np.random.default_rng(seed)
    draws = background * rng.normal(size=(members + 1, points)) + 280
    observations = draws[0] + error * rng.normal(size=points)
    innovation = observations - draws[1:].mean(0)
    # The mean of members errs by their variance over their number, too.
    gain = (variance := background**2 * (1 + 1 / members)) / (variance + error**2)
    return draws[1:], observations, draws[1:] + gain * innovation, variance


def test_an_optimal_system_is_consistent():
    ensemble, observations, analysis, variance = cycle(0)
    found = consistency(ensemble, observations, jnp.ones(()), analysis)
    # A mean of squares of 10,000 normal numbers is known to sqrt(2 / 1e4); five of it.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=5 * np.sqrt(2e-4))
    close(found.innovation_square, variance + 1)
    close(found.expected_square, variance + 1)
    close(found.ratio, 1)
    close(found.background_variance, 4)
    close(found.estimated_background_variance, variance)
    close(found.estimated_observation_variance, 1)
    # Over a variance estimated by 20 members the mean is a little above 1: F of
    # (1, 19) has 19 / 17, and the known observation error lessens it.
    assert 0.95 < found.chi_square < 19 / 17
    assert abs(found.innovation) < 5 * np.sqrt((variance + 1) / 10_000)
    # An error assumed half as large shows; what the products estimate does not move.
    small = consistency(ensemble, observations, jnp.full((), 0.5), analysis)
    assert small.ratio > 1.1
    np.testing.assert_allclose(small.observation_variance, 0.25)
    assert small.estimated_observation_variance == found.estimated_observation_variance


def test_they_are_the_means_of_numpy():
    rng = np.random.default_rng(1)
    ensemble, analysis = rng.normal(size=(2, 5, 3, 8)) + 20
    observations, weights = rng.normal(size=(3, 8)) + 21, rng.random(8)
    error = rng.random((3, 8)) + 0.5
    found = consistency(ensemble, observations, error, analysis, weights)
    mean = lambda x: np.average(x, weights=np.broadcast_to(weights, x.shape))
    before = observations - ensemble.mean(0)
    after = observations - analysis.mean(0)
    variance = ensemble.var(0, ddof=1)
    expected = variance * 6 / 5 + error**2
    for name, value in {
        "innovation": mean(before),
        "innovation_square": mean(before**2),
        "expected_square": mean(expected),
        "ratio": mean(before**2) / mean(expected),
        "chi_square": mean(before**2 / expected),
        "background_variance": mean(variance),
        "observation_variance": mean(error**2),
        "estimated_background_variance": mean((before - after) * before),
        "estimated_observation_variance": mean(after * before),
    }.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-11)


def test_updates_without_analyses_leave_the_estimates():
    stat = Desroziers()
    ensemble, observations, analysis, _ = cycle(2, points=20)
    args = jnp.asarray(ensemble), jnp.asarray(observations)
    error = jnp.ones(())
    first = stat.update(
        stat.init(), *args, observation_error=error, analysis=jnp.asarray(analysis)
    )
    both = stat.update(first, *args, observation_error=error)
    a, b = stat.finalize(first), stat.finalize(both)
    np.testing.assert_allclose(a, b, rtol=1e-13)
    without = stat.finalize(stat.update(stat.init(), *args, observation_error=error))
    np.testing.assert_array_equal(without[-2:], 0)


def test_a_masked_observation_may_have_no_error():
    ensemble, observations, analysis, _ = cycle(3, points=6)
    where = np.arange(6) < 4
    error = np.where(where, 1.0, np.nan)
    found = consistency(ensemble, observations, error, analysis, None, where)
    few = ensemble[:, :4], observations[:4], error[:4], analysis[:, :4]
    np.testing.assert_allclose(found, consistency(*few), rtol=1e-13)


def test_wrong_use_is_reported():
    stat = Desroziers()
    state, ensemble, truth = stat.init(), jnp.zeros((3, 4)), jnp.zeros(4)
    with pytest.raises(ValueError, match=r"`observation_error` of shape \(7,\)"):
        stat.update(state, ensemble, truth, observation_error=jnp.ones(7))
    error = jnp.ones(())
    with pytest.raises(ValueError, match=r"`analysis` of shape \(2, 4\)"):
        stat.update(
            state, ensemble, truth, observation_error=error, analysis=ensemble[:2]
        )
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        stat.update(state, ensemble[:1], truth, observation_error=error)
