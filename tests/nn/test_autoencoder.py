from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.nn import Autoencoder, Halving, Plane
from skyens.observations import Diagonal, Observation
from skyens.training import trainable

GRID = sphere.equiangular(5, 8)
SIZES: dict[str, Any] = dict(widths=(6, 8), blocks=2)
CODER = Autoencoder(GRID, 2, 3, **SIZES, key=jr.key(0))
draw = lambda *shape, seed=0: jnp.asarray(
    np.random.default_rng(seed).normal(size=shape)
)
X = draw(2, *GRID.shape)
encode, decode = eqx.filter_jit(Autoencoder.encode), eqx.filter_jit(Autoencoder.decode)


def test_latents_lie_on_the_coarser_grid():
    assert CODER.latent_domain == Halving(GRID).coarse
    assert CODER.latent_shape == (3, 3, 4)
    latent = encode(CODER, X)
    assert latent.shape == CODER.latent_shape
    assert 0.1 < latent.std() < 10
    found = decode(CODER, latent)
    assert found.shape == X.shape
    np.testing.assert_allclose(eqx.filter_jit(CODER)(X), found, rtol=1e-10)


def test_it_turns_with_the_sphere_about_its_axis():
    turned = encode(CODER, jnp.roll(X, 4, axis=-1))
    latent = encode(CODER, X)
    np.testing.assert_allclose(turned, jnp.roll(latent, 2, axis=-1), atol=1e-11)
    expected = jnp.roll(decode(CODER, latent), 4, axis=-1)
    np.testing.assert_allclose(decode(CODER, turned), expected, atol=1e-10)
    # It knows the latitude: a mirrored input has no mirrored latent.
    mirrored = encode(CODER, X[:, ::-1])
    assert np.abs(mirrored[:, ::-1] - latent).max() > 1e-3


def test_one_resolution_changes_only_the_channels():
    plane = Plane((4, 6))
    coder = Autoencoder(plane, 3, 1, widths=(4,), blocks=1, key=jr.key(0))
    assert coder.latent_shape == (1, 4, 6)
    assert coder.latent_domain == plane
    assert eqx.filter_jit(coder)(draw(3, 4, 6)).shape == (3, 4, 6)


def test_latents_are_observed_through_the_decoder():
    latent, point = encode(CODER, X), lambda field: field[:, 2, 3]
    observation = Observation(point(X), point, Diagonal(0.5)).pullback(CODER.decode)
    found = eqx.filter_jit(lambda latent: observation.innovation(latent))(latent)
    expected = (point(X) - point(decode(CODER, latent))) / 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(("dtype", "share"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.1)])
def test_the_dtype_of_the_input_stays(dtype, share):
    latent = encode(CODER, X.astype(dtype))
    assert latent.dtype == dtype
    assert decode(CODER, latent).dtype == dtype
    wide = np.asarray(encode(CODER, X))
    error = np.abs(np.asarray(latent, float) - wide).max()
    assert error < share * np.abs(wide).max()


def test_gradients_reach_every_parameter_and_no_table():
    parameters, rest = eqx.partition(CODER, trainable(CODER))
    loss = lambda p, x: ((eqx.combine(p, rest)(x) - x) ** 2).mean()
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))
    found, inner = slopes(parameters, X)
    assert jax.tree.leaves(found.halvings) == []
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()
        assert not leaf.size or np.abs(leaf).max() > 0
    direction = 1e-6 * draw(2, *GRID.shape, seed=5)
    total = lambda x: np.mean((np.asarray(decode(CODER, encode(CODER, x))) - x) ** 2)
    slope = (total(X + direction) - total(X - direction)) / 2
    np.testing.assert_allclose((inner * direction).sum(), slope, rtol=1e-5)
    chex.assert_tree_all_finite(slopes(parameters, 0 * X))


def test_samples_may_be_mapped():
    found = eqx.filter_jit(jax.vmap(lambda x: CODER.encode(x)))(jnp.stack([X, -X]))
    np.testing.assert_allclose(found[1], encode(CODER, -X), atol=1e-11)


def test_wrong_use_is_reported():
    make = lambda *sizes, **more: Autoencoder(
        GRID, *sizes, **SIZES | more, key=jr.key(0)
    )
    with pytest.raises(ValueError, match="must name at least one resolution"):
        make(2, 3, widths=())
    with pytest.raises(ValueError, match=r"at least 1, got \{'latent_channels': 0\}"):
        make(2, 0)
    with pytest.raises(ValueError, match=r"at least 1, got \{'width': 0\}"):
        make(2, 3, widths=(0, 4))
    with pytest.raises(ValueError, match=r"`field` must .* got \(3, 5, 8\)"):
        CODER.encode(draw(3, 5, 8))
    with pytest.raises(ValueError, match=r"`latent` must .* got \(3, 4, 3\)"):
        CODER.decode(draw(3, 4, 3))
