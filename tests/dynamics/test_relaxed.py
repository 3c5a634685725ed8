import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.dynamics import Relaxed, rollout

still = lambda state, forcing=None, *, key=None: state


def test_a_still_world_decays_to_the_target():
    start, target = np.array([[3.0, 5.0], [1.0, -1.0]]), np.array([[1.0], [2.0]])
    step = Relaxed(still, {"height": jnp.asarray(target)}, 0.25)
    path = rollout(step, {"height": jnp.asarray(start)}, 6)["height"]
    left = (1 - 0.25) ** np.arange(1, 7)[:, None, None]
    expected = target + left * (start - target)
    np.testing.assert_allclose(path, expected, rtol=1e-12)


def test_noise_settles_at_the_variance_of_an_autoregression():
    jump = lambda state, forcing=None, *, key: state + jr.normal(key, state.shape)
    step = Relaxed(jump, jnp.zeros(1), 0.2)
    path = rollout(step, jnp.zeros(4000), 60, key=jr.key(0))
    # x' = 0.8 x + noise has the variance 1 / (1 - 0.64).
    assert abs(path[-1].var() * 0.36 - 1) < 0.1


def test_forcing_key_and_dtype_go_through():
    seen = lambda s, f=None, *, key: s + f + jr.normal(key, (), s.dtype)
    step = Relaxed(seen, jnp.zeros(2, jnp.float32), 0.5)
    state, forcing, key = jnp.ones(2, jnp.float32), jnp.float32(3), jr.key(0)
    after = step(state, forcing, key=key)
    assert after.dtype == jnp.float32
    np.testing.assert_allclose(after, 3.5 + jr.normal(key, (), jnp.float32), rtol=1e-6)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        Relaxed(still, jnp.zeros(1), 1.5)
