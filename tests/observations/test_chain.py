import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.observations import Chain, Diagonal, Interpolate, Observation, WindDirection

GRID = sphere.equiangular(7, 12)
PLACES = np.asarray([10.0, -20.0]), np.asarray([30.0, 40.0])


class ChainTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_operators_follow_each_other(self):
        at = Interpolate(GRID, *PLACES)
        chain = Chain(lambda state: state["t"], at, lambda seen: seen - 273.15)
        state = {"t": jr.normal(jr.key(0), (7, 12)), "u": jnp.zeros(3)}
        see = self.variant(lambda operator, state: operator(state))
        expected = at(state["t"]) - 273.15
        np.testing.assert_allclose(see(chain, state), expected, rtol=1e-12)


def test_it_is_where_its_operators_are_and_periodic_as_the_last():
    at = Interpolate(GRID, *PLACES)
    chain = Chain(at, WindDirection())
    observation = Observation(np.asarray([10.0, 350.0]), chain, Diagonal(5.0))
    assert observation.coordinates is not None
    np.testing.assert_array_equal(observation.coordinates["latitude"], PLACES[0])
    np.testing.assert_array_equal(observation.period, [360.0, 360.0])
    assert Chain(WindDirection(), lambda x: x).period is None
    assert Chain(lambda x: x).coordinates is None
    leaves = jax.tree.leaves(Chain(at, lambda x: x))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="needs at least one operator"):
        Chain()
