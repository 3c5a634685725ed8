import itertools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings, strategies as st

from skyens.scores import variogram_score


def pairwise(ensemble, truth, weights, order, alpha):
    """Return the definition in float64; events come last."""
    rough = lambda x: np.abs(x[..., :, None] - x[..., None, :]) ** order
    members = rough(np.asarray(ensemble, float))
    error = rough(np.asarray(truth, float)) - members.mean(0)
    bias = members.var(0, ddof=1) / len(members) if alpha else 0
    return ((error**2 - alpha * bias) * weights).sum((-1, -2))


def normal(seed, shape, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


value_of = jax.jit(variogram_score, static_argnames="order")


class VariogramScoreTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_that_of_scoringrules_and_the_definition(self):
        ensemble, truth = normal(0, (5, 4, 3)), normal(1, (4, 3))
        score = lambda x, y: variogram_score(x, y, alpha=0.0)
        peer = scoringrules.vs_ensemble(
            np.asarray(truth), np.asarray(ensemble), m_axis=0, p=0.5
        )
        found = self.variant(score)(ensemble, truth)
        chex.assert_trees_all_close(found, np.asarray(peer), rtol=1e-12)


@pytest.mark.parametrize("order", [0.5, 1.0, 1.7])
def test_weights_orders_and_alpha(order):
    ensemble, truth = normal(2, (5, 4, 3)), normal(3, (4, 3))
    weights = jnp.asarray(np.random.default_rng(4).random((3, 3)))
    for alpha in (0.0, 0.95, 1.0):
        score = value_of(
            ensemble, truth, order=order, weights=weights, alpha=jnp.asarray(alpha)
        )
        expected = pairwise(ensemble, truth, np.asarray(weights), order, alpha)
        chex.assert_trees_all_close(score, expected, rtol=1e-11, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), shift=st.floats(-9, 9), scale=st.floats(0.1, 9))
def test_order_of_members_shift_and_scale(seed, shift, scale):
    draws = np.random.default_rng(seed).normal(size=(6, 4, 3))
    ensemble, truth = jnp.asarray(draws[1:]), jnp.asarray(draws[0])
    score = value_of(ensemble, truth)
    moved = value_of(scale * ensemble[::-1] + shift, scale * truth - 2 * shift)
    chex.assert_trees_all_close(moved, scale * score, rtol=1e-9, atol=1e-9)


def test_masked_members_and_entries_might_as_well_not_be_there():
    ensemble, truth = normal(5, (5, 4, 3)), normal(6, (4, 3))
    draws = np.random.default_rng(7)
    members, known = draws.random((5, 4, 1)) > 0.3, draws.random((4, 3)) > 0.3
    members[:2], known[:, :2] = True, True
    where = jnp.asarray(members & known)
    spoilt = jnp.where(where, ensemble, jnp.nan)
    hidden = jnp.where(where.any(0), truth, jnp.nan)
    total = lambda x, y: variogram_score(x, y, where=where).sum()
    slopes = jax.jit(jax.grad(total, (0, 1)))(spoilt, hidden)
    score = value_of(spoilt, hidden, where=where)
    for point in range(4):
        here, entries = members[:, point, 0], known[point]
        x, y = np.asarray(ensemble)[here, point], np.asarray(truth)[point, entries]
        expected = pairwise(x[:, entries], y, 1.0, 0.5, 1.0)
        np.testing.assert_allclose(score[point], expected, rtol=1e-11)
    chex.assert_tree_all_finite(slopes)
    chex.assert_trees_all_equal(jnp.where(where, 0.0, slopes[0]), jnp.zeros((5, 4, 3)))
    none = value_of(spoilt, hidden, where=jnp.zeros_like(where))
    chex.assert_trees_all_equal(none, jnp.zeros(4))


def test_the_fair_score_does_not_depend_on_the_number_of_members():
    population, truth = normal(8, (6, 3)), normal(9, (3,))
    # The variance of a mean of distinct members: what is fair for draws from a
    # population of infinite size is fair here with the population as an ensemble.
    whole = value_of(population, truth)
    for size in (2, 4):
        subsets = np.array(list(itertools.combinations(range(6), size)))
        ensembles = jnp.moveaxis(population[subsets], 1, 0)
        mean = value_of(ensembles, truth).mean()
        chex.assert_trees_all_close(mean, whole, rtol=1e-10)


def test_it_sees_a_wrong_correlation():
    draws, truth = normal(10, (3, 40_000, 2)), normal(11, (40_000, 2))
    mix = lambda x, r: jnp.stack(
        [x[..., 0], r * x[..., 0] + (1 - r * r) ** 0.5 * x[..., 1]], -1
    )
    right = value_of(mix(draws, 0.6), mix(truth, 0.6))
    for correlation in (0.0, 0.9):
        loss = value_of(mix(draws, correlation), mix(truth, 0.6)) - right
        assert loss.mean() > 4 * loss.std() / np.sqrt(loss.size)


def test_gradients_are_finite_differences_and_finite_at_equal_entries():
    ensemble, truth = normal(12, (3, 4, 3)), normal(13, (4, 3))
    total = jax.jit(lambda x, y: variogram_score(x, y).sum())
    slopes = jax.jit(jax.grad(total, (0, 1)))
    steps = normal(14, ensemble.shape), normal(15, truth.shape)
    ahead, behind = (
        total(ensemble + h * steps[0], truth + h * steps[1]) for h in (1e-6, -1e-6)
    )
    change = sum(map(jnp.vdot, slopes(ensemble, truth), steps))
    chex.assert_trees_all_close(change, (ahead - behind) / 2e-6, rtol=1e-6)
    flat = jnp.ones((3, 4, 3)), jnp.ones((4, 3))
    chex.assert_trees_all_equal(slopes(*flat), jax.tree.map(jnp.zeros_like, flat))
    chex.assert_tree_all_finite(slopes(ensemble.at[:, :, 0].set(1.0), truth))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_keeps_its_dtype_and_digits(dtype):
    offset = 5e5 if dtype == jnp.float32 else 0
    ensemble = (offset + normal(16, (6, 50, 3))).astype(dtype)
    truth = (offset + normal(17, (50, 3))).astype(dtype)
    score = value_of(ensemble, truth)
    assert score.dtype == dtype
    expected = pairwise(ensemble, truth, 1.0, 0.5, 1.0)
    rounding = 1e-5 if dtype == jnp.float32 else 2.0**-7
    found = np.asarray(score, float)
    np.testing.assert_allclose(found, expected, rtol=rounding, atol=rounding)


def test_wrong_use_is_reported():
    ensemble, truth = jnp.zeros((3, 4, 2)), jnp.zeros((4, 2))
    with pytest.raises(ValueError, match="`order` must be positive, got 0"):
        variogram_score(ensemble, truth, order=0.0)
    with pytest.raises(ValueError, match=r"`weights` must have shape \(2, 2\)"):
        variogram_score(ensemble, truth, weights=jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="1 member along axis 0"):
        variogram_score(ensemble[:1], truth)
    with pytest.raises(ValueError, match="`alpha` must lie"):
        variogram_score(ensemble, truth, alpha=-0.1)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`weights` must be not negative"):
        variogram_score(ensemble, truth, weights=-jnp.ones((2, 2)))
