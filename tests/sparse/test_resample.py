import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.sparse import bootstrap, ridge, stability_selection, stlsq


def data():
    random = np.random.default_rng(0)
    phi = random.normal(size=(200, 5))
    w = np.array([2.0, -1, 0, 0, 0])
    return jnp.asarray(phi), jnp.asarray(phi @ w + 0.5 * random.normal(size=200))


def test_the_spread_of_bootstraps_is_the_standard_error():
    phi, y = data()
    draw = jax.jit(
        lambda key: bootstrap(phi, y, lambda p: ridge(p).mean, resamples=400, key=key)
    )
    means = draw(jr.key(0))
    covariance = 0.25 * np.linalg.inv(np.asarray(phi).T @ phi)
    expected = np.sqrt(np.diag(covariance))
    # The relative error of 400 draws is 1 / sqrt(800), of the noise's size 0.05.
    np.testing.assert_allclose(means.std(0), expected, rtol=0.25)
    full = np.linalg.lstsq(phi, y, rcond=None)[0]
    np.testing.assert_allclose(means.mean(0), full, atol=4 * expected.max() / 20)


def test_a_resample_of_nearly_no_noise_keeps_its_digits():
    phi, _ = data()
    exact = phi @ jnp.arange(5.0)
    fits = bootstrap(phi, exact, lambda p: p.rest, resamples=4, block=20, key=jr.key(1))
    np.testing.assert_allclose(fits, 0, atol=1e-24 * float(jnp.sum(exact**2)))


def test_true_terms_are_stable_and_others_are_not():
    phi, y = data()
    often = stability_selection(
        phi, y, lambda p: stlsq(p, 0.5).support, resamples=32, key=jr.key(2)
    )
    assert often.tolist() == [1, 1, 0, 0, 0]


def test_wrong_use_is_reported():
    phi, y = data()
    fit = lambda problem: problem.rest
    with pytest.raises(ValueError, match="`key` must be given"):
        bootstrap(phi, y, fit)
    with pytest.raises(ValueError, match="`block` must divide the 200 rows, got 3"):
        stability_selection(phi, y, fit, block=3, key=jr.key(0))
    with pytest.raises(ValueError, match="must be positive, got 0"):
        bootstrap(phi, y, fit, resamples=0, key=jr.key(0))
    with pytest.raises(ValueError, match="each of 200 rows"):
        bootstrap(phi, y[:9], fit, key=jr.key(0))
