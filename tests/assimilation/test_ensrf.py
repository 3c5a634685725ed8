import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import ETKF, EnSRF, Plane, Schur, Vertical, cycle, gaspari_cohn
from skyens.observations import Dense, Diagonal, Index, Linear, Observation

analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))
LINE = Plane(np.arange(8.0), period=8.0)


WHERE = np.asarray([0.5, 3.0, 7.9, 3.0])
STD = np.asarray([0.5, 1.0, 0.3, 0.8])
MATRIX = np.zeros((4, 8))
MATRIX[[0, 0, 1, 2, 2, 3], [0, 1, 3, 7, 0, 3]] = [0.5, 0.5, 1, 0.1, 0.9, 1]


def problem(mask=None, error=None):
    generator = np.random.default_rng(0)
    background = jnp.asarray(generator.normal(size=(5, 8)) + 1)
    error = Diagonal(STD) if error is None else error
    value = generator.normal(size=4)
    return background, Observation(value, Linear(MATRIX), error, mask, {"x": WHERE})


@pytest.mark.parametrize("error", [None, Dense(np.eye(4) + 0.3)])
def test_globally_mean_and_covariance_are_the_etkfs_in_any_order(error):
    background, observation = problem(error=error)
    expected, plain = analyse(ETKF(), background, observation)
    for shuffle in (False, True):
        method = EnSRF(shuffle=shuffle)
        analysis, info = analyse(method, background, observation, key=jr.key(3))
        np.testing.assert_allclose(analysis.mean(0), expected.mean(0), rtol=1e-10)
        covariances = jnp.cov(analysis.T), jnp.cov(expected.T)
        np.testing.assert_allclose(*covariances, atol=1e-12)
        np.testing.assert_allclose(info.chi_square, plain.chi_square, rtol=1e-10)
        freedom = info.degrees_of_freedom, plain.degrees_of_freedom
        np.testing.assert_allclose(*freedom, rtol=1e-10)


def test_localised_it_is_the_adjustment_filter_written_out():
    # Anderson (2003): shift and shrink each prediction, regress everything on it.
    background, observation = problem()
    length = 0.9
    method = EnSRF(1.1, localisation=Schur(LINE, length=length))
    analysis, _ = analyse(method, background, observation)
    x = np.asarray(background)
    joint = np.concatenate([x, x @ MATRIX.T], axis=1)
    points = np.concatenate([np.arange(8.0), WHERE])
    heard = np.zeros(12, bool)
    for j in range(4):
        gap = np.abs(points - WHERE[j])
        taper = np.asarray(gaspari_cohn(jnp.asarray(np.minimum(gap, 8 - gap) / length)))
        seen = joint[:, 8 + j].copy()
        prior, noise = seen.var(ddof=1), STD[j] ** 2
        posterior = 1 / (1 / prior + 1 / noise)
        mean = posterior * (seen.mean() / prior + observation.value[j] / noise)
        moved = mean + np.sqrt(posterior / prior) * (seen - seen.mean())
        slope = np.cov(joint.T)[:, 8 + j] / prior
        joint = joint + np.outer(moved - seen, taper * slope)
        heard |= taper > 0
    mean = joint.mean(0)
    joint = mean + np.where(heard, 1.1, 1) * (joint - mean)
    np.testing.assert_allclose(analysis, joint[:, :8], rtol=1e-10, atol=1e-12)
    assert not heard[:8].all()


def test_masks_are_as_good_as_removal_and_everything_masked_is_the_identity():
    background, observation = problem(np.asarray([True, False, True, True]))
    schur = Schur(LINE, length=2.0)
    analysis, info = analyse(EnSRF(1.1, localisation=schur), background, observation)
    keep = np.asarray([0, 2, 3])
    fewer = Observation(
        observation.value[keep],
        Linear(MATRIX[keep]),
        Diagonal(STD[keep]),
        None,
        {"x": WHERE[keep]},
    )
    expected, _ = analyse(EnSRF(1.1, localisation=schur), background, fewer)
    np.testing.assert_allclose(analysis, expected, rtol=1e-12)
    assert (int(info.used), int(info.masked)) == (3, 1)
    blind = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(4, bool))
    for method in (EnSRF(1.3), EnSRF(1.3, localisation=schur)):
        untouched, _ = analyse(method, background, blind)
        np.testing.assert_array_equal(untouched, background)


def test_levels_taper_and_clocks_pass_through():
    background, observation = problem()
    state = {"t": jnp.stack([background, background], 1), "clock": jnp.arange(5)}
    where = {"x": WHERE} | {"height": np.asarray([0.0, 10.0, 0.0, 3.0])}
    seen = Observation(
        observation.value, observation.operator, observation.error, None, where
    ).pullback(lambda state: state["t"][0])
    vertical = Vertical(
        {"t": np.asarray([0.0, 50.0]), "clock": None},
        length=5.0,
        name="height",
        transform=None,
    )
    method = EnSRF(localisation=Schur(LINE, length=2.0, vertical=vertical))
    analysis, _ = analyse(method, state, seen)
    chex.assert_trees_all_equal(analysis["clock"], state["clock"])
    np.testing.assert_array_equal(analysis["t"][:, 1], state["t"][:, 1])
    assert np.any(analysis["t"][:, 0] != state["t"][:, 0])


@pytest.mark.parametrize("case", ["near", "masked", "equal members"])
def test_gradients_match_finite_differences(case):
    background, observation = problem()
    if case == "masked":
        observation = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(4, bool))
    if case == "equal members":
        background = jnp.broadcast_to(background[:1], background.shape)

    @jax.jit
    def loss(point):
        background, length, inflation = point
        method = EnSRF(inflation, localisation=Schur(LINE, length=length))
        analysis, _ = method(background, observation)
        return jnp.mean(analysis[0] ** 3 + analysis[1] ** 2)

    point = background, jnp.asarray(1.6), jnp.asarray(1.1)
    gradient = jax.jit(jax.grad(loss))(point)
    generator = np.random.default_rng(1)
    way = [jnp.asarray(generator.normal(size=x.shape)) for x in point]
    slope = sum(np.vdot(g, w) for g, w in zip(gradient, way, strict=True))
    at = lambda t: float(
        loss(tuple(x + t * w for x, w in zip(point, way, strict=True)))
    )
    h = 1e-3
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-9)


def test_experiments_batch_and_single_precision_stays():
    background, observation = problem()
    batch = jnp.stack([background, 2 * background]).astype(jnp.float32)
    method = EnSRF(1.1, True, localisation=Schur(LINE, length=2.0))
    run = jax.jit(jax.vmap(lambda one: method(one, observation, key=jr.key(0))[0]))
    together = run(batch)
    assert together.dtype == jnp.float32
    alone, _ = method(batch[1], observation, key=jr.key(0))
    np.testing.assert_allclose(together[1], alone, atol=1e-5)


def test_lorenz_96_with_seven_members():
    # DAPPER: SL_EAKF(N=7, infl=1.07, loc_rad=6) has 0.23; `loc_rad` is length / 1.82.
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
    schur = Schur(Plane(np.arange(40.0), period=40.0), length=6 * 1.82)
    see = Index(np.arange(40))
    run = eqx.filter_jit(
        lambda method: (
            cycle(
                step,
                method,
                ensemble,
                lambda value: Observation(value, see, Diagonal(1.0), None, where),
                values[1:],
                key=jr.key(7),
                reduce=lambda ensemble: ensemble.mean(0),
            ).analyses
        )
    )
    means = run(EnSRF(1.07, localisation=schur, shuffle=True))
    error = jnp.sqrt(jnp.mean((means - truth[1:]) ** 2, axis=1))[300:].mean()
    assert error < 0.25


def test_wrong_use_is_reported():
    background, observation = problem()
    with pytest.raises(eqx.EquinoxRuntimeError, match="`inflation` must be above 0"):
        EnSRF(0.0)
    with pytest.raises(ValueError, match="`key` is needed for a random order"):
        EnSRF(shuffle=True)(background, observation)
    mixed = problem(error=Dense(np.eye(4)))[1]
    local = EnSRF(localisation=Schur(LINE, length=1.0))
    with pytest.raises(ValueError, match="localised EnSRF needs independent"):
        local(background, mixed)
    nowhere = Observation(observation.value, observation.operator, observation.error)
    with pytest.raises(ValueError, match=r"\['x'\] is missing"):
        local(background, nowhere)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        EnSRF()(background[:1], observation)
