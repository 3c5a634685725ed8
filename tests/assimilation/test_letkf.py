import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics, sphere
from skyens.assimilation import (
    ETKF,
    LETKF,
    CoarseWeights,
    Localisation,
    Moving,
    Plane,
    Vertical,
    cycle,
    gaspari_cohn,
    gram,
    svd,
)
from skyens.observations import (
    Dense,
    Diagonal,
    Huber,
    Index,
    Interpolate,
    Observation,
)

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


@pytest.mark.parametrize(
    ("decompose", "count"), [(svd, 9), (gram, 3), (None, 3), (None, 9)]
)
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


@pytest.mark.parametrize(
    ("dtype", "error", "close"), [(float, 1e-8, 1e-6), (jnp.float32, 1e-4, 2e-3)]
)
def test_observations_of_great_precision(dtype, error, close):
    background, observation = problem(3)
    sharp = Observation(
        jnp.asarray(observation.value, dtype), observation.operator, Diagonal(error)
    )
    background = background.astype(dtype)
    method = LETKF(localise(sharp, jnp.inf))
    analysis, _ = analyse(method, background, sharp)
    expected, _ = analyse(
        ETKF(decompose=svd), background.astype(float), observation_in_double(sharp)
    )
    assert analysis.dtype == dtype
    np.testing.assert_allclose(analysis, expected, atol=close)

    def total(value):
        seen = Observation(value, sharp.operator, Diagonal(error))
        return jnp.sum(method(background, seen)[0] ** 2)

    # The analysis is the value where it is seen: the slope is of order 1, not 1/error.
    slope = jax.grad(total)(sharp.value)
    step = jnp.asarray(0.01, dtype)
    shift = lambda i, by: sharp.value.at[i].add(by)
    numbers = [
        (total(shift(i, step)) - total(shift(i, -step))) / 0.02 for i in range(3)
    ]
    np.testing.assert_allclose(slope, jnp.stack(numbers), rtol=200 * close)


def observation_in_double(sharp):
    value = sharp.value.astype(float)
    return Observation(value, sharp.operator, sharp.error)


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
    with pytest.raises(ValueError, match=r"\(5, 3\) does not end with \(5, 8\)"):
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


def test_moving_stations_have_the_analysis_of_a_table_and_their_gradient():
    background, observation = problem()
    table = localise(observation, 4e6)
    width = table.index.shape[2]
    moving = LETKF(Moving(GRID, length=4e6, width=width), 1.1)
    analysis, info = analyse(moving, background, observation)
    expected, _ = analyse(LETKF(table, 1.1), background, observation)
    np.testing.assert_allclose(analysis, expected, rtol=1e-10)
    assert (int(info.overflow), int(info.used), int(info.unreached)) == (0, 6, 0)
    short = LETKF(Moving(GRID, length=4e6, width=1), 1.1)
    _, info = analyse(short, background, observation)
    assert int(info.overflow) > 0

    def total(length):
        method = LETKF(Moving(GRID, length=length, width=6))
        return jnp.sum(method(background, observation)[0] ** 2)

    h, length = 40.0, jnp.asarray(4e6)
    value, slope = jax.jit(total), jax.jit(jax.grad(total))(length)
    difference = (value(length + h) - value(length - h)) / (2 * h)
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_an_observation_that_no_point_hears_is_counted():
    place = {"x": np.asarray([1.0, 50.0, np.nan])}
    line = Plane(np.arange(4.0))
    seen = Observation(
        np.ones(3), lambda x: x[:3], Diagonal(1.0), np.asarray([1, 1, 0], bool), place
    )
    _, info = analyse(LETKF(Localisation(line, place, length=2.0)), jnp.eye(4), seen)
    counted = info.used, info.masked, info.unreached, info.rejected
    assert [int(x) for x in counted] == [1, 1, 1, 0]


def test_a_station_given_twice_is_one_of_half_the_variance():
    background, once = problem(4)
    rows = np.asarray([0, 1, 2, 3, 1])
    errors, places = std(once), place(once)
    latitude, longitude = places["latitude"], places["longitude"]
    halved = np.where(np.arange(4) == 1, errors / np.sqrt(2), errors)
    at = lambda rows: Interpolate(GRID, latitude[rows], longitude[rows])
    single = Observation(once.value, at(np.arange(4)), Diagonal(halved))
    twice = Observation(once.value[rows], at(rows), Diagonal(errors[rows]))
    expected, _ = analyse(LETKF(localise(single, 6e6)), background, single)
    found, info = analyse(LETKF(localise(twice, 6e6)), background, twice)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert int(info.used) == 5


def test_a_robust_error_is_the_gaussian_one_that_stands_for_it():
    background, plain = problem(5)
    value = plain.value.at[2].add(20.0)  # a gross error
    robust = Observation(value, plain.operator, Huber(std(plain), 1.5))
    shown = jax.vmap(plain.operator)(background).mean(0)
    gap = np.abs(np.asarray(value - shown)) / std(plain)
    # Beyond 1.5 standard deviations Huber's weight is 1.5 over the gap.
    wider = std(plain) / np.sqrt(np.minimum(1, 1.5 / gap))
    gaussian = Observation(value, plain.operator, Diagonal(wider))
    method = LETKF(localise(plain, 6e6))
    expected, _ = analyse(method, background, gaussian)
    found, _ = analyse(method, background, robust)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_levels_and_surface_have_weights_of_their_own():
    background, observation = problem()
    levels, length = np.asarray([1000.0, 500.0, 100.0]), 0.6
    pressure = np.asarray([1000, 900, 500, 480, 100, 20.0])
    state = {"t": jnp.stack([background, background**2, -background], 1)}
    state |= {"ps": background + 1, "free": 2 * background}
    where = place(observation) | {"pressure": pressure}
    seen = Observation(
        observation.value, observation.operator, observation.error, None, where
    ).pullback(lambda state: state["ps"])
    table = localise(observation, 4e6)
    vertical = Vertical({"t": levels, "ps": 1000.0, "free": None}, length=length)
    analysis, info = analyse(LETKF(table, vertical=vertical), state, seen)
    assert info.degrees_of_freedom.shape == (4, 5, 8)

    def expected(leaf, level):
        # A horizontal analysis with errors that the vertical taper has inflated.
        r = jnp.abs(jnp.log(pressure) - jnp.log(level)) / length
        taper = np.asarray(gaspari_cohn(r))
        error = Diagonal(std(observation) / np.sqrt(np.where(taper > 0, taper, 1)))
        far = Observation(seen.value, seen.operator, error, taper > 0, where)
        return analyse(LETKF(table), state, far)[0][leaf]

    for k, level in enumerate(levels):
        np.testing.assert_allclose(
            analysis["t"][:, k], expected("t", level)[:, k], rtol=1e-9, atol=1e-10
        )
    np.testing.assert_allclose(analysis["ps"], expected("ps", 1000.0), rtol=1e-9)
    plain, _ = analyse(LETKF(table), state, seen)
    np.testing.assert_allclose(analysis["free"], plain["free"], rtol=1e-9)
    with pytest.raises(ValueError, match="does not end with its 3 levels"):
        analyse(LETKF(table, vertical=Vertical(levels, length=1.0)), state, seen)
    bare = observation.pullback(lambda state: state["ps"])
    with pytest.raises(ValueError, match="`coordinates` needs pressure"):
        analyse(LETKF(table, vertical=vertical), state, bare)
    with pytest.raises(ValueError, match="pytree like the state"):
        analyse(LETKF(table, vertical=Vertical({"q": 1.0}, length=1.0)), state, seen)


def test_coarse_weights_are_close_where_the_length_is_long():
    fine, coarse = (
        Plane(np.arange(48.0), period=48.0),
        Plane(np.arange(0.0, 48.0, 3.0), period=48.0),
    )
    at = np.arange(0, 48, 2)
    where = {"x": at.astype(float)}
    waves = np.cos(2 * np.pi * np.outer(np.arange(1, 4), np.arange(48)) / 48)
    background = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)) @ waves)
    seen = Observation(np.ones(24), Index(at), Diagonal(0.7), None, where)
    increments = []
    for length in (3.0, 12.0):
        full = LETKF(Localisation(fine, where, length=length))
        few = LETKF(
            Localisation(coarse, where, length=length),
            interpolate=CoarseWeights(coarse, fine),
        )
        exact, _ = analyse(full, background, seen)
        near, info = analyse(few, background, seen)
        assert info.degrees_of_freedom.shape == (48,)
        change = np.linalg.norm(exact - background)
        increments.append(float(np.linalg.norm(near - exact) / change))
    assert increments[1] < 0.01 < increments[0] < 0.3
    blind = eqx.tree_at(lambda o: o.mask, seen, jnp.zeros(24, bool))
    untouched, _ = analyse(few, background, blind)
    np.testing.assert_array_equal(untouched, background)
    with pytest.raises(ValueError, match=r"begins at points of shape \(16,\)"):
        LETKF(full.localisation, interpolate=CoarseWeights(coarse, fine))


def test_lorenz_96_with_seven_members():
    # DAPPER: LETKF(N=7, infl=1.04, loc_rad=4) has 0.22; `loc_rad` is length / 1.82.
    def step(state, forcing=None, *, key=None):
        tendency = lambda x: (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8
        a = tendency(state)
        b = tendency(state + 0.025 * a)
        c = tendency(state + 0.025 * b)
        d = tendency(state + 0.05 * c)
        return state + 0.05 / 6 * (a + 2 * b + 2 * c + d)

    start = jnp.full(40, 8.0).at[0].add(0.01)
    truth = dynamics.rollout(step, start, 1500)[299:]
    values = truth + jr.normal(jr.key(0), truth.shape)
    ensemble = truth[:1] + 0.1 * jr.normal(jr.key(1), (7, 40))
    where = {"x": jnp.arange(40.0)}
    table = Localisation(Plane(np.arange(40.0), period=40.0), where, length=4 * 1.82)
    run = eqx.filter_jit(
        lambda method: (
            cycle(
                step,
                method,
                ensemble,
                lambda value: Observation(value, Index(np.arange(40)), Diagonal(1.0)),
                values[1:],
                key=jr.key(7),
                reduce=lambda ensemble: ensemble.mean(0),
            ).analyses
        )
    )
    means = run(LETKF(table, 1.04, rotate=True))
    error = jnp.sqrt(jnp.mean((means - truth[1:]) ** 2, axis=1))[300:].mean()
    assert error < 0.24


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
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        LETKF(table)(background[:1], observation)
