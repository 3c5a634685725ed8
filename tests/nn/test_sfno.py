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
run = eqx.filter_jit(SFNO.__call__)


def awake(net=NET):
    """The network with noise weights as training would leave them, not 0."""
    where = lambda net: (net.blocks.norm.noise_scale, net.blocks.norm.noise_shift)
    draw = lambda leaf: jr.normal(jr.key(leaf.size), leaf.shape)
    return eqx.tree_at(where, net, tuple(map(draw, where(net))))


def fields(seed=1, dtype=float):
    return jr.normal(jr.key(seed), (2, *GRID.shape), dtype)


def noise(seed=2, channels=2):
    return sphere.from_real(jr.normal(jr.key(seed), (channels, (LMAX + 1) ** 2)))


def test_the_output_is_band_limited_on_the_input_s_grid():
    y = run(awake(), fields(), noise())
    assert y.shape == (3, *GRID.shape)
    every = sphere.SphericalHarmonics(GRID, 7)
    power = jax.jit(lambda y: every.power_spectrum(y))(y)
    assert power[:, : LMAX + 1].min() > 1e-6
    assert power[:, LMAX + 1 :].max() < 1e-24 * power.max()


def test_it_turns_with_the_sphere_about_its_axis():
    quarter = lambda x: jnp.roll(x, 4, axis=-1)
    turn = jnp.exp(-0.5j * jnp.pi * jnp.arange(LMAX + 1.0).astype(complex))
    y = run(awake(), fields(), noise())
    turned = run(awake(), quarter(fields()), noise() * turn[None, None])
    chex.assert_trees_all_close(turned, quarter(y), atol=1e-10)
    # Latitude it knows: a mirrored input gives no mirrored output.
    mirrored = run(NET, fields()[:, ::-1])
    assert np.abs(mirrored - run(NET, fields())[:, ::-1]).max() > 1e-3


def test_degrees_above_lmax_are_not_seen():
    every = sphere.SphericalHarmonics(GRID, 7)
    fine = every.synthesis(jnp.zeros((8, 8), complex).at[7, 3].set(1.0).at[6, 0].set(2))
    chex.assert_trees_all_close(
        run(NET, fields() + fine[None]), run(NET, fields()), atol=1e-12
    )


def test_no_noise_is_noise_of_0_and_an_untrained_network_ignores_it():
    silence = jnp.zeros((2, LMAX + 1, LMAX + 1), complex)
    for net in (NET, awake()):
        calm = run(net, fields())
        chex.assert_trees_all_close(run(net, fields(), silence), calm, atol=1e-14)
    chex.assert_trees_all_close(
        run(NET, fields(), noise()), run(NET, fields()), atol=1e-14
    )


def test_noise_makes_members_differ():
    members = [run(awake(), fields(), noise(seed)) for seed in (2, 2, 3)]
    chex.assert_trees_all_equal(members[0], members[1])
    assert np.abs(members[0] - members[2]).max() > 1e-2


def test_without_noise_channels_it_is_deterministic():
    net = SFNO(GRID, 2, 3, **SIZES | {"noise_channels": 0}, key=jr.key(0))
    empty = jnp.zeros((0, LMAX + 1, LMAX + 1), complex)
    chex.assert_trees_all_close(run(net, fields(), empty), run(net, fields()))
    with pytest.raises(ValueError, match="must have 0 channels, got 2"):
        net(fields(), noise())


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
    loss = lambda p: (eqx.combine(p, rest)(x, noise) ** 2).sum()
    return jax.grad(loss)(parameters)


def test_gradients_reach_every_parameter_and_no_table():
    parameters = slopes(NET, fields(), noise())
    assert jax.tree.leaves((parameters.sht, parameters.inner)) == []
    for leaf in jax.tree.leaves(parameters):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0
    # Nothing in, and equal channels at every point of a norm.
    nothing = slopes(NET, jnp.zeros((2, *GRID.shape)), noise() * 0)
    chex.assert_tree_all_finite(nothing)


def test_gradient_in_the_input_is_that_of_finite_differences():
    total = eqx.filter_jit(lambda net, x: (net(x, noise()) ** 2).sum())
    direction = fields(9)
    gradient = eqx.filter_jit(jax.grad(total, argnums=1))(awake(), fields())
    # Layer norms bend where channels are nearly equal: the step must be small.
    ends = [total(awake(), fields() + step * direction) for step in (1e-6, -1e-6)]
    slope = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, rtol=1e-6)


def test_members_may_be_mapped():
    x = jnp.stack([fields(seed) for seed in range(3)])
    z = jnp.stack([noise(seed) for seed in range(3)])
    mapped = eqx.filter_jit(lambda net, x, z: jax.vmap(net)(x, z))(awake(), x, z)
    alone = jnp.stack([run(awake(), *one) for one in zip(x, z, strict=True)])
    chex.assert_trees_all_close(mapped, alone, atol=1e-12)


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
        NET(fields(), noise(channels=1))
    with pytest.raises(ValueError, match="does not lie on this equiangular grid"):
        NET(jnp.zeros((2, 8, 16)))
    with pytest.raises(ValueError, match=r"must end in \(l, m\) = \(6, 6\)"):
        NET(fields(), jnp.zeros((2, 5, 5), complex))
