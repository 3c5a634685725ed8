"""What every statistic promises, each checked by all of them."""

import os
import subprocess
import sys
import textwrap

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax

from skyens import scores, sphere

MEMBERS = 4
STATISTICS = {
    "RMSE": scores.RMSE(),
    "Bias": scores.Bias(),
    "AnomalyCorrelation": scores.AnomalyCorrelation(),
    "SpreadSkill": scores.SpreadSkill(),
    "RankHistogram": scores.RankHistogram(MEMBERS),
    "CRPS": scores.CRPS(0.95),
    "MeanScore": scores.MeanScore(scores.crps, least=2),
    "Activity": scores.Activity(),
    # The state and the update of `ROC` and `EconomicValue` are the same.
    "Reliability": scores.Reliability(MEMBERS, 2, above=False),
    "QuantileQuantile": scores.QuantileQuantile((0.3, 0.9), (-3.0, -1.0, 0.0, 3.0)),
    "Outliers": scores.Outliers(),
    "BestMember": scores.BestMember(MEMBERS),
    "Exceedance": scores.Exceedance((-1.0, 1.0)),
    "Desroziers": scores.Desroziers(),
    "Spectra": scores.Spectra(
        sphere.SphericalHarmonics(sphere.gauss_legendre(3, 6), lmax=2)
    ),
}
every = pytest.mark.parametrize("name", list(STATISTICS))


@eqx.filter_jit
def update(name, state, ensemble, truth, weights=None, where=None):
    more = {}
    if name in ("AnomalyCorrelation", "Activity"):
        more["climatology"] = jnp.full((), 0.25, truth.dtype)
    elif name == "Reliability":
        more["thresholds"] = jnp.array([[-0.5], [0.25]], truth.dtype)
    elif name == "Desroziers":
        more["observation_error"] = jnp.full((), 0.5, truth.dtype)
        more["analysis"] = ensemble / 2
    elif name == "Spectra":
        ensemble, truth = as_fields(ensemble), as_fields(truth)
        per_field = lambda x: None if x is None else x[..., None, None]
        weights, where = per_field(weights), per_field(where)
    return STATISTICS[name].update(state, ensemble, truth, weights, where, **more)


def as_fields(values):
    """Make each value the size of a field, so that fields are the points."""
    pattern = jnp.asarray(np.cos(np.arange(18.0)).reshape(3, 6), values.dtype)
    pattern = pattern.reshape((1,) * values.ndim + pattern.shape)
    return values[..., None, None] * pattern


@eqx.filter_jit
def merge(name, first, second):
    return STATISTICS[name].merge(first, second)


@eqx.filter_jit
def finalize(name, state):
    return STATISTICS[name].finalize(state)


@eqx.filter_jit
def gradient(name, state, ensemble, truth, where=None):
    def total(ensemble, truth):
        after = update(name, state, ensemble, truth, where=where)
        return sum(x.sum() for x in jax.tree.leaves(finalize(name, after))), after

    return jax.grad(total, (0, 1), has_aux=True)(ensemble, truth)


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def forecasts(seed, dtype=jnp.float64):
    draws = normal(seed, (MEMBERS + 1, 2, 5), dtype)
    return draws[1:], draws[0]


def unstack(tree):
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(3)]


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-12, atol=1e-14)


@every
def test_it_follows_the_protocol(name):
    assert isinstance(STATISTICS[name], scores.Statistic)


@every
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**31))
def test_states_merge_in_any_order_and_grouping(name, seed):
    parts = [forecasts(seed + i) for i in range(3)]
    empty = STATISTICS[name].init((2,))
    a, b, c = (update(name, empty, *part) for part in parts)
    one = finalize(name, merge(name, merge(name, a, b), c))
    close(finalize(name, merge(name, c, merge(name, b, a))), one)
    chex.assert_trees_all_equal(merge(name, a, empty), a)
    one_by_one = update(name, update(name, a, *parts[1]), *parts[2])
    close(finalize(name, one_by_one), one)
    at_once = [jnp.concatenate(x, axis=-1) for x in zip(*parts, strict=True)]
    close(finalize(name, update(name, empty, *at_once)), one)


@every
def test_it_runs_in_scan_and_vmap(name):
    stat = STATISTICS[name]
    parts = [forecasts(i) for i in range(3)]
    stacked = tuple(jnp.stack(x) for x in zip(*parts, strict=True))
    step = lambda state, xy: (update(name, state, *xy), None)
    scanned, _ = lax.scan(step, stat.init((2,)), stacked)
    separate = [update(name, stat.init((2,)), *part) for part in parts]
    merged = merge(name, merge(name, separate[0], separate[1]), separate[2])
    close(finalize(name, scanned), finalize(name, merged))
    batched = jax.vmap(lambda x, y: update(name, stat.init((2,)), x, y))(*stacked)
    close(batched, jax.tree.map(lambda *x: jnp.stack(x), *separate))


@every
def test_masked_points_might_as_well_not_be_there(name):
    empty = STATISTICS[name].init((2,))
    ensemble, truth = forecasts(2)
    weights = abs(normal(3, (5,)))
    # Five points in the midst of eight; what stands in the others is not a number.
    here = np.array([0, 2, 3, 5, 7])
    where = jnp.zeros(8, bool).at[here].set(True)
    scatter = lambda x: jnp.full((*x.shape[:-1], 8), jnp.nan).at[..., here].set(x)
    wide = [scatter(x) for x in (ensemble, truth, weights)]
    masked = update(name, empty, *wide, where=where)
    plain = update(name, empty, ensemble, truth, weights)
    close(finalize(name, masked), finalize(name, plain))


@every
def test_nothing_valid_is_zero_with_weight_zero_and_zero_gradients(name):
    empty = STATISTICS[name].init((2,))
    ensemble, truth = forecasts(3)
    nothing = finalize(name, empty)
    chex.assert_trees_all_equal(nothing, jax.tree.map(jnp.zeros_like, nothing))
    where = jnp.zeros(5, bool)
    slopes, state = gradient(name, empty, ensemble * jnp.nan, truth, where=where)
    assert not state["weight"].value.any()
    chex.assert_trees_all_equal(slopes, jax.tree.map(jnp.zeros_like, slopes))


@every
def test_gradients_are_finite_where_all_are_equal(name):
    empty = STATISTICS[name].init((2,))
    slopes, _ = gradient(name, empty, jnp.ones((MEMBERS, 2, 5)), jnp.ones((2, 5)))
    chex.assert_tree_all_finite(slopes)


@every
def test_a_nan_that_no_mask_hides_spoils_its_own_sums(name):
    empty = STATISTICS[name].init((2,))
    ensemble, truth = forecasts(4)
    for x, y in [
        (ensemble.at[1, 0, 2].set(jnp.nan), truth),
        (ensemble, truth.at[0, 2].set(jnp.nan)),
    ]:
        leaves = jax.tree.leaves(finalize(name, update(name, empty, x, y)))
        assert any(jnp.isnan(leaf[0]).any() for leaf in leaves)
        chex.assert_tree_all_finite([leaf[1] for leaf in leaves])


@every
def test_float32_states_stay_float32_and_float64_states_keep_more(name):
    agree_in_float32(name, jnp.float32)


def test_half_precision_is_summed_in_float32():
    agree_in_float32("RMSE", jnp.bfloat16)


def agree_in_float32(name, dtype):
    narrow, wide = (STATISTICS[name].init((2,), x) for x in (jnp.float32, None))
    ensemble, truth = forecasts(5, dtype=dtype)
    state = update(name, narrow, ensemble, truth)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, narrow)
    found = finalize(name, state)
    expected = finalize(
        name, update(name, wide, ensemble.astype(float), truth.astype(float))
    )
    chex.assert_trees_all_equal_dtypes(found, jax.tree.map(jnp.float32, expected))
    # The data are the same; members and squares are rounded, of order one.
    chex.assert_trees_all_close(jax.tree.map(jnp.float64, found), expected, atol=1e-6)


@every
def test_regions_are_an_axis_of_the_weights(name):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(6)
    regions = abs(normal(7, (3, 1, 5)))
    state = update(name, stat.init((3, 2)), ensemble[:, None], truth[None], regions)
    for i, value in enumerate(unstack(finalize(name, state))):
        one = update(name, stat.init((2,)), ensemble, truth, regions[i, 0])
        close(value, finalize(name, one))


@every
def test_masks_may_differ_between_members_and_regions(name):
    stat = STATISTICS[name]
    ensemble, truth = forecasts(9)
    where = normal(10, (MEMBERS, 3, 2, 5)) > -0.2
    many = stat.init((3, 2))
    state = update(name, many, ensemble[:, None], truth[None], where=where)
    for i, value in enumerate(unstack(finalize(name, state))):
        one = update(name, stat.init((2,)), ensemble, truth, where=where[:, i])
        close(value, finalize(name, one))


@every
def test_devices_merge_to_the_same_state_everywhere(name):
    empty = STATISTICS[name].init((2,))
    states = [update(name, empty, *forecasts(i)) for i in range(3)]
    gather = lambda state: scores.all_merge(STATISTICS[name], state, "device")
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    merged = jax.jit(jax.vmap(gather, axis_name="device"))(stacked)
    expected = merge(name, merge(name, states[0], states[1]), states[2])
    for state in unstack(merged):
        close(state, expected)


def test_devices_of_a_mesh_merge_inside_shard_map():
    """In a process of its own, as the number of devices is fixed at the start."""
    program = """
        import jax, jax.numpy as jnp, jax.random as jr, numpy as np
        from jax.sharding import Mesh, PartitionSpec as P
        from skyens import scores

        mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
        ensemble, truth = jr.normal(jr.key(0), (5, 8, 6)), jr.normal(jr.key(1), (8, 6))
        axes = ("data", "model")
        for stat in scores.SpreadSkill(), scores.Reliability(5, (0.5,)):
            part = lambda x, y: stat.update(stat.init((6,)), x.mT, y.mT)
            merge = lambda x, y: scores.all_merge(stat, part(x, y), axes)
            sharded = jax.shard_map(
                merge, mesh=mesh, in_specs=(P(None, axes), P(axes)), out_specs=P()
            )
            found = stat.finalize(jax.jit(sharded)(ensemble, truth))
            expected = stat.finalize(part(ensemble, truth))
            for a, b in zip(found, expected):
                assert jnp.allclose(a, b, rtol=1e-5, atol=1e-6), (a, b)

        stat, error = scores.RankHistogram(5), jnp.full((8, 6), 0.5)
        part = lambda x, y, e: stat.update(stat.init(), x, y, truth_error=e)
        merge = lambda *args: scores.all_merge(stat, part(*args), axes)
        sharded = jax.shard_map(
            merge, mesh=mesh, in_specs=(P(None, axes), P(axes), P(axes)), out_specs=P()
        )
        found = stat.finalize(jax.jit(sharded)(ensemble, truth, error))
        expected = stat.finalize(part(ensemble, truth, error))
        assert jnp.allclose(found, expected, rtol=1e-5, atol=1e-6)

        stream = scores.MemberStream()  # devices hold members of one truth
        members, truth = ensemble.swapaxes(0, 1), truth[0, :5]
        members = members[..., 0]
        part = lambda x, y: stream.update(stream.init(y), x)
        merge = lambda x, y: scores.all_merge(stream, part(x, y), axes)
        sharded = jax.shard_map(
            merge, mesh=mesh, in_specs=(P(axes), P()), out_specs=P()
        )
        found = stream.finalize(jax.jit(sharded)(members, truth))
        expected = stream.finalize(part(members, truth))
        for name in "count", "error", "variance", "minimum", "closest", "below":
            a, b = getattr(found, name), getattr(expected, name)
            assert jnp.allclose(a, b, rtol=1e-5, atol=1e-6), (name, a, b)
    """
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
