import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.assimilation import Systematic, Weighted, ensemble_spread

moments = jax.jit(lambda x, w: (lambda e: (e.mean(), e.spread()))(Weighted(x, w)))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_moments_are_those_of_numpy(seed, scale):
    generator = np.random.default_rng(seed)
    members = scale * generator.normal(size=(6, 2, 3)) + 100
    weights = generator.uniform(size=6)
    mean, spread = moments(jnp.asarray(members), jnp.log(jnp.asarray(weights)))
    expected = np.average(members, axis=0, weights=weights)
    np.testing.assert_allclose(mean, expected, rtol=1e-13)
    # Reliability weights: NumPy's covariance with `aweights` divides by the same.
    flat = members.reshape(6, -1)
    covariance = np.cov(flat.T, aweights=weights)
    deviation = np.sqrt(np.diagonal(covariance)).reshape(2, 3)
    np.testing.assert_allclose(spread, deviation, rtol=1e-9)
    ensemble = Weighted(members, jnp.log(jnp.asarray(weights)))
    np.testing.assert_allclose(
        ensemble.covariance(), covariance, rtol=1e-9, atol=1e-9 * scale**2
    )
    share = weights / weights.sum()
    size = 1 / np.sum(share**2)
    np.testing.assert_allclose(ensemble.weights, share, rtol=1e-12)
    np.testing.assert_allclose(ensemble.effective_size, size, rtol=1e-12)


def test_equal_weights_are_the_plain_ensemble():
    members = np.random.default_rng(0).normal(size=(5, 4))
    ensemble = Weighted(members)
    np.testing.assert_allclose(ensemble.weights, 0.2, rtol=1e-15)
    np.testing.assert_allclose(ensemble.effective_size, 5, rtol=1e-14)
    np.testing.assert_allclose(
        ensemble.spread(), ensemble_spread(jnp.asarray(members)), rtol=1e-13
    )


def test_a_member_without_weight_may_be_nan_and_has_no_gradient():
    members = jnp.asarray([[1.0, 2.0], [3.0, 5.0], [jnp.nan, jnp.inf]])
    log_weights = jnp.asarray([0.0, jnp.log(3.0), -jnp.inf])

    def total(members, log_weights):
        ensemble = Weighted(members, log_weights)
        spread, size = jnp.sum(ensemble.spread()), ensemble.effective_size
        return jnp.sum(ensemble.mean()) + spread + jnp.sum(ensemble.covariance()) + size

    np.testing.assert_allclose(Weighted(members, log_weights).mean(), [2.5, 4.25])
    slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(members, log_weights)
    chex.assert_tree_all_finite(slopes)
    np.testing.assert_array_equal(slopes[0][2], 0)
    # A log-weight of NaN is one of -inf.
    same = Weighted(members, log_weights.at[2].set(jnp.nan))
    np.testing.assert_array_equal(
        same.log_weights, Weighted(members, log_weights).log_weights
    )


def test_gradients_match_finite_differences():
    generator = np.random.default_rng(1)
    members, log_weights, way = jnp.asarray(generator.normal(size=(3, 5)))

    @jax.jit
    def total(epsilon):
        ensemble = Weighted(members + epsilon * way, log_weights + epsilon * way)
        return ensemble.mean() ** 2 + ensemble.spread() * ensemble.effective_size

    step = 1e-5
    expected = (total(step) - total(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(total)(0.0), expected, rtol=1e-8)


def test_without_any_weight_all_are_equal():
    members = jnp.asarray([[1.0], [2.0], [6.0]])
    for nothing in (-jnp.inf, jnp.nan):
        slope = jax.grad(lambda w: Weighted(members, w).mean()[0])(jnp.full(3, nothing))
        np.testing.assert_array_equal(slope, 0)
        ensemble = Weighted(members, jnp.full(3, nothing))
        np.testing.assert_allclose(ensemble.mean(), 3.0, rtol=1e-15)
    # One with all of the weight has no spread, and no NaN.
    alone = jnp.asarray([0.0, -jnp.inf, -jnp.inf])
    spread = lambda members: Weighted(members, alone).spread()[0]
    assert float(spread(members)) == 0
    np.testing.assert_array_equal(jax.grad(spread)(members), 0)


def test_any_pytree_in_its_dtypes():
    state = {
        "single": jnp.ones((4, 2), jnp.float32),
        "waves": jnp.full((4,), 1 + 2j, jnp.complex64),
        "clock": jnp.arange(4),
    }
    ensemble = Weighted(state)
    assert ensemble.log_weights.dtype == jnp.float32
    mean, spread = ensemble.mean(), ensemble.spread()
    chex.assert_type(
        [mean["single"], mean["waves"], spread["waves"]],
        ["float32", "complex64", "float32"],
    )
    np.testing.assert_allclose(mean["clock"], 1.5)
    np.testing.assert_array_equal(spread["waves"], 0)
    chex.assert_shape(
        Weighted({"a": jnp.ones((3, 2)), "b": jnp.ones(3)}).covariance(), (3, 3)
    )
    batch = jax.vmap(lambda w: Weighted(jnp.arange(3.0), w).mean())(jnp.zeros((2, 3)))
    np.testing.assert_allclose(batch, [1.0, 1.0])


def test_it_becomes_a_plain_ensemble():
    weights = jnp.log(jnp.asarray([0.5, 0.25, 0.25, 0.0]))
    ensemble = Weighted({"x": jnp.arange(4.0), "n": jnp.arange(4)}, weights)
    plain = ensemble.resample(Systematic(), key=jax.random.key(0))
    assert sorted(plain["n"].tolist()) == [0, 0, 1, 2]
    np.testing.assert_array_equal(plain["x"], plain["n"])


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"\(2,\) does not fit 3 members"):
        Weighted(jnp.ones((3, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        Weighted(jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="leaves of real numbers, and no complex"):
        Weighted(jnp.ones((3, 2), complex)).covariance()
    with pytest.raises(ValueError, match="`key` is needed"):
        eqx.filter_jit(Weighted(jnp.ones((3, 2))).resample)(Systematic())
