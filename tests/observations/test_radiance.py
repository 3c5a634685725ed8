import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import integrate

from skyens.observations import (
    BrightnessTemperature,
    Diagonal,
    Observation,
    weighting_functions,
)

LEVELS = np.geomspace(1e2, 1e5, 200)
PEAK = np.asarray([1e4, 3e4, 6e4])


def test_weights_sum_to_one_and_peak_where_they_should():
    for levels in (LEVELS, LEVELS[::-1].copy()):
        weights = np.asarray(weighting_functions(levels, PEAK))
        assert np.all(weights >= 0)
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
        top = levels[weights[:, 1:-1].argmax(axis=1) + 1]
        # Within half a level, a factor of 1000^(1 / 199) apart.
        np.testing.assert_allclose(np.log(top), np.log(PEAK), atol=0.02)


@pytest.mark.parametrize("sharpness", [1, 2.0])
def test_many_levels_see_the_integral_over_the_column(sharpness):
    temperature = lambda p: 220 + 60 * (p / 1e5) ** 0.8

    def expected(peak):
        depth = lambda p: (p / peak) ** sharpness
        slope = lambda p: sharpness * depth(p) / p * np.exp(-depth(p))
        air, _ = integrate.quad(lambda p: temperature(p) * slope(p), 0, 1e5)
        return air + temperature(1e5) * np.exp(-depth(1e5))

    weights = weighting_functions(LEVELS, PEAK, sharpness)
    seen = BrightnessTemperature(weights)(jnp.asarray(temperature(LEVELS)))
    np.testing.assert_allclose(seen, [expected(peak) for peak in PEAK], atol=0.02)


class BrightnessTemperatureTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_columns_keep_their_axes_and_any_scale_of_weights_will_do(self):
        weights = np.random.default_rng(0).uniform(size=(3, 5))
        operator = BrightnessTemperature(7 * weights)
        columns = jr.normal(jr.key(0), (5, 2, 4))
        see = self.variant(lambda operator, columns: operator(columns))
        expected = np.einsum(
            "ck,kij->cij", weights / weights.sum(1, keepdims=True), columns
        )
        seen = see(operator, columns)
        np.testing.assert_allclose(seen, expected, rtol=1e-12, atol=1e-14)
        assert operator(columns.astype(jnp.float32)).dtype == jnp.float32


def test_peaks_can_be_learned():
    column = jnp.asarray(200 + 0.8 * LEVELS**0.4)

    def loss(peak):
        operator = BrightnessTemperature(weighting_functions(LEVELS, peak))
        return -Observation(np.full(3, 250.0), operator, Diagonal(1.0)).log_prob(column)

    slope = jax.jit(jax.grad(loss))(jnp.asarray(PEAK))
    value = jax.jit(loss)
    for i, step in enumerate(1e-4 * PEAK):
        moved = [value(jnp.asarray(PEAK).at[i].add(h)) for h in (step, -step)]
        np.testing.assert_allclose(
            slope[i], (moved[0] - moved[1]) / (2 * step), rtol=1e-6
        )


def test_wrong_use_is_reported():
    with pytest.raises(
        eqx.EquinoxRuntimeError, match="`peak` must be finite and above"
    ):
        weighting_functions(LEVELS, np.asarray([-1.0]))
    with pytest.raises(
        eqx.EquinoxRuntimeError, match="`weights` must be finite, not n"
    ):
        BrightnessTemperature(np.asarray([[1.0, 2.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"must have 200 levels .* shape \(5,\)"):
        BrightnessTemperature(weighting_functions(LEVELS, PEAK))(jnp.ones(5))
