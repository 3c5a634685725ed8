import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.nn import SFNO
from skyens.training import trainable

GRID = sphere.equiangular(9, 16)
LMAX = 5  # the inner grid is 10 x 20: both grids know shifts by 90 degrees
SIZES = dict(width=4, blocks=2, lmax=LMAX, noise_channels=2)
NET = SFNO(GRID, 2, 3, **SIZES, key=jr.key(0))
run = eqx.filter_jit(lambda net, *inputs: net(*inputs))


def awake(net=NET):
    """The network with noise weights as training would leave them, not 0."""
    where = lambda net: (net.blocks.norm.noise_scale, net.blocks.norm.noise_shift)
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape))
    return eqx.tree_at(where, net, tuple(map(draw, where(net))))


def fields(seed=1):
    return np.random.default_rng(seed).normal(size=(2, *GRID.shape))


def noise(seed=2, channels=2):
    rng, shape = np.random.default_rng(seed), (channels, LMAX + 1, LMAX + 1)
    c = np.tril(rng.normal(size=shape) + 1j * rng.normal(size=shape))
    c[..., 0] = c[..., 0].real
    return c


every = sphere.SphericalHarmonics(GRID, 7)


def test_the_output_is_band_limited_on_the_input_s_grid():
    y = run(awake(), fields(), noise())
    assert y.shape == (3, *GRID.shape)
    power = eqx.filter_jit(every.power_spectrum)(y)
    assert power[:, : LMAX + 1].min() > 1e-6
    assert power[:, LMAX + 1 :].max() < 1e-24 * power.max()


def test_it_turns_with_the_sphere_about_its_axis():
    quarter = lambda x: np.roll(x, 4, axis=-1)
    turn = np.exp(-0.5j * np.pi * np.arange(LMAX + 1))
    y = run(awake(), fields(), noise())
    turned = run(awake(), quarter(fields()), noise() * turn)
    np.testing.assert_allclose(turned, quarter(y), atol=1e-10)
    # Latitude it knows: a mirrored input gives no mirrored output.
    mirrored = run(awake(), fields()[:, ::-1], noise() * 0)
    assert np.abs(mirrored - run(awake(), fields(), noise() * 0)[:, ::-1]).max() > 1e-3


def test_the_inner_grid_knows_the_products_of_two_fields():
    # As a grid of twice the rows does: nothing is aliased.
    fine = sphere.SphericalHarmonics(sphere.gauss_legendre(20, 40), LMAX)

    def product(sht):
        one, two = sht.synthesis(jnp.asarray(noise()))
        return sht.analysis(one * two)

    expected, inner = map(eqx.filter_jit(product), (fine, NET.inner))
    np.testing.assert_allclose(inner, expected, atol=1e-12)


def test_degrees_above_lmax_are_not_seen():
    c = np.zeros((2, 8, 8), complex)
    c[:, 7, 3], c[:, 6, 0] = 1, 2
    fine = np.asarray(eqx.filter_jit(every.synthesis)(jnp.asarray(c)))
    seen = run(awake(), fields() + fine, noise())
    np.testing.assert_allclose(seen, run(awake(), fields(), noise()), atol=1e-11)


def test_no_noise_is_noise_of_0_and_an_untrained_network_ignores_it():
    for net in (NET, awake()):
        calm = run(net, fields())
        np.testing.assert_allclose(run(net, fields(), 0 * noise()), calm, atol=1e-13)
    calm = run(NET, fields())
    np.testing.assert_allclose(run(NET, fields(), noise()), calm, atol=1e-13)


def test_noise_makes_members_differ():
    first, again, other = (run(awake(), fields(), noise(seed)) for seed in (2, 2, 3))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2


def test_without_noise_channels_it_is_deterministic():
    net = SFNO(GRID, 2, 3, **SIZES | {"noise_channels": 0}, key=jr.key(0))
    empty = run(net, fields(), noise(channels=0))
    np.testing.assert_allclose(empty, run(net, fields()), atol=1e-13)
    with pytest.raises(ValueError, match="must have 0 channels, got 2"):
        run(net, fields(), noise())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)]
)
def test_the_dtype_of_the_input_stays(dtype, tolerance):
    y = run(awake(), fields().astype(dtype), noise())
    assert y.dtype == dtype
    wide = np.asarray(run(awake(), fields(), noise()))
    error = np.abs(np.asarray(y, np.float64) - wide).max()
    assert error < tolerance * np.abs(wide).max()


@eqx.filter_jit
def slopes(net, x, noise):
    parameters, rest = eqx.partition(net, trainable(net))
    loss = lambda p, x: (eqx.combine(p, rest)(x, noise) ** 2).sum()
    return jax.grad(loss, argnums=(0, 1))(parameters, x)


def test_gradients_reach_every_parameter_and_no_table():
    parameters, _ = slopes(awake(), fields(), noise())
    assert jax.tree.leaves((parameters.sht, parameters.inner)) == []
    for leaf in jax.tree.leaves(parameters):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0
    # Nothing in, and equal channels at every point of a norm.
    chex.assert_tree_all_finite(slopes(awake(), 0 * fields(), 0 * noise()))


def test_gradient_in_the_input_is_that_of_finite_differences():
    gradient = np.asarray(slopes(awake(), fields(), noise())[1])
    # Layer norms bend where channels are nearly equal: the step must be small.
    direction = 1e-6 * fields(9)
    total = lambda x: (np.asarray(run(awake(), x, noise())) ** 2).sum()
    slope = (total(fields() + direction) - total(fields() - direction)) / 2
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-5)


def test_members_may_be_mapped():
    x, z = (np.stack([draw(seed) for seed in range(3)]) for draw in (fields, noise))
    mapped = eqx.filter_jit(lambda net, x, z: jax.vmap(net)(x, z))(awake(), x, z)
    alone = np.stack([run(awake(), *one) for one in zip(x, z, strict=True)])
    np.testing.assert_allclose(mapped, alone, atol=1e-12)


def test_equal_keys_make_equal_networks():
    make = lambda seed: SFNO(GRID, 2, 3, **SIZES, key=jr.key(seed))
    chex.assert_trees_all_equal(make(0), NET)
    weights = lambda net: net.blocks.filter.weight
    assert (weights(make(1)) != weights(NET)).all()
    # The blocks do not start alike either.
    assert (weights(NET)[0] != weights(NET)[1]).all()


def test_wrong_use_is_reported():
    make = lambda *sizes, **more: SFNO(GRID, *sizes, key=jr.key(0), **more)
    with pytest.raises(ValueError, match=r"at least 1, got \{'in_channels': 0\}"):
        make(0, 1, lmax=LMAX)
    with pytest.raises(ValueError, match=r"got \{'width': 0, 'blocks': -1\}"):
        make(1, 1, width=0, blocks=-1, lmax=LMAX)
    with pytest.raises(ValueError, match="`noise_channels` must not be negative"):
        make(1, 1, noise_channels=-1, lmax=LMAX)
    with pytest.raises(ValueError, match="`lmax` must lie between 0 and 7"):
        make(1, 1, lmax=8)
    with pytest.raises(ValueError, match="`x` must have 2 channels, got 3"):
        NET(jnp.zeros((3, *GRID.shape)))
    with pytest.raises(ValueError, match="`noise` must have 2 channels, got 1"):
        run(NET, fields(), noise(channels=1))
    with pytest.raises(ValueError, match="does not lie on this equiangular grid"):
        NET(jnp.zeros((2, 8, 16)))
    with pytest.raises(ValueError, match=r"must end in \(l, m\) = \(6, 6\)"):
        run(NET, fields(), noise()[:, :5, :5])
