import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.diffusion import ClassifierFree, Denoiser

SHIFT = np.array([1.0, -2.0, 0.5])


def denoiser(x, sigma, *, condition=None):
    """The clean state is N(condition, 1), and N(0, 4) where there is none."""
    variance = 4.0 if condition is None else 1.0
    mean = jnp.zeros_like(x) if condition is None else condition.astype(x.dtype)
    return mean + variance / (variance + jnp.asarray(sigma, x.dtype) ** 2) * (x - mean)


class ClassifierFreeTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_scores_are_extrapolated(self):
        x, sigma = np.array([0.3, 2.0, -1.0]), 0.8
        slope = lambda mean, variance: -(x - mean) / (variance + sigma**2)
        score = slope(0, 4) + 2.5 * (slope(SHIFT, 1) - slope(0, 4))
        guided = ClassifierFree(denoiser, 2.5)
        assert isinstance(guided, Denoiser)
        call = self.variant(lambda x, c: guided(x, sigma, condition=c))
        clean = call(jnp.asarray(x), jnp.asarray(SHIFT))
        chex.assert_trees_all_close(clean, x + sigma**2 * score, rtol=1e-12)


def test_strength_0_forgets_the_condition_and_1_takes_it_as_it_is():
    x, given = jnp.asarray([0.3, 2.0, -1.0]), jnp.asarray(SHIFT)
    call = lambda strength: ClassifierFree(denoiser, strength)(x, 0.8, condition=given)
    chex.assert_trees_all_close(call(0.0), denoiser(x, 0.8), rtol=1e-14)
    expected = denoiser(x, 0.8, condition=given)
    chex.assert_trees_all_close(call(1.0), expected, rtol=1e-14)


def test_outside_of_the_interval_nothing_is_added():
    x, given = jnp.ones(3), jnp.asarray(SHIFT)
    guided = ClassifierFree(denoiser, 3.0, low=0.1, high=2.0)
    always = ClassifierFree(denoiser, 3.0)
    for sigma in (0.05, 0.5, 5.0):
        expected = always if 0.1 <= sigma <= 2 else denoiser
        clean = jax.jit(lambda s: guided(x, s, condition=given))(sigma)
        expected = expected(x, sigma, condition=given)
        chex.assert_trees_all_close(clean, expected, rtol=1e-12)


def test_what_stands_for_no_condition_may_be_anything():
    nothing = {"shift": jnp.zeros(3)}
    takes = lambda x, sigma, *, condition=nothing: x + condition["shift"]
    guided = ClassifierFree(takes, 2.0, unconditional=nothing)
    clean = guided(jnp.zeros(3), 1.0, condition={"shift": jnp.asarray(SHIFT)})
    chex.assert_trees_all_close(clean, 2 * SHIFT, rtol=1e-14)


def test_dtype_stays_and_the_strength_has_a_gradient():
    x = jnp.ones(3, jnp.float32)
    call = lambda guided: guided(x, 0.5, condition=jnp.asarray(SHIFT))
    assert call(ClassifierFree(denoiser, 1.5)).dtype == jnp.float32
    slope = jax.grad(lambda g: call(eqx.combine(g, rest)).sum())
    arrays, rest = eqx.partition(ClassifierFree(denoiser, 1.5), eqx.is_array)
    slope = slope(arrays).strength
    gap = denoiser(x, 0.5, condition=jnp.asarray(SHIFT)) - denoiser(x, 0.5)
    chex.assert_trees_all_close(slope, gap.sum().astype(float), rtol=1e-5)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="`condition` is what guides"):
        ClassifierFree(denoiser, 2.0)(jnp.zeros(3), 1.0)
    for wrong in ({"strength": -1.0}, {"low": 2.0, "high": 1.0}, {"low": jnp.nan}):
        with pytest.raises(eqx.EquinoxRuntimeError, match="must not be negative"):
            ClassifierFree(denoiser, **wrong)
