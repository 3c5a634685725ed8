import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings, strategies as st

from skyens.scores import brier_score, crps, ranked_probability_score

EDGES = jnp.array([-0.5, 0.0, 1.0])


def tied(seed, members, points=(6,)):
    draws = np.random.default_rng(seed).normal(size=(members + 1, *points))
    draws = np.round(2 * draws) / 2
    return jnp.asarray(draws[1:]), jnp.asarray(draws[0])


score = jax.jit(ranked_probability_score)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), alpha=st.floats(0, 1))
def test_it_is_the_sum_of_brier_scores_over_edges(seed, alpha):
    ensemble, truth = tied(seed, 4)
    where = jnp.asarray(np.random.default_rng(seed).random(ensemble.shape) < 0.7)
    found = score(ensemble, truth, edges=EDGES, alpha=jnp.asarray(alpha), where=where)
    assert (found >= 0).all()
    expected = sum(
        brier_score(
            ensemble > edge, truth > edge, alpha=jnp.asarray(alpha), where=where
        )
        for edge in EDGES.tolist()
    )
    chex.assert_trees_all_close(found, expected, atol=1e-14)


def test_it_is_that_of_scoringrules():
    ensemble, truth = tied(1, 5)
    category = lambda x: np.searchsorted(np.asarray(EDGES), x, side="left")
    members, observed = category(ensemble), category(truth)
    shares = np.stack([(members == k).mean(0) for k in range(4)], axis=-1)
    expected = scoringrules.rps_score(observed + 1, shares)
    found = ranked_probability_score(ensemble, truth, edges=EDGES, alpha=0.0)
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_dense_edges_give_the_crps():
    ensemble, truth = tied(2, 5)
    ensemble, truth = ensemble + 1e-3, truth + 2e-3
    edges = jnp.arange(-8, 8, 0.01)
    found = 0.01 * ranked_probability_score(ensemble, truth, edges=edges)
    # Each of the six jumps of the integrand is misplaced by less than a step.
    chex.assert_trees_all_close(found, crps(ensemble, truth), atol=6 * 0.01)


def test_each_point_may_have_its_edges_and_nan_spoils_its_point():
    ensemble, truth = tied(3, 4, (2, 3))
    edges = jnp.array([[-0.5, 0.0, 0.25], [0.0, 0.75, 2.0]])
    found = ranked_probability_score(ensemble, truth, edges=edges)
    for point in range(3):
        one = ranked_probability_score(
            ensemble[..., point], truth[:, point], edges=edges[:, point]
        )
        chex.assert_trees_all_equal(found[:, point], one)
    spoilt = ensemble.at[1, 0, 2].set(jnp.nan)
    lost = jnp.isnan(ranked_probability_score(spoilt, truth, edges=edges))
    assert np.argwhere(lost).tolist() == [[0, 2]]
    narrow = (x.astype(jnp.float32) for x in (ensemble, truth))
    single = ranked_probability_score(*narrow, edges=edges)
    assert single.dtype == jnp.float32
    slope = jax.grad(lambda x: ranked_probability_score(x, truth, edges=edges).sum())
    assert not slope(ensemble).any()


def test_wrong_use_is_reported():
    ensemble, truth = tied(4, 4)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`edges` must be ascending"):
        ranked_probability_score(ensemble, truth, edges=EDGES[::-1])
    with pytest.raises(ValueError, match="at least 1 edge"):
        ranked_probability_score(ensemble, truth, edges=EDGES[:0])
    with pytest.raises(ValueError, match=r"points, \(6,\)"):
        ranked_probability_score(ensemble, truth, edges=jnp.arange(10.0).reshape(2, 5))
    with pytest.raises(ValueError, match="no members"):
        ranked_probability_score(ensemble[:0], truth, edges=EDGES)
