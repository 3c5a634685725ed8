import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from skyens import sphere
from skyens.dynamics import StochasticStep, member_keys, rollout
from skyens.sphere import AutoregressiveField, GaussianRandomField

GRID = sphere.gauss_legendre(5, 9)
SHT = sphere.SphericalHarmonics(GRID, 3)
KEY = jr.key(0)
start = eqx.filter_jit(StochasticStep.start)
advance = eqx.filter_jit(StochasticStep.__call__)


def process(correlation=0.5, variance=4.0, dtype=float):
    power = sphere.matern_spectrum(3, 0.5, variance=variance)
    field = GaussianRandomField(SHT, jnp.asarray(power, dtype))
    return AutoregressiveField(field, correlation)


def forget(value, forcing=None, *, key=None):
    """Drops the value, so that the error of one step alone is left."""
    return jnp.zeros_like(value)


def test_the_injected_error_has_the_variance_of_its_law_at_every_step():
    step = StochasticStep(forget, process(), lambda noise: 3 * SHT.synthesis(noise))

    @jax.jit
    @jax.vmap
    def errors(key):
        start_key, step_key = jr.split(key)
        state = step.start(jnp.zeros(GRID.shape), key=start_key)
        return rollout(step, state, 3, key=step_key, reduce=lambda s: s["value"])

    x = np.asarray(errors(member_keys(KEY, 4000)))
    # Amplitude 3 on a variance of 4. The mean of the square over 45 points, of which
    # about 10 are independent, errs by sqrt(2 / 40,000): 0.7 percent.
    variance = (x**2).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(variance, 36.0, rtol=0.03)
    # From one step to the next it correlates as the process.
    correlation = (x[:, 0] * x[:, 1]).mean() / variance[0]
    np.testing.assert_allclose(correlation, 0.5, atol=0.03)


def test_errors_add_to_what_the_step_makes():
    double = lambda value, forcing=None, *, key=None: 2 * value + forcing
    step = StochasticStep(double, process(), SHT.synthesis)
    value, forcing = jnp.full(GRID.shape, 3.0), jnp.asarray(5.0)
    state = start(step, value, key=KEY)
    np.testing.assert_array_equal(state["value"], value)
    later = advance(step, state, forcing, key=jr.key(1))
    error = eqx.filter_jit(SHT.synthesis)(later["noise"])
    np.testing.assert_allclose(later["value"], 2 * value + 5 + error, atol=1e-12)
    assert np.abs(error).max() > 0.1


def test_without_variance_it_is_the_step():
    swirl = lambda value, forcing=None, *, key=None: jnp.roll(value, 1, -1)
    step = StochasticStep(swirl, process(0.9, variance=0.0), SHT.synthesis)
    value = np.random.default_rng(0).normal(size=GRID.shape)
    later = advance(step, start(step, value, key=KEY), key=KEY)
    np.testing.assert_array_equal(later["value"], np.roll(value, 1, -1))


def test_start_draws_the_noise_from_its_law():
    step = StochasticStep(forget, process(), SHT.synthesis)
    draw = lambda key: SHT.synthesis(step.start(jnp.zeros(()), key=key)["noise"])
    noise = np.asarray(jax.jit(jax.vmap(draw))(member_keys(KEY, 4000)))
    np.testing.assert_allclose((noise**2).mean(), 4.0, rtol=0.03)


def test_equal_keys_make_equal_steps_and_others_do_not():
    step = StochasticStep(forget, process(), SHT.synthesis)
    state = start(step, np.zeros(GRID.shape), key=KEY)
    first, again, other = (advance(step, state, key=jr.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first["value"], again["value"])
    assert np.abs(first["value"] - other["value"]).max() > 0.1


def test_the_step_and_the_noise_draw_from_different_keys():
    # The step shows its key: it is neither the member's nor the noise's.
    show = lambda value, forcing=None, *, key: jr.key_data(key)
    law = process()
    step = StochasticStep(show, law, lambda noise: jnp.zeros(2, jnp.uint32))
    state = start(step, np.zeros(2, np.uint32), key=KEY)
    later = advance(step, state, key=jr.key(1))
    assert (later["value"] != jr.key_data(jr.key(1))).any()
    step_key = jr.wrap_key_data(later["value"])
    law = eqx.filter_jit(law)
    same = law(state["noise"], key=step_key)
    assert np.abs(later["noise"] - same).max() > 0.1
    outer = law(state["noise"], key=jr.key(1))
    assert np.abs(later["noise"] - outer).max() > 0.1


def test_values_may_be_trees_and_keep_their_dtype():
    stay = lambda value, forcing=None, *, key=None: value
    inject = lambda noise: {"a": SHT.synthesis(noise), "b": noise[2, 1].real}
    step = StochasticStep(stay, process(), inject)
    value = {
        "a": jnp.zeros(GRID.shape, jnp.float32),
        "b": jnp.zeros((), jnp.bfloat16),
    }
    state = start(step, value, key=KEY)
    later = advance(step, state, key=jr.key(1))
    assert later["value"]["a"].dtype == jnp.float32
    assert later["value"]["b"].dtype == jnp.bfloat16
    assert later["noise"].dtype == state["noise"].dtype
    assert (later["value"]["a"] != 0).all()


def test_gradients_reach_the_first_value():
    square = lambda value, forcing=None, *, key=None: value**2 / 10
    step = StochasticStep(square, process(), SHT.synthesis)

    @jax.jit
    @jax.grad
    def slope(value):
        state = step.start(value, key=KEY)
        return step(state, key=jr.key(1))["value"].sum()

    value = np.random.default_rng(0).normal(size=GRID.shape)
    np.testing.assert_allclose(slope(value), value / 5, rtol=1e-12)
