from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.nn import MLP, Condition

SIZES: dict[str, Any] = dict(width=8, blocks=2, embedding=6)
NET = MLP(3, 4, field_channels=2, vector_size=2, **SIZES, key=jr.key(0))
X = jnp.asarray(np.random.default_rng(0).normal(size=3))
FIELDS, VECTOR = jnp.array([0.4, -1.0]), jnp.array([1.0, 0.5])
TOLD = Condition(FIELDS, VECTOR)
run = eqx.filter_jit(lambda net, x, level, told: net(x, level, condition=told))


def test_the_level_and_each_part_of_the_condition_matter(awake):
    base = run(awake(NET), X, 0.3, TOLD)
    assert base.shape == (4,)
    others = [
        run(awake(NET), X, -0.2, TOLD),
        run(awake(NET), X, 0.3, Condition(-FIELDS, VECTOR)),
        run(awake(NET), X, 0.3, Condition(FIELDS, -VECTOR)),
        run(awake(NET), -X, 0.3, TOLD),
    ]
    for other in others:
        assert np.abs(other - base).max() > 1e-3


def test_no_condition_is_a_condition_of_zeros(awake):
    dropped = run(awake(NET), X, 0.3, jax.tree.map(lambda leaf: 0 * leaf, TOLD))
    np.testing.assert_array_equal(run(awake(NET), X, 0.3, None), dropped)


def test_without_level_it_is_a_plain_map_of_one_size():
    plain = MLP(3, noise_level=False, **SIZES, key=jr.key(0))
    y = eqx.filter_jit(plain)(X)
    assert y.shape == (3,)
    assert np.isfinite(y).all()
    assert y.any()


@pytest.mark.parametrize(("dtype", "share"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)])
def test_the_dtype_of_the_input_stays(awake, dtype, share):
    wide = run(awake(NET), X, 0.3, TOLD)
    y = run(awake(NET), X.astype(dtype), 0.3, TOLD)
    assert y.dtype == dtype
    error = np.abs(np.asarray(y, float) - wide).max()
    assert error < share * np.abs(wide).max()


def test_gradients_reach_every_parameter(awake, slopes):
    parameters, inner = slopes(awake(NET), X, 0.3, TOLD)
    for leaf in jax.tree.leaves(parameters):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0
    direction = 1e-6 * jnp.array([1.0, -2.0, 0.5])
    total = lambda x: (np.asarray(run(awake(NET), x, 0.3, TOLD)) ** 2).mean()
    slope = (total(X + direction) - total(X - direction)) / 2
    np.testing.assert_allclose((inner * direction).sum(), slope, rtol=1e-6)
    chex.assert_tree_all_finite(slopes(awake(NET), 0 * X, 0.3, None))


def test_samples_levels_and_conditions_may_be_mapped(awake):
    net, scales = awake(NET), jnp.array([1.0, -0.5])
    batch = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf, -0.5 * leaf]), tree)
    every = eqx.filter_jit(
        lambda x, level, told: jax.vmap(lambda *a: net(*a[:2], condition=a[2]))(
            x, level, told
        )
    )
    found = every(batch(X), scales, batch(TOLD))
    for i, scale in enumerate(scales):
        alone = run(
            net, scale * X, scale, jax.tree.map(lambda leaf: scale * leaf, TOLD)
        )
        np.testing.assert_allclose(found[i], alone, rtol=1e-10)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"at least 1, got \{'blocks': 0\}"):
        MLP(3, blocks=0, key=jr.key(0))
    with pytest.raises(ValueError, match=r"negative, got \{'field_channels': -1\}"):
        MLP(3, field_channels=-1, key=jr.key(0))
    with pytest.raises(ValueError, match=r"`x` must be \(3,\), got \(2,\)"):
        NET(X[:2], 0.3)
    with pytest.raises(ValueError, match="needs `level`"):
        NET(X)
    with pytest.raises(ValueError, match=r"`condition.tokens` must be \(token, 0\)"):
        NET(X, 0.3, condition=Condition(tokens=jnp.ones((2, 3))))
