from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from sklearn.linear_model import Ridge

from skyens.nn import RandomFourierFeatures
from skyens.training import trainable

SIZES: dict[str, Any] = dict(scale=2.0, width=16, depth=2)
NET = RandomFourierFeatures(2, 3, **SIZES, key=jr.key(0))
POINT = jnp.array([0.3, -0.8])
run = eqx.filter_jit(lambda net, point: net(point))
fit = eqx.filter_jit(
    lambda net, points, values, ridge: net.fitted(points, values, ridge=ridge)
)


def test_products_of_features_are_the_gaussian_covariance():
    width = 8192
    net = RandomFourierFeatures(
        2, scale=(1.5, 0.5), width=width, depth=0, key=jr.key(1)
    )
    points = jr.normal(jr.key(2), (6, 2))
    features = jax.vmap(net.features)(points)
    apart = (points[:, None] - points[None]) * jnp.array([1.5, 0.5])[None, None]
    expected = np.exp(-np.sum(apart**2, axis=-1) / 2)
    # A mean of width / 2 cosines, each of variance below 1.
    error = np.abs(features @ features.T / width - expected).max()
    assert error < 5 / np.sqrt(width / 2)


def test_layers_are_tanh_of_the_features():
    h = np.asarray(NET.features(POINT))
    phase = np.asarray(NET.frequencies) @ np.asarray(POINT)
    waves = np.concatenate([np.cos(phase), np.sin(phase)])
    np.testing.assert_allclose(h, np.sqrt(2) * waves, rtol=1e-12)
    for weight, bias in zip(NET.weights, NET.biases, strict=True):
        h = np.tanh(weight @ h + bias)
    expected = NET.head @ h + NET.offset
    np.testing.assert_allclose(run(NET, POINT), expected, rtol=1e-12)
    assert expected.shape == (3,)


def test_periods_hold_where_there_are_any():
    net = RandomFourierFeatures(2, periods=(None, 5.0), **SIZES, key=jr.key(3))
    around, along = jnp.array([0.0, 5.0]), jnp.array([5.0, 0.0])
    np.testing.assert_allclose(
        run(net, POINT + 2 * around), run(net, POINT), atol=1e-12
    )
    assert np.abs(run(net, POINT + along) - run(net, POINT)).max() > 1e-3


def field(points, laplacian=False):
    """A long wave of the unit square and two short ones, or its Laplacian."""
    total = 0.0
    for size, k, l in ((1.0, 1, 1), (0.2, 3, -2), (0.2, 1, 4)):
        wave = size * np.sin(2 * np.pi * (k * points[:, 0] + l * points[:, 1]) + k)
        square = (2 * np.pi) ** 2 * (k**2 + l**2)
        total = total + (-square * wave if laplacian else wave)
    return total


def laplacian(net, points):
    trace = lambda point: jnp.trace(jax.hessian(lambda p: net(p)[0])(point))
    return jax.lax.map(trace, points, batch_size=256)


def relative(found, true):
    return np.sqrt(np.mean((found - true) ** 2) / np.mean(true**2))


def test_its_laplacian_is_right_where_that_of_a_plain_network_is_not():
    side = np.arange(24) / 24
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2))
    seen = jnp.asarray(np.random.default_rng(0).uniform(size=(300, 2)))
    values = field(np.asarray(seen))
    true = field(np.asarray(grid), laplacian=True)

    # All waves alike, and nothing to train.
    linear = RandomFourierFeatures(
        2, scale=15.0, periods=(1.0, 1.0), width=1024, depth=0, key=jr.key(4)
    )
    linear = fit(linear, seen, jnp.asarray(values)[:, None], 1e-8)
    ours = relative(eqx.filter_jit(laplacian)(linear, grid), true)
    assert ours < 0.05

    # Layers of coordinates: at a scale so small features are linear in them.
    optimiser = optax.adam(3e-3)

    @eqx.filter_jit
    def fitted(net) -> RandomFourierFeatures:
        parameters, rest = eqx.partition(net, trainable(net))

        def loss(parameters):
            out = jax.vmap(eqx.combine(parameters, rest))(seen)[:, 0]
            return jnp.mean((out - values) ** 2)

        def step(carry, _):
            parameters, memory = carry
            slopes = jax.grad(loss)(parameters)
            with jax.numpy_dtype_promotion("standard"):
                update, memory = optimiser.update(slopes, memory)
            return (optax.apply_updates(parameters, update), memory), None

        with jax.numpy_dtype_promotion("standard"):
            memory = optimiser.init(parameters)
        carry, _ = jax.lax.scan(step, (parameters, memory), length=600)
        return eqx.combine(carry[0], rest)  # pyright: ignore[reportReturnType]

    plain = RandomFourierFeatures(2, scale=1.0, width=64, depth=2, key=jr.key(5))
    plain = fitted(plain)
    assert relative(jax.vmap(plain)(seen)[:, 0], values) < 0.5  # it has learned
    assert relative(eqx.filter_jit(laplacian)(plain, grid), true) > 0.5


@pytest.mark.parametrize("points", [10, 40])
def test_the_fit_is_ridge_regression_on_what_reaches_the_head(points):
    rng = np.random.default_rng(1)
    seen, values = rng.normal(size=(points, 2)), rng.normal(size=(points, 3))
    net = fit(NET, jnp.asarray(seen), jnp.asarray(values), 0.01)
    # What reaches the head, by a network that hands it out.
    bare = eqx.tree_at(
        lambda net: (net.head, net.offset), NET, (jnp.eye(16), jnp.zeros(16))
    )
    last = np.asarray(jax.vmap(bare)(jnp.asarray(seen)))
    variance = np.sum((last - last.mean(0)) ** 2) / points
    theirs = Ridge(alpha=0.01 * variance, solver="svd").fit(last, values)
    np.testing.assert_allclose(net.head, theirs.coef_, atol=1e-9)
    np.testing.assert_allclose(net.offset, theirs.intercept_, atol=1e-9)
    # It is linear in the values.
    twice = fit(NET, jnp.asarray(seen), jnp.asarray(2 * values + 1), 0.01)
    np.testing.assert_allclose(twice.head, 2 * net.head, atol=1e-9)
    np.testing.assert_allclose(twice.offset, 2 * net.offset + 1, atol=1e-9)


def test_a_fit_without_ridge_goes_through_the_points():
    net = RandomFourierFeatures(2, 3, scale=2.0, width=64, depth=0, key=jr.key(6))
    seen, values = jr.normal(jr.key(7), (12, 2)), jr.normal(jr.key(8), (12, 3))
    exact = fit(net, seen, values, 0.0)
    np.testing.assert_allclose(jax.vmap(exact)(seen), values, atol=1e-6)
    # Single precision fits to its own rounding, and stays.
    single = lambda x: x.astype(jnp.float32)
    rounded = fit(net, single(seen), single(values), 0.0)
    found = jax.vmap(rounded)(single(seen))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, values, atol=0.01)


def test_ridges_map_and_have_gradients():
    seen, values = jr.normal(jr.key(7), (12, 2)), jr.normal(jr.key(8), (12, 3))

    @jax.jit
    def held_out(ridge):
        net = NET.fitted(seen[:8], values[:8], ridge=ridge)
        return jnp.sum((jax.vmap(net)(seen[8:]) - values[8:]) ** 2)

    ridges = jnp.array([0.01, 0.1, 1.0])
    many = jax.vmap(held_out)(ridges)
    np.testing.assert_allclose(many, [held_out(r) for r in ridges], rtol=1e-8)
    slope = (held_out(0.1001) - held_out(0.0999)) / 2e-4
    np.testing.assert_allclose(jax.grad(held_out)(0.1), slope, rtol=1e-4)


def test_gradients_reach_every_parameter_but_the_wavenumbers():
    @eqx.filter_jit
    def total(net, point):
        return jnp.sum(net(point) ** 2)

    parameters, rest = eqx.partition(NET, trainable(NET))
    assert parameters.frequencies is None
    slopes = jax.grad(lambda p: total(eqx.combine(p, rest), POINT))(parameters)
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0
    direction = 1e-6 * jnp.array([1.0, -2.0])
    slope = (total(NET, POINT + direction) - total(NET, POINT - direction)) / 2
    inner = jax.grad(total, argnums=1)(NET, POINT) @ direction
    np.testing.assert_allclose(inner, slope, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "share"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)])
def test_the_dtype_of_the_point_stays(dtype, share):
    point = POINT.astype(dtype)
    out = run(NET, point)
    chex.assert_type(out, dtype)
    wide = run(NET, point.astype(float))
    assert np.abs(np.asarray(out, float) - wide).max() < share * np.abs(wide).max()


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"at least 1, got \{'coordinates': 0\}"):
        RandomFourierFeatures(0, key=jr.key(0))
    with pytest.raises(ValueError, match=r"`width` must be even .* got 7 and 2"):
        RandomFourierFeatures(2, width=7, key=jr.key(0))
    with pytest.raises(ValueError, match="not negative, got 256 and -1"):
        RandomFourierFeatures(2, depth=-1, key=jr.key(0))
    with pytest.raises(ValueError, match=r"`scale` must be positive.*got \(1.0, 0.0\)"):
        RandomFourierFeatures(2, scale=(1.0, 0.0), key=jr.key(0))
    with pytest.raises(
        ValueError, match="`periods` must be positive, one for each of 2"
    ):
        RandomFourierFeatures(2, periods=(1.0,), key=jr.key(0))
    with pytest.raises(
        ValueError, match=r"`point` must have the shape \(2,\), got \(3,"
    ):
        NET(jnp.ones(3))
    with pytest.raises(ValueError, match=r"\(points, 3\) .* got \(4, 2\) for 4 points"):
        NET.fitted(jnp.ones((4, 2)), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="at least one point"):
        NET.fitted(jnp.ones((0, 2)), jnp.ones((0, 3)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`ridge` must not be negative"):
        NET.fitted(jnp.ones((4, 2)), jnp.ones((4, 3)), ridge=-1.0)
