import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.observations import CoarseGrain, Diagonal, Observation

FINE, COARSE = sphere.cell_centred(8, 12), sphere.cell_centred(4, 6)


class CoarseGrainTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_sees_area_means_of_what_a_cell_covers(self):
        operator = CoarseGrain(FINE, COARSE)
        field = jr.normal(jr.key(0), (2, 8, 12))
        seen = self.variant(lambda operator, field: operator(field))(operator, field)
        assert seen.shape == (2, 4, 6)
        edges = np.sin(np.deg2rad(np.linspace(-90, 90, 9)))
        height = np.diff(edges)
        for row in range(4):
            part = np.average(
                np.asarray(field)[:, 2 * row : 2 * row + 2],
                axis=1,
                weights=height[2 * row : 2 * row + 2],
            )
            # Columns begin half a cell before their centre: 1/2, 1 and 1/2 of three.
            around = np.stack([np.roll(part, s, -1)[:, ::2] for s in (1, 0, -1)])
            expected = np.tensordot([0.25, 0.5, 0.25], around, 1)
            np.testing.assert_allclose(seen[:, row], expected, rtol=1e-10, atol=1e-12)


def test_the_area_integral_stays_and_so_does_the_dtype():
    operator = CoarseGrain(sphere.gauss_legendre(9, 16), COARSE)
    field = jr.normal(jr.key(1), (9, 16))
    integral = lambda grid, x: np.sum(grid.cell_areas[:, None] * np.asarray(x))
    total = integral(sphere.gauss_legendre(9, 16), field)
    np.testing.assert_allclose(integral(COARSE, operator(field)), total, rtol=1e-12)
    assert operator(field.astype(jnp.float32)).dtype == jnp.float32
    slope = jax.grad(lambda x: jnp.vdot(operator(x), jnp.ones((4, 6))))(field)
    np.testing.assert_allclose(slope.sum(), 24, rtol=1e-12)


def test_an_observation_knows_the_centres():
    observation = Observation(
        np.zeros((4, 6)), CoarseGrain(FINE, COARSE), Diagonal(1.0)
    )
    assert observation.coordinates is not None
    latitude, longitude = np.meshgrid(COARSE.latitude, COARSE.longitude, indexing="ij")
    np.testing.assert_array_equal(observation.coordinates["latitude"], latitude)
    np.testing.assert_array_equal(observation.coordinates["longitude"], longitude)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="must be no finer than `fine`"):
        CoarseGrain(COARSE, FINE)
    with pytest.raises(ValueError, match="does not lie on this"):
        CoarseGrain(FINE, COARSE)(jnp.ones((4, 6)))
