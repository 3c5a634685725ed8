"""What every statistic promises, each checked by all of them."""

import os
import subprocess
import sys
import textwrap

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from skyens import scores

MEMBERS = 4
STATISTICS = {
    "RMSE": scores.RMSE(),
    "Bias": scores.Bias(),
    "AnomalyCorrelation": scores.AnomalyCorrelation(),
    "SpreadSkill": scores.SpreadSkill(),
    "RankHistogram": scores.RankHistogram(MEMBERS),
    "CRPS": scores.CRPS(0.95),
}
every = pytest.mark.parametrize("name", list(STATISTICS))


@eqx.filter_jit
def update(name, state, ensemble, truth, **more):
    if name == "AnomalyCorrelation":
        more["climatology"] = jnp.full((), 0.25, truth.dtype)
    return STATISTICS[name].update(state, ensemble, truth, **more)


def forecasts(seed, *points, dtype=jnp.float64):
    keys = jr.split(jr.key(seed))
    ensemble = jr.normal(keys[0], (MEMBERS, *points), dtype)
    return ensemble, jr.normal(keys[1], points, dtype)


def close(a, b, rtol=1e-12):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=1e-14)


@every
def test_it_follows_the_protocol(name):
    assert isinstance(STATISTICS[name], scores.Statistic)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(list(STATISTICS)))
def test_states_merge_in_any_order_and_grouping(seed, name):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(seed, 3, 2, 5)
    weights = jr.uniform(jr.key(seed), (5,), jnp.float64)
    empty = stat.init((2,))
    a, b, c = (
        update(name, empty, ensemble[:, i], truth[i], weights=weights) for i in range(3)
    )
    one = stat.finalize(stat.merge(stat.merge(a, b), c))
    close(stat.finalize(stat.merge(c, stat.merge(b, a))), one)
    chex.assert_trees_all_equal(stat.merge(a, empty), a)
    # Chunk by chunk, or at once.
    close(
        stat.finalize(
            update(
                name,
                update(name, a, ensemble[:, 1], truth[1], weights=weights),
                ensemble[:, 2],
                truth[2],
                weights=weights,
            )
        ),
        one,
    )
    move = lambda x, axis: jnp.moveaxis(x, axis, axis + 1)
    whole = update(
        name, empty, move(ensemble, 1), move(truth, 0), weights=weights[None]
    )
    close(stat.finalize(whole), one)


@every
def test_it_runs_in_scan_and_vmap(name):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(1, 3, 2, 5)
    step = lambda state, xy: (update(name, state, *xy), None)
    by_time = jnp.moveaxis(ensemble, 1, 0)
    scanned, _ = lax.scan(step, stat.init((2,)), (by_time, truth))
    expected = stat.init((2,))
    for i in range(3):
        expected = update(name, expected, ensemble[:, i], truth[i])
    close(scanned, expected)
    separately = jax.vmap(lambda x, y: update(name, stat.init((2,)), x, y))
    kept = update(name, stat.init((3, 2)), ensemble, truth)
    close(separately(by_time, truth), kept)


@every
def test_masked_points_might_as_well_not_be_there(name):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(2, 2, 6)
    where = jnp.array([True, False, True, True, False, True])
    weights = jnp.where(where, jnp.arange(1.0, 7.0), jnp.nan)
    spoilt = jnp.where(where[None, None], ensemble, jnp.nan)
    masked = update(
        name,
        stat.init((2,)),
        spoilt,
        jnp.where(where[None], truth, jnp.nan),
        weights=weights,
        where=where,
    )
    close(
        stat.finalize(masked),
        stat.finalize(
            update(
                name,
                stat.init((2,)),
                ensemble[..., where],
                truth[..., where],
                weights=weights[where],
            )
        ),
    )


@every
def test_nothing_valid_is_zero_with_weight_zero_and_finite_gradients(name):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(3, 5)
    chex.assert_trees_all_equal(
        stat.finalize(stat.init()),
        jax.tree.map(jnp.zeros_like, stat.finalize(stat.init())),
    )
    where = jnp.zeros(5, bool)

    def total(x, y):
        state = update(name, stat.init(), x, y, where=where)
        return sum(jnp.sum(x) for x in jax.tree.leaves(stat.finalize(state))), state

    slopes, state = jax.grad(total, (0, 1), has_aux=True)(ensemble * jnp.nan, truth)
    assert state["weight"].value == 0
    chex.assert_trees_all_equal(slopes, jax.tree.map(jnp.zeros_like, slopes))


@every
def test_gradients_are_finite_where_all_are_equal(name):
    stat = STATISTICS[name]

    def total(x, y):
        state = update(name, stat.init(), x, y)
        return sum(jnp.sum(x) for x in jax.tree.leaves(stat.finalize(state)))

    slopes = jax.grad(total, (0, 1))(jnp.ones((MEMBERS, 5)), jnp.ones(5))
    chex.assert_tree_all_finite(slopes)


@every
def test_a_nan_that_no_mask_hides_is_not_lost(name):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(4, 2, 5)
    for x, y in [
        (ensemble.at[1, 0, 2].set(jnp.nan), truth),
        (ensemble, truth.at[0, 2].set(jnp.nan)),
    ]:
        value = stat.finalize(update(name, stat.init((2,)), x, y))
        for leaf in jax.tree.leaves(
            value._asdict() if name == "SpreadSkill" else value
        ):
            chex.assert_tree_all_finite(leaf[1])
        leaves = jax.tree.leaves(value)
        assert any(bool(jnp.isnan(leaf[0]).any()) for leaf in leaves)


@every
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_float32_states_stay_float32_and_float64_states_keep_more(name, dtype):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(5, 4, 300, dtype=dtype)
    state = update(name, stat.init((4,), jnp.float32), ensemble, truth)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, stat.init((4,), jnp.float32))
    wide = update(name, stat.init((4,)), ensemble.astype(float), truth.astype(float))
    for found, expected in zip(
        jax.tree.leaves(stat.finalize(state)),
        jax.tree.leaves(stat.finalize(wide)),
        strict=True,
    ):
        assert found.dtype == jnp.float32
        chex.assert_trees_all_close(found.astype(float), expected, atol=1e-6)


@every
def test_regions_are_an_axis_of_the_weights(name):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(6, 2, 3, 4)
    regions = jr.uniform(jr.key(7), (5, 1, 3, 1), jnp.float64)
    state = update(
        name, stat.init((5, 2)), ensemble[:, None], truth[None], weights=regions
    )
    for i in range(5):
        one = update(name, stat.init((2,)), ensemble, truth, weights=regions[i])
        both = jax.tree.map(lambda x, i=i: x[i], stat.finalize(state))
        close(both, stat.finalize(one))


@every
def test_masks_may_differ_between_regions(name):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(9, 2, 6)
    where = jr.bernoulli(jr.key(10), 0.6, (3, MEMBERS, 2, 6))
    state = update(
        name,
        stat.init((3, 2)),
        ensemble[:, None],
        truth[None],
        where=jnp.moveaxis(where, 0, 1),
    )
    for i in range(3):
        one = update(name, stat.init((2,)), ensemble, truth, where=where[i])
        both = jax.tree.map(lambda x, i=i: x[i], stat.finalize(state))
        close(both, stat.finalize(one))


@every
def test_devices_merge_to_the_same_state_everywhere(name):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(8, 3, 2, 5)
    by_device = jnp.moveaxis(ensemble, 1, 0)
    local = jax.vmap(lambda x, y: update(name, stat.init((2,)), x, y))(by_device, truth)
    merged = jax.vmap(
        lambda state: scores.all_merge(stat, state, "device"), axis_name="device"
    )(local)
    parts = [jax.tree.map(lambda x, i=i: x[i], local) for i in range(3)]
    expected = stat.merge(stat.merge(parts[0], parts[1]), parts[2])
    for i in range(3):
        close(jax.tree.map(lambda x, i=i: x[i], merged), expected)


def test_devices_of_a_mesh_merge_inside_shard_map():
    """In a process of its own, as the number of devices is fixed at the start."""
    program = """
        import jax, jax.numpy as jnp, jax.random as jr, numpy as np
        from jax.sharding import Mesh, PartitionSpec as P
        from skyens import scores

        mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
        stat = scores.SpreadSkill()
        ensemble, truth = jr.normal(jr.key(0), (5, 8, 6)), jr.normal(jr.key(1), (8, 6))
        part = lambda x, y: stat.update(stat.init((6,)), x.mT, y.mT)
        axes = ("data", "model")
        merge = lambda x, y: scores.all_merge(stat, part(x, y), axes)
        sharded = jax.shard_map(
            merge, mesh=mesh, in_specs=(P(None, axes), P(axes)), out_specs=P()
        )
        found = stat.finalize(jax.jit(sharded)(ensemble, truth))
        expected = stat.finalize(part(ensemble, truth))
        for a, b in zip(found, expected):
            assert jnp.allclose(a, b, rtol=1e-6, atol=0), (a, b)
    """
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
