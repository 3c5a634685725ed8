import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.nn import Normaliser

SHAPES = [(3,), (3, 4), (3, 4, 5)]


def tables(shape):
    generator = np.random.default_rng(len(shape))
    return generator.normal(size=shape), generator.uniform(0.5, 2.0, shape)


class NormaliserTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_standardises_the_sample_it_was_fitted_to(self):
        sample = np.random.default_rng(0).normal(5.0, 3.0, (50, 3, 4, 5))
        for axes in ((0, 2, 3), (0, 3), (0,)):
            normaliser = Normaliser(sample.mean(axes), sample.std(axes))
            normalised = self.variant(Normaliser.__call__)(
                normaliser, jnp.asarray(sample)
            )
            chex.assert_shape(normalised, sample.shape)
            np.testing.assert_allclose(normalised.mean(axes), 0.0, atol=1e-14)
            np.testing.assert_allclose(normalised.std(axes), 1.0, rtol=1e-13)


@pytest.mark.parametrize("mean_shape", SHAPES)
@pytest.mark.parametrize("std_shape", SHAPES)
def test_each_table_broadcasts_along_the_axes_it_lacks(mean_shape, std_shape):
    (mean, _), (_, std) = tables(mean_shape), tables(std_shape)
    field = np.random.default_rng(1).normal(size=(2, 3, 4, 5))
    spread = lambda table: table.reshape(table.shape + (1,) * (3 - table.ndim))
    normalised = Normaliser(mean, std)(jnp.asarray(field))
    expected = (field - spread(mean)) / spread(std)
    np.testing.assert_allclose(normalised, expected, rtol=1e-14)


@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-3, 1e3),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    shape=st.sampled_from(SHAPES),
)
def test_inverse_undoes(seed, scale, batch, shape):
    mean, std = tables(shape)
    field = scale * jr.normal(jr.key(seed), (*batch, 3, 4, 5))
    normaliser = Normaliser(scale * mean, scale * std)
    again = normaliser.inverse(normaliser(field))
    chex.assert_trees_all_close(again, field, atol=1e-13 * scale, rtol=1e-13)


def test_members_may_be_mapped_or_lead():
    normaliser = Normaliser(*tables((3, 4)))
    members = jr.normal(jr.key(0), (6, 3, 4, 5))
    mapped = jax.vmap(normaliser)(members)
    chex.assert_trees_all_equal(mapped, normaliser(members))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_the_dtype_of_the_field_stays_and_arithmetic_is_float32_at_least(dtype):
    normaliser = Normaliser(np.full(1, 54_000.0), np.full(1, 3_000.0))
    field = jnp.full((1, 2, 2), 50_000.0, dtype)
    normalised = normaliser(field)
    assert normalised.dtype == normaliser.inverse(normalised).dtype == dtype
    wide = dtype if dtype in (jnp.float32, jnp.float64) else jnp.float32
    expected = (np.asarray(field, np.float64) - 54_000) / 3_000
    rounding = float(jnp.finfo(dtype).eps) + 54_000 / 3_000 * float(jnp.finfo(wide).eps)
    error = np.abs(np.asarray(normalised, np.float64) - expected).max()
    assert error < rounding * np.abs(expected).max()


def test_the_gradient_in_the_field_is_one_over_std():
    mean, std = tables((3, 4))
    gradient = jax.grad(lambda x: Normaliser(mean, std)(x).sum())(jnp.zeros((3, 4, 5)))
    np.testing.assert_allclose(
        gradient, np.broadcast_to(1 / std[..., None], (3, 4, 5)), rtol=1e-15
    )


def test_bad_values_are_counted_and_placed():
    mean, std = np.zeros(3), np.asarray([1.0, 0.0, -2.0])
    with pytest.raises(
        eqx.EquinoxRuntimeError, match=r"2 of 3 .* first at \(1,\) is 0"
    ):
        Normaliser(mean, std)
    with pytest.raises(
        eqx.EquinoxRuntimeError, match=r"`std` .* 1 of 3 .* \(0,\) is nan"
    ):
        Normaliser(mean, np.asarray([np.nan, 1.0, 1.0]))
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"`mean` must be finite: 1 of 3"):
        Normaliser(np.asarray([0.0, np.inf, 0.0]), np.ones(3))
    with pytest.raises(eqx.EquinoxRuntimeError, match="finite and above 0"):
        eqx.filter_jit(Normaliser)(jnp.asarray(mean), jnp.asarray(std))


def test_shapes_that_do_not_fit_are_reported():
    with pytest.raises(ValueError, match=r"agree .* \(3,\) and \(4,\)"):
        Normaliser(np.zeros(3), np.ones(4))
    with pytest.raises(ValueError, match=r"`mean` must have the axes .* shape \(\)"):
        Normaliser(np.zeros(()), np.ones(3))
    normaliser = Normaliser(np.zeros((3, 4)), np.ones(3))
    with pytest.raises(ValueError, match=r"shape \(3, 4\), got \(2, 4, 5\)"):
        normaliser(jnp.zeros((2, 4, 5)))
    with pytest.raises(ValueError, match=r"shape \(3, 4\), got \(3, 6, 5\)"):
        normaliser.inverse(jnp.zeros((3, 6, 5)))
