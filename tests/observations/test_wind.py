import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.observations import Diagonal, Observation, WindDirection, WindSpeed

component = st.floats(-50, 50).filter(lambda x: abs(x) > 1e-2)


def test_directions_are_those_of_the_compass():
    #        from north, east, south, west, north-east
    u = jnp.asarray([0.0, -5.0, 0.0, 5.0, -3.0])
    v = jnp.asarray([-5.0, 0.0, 5.0, 0.0, -3.0])
    seen = WindDirection()((u, v))
    np.testing.assert_allclose(seen, [0, 90, 180, 270, 45], atol=1e-12)
    np.testing.assert_allclose(WindSpeed()(jnp.stack([u, v]))[:4], 5.0, rtol=1e-14)


@settings(deadline=None, max_examples=30)
@given(u=component, v=component)
def test_speed_and_direction_give_the_wind_back(u, v):
    wind = jnp.asarray([[u], [v]])
    speed, direction = WindSpeed()(wind), np.deg2rad(WindDirection()(wind))
    back = -speed * np.sin(direction), -speed * np.cos(direction)
    np.testing.assert_allclose(back, wind, rtol=1e-10, atol=1e-12)


class WindTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_gradients_are_right_in_wind_and_finite_in_a_calm(self):
        u = jnp.asarray([3.0, 0.0, -1.0, 1e-200])
        v = jnp.asarray([4.0, 0.0, 1.0, 0.0])
        slopes = lambda operator: self.variant(
            jax.grad(lambda wind: jnp.sum(operator(wind)))
        )
        speed = slopes(WindSpeed())((u, v))
        half = np.sqrt(0.5)
        np.testing.assert_allclose(speed[0], [0.6, 0, -half, 0], rtol=1e-12)
        np.testing.assert_allclose(speed[1], [0.8, 0, half, 0], rtol=1e-12)
        direction = slopes(WindDirection())((u, v))
        # (v, -u) / speed^2, in degrees
        turn = np.rad2deg([4 / 25, 0, 1 / 2, 0]), np.rad2deg([-3 / 25, 0, 1 / 2, 0])
        np.testing.assert_allclose(direction, turn, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_directions_stay_below_360_in_any_dtype(dtype):
    wind = jnp.asarray([[1e-30, 1e-9, 0.0], [-5.0, -5.0, 0.0]], dtype)
    seen = WindDirection()(wind)
    assert seen.dtype == dtype
    assert np.all((seen >= 0) & (seen < 360))
    assert WindSpeed()(wind).dtype == dtype
    assert np.isnan(WindDirection()(wind * jnp.nan)).all()


def test_innovations_of_directions_are_the_shortest_way_round():
    wind = jnp.asarray([[-0.5, 0.5], [-5.0, -5.0]])  # a little east and west of north
    observation = Observation(np.asarray([354.0, 6.0]), WindDirection(), Diagonal(10.0))
    off = np.rad2deg(np.arctan(0.1))
    expected = [-(6 + off) / 10, (6 + off) / 10]
    np.testing.assert_allclose(observation.innovation(wind), expected, rtol=1e-10)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"must be a pair .* got 3 arrays"):
        WindSpeed()(jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="`calm` must be above 0, got 0"):
        WindDirection(0.0)
