import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.scores._sorting import in_blocks, sort_bitonic, sort_padded, sort_rows


@pytest.mark.parametrize("members", [1, 2, 3, 7, 20])
def test_every_column_of_zeros_and_ones_is_sorted(members):
    """A network that sorts all zero-one columns sorts everything (Knuth)."""
    columns = min(2**members, 4096)
    bits = np.random.default_rng(0).integers(0, 2, (members, columns))
    if members <= 12:
        bits = (np.arange(columns)[None] >> np.arange(members)[:, None]) & 1
    array = jnp.asarray(bits, jnp.float32)
    expected = np.sort(bits, axis=0).astype(np.float32)
    chex.assert_trees_all_equal(jax.jit(sort_bitonic)(array), expected)
    rows = jax.jit(lambda x: jnp.stack(sort_rows(list(x))))(array)
    chex.assert_trees_all_equal(rows, expected)


@pytest.mark.parametrize("members", [1, 4, 33, 257])
def test_numbers_are_sorted_as_numpy_sorts_them(members):
    array = jr.normal(jr.key(0), (members, 5), jnp.float32).round(1)
    array = array.at[-1, 3].set(-jnp.inf)
    expected = np.sort(array, axis=0)
    ordered = jax.jit(sort_padded)(array)
    chex.assert_trees_all_equal(ordered[:members], expected)
    assert (ordered[members:] == jnp.inf).all()


@pytest.mark.parametrize("members", [6, 50])
def test_a_nan_is_never_lost(members):
    array = jr.normal(jr.key(2), (members, members))
    array = jnp.where(jnp.eye(members, dtype=bool), jnp.nan, array)
    ordered = jax.jit(sort_padded)(array)
    np.testing.assert_array_equal(jnp.isnan(ordered).sum(0), 1)


@pytest.mark.parametrize("members", [7, 100])
def test_staged_sort_is_that_of_numpy_and_nan_fills_its_column(members):
    array = jr.normal(jr.key(0), (members, 6), jnp.float64).round(1)
    array = array.at[members // 2, 2].set(jnp.nan).at[0, 3].set(jnp.inf)
    expected = np.sort(array, axis=0)
    expected[:, 2] = np.nan
    chex.assert_trees_all_equal(jax.jit(sort_bitonic)(array), expected)


@pytest.mark.parametrize("points", [1, 2, 16, 23])
def test_blocks_change_nothing(points):
    a, b = jr.normal(jr.key(1), (2, 3, points), jnp.float32)
    function = lambda x, y, none: (x * y[:1]).cumsum(0)
    blocked = lambda x, y: in_blocks(function, x, y, None, block=4)
    chex.assert_trees_all_equal(jax.jit(blocked)(a, b), function(a, b, None))
    batched = jax.vmap(blocked)(a[None], b[None])[0]
    chex.assert_trees_all_equal(batched, function(a, b, None))


def test_no_points_are_sorted_too():
    assert sort_bitonic(jnp.zeros((50, 0))).shape == (50, 0)
