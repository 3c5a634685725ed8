import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings, strategies as st

from skyens.scores import crps, energy_score


def pairwise(ensemble, truth, alpha, beta=1.0):
    """Return the definition in float64, all pairs of members; events come last."""
    x, y = np.asarray(ensemble, float), np.asarray(truth, float)
    size = len(x)
    weight = (1 - alpha) / size**2 + (alpha / (size * (size - 1)) if alpha else 0)
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1) ** beta
    error = np.linalg.norm(x - y, axis=-1) ** beta
    return error.mean(0) - weight * distance.sum((0, 1)) / 2


def pairwise_gradient(ensemble, truth, alpha):
    x, y = np.asarray(ensemble, float), np.asarray(truth, float)
    size = len(x)
    weight = (1 - alpha) / size**2 + (alpha / (size * (size - 1)) if alpha else 0)
    return unit(x - y) / size - weight * unit(x[:, None] - x[None]).sum(1)


def unit(vectors):
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 0, vectors / np.where(length > 0, length, 1), 0)


def normal(seed, shape, dtype=float):
    """Draw by NumPy, which has nothing to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def tied(seed, members, points=(3, 5), event=2):
    """Return members and truth on a coarse lattice, so that some are equal."""
    draws = np.random.default_rng(seed).normal(size=(members + 1, *points, event))
    draws = np.round(draws)
    draws[0], draws[1, 0] = draws[1], draws[2, 0]
    return jnp.asarray(draws[1:]), jnp.asarray(draws[0])


@functools.partial(jax.jit, static_argnames="beta")
def with_slopes(ensemble, truth, alpha, where=None, beta=1.0):
    score = lambda x, y: energy_score(x, y, alpha=alpha, beta=beta, where=where)
    value, pull = jax.vjp(score, ensemble, truth)
    return value, pull(jnp.ones_like(value))


value_of = jax.jit(energy_score, static_argnames=("beta", "axis", "event_axes"))


class EnergyScoreTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_fair_and_standard_are_those_of_scoringrules(self):
        ensemble, truth = normal(0, (6, 4, 3)), normal(1, (4, 3))
        for alpha, estimator in [(1.0, "fair"), (0.0, "nrg")]:
            score = self.variant(lambda x, y: energy_score(x, y, alpha=alpha))
            peer = scoringrules.es_ensemble(
                np.asarray(truth), np.asarray(ensemble), m_axis=0, estimator=estimator
            )
            found = score(ensemble, truth)
            chex.assert_trees_all_close(found, np.asarray(peer), rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.95, 1.0])
def test_value_and_gradient_are_those_of_all_pairs_with_ties(alpha):
    ensemble, truth = tied(0, 5)
    score, (by_member, by_truth) = with_slopes(ensemble, truth, jnp.asarray(alpha))
    expected = pairwise(ensemble, truth, alpha)
    chex.assert_trees_all_close(score, expected, rtol=1e-12)
    plain = value_of(ensemble, truth, alpha=jnp.asarray(alpha))
    chex.assert_trees_all_close(plain, expected, rtol=1e-12)
    slope = pairwise_gradient(ensemble, truth, alpha)
    chex.assert_trees_all_close(by_member, slope, atol=1e-13)
    chex.assert_trees_all_close(by_truth, -slope.sum(0), atol=1e-13)
    chex.assert_trees_all_close(by_member[0, 0], by_member[1, 0], atol=1e-14)


def test_other_exponents_and_the_square_that_sees_the_mean_alone():
    ensemble, truth = normal(1, (5, 3, 5, 2)), normal(2, (3, 5, 2))
    one = jnp.ones(())
    for beta in (0.5, 1.5):
        score, (slope, _) = with_slopes(ensemble, truth, one, beta=beta)
        expected = pairwise(ensemble, truth, 1.0, beta)
        chex.assert_trees_all_close(score, expected, rtol=1e-12)
        chex.assert_trees_all_close(
            value_of(ensemble, truth, beta=beta), expected, rtol=1e-12
        )
        step = normal(3, ensemble.shape)
        ends = (pairwise(ensemble + h * step, truth, 1.0, beta) for h in (1e-6, -1e-6))
        change = functools.reduce(np.subtract, ends) / 2e-6
        moved = (slope * step).sum((0, -1))
        chex.assert_trees_all_close(moved, change, rtol=1e-6, atol=1e-7)
    score, _ = with_slopes(ensemble, truth, jnp.zeros(()), beta=2.0)
    squared = ((ensemble.mean(0) - truth) ** 2).sum(-1)
    chex.assert_trees_all_close(score, squared, rtol=1e-10)


def test_events_of_one_dimension_give_the_crps():
    ensemble, truth = normal(4, (5, 3, 4)), normal(5, (3, 4))
    score = value_of(ensemble, truth, event_axes=())
    chex.assert_trees_all_close(score, crps(ensemble, truth), rtol=1e-11)


def test_any_axes_any_broadcast_and_vmap():
    ensemble, truth = normal(6, (4, 2, 3)), normal(7, (5, 1, 3))
    score = value_of(ensemble, truth)
    chex.assert_shape(score, (5, 2))
    expected = pairwise(
        np.broadcast_to(ensemble[:, None], (4, 5, 2, 3)),
        np.broadcast_to(truth, (5, 2, 3)),
        1.0,
    )
    chex.assert_trees_all_close(score, expected, rtol=1e-12)
    last = value_of(jnp.moveaxis(ensemble, 0, -1), truth, axis=-1)
    chex.assert_trees_all_equal(last, score)
    one_by_one = jax.vmap(lambda y: energy_score(ensemble, y))(
        jnp.broadcast_to(truth, (5, 2, 3))
    )
    chex.assert_trees_all_close(one_by_one, score, rtol=1e-13)
    both = value_of(ensemble, truth[0], event_axes=(-1, -2))
    flat = pairwise(ensemble.reshape(4, 6), jnp.tile(truth[0], (2, 1)).ravel(), 1.0)
    chex.assert_trees_all_close(both, flat, rtol=1e-12)
    leading = value_of(jnp.moveaxis(ensemble, 2, 1), truth[2].T, event_axes=(0,))
    chex.assert_trees_all_close(leading, score[2], rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_masked_members_and_dimensions_might_as_well_not_be_there(alpha):
    ensemble, truth = tied(8, 5, event=3)
    draws = np.random.default_rng(9)
    members = draws.random((5, 3, 5, 1)) > 0.4
    known = draws.random((3, 5, 3)) > 0.3
    where = members & known
    where[0, 0, 0] = [True, True, False]  # a hole: the member does not count
    members[0, 0, 0], known[0, 0] = False, [True, True, True]
    where[1:, 0, 0] = members[1:, 0, 0] = True
    spoilt = jnp.where(where, ensemble, jnp.nan)
    hidden = jnp.where(where.any(0), truth, jnp.nan)
    score, slopes = jax.device_get(
        with_slopes(spoilt, hidden, jnp.asarray(alpha), jnp.asarray(where))
    )
    for point in np.ndindex(3, 5):
        here, entries = members[(slice(None), *point, 0)], known[point]
        few = here.sum() < (2 if alpha else 1) or not entries.any()
        x = np.asarray(ensemble)[(here, *point)][:, entries]
        y = np.asarray(truth)[point][entries]
        value = 0.0 if few else pairwise(x, y, alpha)
        np.testing.assert_allclose(score[point], value, atol=1e-13)
        expected = np.zeros((5, 3))
        if not few:
            expected[np.ix_(here, entries)] = pairwise_gradient(x, y, alpha)
        found = slopes[0][(slice(None), *point)]
        np.testing.assert_allclose(found, expected, atol=1e-13)
        np.testing.assert_allclose(slopes[1][point], -expected.sum(0), atol=1e-13)


def test_all_masked_is_zero_with_zero_gradients():
    ensemble, truth = jnp.full((5, 3, 5, 2), jnp.nan), jnp.full((3, 5, 2), jnp.nan)
    where = jnp.zeros(ensemble.shape, bool)
    found = with_slopes(ensemble, truth, jnp.ones(()), where)
    chex.assert_trees_all_equal(found, jax.tree.map(jnp.zeros_like, found))


def test_a_nan_that_no_mask_hides_spoils_its_point_alone():
    ensemble, truth = tied(10, 5)
    truth = truth.at[1, 1, 0].set(jnp.nan)
    ensemble = ensemble.at[2, 2, 3, 1].set(jnp.nan)
    lost = jnp.zeros((3, 5), bool).at[1, 1].set(True).at[2, 3].set(True)
    chex.assert_trees_all_equal(jnp.isnan(value_of(ensemble, truth)), lost)
    score, _ = with_slopes(ensemble, truth, jnp.ones(()))
    chex.assert_trees_all_equal(jnp.isnan(score), lost)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    alpha=st.sampled_from([0.0, 0.95, 1.0]),
    shift=st.floats(-1e3, 1e3),
    scale=st.floats(1e-3, 1e3),
)
def test_order_shift_scale_and_rotation(seed, alpha, shift, scale):
    ensemble, truth = tied(seed, 5)
    draws, alpha = np.random.default_rng(seed), jnp.asarray(alpha)
    score = value_of(ensemble, truth, alpha=alpha)
    shuffled = jnp.asarray(draws.permutation(np.asarray(ensemble)))
    again = value_of(shuffled, truth, alpha=alpha)
    chex.assert_trees_all_close(again, score, rtol=1e-12, atol=1e-13)
    turn = jnp.asarray(np.linalg.qr(draws.normal(size=(2, 2)))[0])
    moved = [scale * x @ turn + shift for x in (ensemble, truth)]
    rounding = 1e-14 * (scale + abs(shift))
    again = value_of(*moved, alpha=alpha)
    chex.assert_trees_all_close(again, scale * score, rtol=1e-12, atol=rounding)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_float32_is_exact_at_a_large_offset_and_half_is_rounded_once(dtype):
    offset, spread = (5e5, 0.5) if dtype == jnp.float32 else (3.0, 0.05)
    ensemble = (offset + spread * normal(11, (20, 300, 4), jnp.float32)).astype(dtype)
    truth = (offset + spread * normal(12, (300, 4), jnp.float32)).astype(dtype)
    score, (slope, _) = with_slopes(ensemble, truth, jnp.ones(()))
    assert score.dtype == slope.dtype == dtype
    expected = pairwise(ensemble, truth, 1.0)
    rounding = 2e-6 if dtype == jnp.float32 else 2.0**-8
    scale = expected.mean()
    plain = value_of(ensemble, truth)
    for found in (score, plain):
        np.testing.assert_allclose(
            np.asarray(found, float), expected, rtol=rounding, atol=rounding * scale
        )
    expected = pairwise_gradient(ensemble, truth, 1.0)
    np.testing.assert_allclose(np.asarray(slope, float), expected, atol=rounding)


def test_forward_mode_alpha_and_curvature_are_finite_differences():
    ensemble, truth = normal(13, (3, 2, 2)), normal(14, (2, 2))
    ensemble = ensemble.at[0, 1].set(ensemble[1, 1])  # stays so: their step is one
    steps = normal(15, ensemble.shape), normal(16, truth.shape), jnp.asarray(0.3)
    steps = (steps[0].at[0, 1].set(steps[0][1, 1]), *steps[1:])
    point = ensemble, truth, jnp.asarray(0.6)
    total = lambda x, y, a: energy_score(x, y, alpha=a).sum()
    along = lambda h: [x + h * step for x, step in zip(point, steps, strict=True)]
    slopes = jax.jit(jax.grad(total, (0, 1, 2)))
    difference = lambda f: jax.tree.map(
        lambda a, b: (a - b) / 2e-6, f(*along(1e-6)), f(*along(-1e-6))
    )
    _, change = jax.jit(lambda x, v: jax.jvp(total, x, v))(point, steps)
    chex.assert_trees_all_close(change, difference(total), rtol=1e-7)
    expected = difference(slopes)
    curvature = jax.jit(lambda x, v: jax.jvp(jax.grad(total, (0, 1, 2)), x, v)[1])
    chex.assert_trees_all_close(curvature(point, steps), expected, rtol=1e-5, atol=1e-7)
    work = lambda *x: sum(
        jnp.vdot(a, b) for a, b in zip(slopes(*x), steps, strict=True)
    )
    backward = jax.jit(jax.grad(work, (0, 1, 2)))(*point)
    chex.assert_trees_all_close(backward, expected, rtol=1e-5, atol=1e-7)


def test_the_fair_score_does_not_depend_on_the_number_of_members():
    population, truth = normal(17, (6, 2)), normal(18, (2,))
    whole = value_of(population, truth)
    for size in (2, 5):
        subsets = np.array(list(itertools.combinations(range(6), size)))
        ensembles = jnp.moveaxis(population[subsets], 1, 0)
        chex.assert_trees_all_close(
            energy_score(ensembles, truth).mean(), whole, rtol=1e-12
        )


def test_long_events_are_summed_alike():
    ensemble, truth = normal(21, (3, 2, 40)), normal(22, (2, 40))
    score, (slope, _) = with_slopes(ensemble, truth, jnp.ones(()))
    expected = pairwise(ensemble, truth, 1.0)
    chex.assert_trees_all_close(score, expected, rtol=1e-12)
    chex.assert_trees_all_close(slope, pairwise_gradient(ensemble, truth, 1.0))


def test_it_is_proper():
    draws, truth = normal(19, (3, 20_000, 2)), normal(20, (20_000, 2))
    right = value_of(draws, truth)
    turned = jnp.stack([draws[..., 0], 0.8 * draws[..., 0] + 0.6 * draws[..., 1]], -1)
    for wrong in (0.7 * draws, 1.4 * draws, draws + 0.3, turned):
        loss = value_of(wrong, truth) - right
        assert loss.mean() > 4 * loss.std() / np.sqrt(loss.size)


def test_gradients_hold_no_array_of_pairs():
    members, event, points = 32, 8, 4096
    shape = jax.ShapeDtypeStruct((members, points, event), jnp.float32)
    truth = jax.ShapeDtypeStruct((points, event), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x, y: energy_score(x, y).sum()))
    memory = gradient.lower(shape, truth).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * members * points * event * 4


def test_wrong_use_is_reported():
    ensemble, truth = jnp.zeros((3, 4, 2)), jnp.zeros((4, 2))
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\], got 1.5"):
        energy_score(ensemble, truth, alpha=1.5)
    with pytest.raises(ValueError, match=r"`beta` must lie in \(0, 2\], got 0"):
        energy_score(ensemble, truth, beta=0.0)
    with pytest.raises(ValueError, match="1 member along axis 0"):
        energy_score(ensemble[:1], truth)
    with pytest.raises(ValueError, match="no members"):
        energy_score(ensemble[:0], truth)
    with pytest.raises(ValueError, match=r"`truth` of shape \(5, 2\)"):
        energy_score(ensemble, jnp.zeros((5, 2)))
    with pytest.raises(ValueError, match="`where` has shape"):
        energy_score(ensemble, truth, where=jnp.ones((2, 4, 2), bool))
    for axes in [(2,), (-1, 1)]:
        with pytest.raises(ValueError, match="`event_axes` must name different axes"):
            energy_score(ensemble, truth, event_axes=axes)
