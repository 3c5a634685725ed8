import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.assimilation import ESMDA, ETKF, IEnKS
from skyens.observations import Diagonal, Linear, Observation

MEMBERS, STATES = 6, 3
generator = np.random.default_rng(1)
MATRIX = generator.normal(size=(4, STATES))
VALUES = generator.normal(size=4)
VALUES[2] = np.nan
ENSEMBLE = jnp.asarray(generator.normal(size=(MEMBERS, STATES)) + 1.0)
OBSERVATION = Observation(VALUES, Linear(MATRIX), Diagonal(0.4))
analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))


def dense_update(ensemble):
    mean, covariance = np.mean(ensemble, 0), np.cov(np.asarray(ensemble).T)
    rows, value = MATRIX[np.isfinite(VALUES)], VALUES[np.isfinite(VALUES)]
    total = rows @ covariance @ rows.T + 0.16 * np.eye(len(rows))
    gain = covariance @ rows.T @ np.linalg.inv(total)
    return mean + gain @ (value - rows @ mean), covariance - gain @ rows @ covariance


@settings(deadline=None, max_examples=15)
@given(
    shares=st.lists(st.floats(0.1, 1.0), min_size=3, max_size=3).map(np.asarray),
    seed=st.integers(0, 2**31),
)
def test_any_parts_are_one_kalman_update_of_a_linear_model(shares, seed):
    ensemble = jr.normal(jr.key(seed), ENSEMBLE.shape)
    analysis, info = analyse(ESMDA(shares.sum() / shares), ensemble, OBSERVATION)
    mean, covariance = dense_update(ensemble)
    np.testing.assert_allclose(analysis.mean(0), mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.cov(analysis.T), covariance, rtol=1e-9, atol=1e-10)
    assert int(info.iterations) == 3
    assert (int(info.used), int(info.masked)) == (3, 1)


def test_one_part_is_the_etkf_and_says_the_same_of_itself():
    analysis, info = analyse(ESMDA(1), ENSEMBLE, OBSERVATION)
    expected, told = analyse(ETKF(), ENSEMBLE, OBSERVATION)
    np.testing.assert_allclose(analysis, expected, rtol=1e-12)
    np.testing.assert_allclose(info.chi_square, told.chi_square, rtol=1e-12)
    np.testing.assert_allclose(
        info.degrees_of_freedom, told.degrees_of_freedom, rtol=1e-10
    )
    # All parts of a linear model together learn as much.
    _, info = analyse(ESMDA(3), ENSEMBLE, OBSERVATION)
    np.testing.assert_allclose(info.chi_square, told.chi_square, rtol=1e-12)
    np.testing.assert_allclose(
        info.degrees_of_freedom, told.degrees_of_freedom, rtol=1e-10
    )


def test_perturbed_observations_agree_within_their_noise():
    many = jr.normal(jr.key(4), (400, STATES)) + 1.0
    analysis, _ = analyse(ESMDA(2, perturb=True), many, OBSERVATION, key=jr.key(0))
    mean, covariance = dense_update(many)
    # Sampling errors over 400 members: std / 20 of a mean, 7 percent of a variance.
    error = np.asarray(analysis.mean(0)) - mean
    assert (error**2 / np.diag(covariance)).max() < (4 / 20) ** 2
    np.testing.assert_allclose(
        np.cov(analysis.T), covariance, atol=0.3 * covariance.diagonal().max()
    )
    again, _ = analyse(ESMDA(2, perturb=True), many, OBSERVATION, key=jr.key(1))
    assert np.abs(again - analysis).max() > 0.01


def bend(state, forcing=None, *, key=None):
    return jnp.sin(state + 0.5 * jnp.roll(state, 1)) + 0.3 * state


def test_a_window_is_that_of_the_iterative_smoother_with_as_many_parts():
    values = jnp.asarray(VALUES.reshape(2, 2))
    seen = lambda value: Observation(value, Linear(MATRIX[:2]), Diagonal(0.4))
    window = jax.vmap(seen)(values)
    method = ESMDA(3, step=bend, steps_between=2)
    analysis, info = analyse(method, ENSEMBLE, window)
    smoother = IEnKS(bend, steps_between=2, iterations=3, mda=True)
    expected, told = analyse(smoother, ENSEMBLE, window)
    np.testing.assert_allclose(analysis, expected, rtol=1e-11)
    np.testing.assert_allclose(info.chi_square, told.chi_square, rtol=1e-11)


def test_parts_come_nearer_to_the_posterior_of_a_curved_model():
    # x ~ N(0, 1), y = x^3 + x + error: its mean by quadrature.
    grid = np.linspace(-6, 6, 20001)
    density = np.exp(-(grid**2) / 2 - (4.0 - grid**3 - grid) ** 2 / (2 * 0.25))
    exact = np.sum(grid * density) / np.sum(density)
    ensemble = jr.normal(jr.key(5), (400, 1))
    cubic = Observation(jnp.asarray([4.0]), lambda x: x**3 + x, Diagonal(0.5))
    error = [
        abs(float(analyse(ESMDA(parts), ensemble, cubic)[0].mean()) - exact)
        for parts in (1, 8)
    ]
    assert error[1] < 0.3 * error[0]


def test_nothing_used_is_the_identity_and_float32_and_integers_stay():
    state = {"x": ENSEMBLE.astype(jnp.float32), "clock": jnp.arange(MEMBERS)}
    seen = OBSERVATION.pullback(lambda state: state["x"])
    analysis, _ = analyse(ESMDA(2), state, seen)
    chex.assert_trees_all_equal_shapes_and_dtypes(analysis, state)
    exact, _ = analyse(ESMDA(2), ENSEMBLE, OBSERVATION)
    np.testing.assert_allclose(analysis["x"], exact, atol=1e-5)
    blind = eqx.tree_at(lambda o: o.mask, seen, jnp.zeros(4, bool))
    analysis, info = analyse(ESMDA(2), state, blind)
    chex.assert_trees_all_equal(analysis, state)
    assert float(info.chi_square) == float(info.degrees_of_freedom) == 0


@pytest.mark.parametrize("perturb", [False, True])
def test_gradients_match_finite_differences(perturb):
    @jax.jit
    @jax.value_and_grad
    def loss(point):
        ensemble, factors, value = point
        # Two observations of six members: C has equal eigenvalues.
        seen = Observation(value, lambda x: jnp.sin(x[:2]) + x[1:], Diagonal(0.4))
        method = ESMDA(factors * jnp.sum(1 / factors), perturb=perturb)
        analysis, info = method(ensemble, seen, key=jr.key(0))
        return jnp.mean(analysis**3) + 0.1 * info.chi_square

    point = ENSEMBLE, jnp.asarray([2.0, 3.0]), jnp.asarray([0.5, -0.2])
    way = tuple(jnp.asarray(generator.normal(size=x.shape)) for x in point)
    slope = sum(np.vdot(g, w) for g, w in zip(loss(point)[1], way, strict=True))
    at = lambda e: float(
        loss(tuple(x + e * w for x, w in zip(point, way, strict=True)))[0]
    )
    e = 1e-3
    difference = (8 * (at(e) - at(-e)) - (at(2 * e) - at(-2 * e))) / (12 * e)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    same = jnp.broadcast_to(ENSEMBLE[:1], ENSEMBLE.shape)
    chex.assert_tree_all_finite(loss((same, *point[1:])))


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="sum of their inverses 1"):
        ESMDA([2.0, 3.0])
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be positive"):
        ESMDA([0.5, -1.0])
    with pytest.raises(ValueError, match="`factors` must be at least 1, got 0"):
        ESMDA(0)
    with pytest.raises(ValueError, match="`steps_between` must be at least 1, got 0"):
        ESMDA(step=bend, steps_between=0)
    with pytest.raises(ValueError, match="`key` is needed to perturb"):
        ESMDA(perturb=True)(ENSEMBLE, OBSERVATION)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        ESMDA()(ENSEMBLE[:1], OBSERVATION)
