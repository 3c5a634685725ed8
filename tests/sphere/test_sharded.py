"""Eight devices are forced on the host, in a process of its own."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.sphere import ShardedHarmonics, SphericalHarmonics

CASE = """
    import jax
    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp, numpy as np
    from skyens import sphere
    from skyens.sphere import ShardedHarmonics, SphericalHarmonics

    auto = (jax.sharding.AxisType.Auto,) * 2
    make, rows, columns, lmax, channels, batch, mesh_shape = {case}
    grid = getattr(sphere, make)(rows, columns, longitude_origin=-3.0)
    sht = SphericalHarmonics(grid, lmax)
    mesh = jax.make_mesh(mesh_shape, ("channel", "space"), axis_types=auto)
    spread = ShardedHarmonics(sht, mesh)
    rng = np.random.default_rng(0)
    c = np.tril(rng.normal(size=(*batch, channels, lmax + 1, lmax + 1)))
    field = sht.synthesis(jnp.asarray(c.astype(complex)))
    weight = jnp.asarray(rng.normal(size=field.shape))

    x, w = spread.shard_field(field), spread.shard_field(weight)
    coefficients = spread.analysis(x)
    again = spread.synthesis(coefficients)
    assert len(x.sharding.device_set) == len(coefficients.sharding.device_set) == 8
    found = spread.gather_coefficients(coefficients, channels)
    np.testing.assert_allclose(found, sht.analysis(field), atol=1e-12)
    np.testing.assert_allclose(
        spread.gather_field(again, channels), field, atol=1e-12
    )
    put = spread.shard_coefficients(sht.analysis(field))
    assert put.sharding.is_equivalent_to(coefficients.sharding, put.ndim)

    def loss(transform, x, w):
        there_and_back = transform.synthesis(transform.analysis(x))
        return jnp.sum(w * there_and_back**2)

    gradient = jax.jit(jax.grad(lambda x, w: loss(spread, x, w)))
    expected = jax.grad(lambda x, w: loss(sht, x, w))(field, weight)
    np.testing.assert_allclose(
        spread.gather_field(gradient(x, w), channels), expected, atol=1e-11
    )
    _, tangent = jax.jvp(spread.analysis, (x,), (w,))
    np.testing.assert_allclose(
        spread.gather_coefficients(tangent, channels), sht.analysis(weight), atol=1e-12
    )

    exchanges = mesh_shape[1] > 1
    def communications(function, *arguments):
        text = jax.jit(lambda *a: function(*a)).lower(*arguments).compile().as_text()
        names = ("all-to-all", "all-gather", "all-reduce", "collective-permute")
        return {{n: text.count(" " + n + "(") + text.count(" " + n + "-start(")
                for n in names}}
    for function, argument in [(spread.analysis, x), (spread.synthesis, coefficients)]:
        counts = communications(function, argument)
        assert counts.pop("all-to-all") == exchanges, counts
        assert not any(counts.values()), counts
    counts = communications(gradient, x, w)
    assert counts["all-to-all"] == 4 * exchanges, counts
    assert counts["all-gather"] == 0, counts
    print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ("gauss_legendre", 32, 64, 31, 4, (), (2, 4)),
        ("gauss_legendre", 33, 70, 20, 3, (2,), (1, 8)),
        ("equiangular", 19, 36, 17, 5, (), (4, 2)),
        ("cell_centred", 12, 25, 11, 11, (1,), (8, 1)),
    ],
    ids=lambda case: f"{case[0]}-{case[-1]}",
)
def test_eight_devices_do_what_one_does_with_one_exchange(case):
    script = textwrap.dedent(CASE).format(case=case)
    environment = dict(os.environ)
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"


def one_device():
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((1, 1), ("channel", "space"), axis_types=auto)


def test_a_mesh_of_one_is_the_transform_itself_in_either_precision():
    sht = SphericalHarmonics(sphere.equiangular(9, 16), 7)
    spread = ShardedHarmonics(sht, one_device())
    field = jnp.asarray(np.random.default_rng(1).normal(size=(3, 9, 16)))
    found = spread.gather_coefficients(spread.analysis(spread.shard_field(field)), 3)
    np.testing.assert_allclose(found, sht.analysis(field), atol=1e-13)
    single = spread.analysis(spread.shard_field(field.astype(jnp.float32)))
    assert single.dtype == jnp.complex64
    assert spread.synthesis(single).dtype == jnp.float32


def test_wrong_use_is_reported():
    sht = SphericalHarmonics(sphere.gauss_legendre(9, 18), 7)
    with pytest.raises(ValueError, match="`space` must name an axis of the mesh"):
        ShardedHarmonics(sht, one_device(), space="latitude")
    spread = ShardedHarmonics(sht, one_device())
    with pytest.raises(ValueError, match=r"must end in \(channel, 9, 18\)\."):
        spread.shard_field(jnp.zeros((2, 9, 17)))
    with pytest.raises(ValueError, match="spread it with `shard_coefficients` first"):
        spread.synthesis(jnp.zeros((2, 8, 9), complex))
    with pytest.raises(ValueError, match="spread it with `shard_field` first"):
        spread.analysis(jnp.zeros((2, 8, 18)))
