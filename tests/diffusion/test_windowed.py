import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.diffusion import EDM, SDA, GaussianDenoiser, Windowed, guide, sample
from skyens.observations import Diagonal, Index, Observation

TIMES = 15
MEAN = 0.3


def chain(times, memory=0.8):
    """Return the covariance of a stationary autoregression of variance 1."""
    apart = np.abs(np.arange(times)[:, None] - np.arange(times))
    return memory**apart


def prior(times, memory=0.8):
    covariance = jnp.asarray(chain(times, memory))
    return GaussianDenoiser(jnp.full(times, MEAN), covariance)


def exact(covariance, x, sigma):
    """The denoised trajectory, in NumPy."""
    total = covariance + sigma**2 * np.eye(len(x))
    return MEAN + covariance @ np.linalg.solve(total, x - MEAN)


def trajectory(times=TIMES, seed=0):
    return MEAN + 2 * np.random.default_rng(seed).normal(size=times)


class WindowedTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_each_time_comes_from_the_window_it_is_in_the_middle_of(self):
        x, sigma = trajectory(), 0.7
        parts = [exact(chain(5), x[i : i + 5], sigma) for i in range(TIMES - 4)]
        middle = [part[2] for part in parts]
        expected = np.concatenate([parts[0][:2], middle, parts[-1][3:]])
        denoiser = Windowed(prior(5), 5)
        clean = self.variant(Windowed.__call__)(denoiser, jnp.asarray(x), sigma)
        chex.assert_trees_all_close(clean, expected, rtol=1e-12)


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_windows_in_turn_give_the_same(at_once):
    x = jnp.asarray(trajectory())
    both = lambda x: (
        Windowed(prior(5), 5)(x, 0.7),
        Windowed(prior(5), 5, at_once)(x, 0.7),
    )
    chex.assert_trees_all_close(*jax.jit(both)(x), rtol=1e-12)
    chex.assert_trees_all_close(*jax.jit(jax.jacrev(both))(x), rtol=1e-12)


def test_a_short_trajectory_is_denoised_as_it_is():
    x = jnp.asarray(trajectory(5))
    chex.assert_trees_all_equal(Windowed(prior(5), 5)(x, 0.7), prior(5)(x, 0.7))


def test_times_without_memory_need_no_neighbours():
    x, sigma = jnp.asarray(trajectory()), 0.7
    clean = Windowed(prior(1), 1)(x, sigma)
    expected = exact(np.eye(TIMES), np.asarray(x), sigma)
    chex.assert_trees_all_close(clean, expected, rtol=1e-12)


def test_the_score_of_a_chain_is_exact_as_the_noise_vanishes():
    x = trajectory()
    slope = -np.linalg.solve(chain(TIMES), x - MEAN)

    def error(sigma):
        clean = np.asarray(Windowed(prior(3), 3)(jnp.asarray(x), sigma))
        return np.abs((clean - x) / sigma**2 - slope).max() / np.abs(slope).max()

    # Of second order in sigma, down to the rounding of `clean - x`.
    assert error(1e-3) < 1e-3
    assert 0.2 < error(1e-3) / error(2e-3) < 0.3


def test_wider_windows_come_nearer():
    x, sigma = trajectory(60), 1.0
    expected = exact(chain(60), x, sigma)
    errors = [
        np.abs(
            np.asarray(Windowed(prior(n), n)(jnp.asarray(x), sigma)) - expected
        ).max()
        for n in (1, 5, 9)
    ]
    # With noise of variance 1 the smoother forgets as its gain does, in NumPy.
    gain = np.linalg.solve(chain(400) + np.eye(400), chain(400))[200]
    forgets = gain[201] / gain[200]
    assert (np.array(errors[1:]) < 3 * np.array(errors[:-1]) * forgets**2).all()


def test_guided_by_observations_it_smooths():
    # Near-perfect observations of every third time, a guess between them by the chain.
    times, seen = 21, np.arange(0, 21, 3)
    rng = np.random.default_rng(1)
    truth = MEAN + rng.multivariate_normal(np.zeros(times), chain(times))
    value = truth[seen] + 0.3 * rng.normal(size=len(seen))
    observation = Observation(value, Index(seen), Diagonal(0.3))
    denoiser = guide(Windowed(prior(9), 9), observation, SDA(1.0))
    draw = lambda key: sample(denoiser, EDM(0.02), (times,), key=key, steps=40)
    samples = np.asarray(jax.jit(jax.vmap(draw))(jr.split(jr.key(0), 200)))
    covariance = chain(times)
    total = covariance[np.ix_(seen, seen)] + 0.09 * np.eye(len(seen))
    gain = np.linalg.solve(total, covariance[seen]).T
    mean = MEAN + gain @ (value - MEAN)
    deviation = np.sqrt(np.diag(covariance - gain @ covariance[seen]))
    # SDA is biased, by less than what remains unknown; the prior is off by far more.
    error = np.abs(samples.mean(0) - mean) / deviation
    without = np.abs(MEAN - mean) / deviation
    assert np.sqrt(np.mean(error**2)) < 1 < np.sqrt(np.mean(without**2)) / 1.5


def test_states_and_dtypes_are_kept_and_the_condition_goes_to_every_window():
    inner = lambda x, sigma, *, condition=0.0: x / (1 + sigma**2) + condition
    x = jnp.ones((7, 2, 3), jnp.float32)
    clean = Windowed(inner, 3)(
        x, 1.0, condition=jnp.full((2, 3), 2.0, jnp.float32)[None]
    )
    chex.assert_trees_all_equal(clean, jnp.full((7, 2, 3), 2.5, jnp.float32))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`window` must be odd and at least 1, got 4"):
        Windowed(prior(4), 4)
    with pytest.raises(ValueError, match="`at_once` must be at least 1, got 0"):
        Windowed(prior(3), 3, 0)
    with pytest.raises(ValueError, match="at least the 5 times of a window, got 3"):
        Windowed(prior(5), 5)(jnp.zeros(3), 1.0)
    shorter = lambda x, sigma, *, condition=None: x[1:]
    with pytest.raises(ValueError, match=r"keep the shape \(3,\) of a window"):
        Windowed(shorter, 3)(jnp.zeros(6), 1.0)
