import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.scores import crps, crps_quantile_terms

SIZES = [2, 33]  # both ways of sorting


def tied(seed, members, points=(7,)):
    """Return members and truth on a coarse lattice, so that many are equal."""
    draws = np.random.default_rng(seed).normal(size=(members + 1, *points))
    draws = np.round(2 * draws) / 2
    return jnp.asarray(draws[1:]), jnp.asarray(draws[0])


@jax.jit
def with_slopes(ensemble, truth, alpha, where=None):
    score = lambda *x: crps_quantile_terms(*x, alpha=alpha, where=where)
    terms, pull = jax.vjp(score, ensemble, truth)
    return terms, pull(jnp.ones_like(terms))


@jax.jit
def sum_with_slopes(ensemble, truth, alpha, where=None):
    score = lambda *x: crps(*x, alpha=alpha, where=where)
    value, pull = jax.vjp(score, ensemble, truth)
    return value, pull(jnp.ones_like(value))


@pytest.mark.parametrize("members", SIZES)
def test_the_terms_and_their_gradients_add_up_to_the_score(members):
    ensemble, truth = tied(members, members)
    where = jnp.asarray(np.random.default_rng(1).random(ensemble.shape) < 0.7)
    for alpha in jnp.array([0.0, 0.95, 1.0]):
        for mask in (None, where):
            terms, slopes = with_slopes(ensemble, truth, alpha, mask)
            assert (terms >= 0).all()
            score, expected = sum_with_slopes(ensemble, truth, alpha, mask)
            chex.assert_trees_all_close(terms.sum(0), score, atol=1e-13)
            chex.assert_trees_all_close(slopes, expected, atol=1e-13)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), alpha=st.floats(0, 1))
def test_each_term_is_the_quantile_score_of_its_level(seed, alpha):
    ensemble, truth = tied(seed, 5)
    terms, _ = with_slopes(ensemble, truth, jnp.asarray(alpha))
    rank = np.arange(1, 6)[:, None]
    level = (1 - alpha) * (rank - 0.5) / 5 + alpha * (rank - 1) / 4
    departure = np.sort(ensemble, axis=0) - np.asarray(truth)[None]
    above = (1 - level) * np.maximum(departure, 0)
    expected = 2 / 5 * (above + level * np.maximum(-departure, 0))
    np.testing.assert_allclose(terms, expected, atol=1e-14)


def test_each_slope_is_the_difference_quotient_where_nothing_is_tied():
    rng = np.random.default_rng(2)
    ensemble, truth = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal())
    score = jax.jit(crps_quantile_terms)
    slopes = jax.jit(jax.jacfwd(crps_quantile_terms))(ensemble, truth)
    reverse = jax.jit(jax.jacrev(crps_quantile_terms))(ensemble, truth)
    chex.assert_trees_all_close(slopes, reverse, atol=1e-15)
    for member in range(5):
        step = 1e-6 * jnp.eye(5)[member]
        change = score(ensemble + step, truth) - score(ensemble - step, truth)
        chex.assert_trees_all_close(slopes[:, member], change / 2e-6, atol=1e-8)


def test_equal_members_share_the_slope_of_every_term():
    ensemble, truth = jnp.array([1.0, 0.0, 1.0, 2.0]), jnp.array(0.5)
    slopes = jax.jacrev(crps_quantile_terms)(ensemble, truth)
    chex.assert_trees_all_equal(slopes[:, 0], slopes[:, 2])


def test_it_keeps_dtype_and_memory_and_leads_with_ranks():
    ensemble, truth = tied(3, 4, (6, 2))
    terms = crps_quantile_terms(ensemble, truth)
    last = crps_quantile_terms(jnp.moveaxis(ensemble, 0, -1), truth, axis=-1)
    chex.assert_trees_all_equal(last, terms)
    half = (x.astype(jnp.bfloat16) for x in (ensemble, truth))
    assert crps_quantile_terms(*half).dtype == jnp.bfloat16
    points = 512
    shapes = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((64, points), (points,)))
    total = lambda *x: crps_quantile_terms(*x)[:32].sum()
    memory = jax.jit(jax.grad(total)).lower(*shapes).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 64 / 4 * (64 * points * 4)


def test_the_slope_in_alpha_leads_from_standard_to_fair():
    ensemble, truth = tied(4, 5)
    ends = [crps_quantile_terms(ensemble, truth, alpha=x) for x in (0.0, 1.0)]
    score = lambda alpha: crps_quantile_terms(ensemble, truth, alpha=alpha)
    slope = jax.jacfwd(score)(jnp.asarray(0.3))
    chex.assert_trees_all_close(slope, ends[1] - ends[0], atol=1e-14)


def test_a_nan_spoils_its_point_and_a_masked_one_nothing():
    ensemble, truth = tied(5, 5)
    ensemble = ensemble.at[1, 2].set(jnp.nan)
    terms = crps_quantile_terms(ensemble, truth)
    assert jnp.isnan(terms.sum(0)).tolist() == [k == 2 for k in range(7)]
    terms, slopes = with_slopes(ensemble, truth, 1.0, ~jnp.isnan(ensemble))
    chex.assert_tree_all_finite((terms, slopes))
    found = with_slopes(ensemble, truth, 1.0, jnp.zeros((5, 7), bool))
    chex.assert_trees_all_equal(found, jax.tree.map(jnp.zeros_like, found))


def test_wrong_use_is_reported():
    ensemble, truth = jnp.zeros((3, 4)), jnp.zeros(4)
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\], got 2.0"):
        crps_quantile_terms(ensemble, truth, alpha=2.0)
    with pytest.raises(ValueError, match="no members"):
        crps_quantile_terms(ensemble[:0], truth)
    with pytest.raises(ValueError, match=r"`truth` of shape \(5,\)"):
        crps_quantile_terms(ensemble, jnp.zeros(5))
