import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics, sphere
from skyens.assimilation import (
    BootstrapFilter,
    Inflated,
    Kernel,
    Localisation,
    LocalParticleFilter,
    Moving,
    Plane,
    RelaxToPriorSpread,
    Weighted,
    cycle,
    gaspari_cohn,
)
from skyens.observations import (
    Dense,
    Diagonal,
    Index,
    Interpolate,
    Observation,
    StudentT,
)

LINE = np.arange(12.0)
analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))


def observe(value, error=None, where=None):
    where = np.asarray([1, 4, 9]) if where is None else where
    error = Diagonal(0.7) if error is None else error
    place = {"x": LINE[where]}
    return Observation(value, Index(where), error, coordinates=place)


def problem(members=7, dtype=jnp.float64, length=1.5):
    background = 2 * jr.normal(jr.key(0), (members, 12), dtype) + 1
    observation = observe(np.asarray([0.5, 2.0, -1.0]))
    plane = Plane(LINE, period=12.0)
    return (
        background,
        observation,
        Localisation(plane, observation.coordinates, length=length),
    )


def logistic_mixture(z, x, weights, bandwidth):
    scale = bandwidth * len(x) ** -0.2 * np.std(x, ddof=1) * 3**0.5 / np.pi
    return np.sum(weights / (1 + np.exp(-(z[:, None] - x[None]) / scale)), axis=1)


@pytest.mark.parametrize("error", [Diagonal(0.7), StudentT(0.7, 4.0)])
def test_each_point_has_the_quantiles_of_its_local_weights(error):
    background, observation, table = problem()
    observation = eqx.tree_at(lambda o: o.error, observation, error)
    method = LocalParticleFilter(table, bandwidth=0.8)
    analysis, info = analyse(method, background, observation)
    value, where = np.asarray(observation.value), np.asarray([1, 4, 9])
    for point in range(12):
        gap = abs(LINE[point] - LINE[where])
        taper = np.asarray(gaspari_cohn(jnp.asarray(np.minimum(gap, 12 - gap) / 1.5)))
        residual = value[None] - np.asarray(background)[:, where]
        on = lambda r: error.log_prob(jnp.asarray([r]), jnp.asarray([True]))
        logs = np.asarray(jax.vmap(jax.vmap(on))(jnp.asarray(residual))) @ taper
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        x, new = np.asarray(background[:, point]), np.asarray(analysis[:, point])
        before = logistic_mixture(x, x, np.full(7, 1 / 7), 0.8)
        after = logistic_mixture(new, x, weights, 0.8)
        np.testing.assert_allclose(after, before, rtol=1e-6)
        size = info.effective_size[point]
        np.testing.assert_allclose(size, 1 / np.sum(weights**2), rtol=1e-9)
        np.testing.assert_array_equal(np.argsort(new), np.argsort(x))


def test_many_members_have_the_posterior_of_a_single_variable():
    generator = np.random.default_rng(1)
    background = jnp.asarray(generator.normal(size=(2000, 1)))
    observation = Observation(
        np.asarray([1.0]),
        Index(np.zeros(1, int)),
        Diagonal(0.8),
        coordinates={"x": np.zeros(1)},
    )
    table = Localisation(Plane(np.zeros(1)), observation.coordinates, length=1.0)
    analysis, info = analyse(
        LocalParticleFilter(table, bandwidth=0.3), background, observation
    )
    gain = 1 / (1 + 0.64)
    # Members know mean and spread to 2 percent; the kernels widen by 1 percent.
    np.testing.assert_allclose(analysis.mean(), gain, atol=0.06)
    np.testing.assert_allclose(analysis.std(), np.sqrt(0.64 * gain), rtol=0.05)
    np.testing.assert_allclose(info.degrees_of_freedom, [gain], rtol=0.1)


def test_out_of_reach_and_all_masked_are_the_identity():
    background, observation, table = problem(length=1.0)
    method = LocalParticleFilter(table, 1.2)
    analysis, info = analyse(method, background, observation)
    beyond = np.isin(np.arange(12), [6, 7, 11])  # two and more from 1, 4 and 9
    changed = np.any(np.asarray(analysis != background), axis=0)
    np.testing.assert_array_equal(changed, ~beyond)
    np.testing.assert_array_equal(np.asarray(info.degrees_of_freedom) > 0, ~beyond)
    blind = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(3, bool))
    untouched, info = analyse(method, background, blind)
    np.testing.assert_array_equal(untouched, background)
    assert (int(info.used), int(info.masked), float(info.chi_square)) == (0, 3, 0.0)
    np.testing.assert_allclose(info.effective_size, 7, rtol=1e-12)
    np.testing.assert_array_equal(info.degrees_of_freedom, 0)


def test_a_mask_is_as_good_as_removal():
    background, observation, table = problem()
    method = lambda table: LocalParticleFilter(table)
    masked = eqx.tree_at(
        lambda o: o.mask, observation, jnp.asarray([True, False, True])
    )
    analysis, _ = analyse(method(table), background, masked)
    where = np.asarray([1, 9])
    fewer = observe(np.asarray([0.5, -1.0]), where=where)
    table = Localisation(Plane(LINE, period=12.0), fewer.coordinates, length=1.5)
    expected, _ = analyse(method(table), background, fewer)
    np.testing.assert_allclose(analysis, expected, rtol=1e-10)


def test_the_threshold_keeps_members_alive():
    background, observation, table = problem()
    sharp = eqx.tree_at(lambda o: o.error, observation, Diagonal(0.02))
    _, info = analyse(LocalParticleFilter(table), background, sharp)
    assert np.min(info.effective_size) < 1.5
    _, info = analyse(LocalParticleFilter(table, threshold=0.5), background, sharp)
    assert np.min(info.effective_size) > 3.5 - 1e-6


def test_fields_on_the_sphere_by_any_localisation():
    grid = sphere.equiangular(5, 8)
    generator = np.random.default_rng(2)
    state = {
        "t": jnp.asarray(generator.normal(size=(6, 3, 5, 8))),
        "clock": jnp.arange(6),
    }
    latitude, longitude = (
        np.asarray([-50.0, 10.0, 70.0]),
        np.asarray([5.0, 200.0, 90.0]),
    )
    operator = Interpolate(grid, latitude, longitude)
    observation = Observation(generator.normal(size=3), operator, Diagonal(0.6))
    seen = observation.pullback(lambda state: state["t"][0])
    table = Localisation(grid, seen.coordinates, length=3e6)
    analysis, info = analyse(LocalParticleFilter(table), state, seen)
    chex.assert_trees_all_equal_shapes_and_dtypes(analysis, state)
    np.testing.assert_array_equal(analysis["clock"], state["clock"])
    chex.assert_shape([info.effective_size, info.degrees_of_freedom], (5, 8))
    moving = Moving(grid, length=3e6, width=3)
    again, info = analyse(LocalParticleFilter(moving), state, seen)
    np.testing.assert_allclose(again["t"], analysis["t"], rtol=1e-9, atol=1e-12)
    assert int(info.overflow) == 0
    weighted, _ = analyse(LocalParticleFilter(table), Weighted(state), seen)
    np.testing.assert_allclose(weighted.members["t"], analysis["t"], rtol=1e-9)
    np.testing.assert_allclose(weighted.weights, 1 / 6, rtol=1e-12)


@eqx.filter_jit
def loss(point, observation):
    background, length, inflation, bandwidth, std = point
    moving = Moving(Plane(LINE, period=12.0), length=length, width=3)
    seen = eqx.tree_at(lambda o: o.error.std, observation, std)
    method = LocalParticleFilter(moving, inflation, bandwidth)
    analysis, info = method(background, seen)
    first, second = jnp.asarray(analysis)[:2]
    return jnp.mean(first**3 + second**2) + info.chi_square


@pytest.mark.parametrize("case", ["plain", "masked", "equal members"])
def test_gradients_match_finite_differences(case):
    background, observation, _ = problem()
    if case == "masked":
        observation = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(3, bool))
    if case == "equal members":
        background = jnp.broadcast_to(background[:1], background.shape)
    # Not at a multiple of the spacing: the reach ends between points.
    point = background, *map(jnp.asarray, (1.7, 1.1, 0.9, 0.8))
    gradient = eqx.filter_jit(jax.grad(loss))(point, observation)
    chex.assert_tree_all_finite(gradient)
    if case == "equal members":
        return
    generator = np.random.default_rng(3)
    way = [jnp.asarray(0.1 * generator.normal(size=x.shape)) for x in point]
    slope = sum(np.vdot(g, w) for g, w in zip(gradient, way, strict=True))
    at = lambda e: loss(
        tuple(x + e * w for x, w in zip(point, way, strict=True)), observation
    )
    step = 1e-5
    expected = (at(step) - at(-step)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-9)


def test_single_precision_stays_and_a_broken_member_is_replaced():
    background, observation, table = problem(dtype=jnp.float32, length=1.0)
    analysis, _ = analyse(LocalParticleFilter(table), background, observation)
    assert analysis.dtype == jnp.float32
    exact, _ = analyse(
        LocalParticleFilter(table), background.astype(float), observation
    )
    np.testing.assert_allclose(analysis, exact, atol=2e-4)
    broken = background.at[3, 7].set(jnp.nan)
    healed, _ = analyse(LocalParticleFilter(table), broken, observation)
    chex.assert_tree_all_finite(healed[:, jnp.asarray([0, 1, 4, 9])])
    fine = np.arange(7) != 3
    np.testing.assert_array_equal(healed[fine, 7], background[fine, 7])


def test_lorenz_96_is_followed_where_a_global_filter_is_lost():
    step, everywhere = dynamics.Lorenz96(), np.arange(40)
    truth = dynamics.rollout(step, jnp.full(40, 8.0).at[0].add(0.01), 700)[300:]
    values = truth[1:] + jr.normal(jr.key(0), (399, 40))
    ensemble = truth[:1] + jr.normal(jr.key(1), (40, 40))
    place = {"x": everywhere.astype(float)}
    observe = lambda value: Observation(
        value, Index(everywhere), Diagonal(1.0), coordinates=place
    )
    table = Localisation(Plane(place["x"], period=40.0), place, length=3.0)

    def error(method, start, mean):
        run = lambda: cycle(
            step, method, start, observe, values, key=jr.key(2), reduce=mean
        )
        means = jax.jit(run)().analyses
        return np.sqrt(np.mean((means - truth[1:])[150:] ** 2))

    local = error(LocalParticleFilter(table, 1.08), ensemble, lambda x: x.mean(0))
    # A Kalman filter of as many members reaches 0.18, climatology 3.6.
    assert local < 0.45
    lost = BootstrapFilter(0.3, regularisation=Kernel(1.5))
    assert error(lost, Weighted(ensemble), lambda x: x.mean()) > 2
    relaxed = Inflated(LocalParticleFilter(table), RelaxToPriorSpread(0.5))
    assert error(relaxed, ensemble, lambda x: x.mean(0)) < 0.6


def test_wrong_use_is_reported():
    background, observation, table = problem()
    with pytest.raises(eqx.EquinoxRuntimeError, match="`inflation` must be above 0"):
        LocalParticleFilter(table, 0.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`bandwidth` must be above 0"):
        LocalParticleFilter(table, bandwidth=0.0)
    with pytest.raises(
        eqx.EquinoxRuntimeError, match=r"`threshold` must lie in \[0, 1"
    ):
        LocalParticleFilter(table, threshold=1.0)
    method = LocalParticleFilter(table)
    mixed = eqx.tree_at(lambda o: o.error, observation, Dense(np.eye(3)))
    with pytest.raises(ValueError, match="needs independent observation errors"):
        method(background, mixed)
    state = {"x": background, "y": jnp.ones((7, 3))}
    seen = observation.pullback(lambda state: state["x"])
    with pytest.raises(ValueError, match=r"\(7, 3\) does not end with \(12,\)"):
        method(state, seen)
    waves = {"x": background, "y": jnp.ones((7, 12), complex)}
    with pytest.raises(ValueError, match="complex leaves have no order"):
        method(waves, seen)
