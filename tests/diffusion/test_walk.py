import chex
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.diffusion import (
    EDM,
    Euler,
    GaussianDenoiser,
    Heun,
    Preconditioned,
    White,
    sample,
)
from skyens.diffusion._walk import checked_walks, ladder, walk

PRIOR = GaussianDenoiser(jnp.asarray([0.5]), jnp.asarray([[2.0]]))


def test_it_follows_the_flow_of_a_gaussian():
    # x - m falls with the standard deviation of the noisy law, in closed form.
    sigmas = jnp.geomspace(5.0, 0.1, 201)
    x = walk(PRIOR, Heun(), sigmas, jnp.asarray([4.0]), noise=White(), key=jr.key(0))
    expected = 0.5 + 3.5 * np.sqrt((2 + 0.01) / (2 + 25))
    np.testing.assert_allclose(x, [expected], rtol=1e-4)


def test_from_noise_it_is_a_sample():
    # Without noise on the way nothing but the start is random.
    schedule = EDM(0.1, 5.0)
    drawn = sample(PRIOR, schedule, (1,), key=jr.key(1), method=Euler(), steps=6)
    start, _ = jr.split(jr.key(1))
    x = 5.0 * jr.normal(start, (1,))
    x = walk(PRIOR, Euler(), schedule.sigmas(6), x, noise=White(), key=jr.key(2))
    np.testing.assert_allclose(x, drawn, rtol=1e-12)


def test_a_ladder_leads_from_a_level_down_to_0():
    for dtype in (jnp.float32, jnp.float64):
        levels = ladder(jnp.asarray(3.0, dtype), jnp.asarray(0.02, dtype), 6)
        assert levels.shape == (7,)
        assert levels.dtype == dtype
        ends = jnp.asarray([3.0, 0.02, 0.0], dtype)
        chex.assert_trees_all_equal(levels[jnp.array([0, -2, -1])], ends)
        assert (jnp.diff(levels) < 0).all()


def test_every_walk_must_stay_inside_the_range():
    trained = Preconditioned(lambda x, level, *, condition=None: x, sigma_max=5.0)
    walks, sigmas = jnp.array([[4.0, 1.0, 0.0], [3.0, 0.5, 0.0]]), jnp.array([4.0, 3.0])
    chex.assert_trees_all_equal(checked_walks(trained, Heun(), walks, sigmas), sigmas)
    # The first walk begins above what churn raises, the second below.
    method = Heun(churn=1.0, churn_max=3.9)
    chex.assert_trees_all_equal(checked_walks(trained, method, walks, sigmas), sigmas)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"1 of 6 .* is 5\.656"):
        checked_walks(trained, Heun(churn=1.0), walks, sigmas)
