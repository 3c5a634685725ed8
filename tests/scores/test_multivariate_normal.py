import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from skyens.scores import log_score_multivariate_normal


def normal(seed, shape, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def factors(seed, shape, size):
    draws = np.random.default_rng(seed).normal(size=(*shape, size, size))
    return jnp.asarray(np.tril(draws, -1) + (0.5 + np.abs(draws)) * np.eye(size))


class MultivariateNormalTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_minus_the_log_density_with_any_batch(self):
        mean, truth, cholesky = (
            normal(0, (4, 3)),
            normal(1, (4, 3)),
            factors(2, (4,), 3),
        )
        score = self.variant(log_score_multivariate_normal)
        expected = [
            -stats.multivariate_normal(m, l @ l.T).logpdf(y)
            for m, l, y in zip(*map(np.asarray, (mean, cholesky, truth)), strict=True)
        ]
        found = score(mean, cholesky, truth)
        chex.assert_trees_all_close(found, np.array(expected), rtol=1e-11)
        # One factor and one mean for all truths.
        found = score(mean[0], cholesky[0], truth)
        one = np.asarray(cholesky[0])
        density = stats.multivariate_normal(np.asarray(mean[0]), one @ one.T)
        expected = -density.logpdf(np.asarray(truth))
        chex.assert_trees_all_close(found, expected, rtol=1e-11)
        # What stands above the diagonal is ignored.
        spoilt = cholesky + jnp.triu(jnp.full((3, 3), jnp.nan), 1)[None]
        upper = jnp.triu(jnp.ones((3, 3), bool), 1)[None]
        full = score(mean, jnp.where(upper, spoilt, cholesky), truth)
        chex.assert_trees_all_equal(full, score(mean, cholesky, truth))


def test_gradients_and_curvature_are_finite_differences():
    arguments = normal(3, (2, 3)), factors(4, (2,), 3), normal(5, (2, 3))
    score = jax.jit(log_score_multivariate_normal)
    check_grads(score, arguments, order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_keeps_its_dtype(dtype):
    arguments = normal(6, (5, 3)), factors(7, (5,), 3), normal(8, (5, 3))
    rounded = [x.astype(dtype) for x in arguments]
    score = log_score_multivariate_normal(*rounded)
    assert score.dtype == dtype
    exact = log_score_multivariate_normal(*(x.astype(float) for x in rounded))
    chex.assert_trees_all_close(
        score.astype(float), exact, rtol=8 * float(jnp.finfo(dtype).eps)
    )


def test_it_is_proper():
    truth = normal(9, (40_000, 2)) @ factors(10, (), 2).T
    right = log_score_multivariate_normal(jnp.zeros(2), factors(10, (), 2), truth)
    for mean, scale in [(0.2, 1.0), (0.0, 0.8), (0.0, 1.3)]:
        loss = (
            log_score_multivariate_normal(
                jnp.full(2, mean), scale * factors(10, (), 2), truth
            )
            - right
        )
        assert loss.mean() > 4 * loss.std() / np.sqrt(loss.size)


def test_wrong_use_is_reported():
    zero = jnp.zeros(3)
    score = log_score_multivariate_normal(zero, jnp.diag(jnp.array([1.0, -1, 1])), zero)
    assert jnp.isnan(score)
    for cholesky in (jnp.zeros((3, 2)), jnp.eye(2), jnp.ones(3), jnp.zeros((4, 3, 3))):
        with pytest.raises(ValueError, match="do not broadcast"):
            log_score_multivariate_normal(jnp.zeros((2, 3)), cholesky, zero)
