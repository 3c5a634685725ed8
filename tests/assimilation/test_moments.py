import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import Moments, Weighted, errors, moments

KEY = jr.key(21)


def test_moments_and_errors_are_those_of_numpy():
    ensemble = {"x": jr.normal(KEY, (7, 5, 3)), "clock": jnp.zeros((7, 5), int)}
    track = jax.vmap(moments)(ensemble)
    assert isinstance(track, Moments)
    np.testing.assert_allclose(track.mean["x"], ensemble["x"].mean(1), rtol=1e-12)
    np.testing.assert_allclose(
        track.spread["x"], ensemble["x"].std(1, ddof=1), rtol=1e-12
    )
    truth = {"x": jnp.ones((7, 3)), "clock": jnp.zeros(7, int)}
    found = errors(track, truth, burn_in=2)
    error = np.sqrt(np.mean((ensemble["x"].mean(1) - 1) ** 2, axis=1))
    np.testing.assert_allclose(found.error, error, rtol=1e-12)
    np.testing.assert_allclose(found.mean_error, error[2:].mean(), rtol=1e-12)
    spread = np.sqrt(np.mean(ensemble["x"].var(1, ddof=1), axis=1))
    np.testing.assert_allclose(found.spread, spread, rtol=1e-12)
    np.testing.assert_allclose(found.mean_spread, spread[2:].mean(), rtol=1e-12)
    weighted = Weighted(jnp.asarray([[0.0], [3.0]]), jnp.log(jnp.asarray([2.0, 1.0])))
    np.testing.assert_allclose(moments(weighted).mean, [1.0])


def test_dtypes_stay_and_gradients_are_finite_without_spread_or_error():
    ensemble = jnp.ones((4, 3), jnp.float32)
    assert moments(ensemble).spread.dtype == jnp.float32

    def total(ensemble):
        found = errors(jax.tree.map(lambda x: x[None], moments(ensemble)), truth)
        return found.mean_error + found.mean_spread

    truth = jnp.ones((1, 3), jnp.float32)
    assert jnp.isfinite(jax.grad(total)(ensemble)).all()


def test_wrong_use_is_reported():
    track = Moments(jnp.ones((3, 2)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"`burn_in` must lie in \[0, 3\), got 3"):
        errors(track, jnp.ones((3, 2)), burn_in=3)
    with pytest.raises(ValueError, match=r"`truth` of shape \(3, 1\) does not fit mea"):
        errors(track, jnp.ones((3, 1)))
