import importlib
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st

from skyens.scores import seeps, seeps_matrix


@settings(deadline=None, max_examples=20)
@given(dry=st.floats(0.1, 0.85))
def test_every_constant_forecast_scores_one_in_the_climate(dry):
    climate = jnp.array([dry, 2 / 3 * (1 - dry), (1 - dry) / 3])
    expected = seeps_matrix(jnp.asarray(dry)) @ climate
    chex.assert_trees_all_close(expected, jnp.ones(3), rtol=1e-13)


def test_a_perfect_forecast_scores_zero_and_a_forecast_of_all_members_broadcasts():
    rng = np.random.default_rng(0)
    truth = jnp.asarray(rng.gamma(0.5, 5.0, (6,)))
    members = jnp.concatenate([truth[None], jnp.asarray(rng.gamma(0.5, 5.0, (3, 6)))])
    climate: dict[str, Any] = dict(
        dry_probability=jnp.asarray(0.4), heavy_threshold=jnp.full(6, 4.0)
    )
    score = jax.jit(lambda x, y: seeps(x, y, **climate))
    found = score(members, truth)
    assert not found[0].any()
    for member, value in zip(members, found, strict=True):
        chex.assert_trees_all_equal(score(member, truth), value)


def test_it_is_that_of_scores():
    rng = np.random.default_rng(1)
    forecast, truth = rng.gamma(0.5, 5.0, (2, 200))
    dry, heavy = rng.uniform(0, 1, 200), rng.uniform(2, 8, 200)
    found = seeps(
        *(jnp.asarray(x) for x in (forecast, truth)),
        dry_probability=jnp.asarray(dry),
        heavy_threshold=jnp.asarray(heavy),
        dry_threshold=0.2,
    )
    arrays = (xr.DataArray(x, dims="point") for x in (forecast, truth, dry, heavy))
    peer = importlib.import_module("scores.categorical")
    expected = peer.seeps(*arrays, dry_light_threshold=0.2, preserve_dims="all")
    # The peer leaves what is masked NaN.
    np.testing.assert_allclose(found, np.nan_to_num(expected), rtol=1e-12)
    masked = (dry < 0.1) | (dry > 0.85)
    np.testing.assert_array_equal(np.isnan(expected), masked)


def test_thresholds_belong_to_dry_and_to_heavy_days():
    climate: dict[str, Any] = dict(
        dry_probability=jnp.asarray(0.5), heavy_threshold=jnp.asarray(4.0)
    )
    categories = jnp.array([0.0, 0.25, 0.26, 3.9, 4.0, 9.0])
    none = seeps(categories, jnp.zeros(6), **climate)
    matrix = seeps_matrix(jnp.asarray(0.5))
    chex.assert_trees_all_equal(none, matrix[jnp.array([0, 0, 1, 1, 2, 2]), 0])


def test_what_is_not_known_is_zero_in_the_climate_and_nan_in_the_forecast():
    ones = jnp.ones(3, jnp.float32)
    climate: dict[str, Any] = dict(heavy_threshold=4 * ones, dry_probability=0.5 * ones)
    dry = jnp.array([0.05, 0.9, jnp.nan], jnp.float32)
    heavy = climate["heavy_threshold"]
    found = seeps(ones, 9 * ones, dry_probability=dry, heavy_threshold=heavy)
    chex.assert_trees_all_equal(found, jnp.zeros(3, jnp.float32))
    lost = heavy * jnp.nan
    found = seeps(ones, 9 * ones, dry_probability=0.5 * ones, heavy_threshold=lost)
    chex.assert_trees_all_equal(found, jnp.zeros(3, jnp.float32))
    assert jnp.isnan(seeps(ones * jnp.nan, ones, **climate)).all()
    slope = jax.grad(lambda x: seeps(x, ones, **climate).sum())(9 * ones)
    assert not slope.any()


def test_wrong_use_is_reported():
    ones = jnp.ones(3)
    climate: dict[str, Any] = dict(heavy_threshold=ones, dry_probability=0.5 * ones)
    with pytest.raises(ValueError, match=r"do not broadcast.*forecast.*\(2,\)"):
        seeps(jnp.ones(2), ones, **climate)
    with pytest.raises(ValueError, match=r"0 < least < most < 1, got 0\.9"):
        seeps(ones, ones, **climate, least=0.9)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`dry_probability` must be prob"):
        seeps(ones, ones, heavy_threshold=ones, dry_probability=1.5 * ones)
