import itertools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings, strategies as st

from skyens.scores import (
    GaussianKernel,
    InverseMultiquadricKernel,
    energy_score,
    kernel_score,
)


def pairwise(ensemble, truth, kernel, alpha):
    """Return the definition for one event in float64."""
    x, y = np.asarray(ensemble, float), np.asarray(truth, float)
    size = len(x)
    table = np.array([[kernel(a, b) for b in x] for a in x])
    apart = (table.sum() - np.trace(table)) / (size * (size - 1))
    among = alpha * apart + (1 - alpha) * table.mean()
    return (among + kernel(y, y)) / 2 - np.mean([kernel(a, y) for a in x])


def gaussian(a, b):
    return np.exp(-np.sum((a - b) ** 2) / (2 * 1.5**2))


def multiquadric(a, b):
    return 1 / np.sqrt(1 + np.sum((a - b) ** 2) / 1.5**2)


def distance_kernel(first, second):
    """The kernel of the energy score."""
    length = lambda x: jnp.linalg.norm(x, axis=0)
    gap = jnp.where(first == second, 0, first - second)
    return length(first) + length(second) - length(gap)


def normal(seed, shape, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


class KernelScoreTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_is_the_definition(self):
        ensemble, truth = normal(0, (4, 3, 2)), normal(1, (3, 2))
        score = self.variant(
            lambda x, y, k, a: kernel_score(x, y, kernel=k, alpha=a, event_axes=(-1,))
        )
        for kernel, plain in [
            (GaussianKernel(1.5), gaussian),
            (InverseMultiquadricKernel(1.5), multiquadric),
        ]:
            for alpha in (0.0, 0.5, 1.0):
                found = score(ensemble, truth, kernel, alpha)
                expected = [
                    pairwise(ensemble[:, i], truth[i], plain, alpha) for i in range(3)
                ]
                chex.assert_trees_all_close(found, np.array(expected), atol=1e-13)


def test_standard_is_that_of_scoringrules():
    ensemble, truth = normal(2, (5, 4)), normal(3, (4,))
    # The length of the peer's kernel is 1.
    peer = scoringrules.gksuv_ensemble(
        np.asarray(truth), np.asarray(ensemble), m_axis=0, estimator="nrg"
    )
    score = kernel_score(ensemble, truth, kernel=GaussianKernel(1.0), alpha=0.0)
    chex.assert_trees_all_close(score, np.asarray(peer), atol=1e-12)


def test_the_kernel_of_distances_gives_the_energy_score():
    ensemble, truth = normal(4, (4, 3, 2)), normal(5, (3, 2))
    for alpha in (0.0, 1.0):
        score = jax.jit(
            lambda x, y, a=alpha: kernel_score(
                x, y, kernel=distance_kernel, alpha=a, event_axes=(-1,)
            )
        )(ensemble, truth)
        energy = energy_score(ensemble, truth, alpha=alpha)
        chex.assert_trees_all_close(score, energy, rtol=1e-11, atol=1e-12)


def test_masked_members_and_entries_might_as_well_not_be_there():
    ensemble, truth = normal(6, (4, 3, 2)), normal(7, (3, 2))
    where = np.ones((4, 3, 2), bool)
    where[0, 0], where[:, 1, 0], where[1:, 2] = False, False, False
    spoilt = jnp.where(jnp.asarray(where), ensemble, jnp.nan)
    hidden = jnp.where(jnp.asarray(where.any(0)), truth, jnp.nan)
    kernel = GaussianKernel(1.5)
    masked = lambda x, y: kernel_score(
        x, y, kernel=kernel, event_axes=(-1,), where=jnp.asarray(where)
    )

    def with_slopes(x, y):
        score, pull = jax.vjp(masked, x, y)
        return score, pull(jnp.ones(3))

    score, slopes = jax.jit(with_slopes)(spoilt, hidden)
    expected = [
        pairwise(ensemble[1:, 0], truth[0], gaussian, 1.0),
        pairwise(ensemble[:, 1, 1:], truth[1, 1:], gaussian, 1.0),
        0.0,
    ]
    chex.assert_trees_all_close(score, np.array(expected), atol=1e-13)
    chex.assert_tree_all_finite(slopes)
    chex.assert_trees_all_equal(jnp.where(where, 0.0, slopes[0]), jnp.zeros((4, 3, 2)))


value_of = jax.jit(
    lambda x, y, a: kernel_score(x, y, kernel=GaussianKernel(0.7), alpha=a)
)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), shift=st.floats(-9, 9))
def test_order_and_shift_and_a_standard_score_that_is_not_negative(seed, shift):
    draws = np.random.default_rng(seed).normal(size=(6, 20))
    ensemble, truth = jnp.asarray(draws[1:]), jnp.asarray(draws[0])
    for alpha in (0.0, 1.0):
        score = value_of(ensemble, truth, alpha)
        moved = value_of(ensemble[::-1] + shift, truth + shift, alpha)
        chex.assert_trees_all_close(moved, score, atol=1e-12)
    assert (value_of(ensemble, truth, 0.0) >= -1e-15).all()


def test_the_fair_score_does_not_depend_on_the_number_of_members():
    population, truth = normal(8, (6, 20)), normal(9, (20,))
    whole = value_of(population, truth, 1.0)
    for size in (2, 4):
        subsets = np.array(list(itertools.combinations(range(6), size)))
        ensembles = jnp.moveaxis(population[subsets], 1, 0)
        each = jnp.broadcast_to(truth, ensembles.shape[1:])
        mean = value_of(ensembles, each, 1.0).mean(0)
        chex.assert_trees_all_close(mean, whole, atol=1e-13)


def test_it_is_proper():
    draws, truth = normal(10, (3, 40_000)), normal(11, (40_000,))
    right = value_of(draws, truth, 1.0)
    for wrong in (0.6 * draws, 1.6 * draws, draws + 0.4):
        loss = value_of(wrong, truth, 1.0) - right
        assert loss.mean() > 4 * loss.std() / np.sqrt(loss.size)


def test_gradients_and_curvature_are_finite_differences_and_equal_for_equal_members():
    ensemble, truth = normal(12, (3, 4)), normal(13, (4,))
    ensemble = ensemble.at[0].set(ensemble[1]).at[2, 0].set(truth[0])
    total = lambda x, y: value_of(x, y, 1.0).sum()
    slope = jax.jit(jax.grad(total))
    found = slope(ensemble, truth)
    chex.assert_trees_all_close(found[0], found[1], atol=1e-15)
    step = normal(14, ensemble.shape)
    ahead, behind = ensemble + 1e-6 * step, ensemble - 1e-6 * step
    change = (total(ahead, truth) - total(behind, truth)) / 2e-6
    chex.assert_trees_all_close(jnp.vdot(found, step), change, rtol=1e-6)
    work = jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(total)(x, truth), step)))
    bend = (slope(ahead, truth) - slope(behind, truth)) / 2e-6
    chex.assert_trees_all_close(work(ensemble), bend, rtol=1e-5, atol=1e-8)


def test_the_length_learns_and_dtypes_stay():
    ensemble, truth = normal(15, (3, 4), jnp.float32), normal(16, (4,), jnp.float32)
    score = kernel_score(ensemble, truth, kernel=GaussianKernel(1.0))
    assert score.dtype == jnp.float32
    total = lambda kernel: kernel_score(ensemble, truth, kernel=kernel).sum()
    assert jax.jit(jax.grad(total))(GaussianKernel(1.0)).length != 0
    half = kernel_score(
        ensemble.astype(jnp.bfloat16),
        truth.astype(jnp.bfloat16),
        kernel=GaussianKernel(1.0),
    )
    assert half.dtype == jnp.bfloat16


def test_wrong_use_is_reported():
    for kernel in (GaussianKernel, InverseMultiquadricKernel):
        with pytest.raises(eqx.EquinoxRuntimeError, match="`length` must be positive"):
            kernel(0.0)
    kernel = GaussianKernel(1.0)
    with pytest.raises(ValueError, match="1 member along axis 0"):
        kernel_score(jnp.zeros((1, 3)), jnp.zeros(3), kernel=kernel)
    with pytest.raises(ValueError, match="`event_axes` must name"):
        kernel_score(jnp.zeros((2, 3)), jnp.zeros(3), kernel=kernel, event_axes=(1,))
    with pytest.raises(ValueError, match=r"return the shape \(3,\), got \(\)"):
        kernel_score(
            jnp.zeros((2, 3)), jnp.zeros(3), kernel=lambda x, y: jnp.sum(x * y)
        )
