import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from skyens import sphere
from skyens.assimilation import ETKF
from skyens.observations import (
    Dense,
    Diagonal,
    Index,
    Interpolate,
    Linear,
    Observation,
    WindDirection,
)

see = lambda state: jnp.sin(state[:4]) * state[4]
VALUE = np.asarray([0.3, np.nan, -0.2, 1.1])
MASK = np.asarray([True, True, False, True])  # with the NaN, entries 0 and 3 count
USED = np.asarray([True, False, False, True])
STATE = jr.normal(jr.key(0), (5,))


def errors():
    factor = np.random.default_rng(0).normal(size=(4, 4))
    return [Diagonal(np.asarray([0.5, 1.0, 2.0, 0.1])), Dense(factor @ factor.T)]


@pytest.mark.parametrize("error", errors())
def test_masked_entries_are_as_good_as_absent(error):
    observation = Observation(VALUE, see, error, MASK)
    kept = np.flatnonzero(USED)
    matrix = (
        error.covariance[np.ix_(kept, kept)]
        if isinstance(error, Dense)
        else jnp.diag(error.std[kept] ** 2)
    )
    fewer = Observation(VALUE[kept], lambda x: see(x)[kept], Dense(matrix))
    actual, expected = observation.log_prob, fewer.log_prob
    np.testing.assert_allclose(actual(STATE), expected(STATE), rtol=1e-10)
    gradients = jax.grad(actual)(STATE), jax.grad(expected)(STATE)
    np.testing.assert_allclose(*gradients, rtol=1e-9, atol=1e-12)
    white = observation.innovation(STATE)
    np.testing.assert_array_equal(np.asarray(white)[~USED], 0)
    np.testing.assert_allclose(
        white @ white, jnp.sum(fewer.innovation(STATE) ** 2), rtol=1e-10
    )


@pytest.mark.parametrize("error", errors())
def test_linearise_gives_innovation_derivative_and_adjoint(error):
    observation = Observation(VALUE, see, error, MASK)
    innovation, operator = observation.linearise(STATE)
    chex.assert_trees_all_close(innovation, observation.innovation(STATE), rtol=1e-12)
    step = 1e-6 * jr.normal(jr.key(1), (5,))
    change = observation.innovation(STATE - step) - observation.innovation(STATE + step)
    np.testing.assert_allclose(2 * operator.mv(step), change, rtol=1e-5, atol=1e-13)
    cotangent = jr.normal(jr.key(2), (4,))
    pulled = operator.transpose().mv(cotangent)
    np.testing.assert_allclose(pulled @ step, cotangent @ operator.mv(step), rtol=1e-12)
    np.testing.assert_array_equal(operator.as_matrix()[~USED], 0)


def test_linearised_gaussian_problem_solves_like_least_squares():
    matrix = np.random.default_rng(1).normal(size=(6, 3))
    observation = Observation(np.arange(6.0), Linear(matrix), Diagonal(0.5))
    innovation, operator = observation.linearise(jnp.zeros(3))
    solution = lx.linear_solve(operator, innovation, lx.NormalCG(1e-12, 1e-12)).value
    expected = np.linalg.lstsq(matrix, np.arange(6.0))[0]
    np.testing.assert_allclose(solution, expected, rtol=1e-9)


def test_state_is_any_pytree_and_only_real_numbers_are_linearised():
    state = {"x": STATE, "clock": jnp.asarray(3), "wave": jnp.asarray([1.0 + 2.0j])}
    operator = lambda s: s["x"][:2] * s["clock"].astype(float) + s["wave"].imag
    observation = Observation(np.zeros(2), operator, Diagonal(1.0))
    _, linear = observation.linearise(state)
    structure = linear.in_structure()
    assert structure["clock"] is None
    tangent = {"x": jnp.ones(5), "clock": None, "wave": jnp.asarray([2.0 + 5.0j])}
    np.testing.assert_allclose(linear.mv(tangent), [8.0, 8.0], rtol=1e-14)


def test_pullback_sees_through_a_decoder():
    observation = Observation(VALUE, see, Diagonal(0.5), MASK)
    pulled = observation.pullback(lambda z: 2.0 * z["latent"] + 1.0)
    latent = {"latent": (STATE - 1) / 2}
    for method in ("predict", "innovation", "log_prob"):
        actual, expected = getattr(pulled, method)(latent), getattr(observation, method)
        np.testing.assert_allclose(actual, expected(STATE), rtol=1e-12)
    again = pulled.pullback(lambda w: {"latent": w})
    np.testing.assert_allclose(
        again.innovation(latent["latent"]), observation.innovation(STATE), rtol=1e-12
    )


def test_nan_joins_the_mask_under_tracing():
    def innovation(value, state):
        return Observation(value, see, Diagonal(0.5)).innovation(state)

    value = jnp.stack([jnp.asarray(VALUE), jnp.full(4, jnp.nan)])
    white = jax.jit(jax.vmap(innovation, in_axes=(0, None)))(value, STATE)
    assert (white != 0).tolist() == [[True, False, True, True], [False] * 4]
    gradient = jax.jit(jax.grad(lambda v, s: innovation(v, s).sum(), (0, 1)))
    chex.assert_tree_all_finite(gradient(value[0], STATE))
    chex.assert_trees_all_equal(gradient(value[1], STATE), (jnp.zeros(4), jnp.zeros(5)))


def test_a_masked_prediction_may_be_nan():
    blind = lambda state: jnp.where(jnp.asarray(USED), see(state), jnp.nan)
    observation = Observation(np.zeros(4), blind, Diagonal(0.5), USED)
    chex.assert_tree_all_finite(observation.innovation(STATE))
    chex.assert_tree_all_finite(jax.grad(observation.log_prob)(STATE))


def test_everything_masked_says_nothing():
    for error in errors():
        observation = Observation(np.full(4, np.nan), see, error)
        assert observation.log_prob(STATE) == 0
        chex.assert_trees_all_equal(jax.grad(observation.log_prob)(STATE), jnp.zeros(5))


def test_it_is_a_pytree_of_arrays():
    observation = Observation(VALUE, see, Diagonal(0.5)).pullback(lambda z: 2.0 * z)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(observation))
    jitted = jax.jit(lambda observation, state: observation.innovation(state))
    chex.assert_trees_all_close(
        jitted(observation, STATE), observation.innovation(STATE), rtol=1e-14
    )
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), observation)
    _, sums = jax.lax.scan(lambda c, o: (c, o.log_prob(STATE)), None, stacked)
    np.testing.assert_allclose(sums, observation.log_prob(STATE), rtol=1e-14)


def test_sample_scatters_about_the_prediction():
    observation = Observation(VALUE, see, Diagonal(0.5))
    draw = lambda key: observation.sample(STATE, key=key)
    samples = jax.vmap(draw)(jr.split(jr.key(3), 4000))
    # four standard errors of a mean of 4,000
    off = np.abs(np.mean(samples, axis=0) - see(STATE)).max()
    assert off < 4 * 0.5 / np.sqrt(4000)
    np.testing.assert_allclose(np.std(samples, axis=0), 0.5, rtol=0.06)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(jnp.float32,) * 2, (jnp.float64,) * 2, (jnp.bfloat16, jnp.float32)],
)
def test_dtype_follows_the_state_and_residuals_have_32_bits(dtype, expected):
    state = STATE.astype(dtype)
    for error in errors():
        observation = Observation(VALUE, see, error)
        assert observation.predict(state).dtype == dtype
        assert observation.log_prob(state).dtype == expected
        innovation, operator = observation.linearise(state)
        assert innovation.dtype == expected
        assert operator.transpose().mv(innovation).dtype == dtype
        assert observation.sample(state, key=jr.key(0)).dtype == dtype


def test_coordinates_come_from_the_operator_or_broadcast():
    grid = sphere.equiangular(7, 12)
    latitude, longitude = np.asarray([10.0, 20.0]), np.asarray([30.0, 40.0])
    operator = Interpolate(grid, latitude, longitude)
    fields = Observation(np.zeros((3, 2)), operator, Diagonal(1.0))
    assert fields.coordinates is not None
    np.testing.assert_array_equal(
        fields.coordinates["latitude"], np.broadcast_to(latitude, (3, 2))
    )
    given = Observation(
        np.zeros(2),
        Index(np.arange(2)),
        Diagonal(1.0),
        coordinates={"level": np.ones(1)},
    )
    assert given.coordinates is not None
    np.testing.assert_array_equal(given.coordinates["level"], [1.0, 1.0])
    assert Observation(np.zeros(2), see, Diagonal(1.0)).coordinates is None


@pytest.mark.parametrize("error", errors())
def test_solve_undoes_the_covariance_of_what_counts(error):
    observation = Observation(VALUE, see, error, MASK)
    matrix = error.covariance if isinstance(error, Dense) else jnp.diag(error.std**2)
    residual = jnp.asarray([1.0, jnp.nan, 5.0, -2.0])
    solution = observation.solve(residual)
    kept = np.asarray(matrix)[np.ix_(USED, USED)]
    np.testing.assert_allclose(solution[USED], np.linalg.solve(kept, residual[USED]))
    np.testing.assert_array_equal(solution[~USED], 0)
    again = observation.solve(residual, observation.predict(STATE))
    np.testing.assert_array_equal(again, solution)
    white = error.whiten(residual, observation.mask)
    np.testing.assert_allclose(solution[USED] @ residual[USED], white @ white)


def test_what_is_periodic_goes_the_shortest_way_round():
    value = np.asarray([350.0, 10.0, 90.0, np.nan])
    observation = Observation(value, see, Diagonal(2.0), period=360)
    prediction = jnp.asarray([10.0, 350.0, 270.0, jnp.nan])
    residual = observation.residual(prediction)
    np.testing.assert_array_equal(residual, [-20.0, 20.0, -180.0, 0.0])
    again = observation.residual(prediction + 720)
    np.testing.assert_allclose(again, residual, atol=1e-12)
    slope = jax.jacobian(observation.residual)(prediction)
    np.testing.assert_array_equal(slope, np.diag([-1.0, -1, -1, 0]))
    mixed = np.asarray([360.0, np.inf, np.inf, np.inf])
    partly = Observation(value, see, Diagonal(2.0), period=mixed)
    np.testing.assert_array_equal(partly.residual(prediction), [-20.0, -340, -180, 0])
    pulled = observation.pullback(lambda z: 2.0 * z)
    np.testing.assert_array_equal(pulled.residual(prediction), residual)


def test_members_on_both_sides_of_north_are_averaged_there():
    members = jnp.asarray([[359.0, 10.0], [1.0, 12.0], [3.0, 14.0]])
    observation = Observation(np.zeros(2), lambda x: x, Diagonal(1.0), period=360)
    unwrapped = observation.unwrap(members)
    np.testing.assert_array_equal(unwrapped[:, 0], [359.0, 361.0, 363.0])
    np.testing.assert_array_equal(unwrapped[:, 1], members[:, 1])
    plain = Observation(np.zeros(2), lambda x: x, Diagonal(1.0))
    assert plain.unwrap(members) is members
    # A filter turns northerly winds no further than it would turn southerly ones.
    wind = jr.normal(jr.key(4), (6, 2)) + jnp.asarray([[0.0, -8.0]])
    here = lambda state: (state[0], state[1])
    direction = lambda value: Observation(
        np.asarray(value), WindDirection(), Diagonal(5.0)
    ).pullback(here)
    north, _ = ETKF()(wind, direction(10.0))
    south, _ = ETKF()(-wind, direction(190.0))
    np.testing.assert_allclose(north, -south, rtol=1e-9)
    assert np.abs(north - wind).max() < 3


def test_wrong_use_is_reported():
    with pytest.raises(
        eqx.EquinoxRuntimeError, match=r"latitude.*in \[-90, 90\]: 1 of"
    ):
        Observation(
            VALUE, see, Diagonal(1.0), coordinates={"latitude": np.full(1, 91.0)}
        )
    with pytest.raises(
        ValueError, match=r"`period` of shape \(3,\) does not broadcast"
    ):
        Observation(VALUE, see, Diagonal(1.0), period=np.ones(3))
    with pytest.raises(ValueError, match="`value` is empty"):
        Observation(np.zeros(0), see, Diagonal(1.0))
    with pytest.raises(ValueError, match=r"`mask` of shape \(3,\) does not broadcast"):
        Observation(VALUE, see, Diagonal(1.0), np.ones(3, bool))
    with pytest.raises(ValueError, match=r"`std` of shape \(3,\) does not broadcast"):
        Observation(VALUE, see, Diagonal(np.ones(3)))
    with pytest.raises(ValueError, match=r"coordinates\['latitude'\]` of shape \(3,\)"):
        Observation(VALUE, see, Diagonal(1.0), coordinates={"latitude": np.zeros(3)})
    short = Observation(VALUE, lambda state: state[:3], Diagonal(1.0))
    with pytest.raises(ValueError, match=r"returned the shape \(3,\), `value` has"):
        short.innovation(STATE)
    counting = Observation(VALUE, lambda state: jnp.arange(4), Diagonal(1.0))
    with pytest.raises(ValueError, match="must return real numbers, got int"):
        counting.predict(STATE)
