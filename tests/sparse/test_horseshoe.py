import sys

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from skyens.sparse import compress, horseshoe


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=30)
    x = x / np.sqrt(np.mean(x**2))
    y = 0.25 * x + random.normal(size=30)
    return x, y / np.sqrt(np.mean(y**2))


@pytest.mark.slow  # the sampler takes long to compile
def test_the_posterior_of_one_term_is_that_of_quadrature():
    x, y = data()
    noise = 0.9
    phi = np.stack([5 * x, np.zeros(30)], axis=1)  # the other is empty
    found = horseshoe(
        compress(jnp.asarray(phi), jnp.asarray(y)),
        expected=1.0, noise=noise, warmup=300, samples=1000, key=jr.key(0),
    )  # fmt: skip
    # Over local and global scale and slab, each through its distribution function.
    t, weight = np.polynomial.legendre.leggauss(120)
    t, weight = (t + 1) / 2, weight / 2
    cauchy = np.tan(np.pi / 2 * t)
    slab = 4 * stats.invgamma(2, scale=2).ppf(t)
    scale = cauchy[:, None] * cauchy[None] * noise / np.sqrt(30)
    prior = 1 / (1 / scale[..., None] ** 2 + 1 / slab)
    total = weight[:, None, None] * weight[:, None] * weight
    best, width = x @ y / 30, noise**2 / 30
    total = total * stats.norm.pdf(best, 0, np.sqrt(prior + width))
    total = total / total.sum()
    share = prior / (prior + width)
    mean = np.sum(total * best * share)
    square = np.sum(total * ((best * share) ** 2 + width * share))
    spread = np.sqrt(square - mean**2)
    assert found.reduction[0] < 1.05
    assert np.mean(found.diverged) < 0.05
    # Of 4000 draws at least 400 count: 0.05 of the spread; here five times that.
    np.testing.assert_allclose(5 * found.mean[0], mean, atol=0.25 * spread)
    ours = 5 * np.sqrt(found.covariance[0, 0])
    np.testing.assert_allclose(ours, spread, rtol=0.2)
    np.testing.assert_allclose(found.inclusion, [np.sum(total * share), 0], atol=0.1)
    np.testing.assert_allclose(found.noise, noise)


def test_wrong_use_is_reported(monkeypatch):
    x, y = data()
    problem = compress(jnp.asarray(np.stack([x, x**2], axis=1)), jnp.asarray(y))
    with pytest.raises(ValueError, match="`key` must be given"):
        horseshoe(problem, expected=1.0)
    with pytest.raises(ValueError, match="`expected` must lie between 0 and the 2"):
        horseshoe(problem, expected=2.0, key=jr.key(0))
    with pytest.raises(ValueError, match=r"must be positive, got -1\.0"):
        horseshoe(problem, expected=1.0, slab=-1.0, key=jr.key(0))
    with pytest.raises(ValueError, match="at least 2, got 500, 500 and 1"):
        horseshoe(problem, expected=1.0, chains=1, key=jr.key(0))
    monkeypatch.setitem(sys.modules, "blackjax", None)
    with pytest.raises(ImportError, match=r"skyens\[mcmc\]"):
        horseshoe(problem, expected=1.0, key=jr.key(0))
