import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import linalg

from skyens import dynamics
from skyens.assimilation import (
    ETKF,
    Modulated,
    cycle,
    gaspari_cohn,
    gram,
    localisation_roots,
)
from skyens.assimilation._ensemble import Recorded
from skyens.observations import Dense, Diagonal, Index, Linear, Observation

analyse = eqx.filter_jit(lambda method, *args, **keys: method(*args, **keys))


def correlation(size, length):
    """Gaspari-Cohn on a periodic line of points at distance 1."""
    gap = np.abs(np.arange(size)[:, None] - np.arange(size))
    return np.asarray(gaspari_cohn(jnp.asarray(np.minimum(gap, size - gap) / length)))


ROOTS, _ = localisation_roots(correlation(7, 1.6), 1.0)


def problem(members=4, count=3):
    generator = np.random.default_rng(0)
    background = generator.normal(size=(members, 7)) + 3
    matrix, value = generator.normal(size=(count, 7)), generator.normal(size=count)
    factor = generator.normal(size=(count, count))
    error = Dense(factor @ factor.T + np.eye(count))
    return jnp.asarray(background), Observation(value, Linear(matrix), error)


def dense_update(background, observation, localisation):
    """Mean and anomalies by the gains of the localised covariance, in NumPy."""
    matrix = np.asarray(observation.operator.matrix)
    factor = np.linalg.cholesky(np.asarray(observation.error.covariance))
    white = np.linalg.solve(factor, matrix)
    background = np.asarray(background)
    mean, value = background.mean(0), np.asarray(observation.value)
    covariance = localisation * np.cov(background.T)
    total = white @ covariance @ white.T + np.eye(len(white))
    root, cross = np.real(linalg.sqrtm(total)), covariance @ white.T
    innovation = np.linalg.solve(factor, value - matrix @ mean)
    # Whitaker & Hamill (2002), equation 10, for errors of unit covariance.
    gain = cross @ np.linalg.inv(total)
    reduced = cross @ np.linalg.inv(root) @ np.linalg.inv(root + np.eye(len(white)))
    anomalies = background - mean
    freedom = np.trace(np.eye(len(white)) - np.linalg.inv(total))
    consistency = innovation @ np.linalg.solve(total, innovation) / len(white)
    analysis = mean + gain @ innovation, anomalies - anomalies @ white.T @ reduced.T
    return *analysis, freedom, consistency


@pytest.mark.parametrize("count", [3, 40])
def test_with_all_modes_it_is_the_dense_update_of_the_localised_covariance(count):
    # Forty observations are more than the 28 modulated members.
    background, observation = problem(count=count)
    analysis, info = analyse(Modulated(ROOTS), background, observation)
    mean, anomalies, freedom, consistency = dense_update(
        background, observation, correlation(7, 1.6)
    )
    np.testing.assert_allclose(analysis.mean(0), mean, rtol=1e-9, atol=1e-9)
    actual = np.asarray(analysis) - mean
    np.testing.assert_allclose(actual, anomalies, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(info.degrees_of_freedom, freedom, rtol=1e-9)
    np.testing.assert_allclose(info.chi_square, consistency, rtol=1e-8)


def test_without_localisation_it_has_the_moments_of_the_etkf():
    background, observation = problem()
    analysis, info = analyse(Modulated(jnp.ones((1, 7))), background, observation)
    expected, plain = analyse(ETKF(), background, observation)
    # Gain form and symmetric root are the same transform.
    np.testing.assert_allclose(analysis, expected, rtol=1e-10)
    np.testing.assert_allclose(info.chi_square, plain.chi_square, rtol=1e-10)
    method = Modulated(jnp.ones((1, 7)), 1.3, True)
    turned, _ = analyse(method, background, observation, key=jr.key(0))
    np.testing.assert_allclose(turned.mean(0), expected.mean(0), rtol=1e-10)
    covariance = 1.3**2 * np.cov(expected.T)
    np.testing.assert_allclose(np.cov(turned.T), covariance, rtol=1e-9, atol=1e-10)


def test_masks_are_as_good_as_removal_and_nothing_used_is_the_identity():
    background, full = problem()
    assert isinstance(full.error, Dense)
    assert isinstance(full.operator, Linear)
    method = Modulated(ROOTS, 1.2)
    lost = eqx.tree_at(
        lambda o: (o.value, o.mask),
        full,
        (full.value.at[2].set(jnp.nan), jnp.arange(3) < 2),
    )
    analysis, info = analyse(method, background, lost)
    fewer = Observation(
        full.value[:2],
        Linear(np.asarray(full.operator.matrix)[:2]),
        Dense(np.asarray(full.error.covariance)[:2, :2]),
    )
    expected, _ = analyse(method, background, fewer)
    np.testing.assert_allclose(analysis, expected, rtol=1e-10)
    assert (int(info.used), int(info.masked)) == (2, 1)
    blind = eqx.tree_at(lambda o: o.mask, full, jnp.zeros(3, bool))
    untouched, info = analyse(method, background, blind)
    np.testing.assert_array_equal(untouched, background)
    assert float(info.degrees_of_freedom) == 0


def test_leaves_share_roots_or_have_their_own():
    background, observation = problem()
    state = {
        "levels": jnp.stack([background, 2 * background], 1),
        "waves": background.astype(jnp.complex64) * 2j,
        "clock": jnp.arange(4),
    }
    seen = observation.pullback(lambda state: state["levels"][0])
    analysis, _ = analyse(Modulated(ROOTS), state, seen)
    chex.assert_trees_all_equal_shapes_and_dtypes(analysis, state)
    expected = np.asarray(analyse(Modulated(ROOTS), background, observation)[0])
    np.testing.assert_allclose(analysis["levels"][:, 0], expected, rtol=1e-10)
    np.testing.assert_allclose(analysis["levels"][:, 1], 2 * expected, rtol=1e-10)
    np.testing.assert_allclose(analysis["waves"], 2j * expected, rtol=1e-5)
    np.testing.assert_array_equal(analysis["clock"], state["clock"])
    roots = {"levels": ROOTS[:, None], "waves": None, "clock": None}
    roots["levels"] = jnp.broadcast_to(ROOTS[:, None], (7, 2, 7))
    some = Modulated(roots, where=lambda state: state["levels"])
    analysis, _ = analyse(some, state, seen)
    np.testing.assert_allclose(analysis["levels"][:, 0], expected, rtol=1e-10)
    np.testing.assert_array_equal(analysis["waves"], state["waves"])


@eqx.filter_jit
def loss(point, observation):
    background, roots, inflation = point
    analysis, info = Modulated(roots, inflation)(background, observation)
    return jnp.mean((analysis - 1) ** 2) + 0.1 * info.chi_square


loss_gradient = eqx.filter_jit(jax.grad(loss))


@pytest.mark.parametrize("case", ["few", "equal members", "masked"])
def test_gradients_match_finite_differences(case):
    background, observation = problem()
    if case == "equal members":
        background = jnp.broadcast_to(background[:1], background.shape)
    if case == "masked":
        observation = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(3, bool))
    point = background, ROOTS, jnp.asarray(1.1)
    gradient = loss_gradient(point, observation)
    chex.assert_tree_all_finite(gradient)
    generator = np.random.default_rng(2)
    way = tuple(jnp.asarray(generator.normal(size=x.shape)) for x in point)
    slope = sum(np.vdot(g, w) for g, w in zip(gradient, way, strict=True))

    def at(epsilon):
        there = tuple(x + epsilon * w for x, w in zip(point, way, strict=True))
        return float(loss(there, observation))

    h = 1e-3  # a difference of fourth order
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-9)


def test_experiments_batch_and_single_precision_stays():
    background, observation = problem()
    batch = jnp.stack([background, 2 * background]).astype(jnp.float32)
    method = Modulated(ROOTS, 1.1)
    together, _ = jax.jit(jax.vmap(lambda one: method(one, observation)))(batch)
    assert together.dtype == jnp.float32
    for k in range(2):
        expected, _ = analyse(method, batch[k].astype(jnp.float64), observation)
        np.testing.assert_allclose(together[k], expected, atol=3e-5)


def test_eight_members_filter_lorenz_96():
    # An ETKF of 8 members loses the truth; a localised one has an error of 0.22.
    step = dynamics.Lorenz96()
    start = jr.normal(jr.key(5), (40,)) + 8
    truth = jax.jit(lambda: dynamics.rollout(step, start, 500)[200:])()
    values = truth + jr.normal(jr.key(6), truth.shape)
    ensemble = truth[:1] + jr.normal(jr.key(7), (8, 40))
    observe = lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0))
    roots, explained = localisation_roots(correlation(40, 6.0), 0.95)
    assert len(roots) < 16
    assert explained > 0.95
    means = jax.jit(
        lambda: (
            cycle(
                step,
                Modulated(roots, 1.04, True, decompose=gram),
                ensemble,
                observe,
                values[1:],
                key=jr.key(8),
                reduce=lambda ensemble: ensemble.mean(0),
            ).analyses
        )
    )()
    error = np.sqrt(np.mean((means - truth[1:])[100:] ** 2))
    assert error < 0.28


def test_wrong_use_is_reported():
    background, observation = problem()
    with pytest.raises(ValueError, match="same leading axis of modes"):
        Modulated({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match=r"\(7, 7\) do not fit a leaf of shape \(4, 5"):
        Modulated(ROOTS)(background[:, :5], observation)
    recorded = Observation(
        observation.value, Recorded(jnp.ones((4, 3))), observation.error
    )
    with pytest.raises(ValueError, match="modulated members have none"):
        Modulated(ROOTS)(background, recorded)
    with pytest.raises(ValueError, match="`key` is needed to rotate"):
        Modulated(ROOTS, rotate=True)(background, observation)
