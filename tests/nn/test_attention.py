import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.special import softmax

from skyens import sphere
from skyens.nn import Attention, AttentionBlock, Plane, Rotary

GRID = sphere.cell_centred(3, 8)
apply = eqx.filter_jit(lambda layer, *inputs: layer(*inputs))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def logits(domain, query, key, patch=1):
    """Products of one query and one key that stand at every pair of places."""
    rotate, places = Rotary(domain, patch), Rotary(domain, patch).angles(2).shape[1]
    spread = lambda v: jnp.broadcast_to(jnp.asarray(v)[None, :, None], (1, 8, places))
    both = rotate(spread(query)), rotate(spread(key))
    return np.einsum("hdq,hdk->qk", *both)


def test_products_know_only_the_difference_of_longitudes():
    query, key = draw(2, 8)
    found = logits(GRID, query, key).reshape(3, 8, 3, 8)
    for shift in (1, 3):
        turned = np.roll(found, (shift, shift), axis=(1, 3))
        np.testing.assert_allclose(turned, found, atol=1e-12)
    # They do know both differences, and lose no length on the way.
    assert np.ptp(found[0, 0, 0]) > 0.1
    assert np.ptp(found[0, 0, :, 0]) > 0.1
    turned = Rotary(GRID)(jnp.asarray(draw(2, 8, 24)))
    lengths = [np.sum(np.asarray(f) ** 2, axis=1) for f in (turned, draw(2, 8, 24))]
    np.testing.assert_allclose(*lengths, rtol=1e-12)


def test_angles_are_latitudes_and_whole_turns_of_longitude():
    north, east = Rotary(GRID).angles(4).reshape(2, 2, 3, 8)
    np.testing.assert_allclose(north[0, :, 5], np.deg2rad(GRID.latitude))
    np.testing.assert_allclose(east[0, 1], np.deg2rad(GRID.longitude))
    np.testing.assert_allclose(east[1, 1], 4 * np.deg2rad(GRID.longitude))


def test_patches_stand_at_the_centre_of_their_rows():
    grid = sphere.equiangular(5, 8)  # the last patch of two rows has but one
    north = Rotary(grid, 2).angles(2)[0].reshape(3, 4)
    np.testing.assert_allclose(north[:, 0], np.deg2rad([-67.5, 22.5, 90.0]))


def test_a_plane_closes_where_it_is_periodic():
    query, key = draw(2, 8)
    closed = logits(Plane((1, 6), (False, True)), query, key)
    np.testing.assert_allclose(np.roll(closed, (2, 2), (0, 1)), closed, atol=1e-12)
    open_ended = logits(Plane((1, 6)), query, key)
    assert np.abs(np.roll(open_ended, (2, 2), (0, 1)) - open_ended).max() > 0.1
    np.testing.assert_allclose(open_ended[:-2, :-2], open_ended[2:, 2:], atol=1e-12)


def test_attention_is_that_of_numpy():
    layer = Attention(8, 3, 2, key=jr.key(0))
    layer = eqx.tree_at(lambda a: a.sharpness, layer, jnp.array([1.0, 3.0]))
    x, source = draw(8, 2, 3), draw(3, 4, 1, seed=1)
    named = {n: np.asarray(getattr(layer, n).weight) for n in ("query", "key", "value")}
    unit = lambda f: f / np.sqrt((f**2).mean(1, keepdims=True) + 1e-6)
    heads = lambda weight, f: (weight @ f.reshape(len(f), -1)).reshape(2, 4, -1)
    query, key = unit(heads(named["query"], x)), unit(heads(named["key"], source))
    product = np.einsum("hdq,hdk->hqk", query, key) / 2  # sqrt(4)
    weights = softmax(product * np.array([1.0, 3.0])[:, None, None], axis=-1)
    gathered = np.einsum("hqk,hdk->hdq", weights, heads(named["value"], source))
    expected = np.asarray(layer.out.weight) @ gathered.reshape(8, 6)
    found = apply(layer, x, source)
    np.testing.assert_allclose(found.reshape(8, 6), expected, rtol=1e-10)


def test_tokens_are_a_set():
    block = AttentionBlock(8, 0, heads=2, token_size=3, key=jr.key(0))
    x, none, tokens = jnp.asarray(draw(8, 3, 8)), jnp.zeros((0, 1, 1)), draw(5, 3)
    run = eqx.filter_jit(lambda tokens: block(x, none, tokens, Rotary(GRID)))
    base = run(tokens)
    np.testing.assert_allclose(run(tokens[[3, 1, 4, 0, 2]]), base, atol=1e-12)
    assert np.abs(run(-tokens) - base).max() > 1e-3
    # Any number of tokens that are 0 says as much as one.
    np.testing.assert_allclose(run(0 * tokens), run(np.zeros((1, 3))), atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_dtype_of_the_input_stays(dtype):
    layer, x = Attention(8, 8, 2, key=jr.key(0)), draw(8, 3, 8)
    wide = apply(layer, x, x, Rotary(GRID))
    y = apply(layer, x.astype(dtype), x.astype(dtype), Rotary(GRID))
    assert y.dtype == dtype
    error = np.abs(np.asarray(y, float) - wide).max()
    assert error < 8 * float(jnp.finfo(dtype).eps) * np.abs(wide).max()


def test_gradients_are_finite_and_reach_every_weight():
    block = AttentionBlock(8, 2, heads=2, token_size=3, key=jr.key(0))
    loss = lambda block, x: (
        block(x, jnp.ones((2, 1, 1)), jnp.asarray(draw(4, 3)), Rotary(GRID)) ** 2
    ).sum()
    slopes = eqx.filter_jit(eqx.filter_grad(loss))
    for leaf in jax.tree.leaves(slopes(block, jnp.asarray(draw(8, 3, 8)))):
        assert np.isfinite(leaf).all()
    reached = slopes(block, jnp.asarray(draw(8, 3, 8)))
    # A bias of the keys moves all logits of a query alike where nothing rotates.
    reached = eqx.tree_at(lambda b: b.attend_tokens.key.bias, reached, None)
    assert all((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(reached))
    chex.assert_tree_all_finite(slopes(block, jnp.zeros((8, 3, 8))))


def test_wrong_use_is_reported():
    for width, heads in ((8, 3), (8, 0), (6, 1)):
        with pytest.raises(ValueError, match="must be a multiple of 4"):
            Attention(width, width, heads, key=jr.key(0))
