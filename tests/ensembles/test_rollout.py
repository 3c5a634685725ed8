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
# Products of this size round differently at the far end of a batch of 12 or 13.
MIX = jr.normal(jr.key(1), (34, 34), jnp.float32) / 6
STATES = jr.normal(jr.key(2), (13, 34, 9, 16), jnp.float32)


def mix(state, forcing=None, *, key):
    """Mix the channels of each point, and stir them."""
    state = jnp.einsum("oi,ijk->ojk", MIX, state)
    state = state if forcing is None else state + forcing
    return state + jr.normal(key, state.shape, state.dtype)


@partial(jax.jit, static_argnames=("width", "steps"))
def run(states, members=None, *, width=None, steps=2):
    return ensembles.rollout(mix, states, steps, key=KEY, members=members, width=width)


@pytest.mark.parametrize("width", [None, 13, 5, 1, 20])
def test_members_are_rollouts_of_their_own(width):
    forcings = jnp.arange(2, dtype=jnp.float32)
    options = dict(forcings=forcings, reduce=jnp.mean)
    one = lambda state, key: rollout(mix, state, 2, key=key, **options)
    expected = jax.jit(jax.vmap(one))(STATES, member_keys(KEY, 13))
    together = ensembles.rollout(mix, STATES, 2, key=KEY, width=width, **options)
    assert together.shape == (13, 2)
    chex.assert_trees_all_close(together, expected, atol=1e-5)


@pytest.mark.parametrize("width", [13, 12, 6])
def test_a_member_is_replayed_alone_bit_for_bit(width):
    whole = run(STATES, width=width)
    for member in range(13):
        indices = jnp.array([member])
        alone = run(STATES[member : member + 1], indices, width=width)
        chex.assert_trees_all_equal(alone[0], whole[member])


def test_neither_more_nor_fewer_neighbours_change_a_bit():
    whole = run(STATES, width=6)
    some = run(STATES[3:10], jnp.arange(3, 10), width=6)
    chex.assert_trees_all_equal(some, whole[3:10])
    fewer = run(STATES[:8], width=6)
    chex.assert_trees_all_equal(fewer, whole[:8])
    # A failed neighbour fails alone.
    broken = run(STATES.at[1].set(jnp.nan), width=6)
    sound = np.delete(np.arange(13), 1)
    chex.assert_trees_all_equal(broken[sound], whole[sound])
    assert np.isnan(broken[1]).all()


def test_any_choice_and_order_of_members_comes_back_in_place():
    whole = run(STATES, width=13)
    for choice in ([7, 2, 11], [0, 6, 12, 5], [3, 3, 9], [12, 0, 4]):
        some = run(STATES[np.array(choice)], jnp.array(choice), width=4)
        chex.assert_trees_all_close(some, whole[np.array(choice)], atol=1e-5)


def test_states_may_be_trees_with_clocks_and_gradients_are_those_of_rollouts():
    def step(state, forcing=None, *, key):
        noise = jr.normal(key, state["x"].shape)
        return {"x": jnp.sin(state["x"]) + noise, "clock": state["clock"] + 1}

    states = {"x": jr.normal(KEY, (5, 3)), "clock": jnp.arange(5)}

    def total(x, width):
        start = {**states, "x": x}
        path = ensembles.rollout(step, start, 3, key=KEY, width=width)
        return (path["x"] ** 2).sum(), path["clock"]

    def expected(x):
        one = lambda x, key: rollout(step, {"x": x, "clock": 0}, 3, key=key)["x"]
        return (jax.vmap(one)(x, member_keys(KEY, 5)) ** 2).sum()

    for width in (2, 5):
        slope, clock = jax.jit(jax.grad(partial(total, width=width), has_aux=True))(
            states["x"]
        )
        chex.assert_trees_all_close(slope, jax.grad(expected)(states["x"]), rtol=1e-10)
        np.testing.assert_array_equal(clock, np.add.outer(np.arange(5), [1, 2, 3]))


def test_wrong_use_is_reported():
    step = lambda state, forcing=None, *, key: state
    with pytest.raises(ValueError, match="share one member axis, got lengths"):
        ensembles.rollout(step, (jnp.zeros(3), jnp.zeros(4)), 1, key=KEY)
    with pytest.raises(ValueError, match="each of the 3 states, got 2"):
        ensembles.rollout(step, jnp.zeros(3), 1, key=KEY, members=np.arange(2))
    with pytest.raises(ValueError, match="`width` must be at least 1, got 0"):
        ensembles.rollout(step, jnp.zeros(3), 1, key=KEY, width=0)
    with pytest.raises(ValueError, match="`steps` must not be negative"):
        ensembles.rollout(step, jnp.zeros(3), -1, key=KEY)
