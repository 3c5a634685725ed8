import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import linprog

from skyens.assimilation import (
    SSP,
    Multinomial,
    OptimalTransport,
    Residual,
    Stratified,
    Systematic,
    Weighted,
)

BY_INDEX = [Systematic(), Stratified(), Residual(), SSP(), Multinomial()]
resamplings = pytest.mark.parametrize(
    "resampling", BY_INDEX, ids=lambda r: type(r).__name__
)
WEIGHTS = np.asarray([0.3, 0.02, 0.0, 0.18, 0.25, 0.05, 0.2, 0.0])
DRAWS = 4000


def numbers(resampling, log_weights, draws=DRAWS):
    """How often each member is there, in many draws."""
    size = len(log_weights)
    one = lambda key: jnp.bincount(
        resampling.indices(log_weights, key=key), length=size
    )
    return np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(0), draws)))


@resamplings
def test_the_mean_number_is_the_weight(resampling):
    found = numbers(resampling, jnp.log(jnp.asarray(WEIGHTS)))
    np.testing.assert_array_equal(found.sum(1), 8)
    np.testing.assert_array_equal(found[:, WEIGHTS == 0], 0)
    # Five standard errors of a binomial, which none exceeds.
    allowed = 5 * np.sqrt(8 * WEIGHTS * (1 - WEIGHTS) / DRAWS)
    assert np.all(abs(found.mean(0) - 8 * WEIGHTS) <= allowed + 1e-12)
    if isinstance(resampling, Systematic | SSP):
        assert np.all(found >= np.floor(8 * WEIGHTS))
        assert np.all(found <= np.ceil(8 * WEIGHTS))
    if isinstance(resampling, Residual):
        assert np.all(found >= np.floor(8 * WEIGHTS))


def test_variances_come_in_the_known_order():
    # Douc, Cappe & Moulines (2005): stratified and residual beat multinomial, whose
    # numbers are binomial; here the variance of a weighted mean.
    log_weights = jnp.log(jnp.asarray(WEIGHTS))
    value = np.asarray([3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0, 3.5])
    variance = {
        type(r).__name__: np.var(numbers(r, log_weights) @ value) for r in BY_INDEX
    }
    mean = WEIGHTS @ value
    binomial = 8 * (WEIGHTS @ value**2 - mean**2)
    # The relative standard error of a variance is near sqrt(2 / draws) = 2 percent.
    np.testing.assert_allclose(variance["Multinomial"], binomial, rtol=0.12)
    for name in ("Systematic", "Stratified", "Residual", "SSP"):
        assert variance[name] < 0.6 * variance["Multinomial"]


@resamplings
def test_equal_weights_change_nothing_but_for_multinomial(resampling):
    index = resampling.indices(jnp.full(7, 3.0), key=jr.key(1))
    assert np.all(np.diff(index) >= 0)
    if not isinstance(resampling, Multinomial):
        np.testing.assert_array_equal(index, np.arange(7))


@resamplings
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), sharp=st.floats(0, 200))
def test_indices_are_valid_in_single_precision_too(resampling, seed, sharp):
    log_weights = sharp * np.random.default_rng(seed).normal(size=33)
    dead = np.random.default_rng(seed + 1).uniform(size=33) < 0.3
    log_weights = np.where(dead, -np.inf, log_weights).astype(np.float32)
    index = np.asarray(_indices(resampling, jnp.asarray(log_weights), jr.key(seed)))
    assert np.all((index >= 0) & (index < 33))
    assert dead.all() or not dead[index].any()
    if isinstance(resampling, Systematic | SSP) and not dead.all():
        weights = np.exp(log_weights.astype(float) - log_weights.max())
        expected = 33 * weights / weights.sum()
        assert np.all(abs(np.bincount(index, minlength=33) - expected) < 1 + 1e-4)


_indices = eqx.filter_jit(lambda r, log_weights, key: r.indices(log_weights, key=key))


@resamplings
def test_no_weight_at_all_counts_as_equal(resampling):
    nothing = resampling.indices(jnp.full(6, -jnp.inf), key=jr.key(2))
    equal = resampling.indices(jnp.zeros(6), key=jr.key(2))
    np.testing.assert_array_equal(nothing, equal)


@resamplings
def test_members_are_copied_whole_with_the_gradient_of_copies(resampling):
    state = {"x": jnp.arange(8.0)[:, None], "regime": jnp.arange(8)}
    log_weights = jnp.log(jnp.asarray(WEIGHTS))
    copies = resampling(Weighted(state, log_weights), key=jr.key(3))
    np.testing.assert_array_equal(copies["x"][:, 0], copies["regime"])
    total = lambda x: jnp.sum(resampling(Weighted(x, log_weights), key=jr.key(3)))
    found = np.bincount(copies["regime"], minlength=8)
    np.testing.assert_array_equal(jax.grad(total)(jnp.arange(8.0)), found)
    with pytest.raises(ValueError, match="`key` is needed to resample"):
        resampling(Weighted(state, log_weights))


def cloud(size=6, seed=0):
    generator = np.random.default_rng(seed)
    members, log_weights = generator.normal(size=(size, 2)), generator.normal(size=size)
    return jnp.asarray(members), jnp.asarray(log_weights)


def test_transport_is_the_linear_programme_for_small_epsilon():
    members, log_weights = cloud()
    weighted = Weighted(members, log_weights)
    size = len(members)
    gap = np.asarray(members)[:, None] - np.asarray(members)[None]
    cost = np.sum(gap**2, axis=-1)
    rows = np.kron(np.eye(size), np.ones(size))
    columns = np.kron(np.ones(size), np.eye(size))
    margins = np.concatenate([weighted.weights, np.full(size, 1 / size)])
    best = linprog(cost.reshape(-1), A_eq=np.concatenate([rows, columns]), b_eq=margins)
    expected = size * best.x.reshape(size, size).T
    method = OptimalTransport(0.002, iterations=2000)
    np.testing.assert_allclose(method.plan(weighted), expected, atol=5e-3)
    np.testing.assert_allclose(method(weighted), expected @ members, atol=1e-2)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_transport_keeps_the_mean_and_solves_the_entropic_problem(seed):
    members, log_weights = cloud(seed=seed)
    weighted = Weighted(members, log_weights)
    plan, moved = _transport(OptimalTransport(0.5, iterations=400), weighted)
    np.testing.assert_allclose(plan.sum(0), 6 * weighted.weights, rtol=1e-12)
    np.testing.assert_allclose(plan.sum(1), 1, atol=1e-4)
    np.testing.assert_allclose(moved.mean(0), weighted.mean(), atol=1e-12)
    # Optimal: the plan's logarithm plus cost over epsilon is a sum f_i + g_j.
    anomalies = np.asarray(members) - np.asarray(weighted.mean())[None]
    unit = 2 * np.max(np.asarray(weighted.weights) @ anomalies**2)
    gap = np.asarray(members)[:, None] - np.asarray(members)[None]
    rest = np.log(plan.T) + np.sum(gap**2, -1) / unit / 0.5
    rest = rest - rest.mean(0) - rest.mean(1, keepdims=True) + rest.mean()
    np.testing.assert_allclose(rest, 0, atol=1e-8)


_transport = eqx.filter_jit(
    lambda method, weighted: (method.plan(weighted), method(weighted))
)


def test_the_gradient_through_transport_matches_finite_differences():
    members, log_weights = cloud(seed=4)
    log_weights = log_weights.at[2].set(-jnp.inf)
    generator = np.random.default_rng(5)
    ways = (
        jnp.asarray(generator.normal(size=(6, 2))),
        jnp.asarray(generator.normal(size=6)),
    )

    @jax.jit
    def loss(epsilon):
        moved = OptimalTransport(0.3 + 0.1 * epsilon, iterations=30)(
            Weighted(members + epsilon * ways[0], log_weights + epsilon * ways[1])
        )
        return jnp.sum(moved[:, 0] ** 3 * moved[:, 1])

    step = 1e-5
    expected = (loss(step) - loss(-step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.0), expected, rtol=1e-6)


def test_transport_of_any_pytree_in_its_dtypes():
    members, log_weights = cloud()
    state = {
        "x": members.astype(jnp.float32),
        "waves": jax.lax.complex(members[:, 0], members[:, 1]).astype(jnp.complex64),
        "clock": jnp.arange(6),
    }
    weighted = Weighted(state, log_weights.astype(jnp.float32))
    moved = OptimalTransport(0.5)(weighted)
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, state)
    assert set(moved["clock"].tolist()) <= set(range(6))
    np.testing.assert_allclose(moved["x"].mean(0), weighted.mean()["x"], atol=1e-6)
    # One that is not finite has no weight; equal members have no distances.
    dead = members.at[0].set(jnp.nan)
    total = lambda x: jnp.sum(
        OptimalTransport(0.5)(Weighted(x, log_weights.at[0].set(-jnp.inf))) ** 2
    )
    chex.assert_tree_all_finite(jax.value_and_grad(total)(dead))
    chex.assert_tree_all_finite(jax.value_and_grad(total)(jnp.ones((6, 2))))


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match="`epsilon` must be above 0"):
        OptimalTransport(0.0)
    with pytest.raises(ValueError, match="`iterations` must be at least 1, got 0"):
        OptimalTransport(iterations=0)
    with pytest.raises(ValueError, match="nothing to transport"):
        OptimalTransport()(Weighted({"n": jnp.arange(3)}))
