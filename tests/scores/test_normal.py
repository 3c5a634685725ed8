import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scoringrules
from jax.test_util import check_grads
from scipy import integrate, stats

from skyens.scores import crps, crps_normal


def integral(mean, std, truth):
    """Return the integral of (F(x) - 1{truth <= x})^2."""
    distribution = stats.norm(mean, std)
    below = lambda x: distribution.cdf(x) ** 2
    above = lambda x: distribution.sf(x) ** 2
    options = {"epsabs": 1e-12, "epsrel": 1e-12, "limit": 200}
    left, _ = integrate.quad(below, mean - 12 * std, truth, **options)
    right, _ = integrate.quad(above, truth, mean + 12 * std, **options)
    return left + right


class NormalTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_the_integral_over_the_distribution(self):
        mean, std = jnp.array([0.0, 3.0, -1.0]), jnp.array([1.0, 0.5, 4.0])
        truth = jnp.array([0.0, 3.7, 5.0])
        score = self.variant(crps_normal)(mean, std, truth)
        expected = [
            integral(*map(float, x)) for x in zip(mean, std, truth, strict=True)
        ]
        chex.assert_trees_all_close(score, np.array(expected), rtol=1e-9)


def test_it_agrees_with_scoringrules_and_with_a_large_ensemble():
    mean, std, truth = 2.0, 1.5, jnp.array([-1.0, 2.0, 4.0])
    score = crps_normal(jnp.full(3, mean), jnp.full(3, std), truth)
    peer = scoringrules.crps_normal(np.asarray(truth), mean, std)
    chex.assert_trees_all_close(score, np.asarray(peer), rtol=1e-12)
    size = 4000
    quantiles = stats.norm(mean, std).ppf((np.arange(size) + 0.5) / size)
    ensemble = jnp.broadcast_to(jnp.asarray(quantiles)[:, None], (size, 3))
    # Quantiles at midpoints leave an error of the order of one over the square of M.
    chex.assert_trees_all_close(crps(ensemble, truth, alpha=0.0), score, atol=1e-5)


def test_it_is_proper():
    truth = 1 + 2 * jr.normal(jr.key(0), (20_000,), jnp.float64)
    score = lambda mean, std: crps_normal(jnp.array(mean), jnp.array(std), truth)
    right = score(1.0, 2.0)
    for mean, std in [(1.5, 2.0), (1.0, 1.4), (1.0, 2.8)]:
        loss = score(mean, std) - right
        error = loss.std() / np.sqrt(loss.size)
        assert loss.mean() > 4 * error


def test_slopes_are_those_of_finite_differences_and_curvature_is_the_density():
    args = jnp.array([0.3, -1.0]), jnp.array([0.7, 2.0]), jnp.array([1.0, -4.0])
    score = jax.jit(crps_normal)
    check_grads(score, args, order=1, modes=("fwd", "rev"))
    total = lambda truth: crps_normal(args[0], args[1], truth).sum()
    curvature = jnp.diag(jax.jit(jax.hessian(total))(args[2]))
    density = stats.norm.pdf(args[2], args[0], args[1])
    chex.assert_trees_all_close(curvature, 2 * density, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_no_spread_is_the_absolute_error_with_finite_gradients(dtype):
    truth = jnp.array([3.0, -1.0, 0.0], dtype)
    zero = jnp.zeros(3, dtype)
    total = lambda mean, std, truth: crps_normal(mean, std, truth).sum()
    slopes = jax.jit(jax.grad(total, (0, 1, 2)))
    chex.assert_trees_all_equal(crps_normal(zero, zero, truth), jnp.abs(truth))
    by_mean, by_std, by_truth = slopes(zero, zero, truth)
    chex.assert_trees_all_equal(by_mean, jnp.array([-1, 1, 0], dtype))
    chex.assert_trees_all_equal(by_truth, jnp.array([1, -1, 0], dtype))
    # One-sided: spread helps a forecast that is wrong, by 1 / sqrt(pi).
    expected = np.array([0, 0, np.sqrt(2 / np.pi)]) - 1 / np.sqrt(np.pi)
    chex.assert_trees_all_close(
        by_std.astype(float), expected, atol=float(jnp.finfo(dtype).eps)
    )
    tiny = jnp.full(3, jnp.finfo(dtype).tiny, dtype)
    chex.assert_tree_all_finite(slopes(zero, tiny, truth))


def test_curvature_is_finite_without_spread():
    total = lambda mean, std: crps_normal(mean, std, jnp.array([3.0, 0.0])).sum()
    for std in (jnp.zeros(2), jnp.full(2, 1e-100)):
        curvature = jax.jit(jax.hessian(total, (0, 1)))(jnp.zeros(2), std)
        chex.assert_tree_all_finite(curvature)


def test_a_negative_standard_deviation_is_not_a_number():
    score = crps_normal(jnp.zeros(2), jnp.array([-1.0, 1.0]), jnp.ones(2))
    chex.assert_trees_all_equal(jnp.isnan(score), jnp.array([True, False]))


def test_shapes_that_do_not_broadcast_are_named():
    with pytest.raises(
        ValueError, match=r"`mean` \(2,\), `std` \(3,\), `truth` \(3,\)"
    ):
        crps_normal(jnp.zeros(2), jnp.ones(3), jnp.zeros(3))
