import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.scores import FractionsSkill, Statistic, fractions_skill_score

GRID = sphere.equiangular(7, 12)
AREA = jnp.asarray(GRID.cell_areas)[:, None]
STATISTIC = FractionsSkill(GRID, 40.0, 0.5)

update = eqx.filter_jit(FractionsSkill.update)


def fields(seed, *lead):
    draws = np.random.default_rng(seed).normal(size=(*lead, *GRID.shape))
    return jnp.asarray(draws)


def reference(probability, event, where=None):
    """Return both sums by distances between all pairs of points."""
    latitude, longitude = np.meshgrid(GRID.latitude, GRID.longitude, indexing="ij")
    latitude, longitude = jnp.asarray(latitude.ravel()), jnp.asarray(longitude.ravel())
    distance = sphere.great_circle_distance(
        latitude[:, None], longitude[:, None], latitude[None], longitude[None]
    )
    area = np.repeat(GRID.cell_areas, GRID.n_longitude)
    here = np.ones(area.size, bool) if where is None else np.asarray(where).ravel()
    near = (np.asarray(distance) <= np.deg2rad(40) + 1e-9) * area * here
    near = near[here] / near[here].sum(1, keepdims=True)
    f, o = (near @ np.asarray(x, float).ravel() for x in (probability, event))
    return ((f - o) ** 2 @ area[here], (f**2 + o**2) @ area[here])


def test_function_and_statistic_are_the_definition_with_masks():
    ensemble, truth = fields(0, 3), fields(1)
    where = np.random.default_rng(2).random(GRID.shape) < 0.6
    events = ensemble > 0.5
    probability, event = events.astype(float).mean(0), truth > 0.5
    for mask in (None, jnp.asarray(where)):
        error, size = reference(probability, event, mask)
        found = fractions_skill_score(
            GRID, probability, event, radius_degrees=40.0, where=mask
        )
        np.testing.assert_allclose(found, 1 - error / size, rtol=1e-12)
        state = update(STATISTIC, STATISTIC.init(), ensemble, truth, AREA, mask)
        np.testing.assert_allclose(STATISTIC.finalize(state), found, rtol=1e-12)


def test_sums_of_many_forecasts_are_divided_once():
    ensembles, truths = fields(3, 3, 4), fields(4, 4)
    assert isinstance(STATISTIC, Statistic)
    state = update(STATISTIC, STATISTIC.init(), ensembles, truths, AREA)
    parts = [
        update(STATISTIC, STATISTIC.init(), ensembles[:, k], truths[k], AREA)
        for k in range(4)
    ]
    merged = parts[3]
    for part in parts[:3]:
        merged = STATISTIC.merge(merged, part)
    chex.assert_trees_all_close(
        STATISTIC.finalize(merged), STATISTIC.finalize(state), rtol=1e-12
    )
    p, event = (ensembles > 0.5).astype(float).mean(0), truths > 0.5
    sums = np.sum([reference(p[k], event[k]) for k in range(4)], axis=0)
    np.testing.assert_allclose(STATISTIC.finalize(state), 1 - sums[0] / sums[1])
    kept = update(STATISTIC, STATISTIC.init((4,)), ensembles, truths, AREA)
    each = [1 - np.divide(*reference(p[k], event[k])) for k in range(4)]
    np.testing.assert_allclose(STATISTIC.finalize(kept), each, rtol=1e-12)


def test_members_that_are_masked_do_not_count():
    ensemble, truth = fields(5, 4), fields(6)
    where = np.random.default_rng(7).random(ensemble.shape) < 0.5
    count = where.sum(0)
    p = ((np.asarray(ensemble) > 0.5) & where).sum(0) / np.maximum(count, 1)
    spoilt = jnp.where(where, ensemble, jnp.nan)
    state = update(STATISTIC, STATISTIC.init(), spoilt, truth, AREA, jnp.asarray(where))
    error, size = reference(p, truth > 0.5, count > 0)
    np.testing.assert_allclose(STATISTIC.finalize(state), 1 - error / size, rtol=1e-12)


def test_perfect_is_one_disjoint_zero_and_nothing_zero():
    event = jnp.zeros(GRID.shape, bool).at[2:4, 3:5].set(True)
    score = lambda x, y, **more: fractions_skill_score(
        GRID, x, y, radius_degrees=20.0, **more
    )
    np.testing.assert_allclose(score(event, event), 1)
    far = jnp.roll(event, 6, axis=1)
    np.testing.assert_allclose(score(far, event), 0, atol=1e-12)
    assert score(event & False, event & False) == 0
    assert score(event, event, where=event & False) == 0
    # A larger cap forgives a displacement.
    near = jnp.roll(event, 1, axis=1)
    wide = fractions_skill_score(GRID, near, event, radius_degrees=60.0)
    assert 0 < score(near, event) < wide < 1


def test_it_is_a_loss_with_finite_slopes():
    probability = jax.nn.sigmoid(fields(8)).astype(jnp.float32)
    event = fields(9) > 0.5
    loss = lambda p, e: 1 - fractions_skill_score(GRID, p, e, radius_degrees=30.0)
    assert loss(probability, event).dtype == jnp.float32
    slope = jax.grad(loss)(probability, event)
    step = 1e-2 * slope / jnp.linalg.norm(slope)
    assert loss(probability - step, event) < loss(probability, event)
    slope = jax.grad(loss)(jnp.zeros(GRID.shape), event & False)
    chex.assert_tree_all_finite(slope)


def test_nan_that_is_not_masked_shows():
    ensemble, truth = fields(10, 2), fields(11)
    spoilt = ensemble.at[1, 3, 4].set(jnp.nan)
    state = update(STATISTIC, STATISTIC.init(), spoilt, truth, AREA)
    assert jnp.isnan(STATISTIC.finalize(state))


def test_wrong_use_is_reported():
    zeros = jnp.zeros(GRID.shape)
    with pytest.raises(ValueError, match="`truth` of shape"):
        fractions_skill_score(GRID, zeros, zeros.T, radius_degrees=10.0)
    with pytest.raises(
        eqx.EquinoxRuntimeError, match="`forecast` must be probabilities"
    ):
        fractions_skill_score(GRID, zeros + 2, zeros, radius_degrees=10.0)
    with pytest.raises(ValueError, match="`radius_degrees`"):
        FractionsSkill(GRID, 200.0, 0.5)
    with pytest.raises(ValueError, match="does not lie on this"):
        STATISTIC.update(STATISTIC.init(), jnp.zeros((2, 5, 5)), jnp.zeros((5, 5)))
