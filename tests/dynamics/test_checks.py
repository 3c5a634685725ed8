import jax.numpy as jnp
import pytest

from skyens import sphere
from skyens.dynamics import Advection, BarotropicVorticity, ShallowWater

SHT = sphere.SphericalHarmonics(sphere.gauss_legendre(8, 16), 4)
CALM = jnp.zeros((8, 16))
WORLDS = [
    lambda **settings: BarotropicVorticity(SHT, **settings),
    lambda **settings: ShallowWater(SHT, **settings),
    lambda **settings: Advection(SHT, CALM, CALM, **settings),
]


@pytest.mark.parametrize("world", WORLDS)
def test_every_world_checks_its_clock_and_its_planet(world):
    with pytest.raises(ValueError, match=r"must be positive, got -1\.0 and 2\."):
        world(time_step=-1.0)
    with pytest.raises(ValueError, match=r"must be positive, got 60\.0 and 0\."):
        world(time_step=60.0, substeps=0)
    with pytest.raises(ValueError, match="looks like the Earth's in km"):
        world(radius=6371.0)
    with pytest.raises(ValueError, match="`radius` must be positive"):
        world(radius=-1.0)
