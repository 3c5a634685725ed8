import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.assimilation import ETKF, LETKF, Localisation, gaspari_cohn, gram, svd
from skyens.observations import Dense, Diagonal, Interpolate, Observation

GRID = sphere.equiangular(5, 8)
RADIUS = 6.371e6
analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))


def problem(count=6, members=5, seed=0, mask=None):
    generator = np.random.default_rng(seed)
    latitude = generator.uniform(-80, 80, count)
    longitude = generator.uniform(0, 360, count)
    operator = Interpolate(GRID, latitude, longitude)
    value, error = generator.normal(size=count), generator.uniform(0.3, 1, count)
    background = generator.normal(size=(members, 5, 8)) + 2.0
    return jnp.asarray(background), Observation(value, operator, Diagonal(error), mask)


def place(observation):
    assert observation.coordinates is not None
    return observation.coordinates


def std(observation):
    assert isinstance(observation.error, Diagonal)
    return np.asarray(observation.error.std)


def localise(observation, length):
    return Localisation(GRID, place(observation), length=length)


@pytest.mark.parametrize(("decompose", "count"), [(svd, 9), (gram, 3), (gram, 9)])
def test_an_infinite_length_gives_the_etkf(decompose, count):
    background, observation = problem(count)
    state = {"z": background, "levels": jnp.stack([background, background**2], axis=1)}
    seen = observation.pullback(lambda state: state["z"])
    method = LETKF(localise(observation, jnp.inf), 1.1, decompose=decompose)
    analysis, info = analyse(method, state, seen)
    expected, plain = analyse(ETKF(1.1), state, seen)
    chex.assert_trees_all_close(analysis, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(info.chi_square, plain.chi_square, rtol=1e-10)
    np.testing.assert_allclose(
        info.degrees_of_freedom,
        np.full((5, 8), plain.degrees_of_freedom),
        rtol=1e-10,
    )


def test_each_point_is_an_etkf_with_tapered_errors():
    background, observation = problem()
    length = 4e6
    analysis, _ = analyse(LETKF(localise(observation, length)), background, observation)
    where = place(observation)
    for i, j in ((0, 0), (2, 5), (4, 7)):
        distance = RADIUS * sphere.great_circle_distance(
            jnp.full(6, GRID.latitude[i]),
            jnp.full(6, GRID.longitude[j]),
            where["latitude"],
            where["longitude"],
        )
        taper = np.asarray(gaspari_cohn(distance / length))
        near = taper > 0
        assert 0 < near.sum() < 6
        error = Diagonal(std(observation) / np.sqrt(np.where(near, taper, 1)))
        local = Observation(observation.value, observation.operator, error, near)
        expected, _ = analyse(ETKF(), background, local)
        np.testing.assert_allclose(
            analysis[:, i, j], expected[:, i, j], rtol=1e-10, atol=1e-10
        )


def test_one_observation_changes_nothing_beyond_its_reach():
    background, _ = problem()
    operator = Interpolate(GRID, np.asarray([40.0]), np.asarray([100.0]))
    observation = Observation(np.asarray([5.0]), operator, Diagonal(0.5))
    length = 2.5e6
    method = LETKF(localise(observation, length), 1.2)
    analysis, info = analyse(method, background, observation)
    latitude, longitude = (
        jnp.asarray(x)
        for x in np.meshgrid(GRID.latitude, GRID.longitude, indexing="ij")
    )
    there = jnp.full_like(latitude, 40.0), jnp.full_like(latitude, 100.0)
    distance = RADIUS * sphere.great_circle_distance(latitude, longitude, *there)
    beyond = np.asarray(distance >= 2 * length)
    assert 0 < beyond.sum() < 40
    np.testing.assert_array_equal(
        np.asarray(analysis)[:, beyond], np.asarray(background)[:, beyond]
    )
    changed = np.any(np.asarray(analysis != background)[:, ~beyond], axis=0)
    assert changed.all()
    np.testing.assert_array_equal(np.asarray(info.degrees_of_freedom) > 0, ~beyond)


def test_masks_are_as_good_as_removal_and_everything_masked_is_the_identity():
    mask = np.asarray([True, False, True, True, False, True])
    background, observation = problem(mask=mask)
    analysis, info = analyse(LETKF(localise(observation, 4e6)), background, observation)
    where = {name: x[mask] for name, x in place(observation).items()}
    fewer = Observation(
        observation.value[mask],
        Interpolate(GRID, where["latitude"], where["longitude"]),
        Diagonal(std(observation)[mask]),
    )
    expected, _ = analyse(LETKF(localise(fewer, 4e6)), background, fewer)
    np.testing.assert_allclose(analysis, expected, rtol=1e-12, atol=1e-12)
    assert (int(info.used), int(info.masked)) == (4, 2)
    blind = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(6, bool))
    untouched, info = analyse(LETKF(localise(blind, 4e6), 1.3), background, blind)
    np.testing.assert_array_equal(untouched, background)
    assert (int(info.used), float(info.chi_square)) == (0, 0.0)


def test_other_leaves_are_left_out_by_where():
    background, observation = problem()
    state = {"z": background, "noise": jnp.ones((5, 3)), "clock": jnp.arange(5)}
    seen = observation.pullback(lambda state: state["z"])
    table = localise(observation, 4e6)
    with pytest.raises(ValueError, match=r"\(5, 3\) does not end with .* \(5, 8\)"):
        LETKF(table)(state, seen)
    analysis, _ = analyse(LETKF(table, where=lambda s: s["z"]), state, seen)
    expected, _ = analyse(LETKF(table), background, observation)
    np.testing.assert_allclose(analysis["z"], expected, rtol=1e-13)
    chex.assert_trees_all_equal(analysis["noise"], state["noise"])


def test_rotation_is_the_same_everywhere():
    background, observation = problem()
    table = localise(observation, jnp.inf)
    turned, _ = analyse(LETKF(table, 1.1, True), background, observation, key=jr.key(0))
    expected, _ = analyse(ETKF(1.1, True), background, observation, key=jr.key(0))
    np.testing.assert_allclose(turned, expected, rtol=1e-10)


@eqx.filter_jit
def loss(point, table, observation):
    background, taper, inflation = point
    fitted = eqx.tree_at(lambda table: table.taper, table, taper)
    analysis, _ = LETKF(fitted, inflation)(background, observation)
    return jnp.mean(analysis[0] ** 3 + analysis[1] ** 2)


loss_gradient = eqx.filter_jit(jax.grad(loss))


@pytest.mark.parametrize("case", ["near", "masked", "equal members"])
def test_gradients_match_finite_differences(case):
    background, observation = problem()
    if case == "masked":
        observation = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(6, bool))
    if case == "equal members":
        background = jnp.broadcast_to(background[:1], background.shape)
    table = localise(observation, 4e6)
    point = background, table.taper, jnp.asarray(1.1)
    gradient = loss_gradient(point, table, observation)
    chex.assert_tree_all_finite(gradient)
    generator = np.random.default_rng(1)
    way = [jnp.asarray(generator.normal(size=x.shape)) for x in point]
    way[1] = way[1] * table.taper  # a weight of 0 has no other side
    slope = sum(np.vdot(g, w) for g, w in zip(gradient, way, strict=True))

    def at(epsilon):
        there = tuple(x + epsilon * w for x, w in zip(point, way, strict=True))
        return float(loss(there, table, observation))

    h = 1e-3  # a difference of fourth order
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-9)


def test_experiments_batch_and_single_precision_stays():
    background, observation = problem()
    batch = jnp.stack([background, 2 * background]).astype(jnp.float32)
    method = LETKF(localise(observation, 4e6), 1.1)
    together, info = jax.jit(jax.vmap(lambda one: method(one, observation)))(batch)
    assert together.dtype == jnp.float32
    assert info.degrees_of_freedom.shape == (2, 5, 8)
    for k in range(2):
        exact, _ = analyse(method, batch[k].astype(jnp.float64), observation)
        np.testing.assert_allclose(together[k], exact, atol=2e-5)


def test_wrong_use_is_reported():
    background, observation = problem()
    table = localise(observation, 4e6)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`inflation` must be above 0"):
        LETKF(table, -1.0)
    with pytest.raises(ValueError, match="`key` is needed to rotate"):
        LETKF(table, rotate=True)(background, observation)
    mixed = Observation(observation.value, observation.operator, Dense(np.eye(6)))
    with pytest.raises(ValueError, match=r"independent observation errors.*got Dense"):
        LETKF(table)(background, mixed)
