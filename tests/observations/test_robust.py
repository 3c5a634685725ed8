import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import integrate, optimize, stats

from skyens.observations import Error, Huber, Linear, Observation, StudentT

LAWS = [
    StudentT(0.7, 3.0),
    StudentT(np.asarray([0.5, 1.0, 2.0]), np.asarray([1.0, 4.0, 60.0])),
    Huber(0.7, 1.0),
    Huber(np.asarray([0.5, 1.0, 2.0]), np.asarray([0.3, 1.345, 3.0])),
]
MASK = jnp.ones(3, bool)


def density(law, i):
    """The density of entry i of three, as a function of numbers."""
    keep = jnp.arange(3) == i
    log_prob = jax.jit(lambda x: law.log_prob(jnp.where(keep, x, 0), keep))
    return lambda x: float(jnp.exp(log_prob(jnp.asarray(x))))


@pytest.mark.parametrize("law", LAWS[1:4:2])
def test_densities_are_normalised(law):
    for i in range(3):
        near, _ = integrate.quad(density(law, i), -6, 6, points=[-1.345, 1.345])
        far, _ = integrate.quad(density(law, i), 6, np.inf)
        np.testing.assert_allclose(near + 2 * far, 1, rtol=1e-8)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3).map(np.asarray))
def test_student_is_scipys(residual):
    law = LAWS[1]
    assert isinstance(law, StudentT)
    terms = stats.t.logpdf(residual, law.degrees_of_freedom, scale=law.scale)
    keep = jnp.asarray([True, False, True])
    actual = law.log_prob(jnp.asarray(residual), keep)
    np.testing.assert_allclose(actual, terms[[0, 2]].sum(), rtol=1e-10)


@pytest.mark.parametrize("law", LAWS)
def test_the_whitened_residual_pulls_as_the_density_does(law):
    """`R^-1 residual` of the Gaussian that stands for a law is its slope."""
    residual = jnp.asarray([0.05, -3.0, 40.0])
    observation = Observation(residual, lambda state: state, law)
    slope = jax.grad(observation.log_prob)(jnp.zeros(3))
    solution = observation.solve(residual)
    np.testing.assert_allclose(solution, slope, rtol=1e-12)
    innovation, operator = observation.linearise(jnp.zeros(3))
    np.testing.assert_allclose(operator.transpose().mv(innovation), slope, rtol=1e-12)
    np.testing.assert_allclose(law.whiten(residual, MASK), innovation, rtol=1e-14)


@pytest.mark.parametrize("law", [StudentT(0.5, 3.0), Huber(0.5)])
def test_iterating_the_gaussian_law_finds_the_maximum_of_the_density(law):
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(20, 2))
    value = matrix @ np.asarray([1.0, -2.0]) + 0.5 * generator.normal(size=20)
    value[3] += 50
    observation = Observation(value, Linear(matrix), law)

    @jax.jit
    def analyse(_, state):
        frozen = observation.about(observation.predict(state))
        innovation, operator = frozen.linearise(state)
        step = jnp.linalg.lstsq(operator.as_matrix(), innovation)[0]
        return state + step

    state = jax.lax.fori_loop(0, 60, analyse, jnp.zeros(2))
    cost = jax.jit(jax.value_and_grad(lambda x: -observation.log_prob(x)))
    expected = optimize.minimize(cost, np.zeros(2), jac=True, tol=1e-12).x
    np.testing.assert_allclose(state, expected, atol=1e-6)
    assert np.abs(state - np.asarray([1.0, -2.0])).max() < 0.5  # one gross error is no


@pytest.mark.parametrize("law", LAWS)
def test_samples_are_of_the_law(law):
    draw = jax.jit(jax.vmap(lambda key: law.sample(jnp.zeros(3), key=key)))
    samples = draw(jr.split(jr.key(0), 4000))
    for i in range(3):
        grid = np.linspace(-60, 60, 24_001)
        keep = jnp.arange(3) == i
        log_prob = jax.vmap(lambda x: law.log_prob(jnp.where(keep, x, 0), keep))
        cumulative = integrate.cumulative_simpson(
            np.exp(log_prob(jnp.asarray(grid))), x=grid, initial=0
        )
        cumulative = cumulative + (1 - cumulative[-1]) / 2  # what lies beyond
        law_of = lambda x: np.interp(x, grid, cumulative)
        assert stats.kstest(np.asarray(samples[:, i]), law_of).pvalue > 1e-3


@pytest.mark.parametrize("law", LAWS)
def test_masked_residuals_count_for_nothing_and_gradients_are_finite(law):
    residual = jnp.asarray([jnp.nan, 0.0, jnp.inf])
    keep = jnp.isfinite(residual)
    for name in ("whiten", "log_prob"):
        total = lambda law, r, name=name: jnp.sum(getattr(law, name)(r, keep))
        gradients = jax.grad(total, (0, 1))(law, residual)
        chex.assert_tree_all_finite(gradients)
        np.testing.assert_array_equal(gradients[1][~keep], 0)
    assert law.whiten(residual, keep).tolist() == [0.0] * 3


def test_gradients_match_differences_and_the_threshold_is_no_trap():
    for law in (StudentT(0.7, 3.0), Huber(0.7, 1.0)):
        residual = jnp.asarray([0.3, -5.0, 0.9])
        total = lambda law, residual=residual: law.log_prob(residual, MASK)
        slopes = jax.tree.leaves(jax.grad(total)(law))
        leaves, structure = jax.tree.flatten(law)
        for i, slope in enumerate(slopes):
            moved = [
                total(
                    structure.unflatten([*leaves[:i], leaves[i] + h, *leaves[i + 1 :]])
                )
                for h in (1e-5, -1e-5)
            ]
            expected = (moved[0] - moved[1]) / 2e-5
            np.testing.assert_allclose(slope, expected, rtol=1e-6)
    at = jnp.asarray([0.7, -0.7, 0.0])  # the threshold itself
    slope = jax.grad(Huber(0.7, 1.0).log_prob)(at, MASK)
    np.testing.assert_allclose(slope, [-1 / 0.7, 1 / 0.7, 0], rtol=1e-12)


def test_a_fill_value_has_no_weight_in_single_precision():
    residual = jnp.asarray([9.96921e36, -1e36, 1.0], jnp.float32)
    for law in (StudentT(0.5, 4.0), Huber(0.5)):
        chex.assert_tree_all_finite(law.whiten(residual, MASK))
        std = law.gaussian(residual, MASK).std
        assert np.all(np.asarray(std[:2]) > 1e17)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_dtype_is_that_of_the_residual(dtype):
    residual = jnp.ones(3, dtype)
    for law in (StudentT(1.0), Huber(1.0)):
        assert isinstance(law, Error)
        assert law.independent
        assert law.sample(residual, key=jr.key(0)).dtype == dtype
        assert law.whiten(residual, MASK).dtype == dtype
        assert law.log_prob(residual, MASK).dtype == dtype


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="`scale` must be finite and abo"):
        StudentT(0.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`degrees_of_freedom` must be"):
        StudentT(1.0, -1.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`threshold` must be finite and"):
        Huber(1.0, 0.0)
    with pytest.raises(ValueError, match=r"`threshold` of shape \(2,\) does not"):
        Huber(1.0, np.ones(2)).whiten(jnp.ones(3), MASK)
