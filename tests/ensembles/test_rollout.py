from functools import partial

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import ensembles
from skyens.dynamics import member_keys, rollout

KEY = jr.key(0)
RNG = np.random.default_rng(1)
# Products of this size round differently at the far end of a batch of 12 or 13.
MIX = RNG.normal(size=(34, 34)).astype(np.float32) / 6
STATES = RNG.normal(size=(13, 34, 9, 16)).astype(np.float32)


def draw(key):
    """A number of order one from `key`: normal ones are slow to compile."""
    return (jr.key_data(key).astype(jnp.float32) / 2**32).sum()


def mix(state, forcing=None, *, key):
    """Mix the channels of each point, and move them."""
    return jnp.einsum("oi,ijk->ojk", MIX, state) + draw(key)


@partial(jax.jit, static_argnames="width")
def run(states, members=None, *, width=None):
    return ensembles.rollout(mix, states, 2, key=KEY, members=members, width=width)


@pytest.fixture(scope="module")
def expected():
    """Each member rolled out by itself."""
    one = jax.jit(lambda state, key: rollout(mix, state, 2, key=key))
    keys = member_keys(KEY, 13)
    return np.stack([one(STATES[i], keys[i]) for i in range(13)])


@pytest.mark.parametrize("width", [None, 12, 6, 1, 20])
def test_members_are_rollouts_of_their_own(expected, width):
    together = run(STATES, width=width)
    assert together.dtype == jnp.float32
    np.testing.assert_allclose(together, expected, atol=1e-5)


@pytest.mark.parametrize("width", [None, 12, 6])
def test_a_member_is_replayed_alone_bit_for_bit(width):
    whole = np.asarray(run(STATES, width=width))
    for member in range(13):
        indices = np.array([member])
        alone = run(STATES[indices], indices, width=width or 13)
        np.testing.assert_array_equal(alone[0], whole[member])


def test_neither_more_nor_fewer_neighbours_change_a_bit():
    whole = np.asarray(run(STATES, width=6))
    some = np.arange(3, 10)
    np.testing.assert_array_equal(run(STATES[some], some, width=6), whole[some])
    # A neighbour that fails fails alone.
    broken = STATES.copy()
    broken[1, 0, 0, 0] = np.nan
    again = np.asarray(run(broken, width=6))
    sound = np.delete(np.arange(13), 1)
    np.testing.assert_array_equal(again[sound], whole[sound])
    assert np.isnan(again[1, :, :, 0, 0]).all()


@pytest.mark.parametrize("choice", [[7, 2, 11], [3, 3, 9], [12, 0, 4]])
def test_any_choice_and_order_of_members_comes_back_in_place(expected, choice):
    choice = np.array(choice)
    some = run(STATES[choice], choice, width=2)
    np.testing.assert_allclose(some, expected[choice], atol=1e-5)


def walk(state, forcing=None, *, key):
    x = jnp.sin(state["x"]) + draw(key).astype(state["x"].dtype)
    x = x if forcing is None else x + forcing
    return {"x": x, "clock": state["clock"] + 1}


@pytest.mark.parametrize("width", [2, 5])
def test_trees_forcings_reductions_and_gradients_are_those_of_rollouts(width):
    forcings = jnp.arange(3.0)
    start, keys = RNG.normal(size=(5, 4)), member_keys(KEY, 5)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def members(x):
        path = ensembles.rollout(
            walk,
            {"x": x, "clock": jnp.arange(5)},
            3,
            forcings,
            key=KEY,
            width=width,
            reduce=lambda state: (state["x"] ** 2, state["clock"]),
        )
        return path[0].sum(), path

    @jax.jit
    @jax.vmap
    @partial(jax.value_and_grad, has_aux=True)
    def alone(x, key):
        path = rollout(walk, {"x": x, "clock": 0}, 3, forcings, key=key)
        return (path["x"] ** 2).sum(), path["x"] ** 2

    (total, (squares, clocks)), slope = members(start)
    (totals, expected), slopes = alone(start, keys)
    chex.assert_trees_all_close(squares, expected, rtol=1e-12)
    np.testing.assert_allclose(total, np.sum(totals), rtol=1e-12)
    chex.assert_trees_all_close(slope, slopes, rtol=1e-10)
    np.testing.assert_array_equal(clocks, np.add.outer(np.arange(5), [1, 2, 3]))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="share one member axis, got lengths"):
        ensembles.rollout(walk, (jnp.zeros(3), jnp.zeros(4)), 1, key=KEY)
    with pytest.raises(ValueError, match="each of the 3 states, got 2"):
        ensembles.rollout(walk, jnp.zeros(3), 1, key=KEY, members=np.arange(2))
    with pytest.raises(ValueError, match="`width` must be at least 1, got 0"):
        ensembles.rollout(walk, jnp.zeros(3), 1, key=KEY, width=0)
    with pytest.raises(ValueError, match="`steps` must not be negative"):
        ensembles.rollout(walk, jnp.zeros(3), -1, key=KEY)
