import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.scores import crps, energy_score, harmonic_weights, patches


def normal(seed, shape, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def windows(field, height, width, down, along):
    """Return the patches by indices, in NumPy."""
    rows, columns = field.shape[-2:]
    starts = [
        (i, j)
        for i in range(0, rows - height + 1, down)
        for j in range(0, columns, along)
    ]
    around = np.concatenate([field, field], -1)
    cut = [around[..., i : i + height, j : j + width] for i, j in starts]
    return np.stack([c.reshape(*field.shape[:-2], -1) for c in cut], -2)


class PatchesTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_they_are_those_of_indices_periodic_in_longitude(self):
        field = normal(0, (2, 5, 6))
        for height, width, stride in [
            (2, 3, None),
            (3, 4, 1),
            (2, 2, (3, 2)),
            (5, 6, 6),
        ]:
            cut = self.variant(
                lambda x, h=height, w=width, s=stride: patches(x, h, w, stride=s)
            )
            if stride is None:
                down, along = height, width
            elif isinstance(stride, int):
                down = along = stride
            else:
                down, along = stride
            expected = windows(np.asarray(field), height, width, down, along)
            chex.assert_trees_all_equal(cut(field), jnp.asarray(expected))


def test_the_energy_score_of_patches_sees_more_than_that_of_points():
    # Members of rough and of smooth structure, the same at every point.
    smooth = jnp.broadcast_to(normal(1, (8, 400, 1, 1)), (8, 400, 2, 2))
    rough, truth = normal(2, (8, 400, 2, 2)), normal(3, (400, 2, 2))
    by_patch = lambda x: energy_score(patches(x, 2, 2), patches(truth, 2, 2))[..., 0]
    loss = by_patch(smooth) - by_patch(rough)
    assert loss.mean() > 4 * loss.std() / np.sqrt(loss.size)
    loss = (crps(smooth, truth) - crps(rough, truth)).mean((-1, -2))
    assert abs(loss.mean()) < 4 * loss.std() / np.sqrt(loss.size)


def test_a_multiscale_crps_is_a_sum_over_regridders():
    grid = sphere.cell_centred(4, 8)
    # Cells of two by two: the coarse ones begin where the fine ones do.
    coarser = sphere.cell_centred(2, 4, longitude_origin=22.5)
    scales = [lambda x: x, sphere.Regridder(grid, coarser)]
    ensemble, truth = normal(4, (3, 4, 8)), normal(5, (4, 8))
    score = jax.jit(lambda x: sum(crps(to(x), to(truth)).mean() for to in scales))
    area = np.asarray(grid.cell_areas)[:, None]
    mean = lambda x: (
        (np.asarray(x) * area).reshape(-1, 2, 2, 4, 2).sum((2, 4))
        / np.broadcast_to(area, (4, 8)).reshape(2, 2, 4, 2).sum((1, 3))
    )
    coarse = crps(jnp.asarray(mean(ensemble)), jnp.asarray(mean(truth))[0])
    expected = crps(ensemble, truth).mean() + coarse.mean()
    chex.assert_trees_all_close(score(ensemble), expected, rtol=1e-11)
    chex.assert_tree_all_finite(jax.grad(score)(ensemble))


def test_the_spectral_crps_is_that_of_moduli_and_of_real_coordinates():
    grid = sphere.gauss_legendre(6, 12)
    transform = sphere.SphericalHarmonics(grid, lmax=4)
    weights = jnp.asarray(harmonic_weights(4))
    coefficients = transform.analysis(normal(6, (3, 6, 12)))
    truth = transform.analysis(normal(7, (6, 12)))
    blind = lambda c: (weights * crps(jnp.abs(c), jnp.abs(truth))).sum()
    seeing = lambda c: crps(sphere.to_real(c), sphere.to_real(truth)).sum()
    # Turned around the axis, only the phases differ.
    turned = coefficients * jnp.asarray(np.exp(0.3j * np.arange(5)))[None, None]
    chex.assert_trees_all_close(blind(turned), blind(coefficients), rtol=1e-12)
    assert abs(seeing(turned) - seeing(coefficients)) > 1e-6
    for score in (blind, seeing):
        slopes = jax.grad(lambda x: score(transform.analysis(x)))(jnp.zeros((3, 6, 12)))
        chex.assert_tree_all_finite(slopes)


def test_weights_add_up_squared_moduli_to_the_mean_square():
    grid = sphere.gauss_legendre(6, 12)
    transform = sphere.SphericalHarmonics(grid, lmax=4)
    coefficients = transform.analysis(normal(8, (6, 12)))
    field = transform.synthesis(coefficients)
    total = (jnp.asarray(harmonic_weights(4)) * jnp.abs(coefficients) ** 2).sum()
    mean = sphere.global_mean(grid, field**2)
    chex.assert_trees_all_close(total, mean, rtol=1e-11)


def test_wrong_use_is_reported():
    field = jnp.zeros((4, 6))
    for height, width in [(5, 2), (2, 7), (0, 2)]:
        with pytest.raises(ValueError, match="`height` and `width` must lie between"):
            patches(field, height, width)
    for stride in (4, 0, (1, 4)):
        with pytest.raises(ValueError, match="`stride` must be positive and divide"):
            patches(field, 2, 2, stride=stride)
    with pytest.raises(ValueError, match="`lmax` must not be negative"):
        harmonic_weights(-1)
