from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad

from skyens.dynamics import Burgers, rollout
from skyens.sparse import (
    Library,
    SpectralDerivative,
    Term,
    backward_path,
    compress,
    elbow,
    flux_polynomials,
    ridge,
    weak_form,
)

LENGTH = 2 * np.pi
LINE = flux_polynomials([SpectralDerivative(LENGTH)], powers=3, orders=3)


@pytest.fixture(scope="module")
def waves():
    world = Burgers(128, LENGTH, 0.02, viscosity=0.05)
    x = jnp.asarray(world.points)
    start = jnp.sin(x) + 0.5 * jnp.cos(2 * x + 1) + 0.3 * jnp.sin(3 * x)
    return jax.jit(lambda u: rollout(world, u, 100))(start)


def line(states, half_width=(20, 12)):
    return weak_form(
        states, LINE, dt=0.02, spacing=[LENGTH / 128], half_width=half_width
    )


@pytest.mark.parametrize("seed", range(3))
def test_burgers_equation_is_found_under_ten_percent_of_noise(waves, seed):
    noisy = waves + 0.1 * jnp.std(waves) * jr.normal(jr.key(seed), waves.shape)
    weak = jax.jit(line)(noisy)
    problem = compress(weak.matrix, weak.values, names=LINE.names)
    bend = elbow(backward_path(problem))
    truth = np.isin(LINE.names, ["u_xx", "(u^2)_x"])
    assert np.array_equal(bend.support, truth)
    assert bend.jump > 1
    np.testing.assert_allclose(bend.mean[truth], [0.05, -0.5], rtol=0.1)
    # The strong form of the same states finds nothing of it.
    slope = (noisy[2:] - noisy[:-2]) / 0.04
    columns = jax.jit(jax.vmap(LINE))(noisy[1:-1]).reshape(-1, len(LINE))
    strong = ridge(compress(columns, slope.ravel()), support=jnp.asarray(truth))
    assert np.all(np.abs(strong.mean[truth] / np.array([0.05, -0.5]) - 1) > 0.5)


def test_without_noise_the_equation_holds_to_its_states_error(waves):
    weak = jax.jit(line)(waves)
    truth = jnp.asarray(np.isin(LINE.names, ["u_xx", "(u^2)_x"]))
    solution = ridge(compress(weak.matrix, weak.values), support=truth)
    np.testing.assert_allclose(solution.mean[truth], [0.05, -0.5], rtol=1e-4)


def test_columns_are_integrals_against_derivatives_of_test_functions():
    x = np.arange(64) * LENGTH / 64
    time = np.arange(41) * 0.1
    states = jnp.asarray(np.cos(time)[:, None] * np.sin(2 * x + 1))
    half, edge = (20, 12), 1e-8
    weak = weak_form(
        states, LINE, dt=0.1, spacing=[LENGTH / 64], half_width=half, edge=edge
    )
    p, r = (int(np.ceil(np.log(edge) / np.log((2 * m - 1) / m**2))) for m in half)
    shape = lambda s, power: (1 - s**2) ** power
    wide = 12 * LENGTH / 64
    # The first box in time is centred at 2; the second in space at three points.
    parts = quad(lambda t: np.cos(t) * shape((t - 2) / 2, p), 0, 4)[0]
    centre = 2 * LENGTH / 64
    second = lambda s: -2 * r * (1 - s**2) ** (r - 2) * (1 - s**2 - 2 * (r - 1) * s**2)
    bent = quad(
        lambda s: np.sin(2 * (centre + wide * s) + 1) * second(s) / wide, -1, 1
    )[0]
    column = weak.matrix[:, LINE.names.index("u_xx")].reshape(-1, 32)
    np.testing.assert_allclose(column[0, 1], parts * bent, rtol=1e-6)
    flat = quad(lambda s: np.sin(2 * (centre + wide * s) + 1) * shape(s, r), -1, 1)[0]
    rate = quad(lambda t: -np.sin(t) * shape((t - 2) / 2, p), 0, 4)[0]
    left = weak.values.reshape(-1, 32)
    np.testing.assert_allclose(left[0, 1], rate * flat * wide, rtol=1e-6)


def test_a_rectangle_and_a_term_that_is_integrated_as_it_stands():
    y, x = np.meshgrid(*(np.arange(24) * LENGTH / 24,) * 2, indexing="ij")
    time = np.arange(31)[:, None, None] * 0.05
    # Two waves of u_t = -0.7 u_x + 0.2 u_yy + 0.3 u_xx - 0.1 u.
    wave = lambda k, l: (
        np.exp(-(0.3 * k**2 + 0.2 * l**2 + 0.1) * time)
        * np.cos(k * (x - 0.7 * time) + l * y + k)
    )
    states = jnp.asarray(wave(1, 1) + wave(2, 0) + wave(0, 2) + wave(2, 1))
    slopes = [SpectralDerivative(LENGTH, axis=axis) for axis in (-2, -1)]
    library = flux_polynomials(slopes, powers=1, orders=2, axes=("y", "x"))
    library = Library(library.terms[1:]) + Library([Term("drag", lambda u: -u)])
    weak = weak_form(
        states, library, dt=0.05, spacing=(LENGTH / 24,) * 2, half_width=(12, 8, 8)
    )
    solution = ridge(compress(weak.matrix, weak.values))
    found = dict(zip(library.names, solution.mean.tolist(), strict=True))
    truth = {"u_y": 0, "u_yy": 0.2, "u_x": -0.7, "u_xx": 0.3, "drag": 0.1}
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


def test_the_strong_form_of_the_library_is_the_derivative():
    u = jnp.sin(jnp.arange(32.0) * LENGTH / 32)
    columns = dict(zip(LINE.names, LINE(u).T, strict=True))
    x = np.arange(32) * LENGTH / 32
    np.testing.assert_allclose(columns["(u^2)_x"], np.sin(2 * x), atol=1e-12)
    np.testing.assert_allclose(columns["u_xxx"], -np.cos(x), atol=1e-11)


def test_float32_stays_and_wrong_use_is_reported(waves):
    weak = line(waves.astype(jnp.float32))
    assert weak.matrix.dtype == weak.values.dtype == jnp.float32
    with pytest.raises(ValueError, match=r"`half_width\[0\]` must be at least 2"):
        line(waves, (60, 12))
    with pytest.raises(ValueError, match="`half_width` must be 2 positive numbers"):
        line(waves, (20,))
    some: Any = {"dt": 0.02, "spacing": [0.05], "half_width": (20, 12)}
    with pytest.raises(ValueError, match=r"`stride\[1\]` must divide the 128 points"):
        weak_form(waves, LINE, **some, stride=(5, 7))
    with pytest.raises(ValueError, match="`dt` must be positive"):
        weak_form(waves, LINE, **(some | {"dt": 0.0}))
    with pytest.raises(ValueError, match="`edge` must lie"):
        weak_form(waves, LINE, **some, edge=2.0)
    with pytest.raises(ValueError, match="must have the shape"):
        weak_form(waves, Library([Term("sum", jnp.sum)]), **some)
    flat = flux_polynomials([SpectralDerivative(1.0)] * 2, axes=("y", "x"))
    with pytest.raises(ValueError, match="have 1 axes of space"):
        weak_form(waves, flat, **some)
    with pytest.raises(ValueError, match="must name each of 1 derivatives"):
        flux_polynomials([SpectralDerivative(1.0)], axes=("y", "x"))
    with pytest.raises(ValueError, match="`powers` must be positive"):
        flux_polynomials([SpectralDerivative(1.0)], powers=0)
