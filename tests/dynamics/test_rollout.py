from functools import partial

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.dynamics import rollout

KEY = jr.key(0)


def step(state, forcing=None, *, key=None):
    """A nonlinear step of a state with a clock, stirred by noise where keyed."""
    x = state["x"] + 0.1 * jnp.sin(2 * jnp.roll(state["x"], 1))
    x = x if forcing is None else x + forcing["push"]
    if key is not None:  # normal numbers are slow to compile
        x = x + (jr.key_data(key).astype(x.dtype) / 2**32).sum()
    return {"x": x, "clock": state["clock"] + 1}


def start(seed=0, *shape):
    clock = jnp.zeros(shape, int)
    x = np.random.default_rng(seed).normal(size=(*shape, 5))
    return {"x": jnp.asarray(x), "clock": clock}


def loop(state, steps, forcings=None, key=None):
    """The same by a Python loop."""
    states = []
    for number in range(steps):
        forcing = None
        if forcings is not None:
            forcing = {"push": forcings["push"][number]}
        step_key = None if key is None else jr.fold_in(key, number)
        state = step(state, forcing, key=step_key)
        states.append(state)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


class RolloutTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_a_python_loop(self):
        forcings = {"push": start(1, 4)["x"]}
        for forced in (None, forcings):
            for key in (None, KEY):
                run = self.variant(lambda s, f, k: rollout(step, s, 4, f, key=k))
                states = run(start(), forced, key)
                expected = loop(start(), 4, forced, key)
                chex.assert_trees_all_close(states, expected, rtol=1e-12)


def test_reduce_keeps_what_it_returns():
    whole = rollout(step, start(), 4, key=KEY)
    mean = lambda state: {"mean": state["x"].mean(), "clock": state["clock"]}
    kept = rollout(step, start(), 4, key=KEY, reduce=mean)
    chex.assert_trees_all_close(kept, jax.vmap(mean)(whole), rtol=1e-12)


def test_checkpointing_changes_neither_values_nor_gradients():
    @partial(jax.jit, static_argnums=1)
    def value_and_slope(state, checkpoint):
        def total(x):
            states = rollout(step, {**state, "x": x}, 6, key=KEY, checkpoint=checkpoint)
            return (states["x"] ** 2).sum()

        return jax.value_and_grad(total)(state["x"])

    stored, again = (
        value_and_slope(start(), checkpoint) for checkpoint in (False, True)
    )
    chex.assert_trees_all_close(stored, again, rtol=1e-12)


def test_checkpointing_stores_only_the_states():
    # 50 products inside a step: all are kept for reverse mode, or only their start.
    def deep(x, forcing=None, *, key=None):
        for _ in range(50):
            x = jnp.sin(x)
        return x

    def residuals(checkpoint):
        run = lambda x: rollout(deep, x, 3, checkpoint=checkpoint)
        saved = jax.eval_shape(lambda x: jax.vjp(run, x)[1], jnp.ones(5))
        return sum(leaf.size for leaf in jax.tree.leaves(saved))

    assert residuals(checkpoint=True) <= 3 * 5 + 5
    assert residuals(checkpoint=False) >= 50 * 3 * 5


def test_members_are_mapped_and_keep_their_numbers():
    keys = jax.vmap(lambda member: jr.fold_in(KEY, member))(jnp.arange(3))
    run = jax.jit(jax.vmap(lambda s, k: rollout(step, s, 4, key=k)))
    mapped = run(start(2, 3), keys)
    for member in range(3):
        alone = rollout(
            step,
            jax.tree.map(lambda x, m=member: x[m], start(2, 3)),
            4,
            key=keys[member],
        )
        one = jax.tree.map(lambda x, m=member: x[m], mapped)
        chex.assert_trees_all_close(one, alone, rtol=1e-12)


def test_a_longer_run_begins_like_a_shorter_one():
    longer = rollout(step, start(), 7, key=KEY)
    first = jax.tree.map(lambda x: x[:4], longer)
    chex.assert_trees_all_close(first, rollout(step, start(), 4, key=KEY), rtol=1e-12)


def test_no_steps_leave_nothing():
    states = rollout(step, start(), 0, {"push": jnp.zeros((0, 5))}, key=KEY)
    assert states["x"].shape == (0, 5)


def test_float32_stays():
    state = {**start(), "x": start()["x"].astype(jnp.float32)}
    assert rollout(step, state, 2, key=KEY)["x"].dtype == jnp.float32


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`steps` must not be negative, got -1"):
        rollout(step, start(), -1)
    for push in (jnp.zeros((3, 5)), jnp.zeros(())):
        shape = r"4 entries, one per step.*shape \(" + ("3, 5" if push.ndim else "")
        with pytest.raises(ValueError, match=shape):
            rollout(step, start(), 4, {"push": push})
