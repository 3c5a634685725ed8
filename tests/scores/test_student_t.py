import chex
import jax
import jax.numpy as jnp
import numpy as np
import scoringrules
from scipy import integrate, stats

from skyens.scores import crps_normal, crps_student_t, log_score_student_t


def test_it_agrees_with_scoringrules_and_scipy():
    truth = jnp.array([0.5, 4.0, 2.0])
    given = [3.3, 12.0, 1.5], [0.2, -1.0, 3.0], [0.7, 2.0, 0.1]
    parameters = [jnp.array(x) for x in given]
    args = [*parameters, truth]
    peer = scoringrules.crps_t(np.asarray(truth), *map(np.asarray, parameters))
    np.testing.assert_allclose(crps_student_t(*args), peer, rtol=1e-10)
    log_density = stats.t.logpdf(truth, *parameters)
    score = log_score_student_t(*args)
    np.testing.assert_allclose(score, -log_density, rtol=1e-12)


def test_the_score_of_a_cauchy_distribution_is_finite():
    one, truth = jnp.ones(3), jnp.array([0.0, 1.0, -7.0])
    # The integral of F^2 and of (1 - F)^2 by the angle, x = tan(t).
    expected = []
    for y in np.asarray(truth):
        angle = np.arctan(y)
        square = lambda t: ((0.5 - abs(t) / np.pi) / np.cos(t)) ** 2
        mirrored = lambda t: ((0.5 + abs(t) / np.pi) / np.cos(t)) ** 2
        outer = 2 * integrate.quad(square, 0, np.pi / 2, limit=200)[0]
        more = lambda t: mirrored(t) - square(t)
        expected.append(outer + integrate.quad(more, 0, abs(angle))[0])
    score = crps_student_t(one, 0 * one, one, truth)
    np.testing.assert_allclose(score, expected, rtol=1e-9)
    near = crps_student_t(one + 1e-9, 0 * one, one, truth)
    np.testing.assert_allclose(near, score, rtol=1e-8)


def test_the_score_is_infinite_where_its_integral_is_and_slopes_are_finite():
    df = jnp.array([0.3, 0.5, 0.6, 1.0, 2.0, 1e8])
    for truth in (0.0, 3.0, 1e9):
        args = df, jnp.zeros(6), jnp.ones(6), jnp.full(6, truth)
        score = crps_student_t(*args)
        assert jnp.isposinf(score).tolist() == [True, True, *[False] * 4]
        slopes = jax.grad(lambda *args: crps_student_t(*args).sum(), (0, 1, 2, 3))(
            *args
        )
        chex.assert_tree_all_finite(slopes)


def test_many_degrees_of_freedom_are_a_normal_distribution():
    truth = jnp.array([-40.0, 0.0, 1.5], jnp.float32)
    zero, one = jnp.zeros_like(truth), jnp.ones_like(truth)
    score = crps_student_t(1e7 * one, zero, one, truth)
    np.testing.assert_allclose(score, crps_normal(zero, one, truth), rtol=1e-6)
    endless = jnp.full_like(truth, jnp.inf)
    score = crps_student_t(endless, zero, one, truth)
    np.testing.assert_allclose(score, crps_normal(zero, one, truth), rtol=1e-6)
    score = log_score_student_t(endless, zero, one, truth)
    np.testing.assert_allclose(score, -stats.norm.logpdf(truth), rtol=1e-6)
