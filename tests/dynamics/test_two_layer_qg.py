from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pyqg_jax
import pytest
from scipy.integrate import solve_ivp

from skyens.dynamics import TwoLayerQG, rollout

SHAPE, LENGTHS = (20, 16), (21.0, 16.0)
EVERY: dict[str, Any] = {
    "jacobian": 0.9,
    "beta": 0.2,
    "stretching": (1.5, 0.6),
    "winds": (0.4, -0.1),
    "relaxation": 0.3,
    "jet_speed": 1.2,
    "jet_width": 3.0,
    "drag": 0.2,
    "hyperviscosity": 1e-3,
    "sponge_rate": 0.8,
    "sponge_width": 2.5,
}
L = 2 * np.pi * np.fft.fftfreq(SHAPE[0], LENGTHS[0] / SHAPE[0])[:, None]
K = 2 * np.pi * np.fft.fftfreq(SHAPE[1], LENGTHS[1] / SHAPE[1])[None]
# The shortest waves have no slope on their grid.
SLOPE_Y = 1j * L * (np.arange(SHAPE[0]) != SHAPE[0] // 2)[:, None]
SLOPE_X = 1j * K * (np.arange(SHAPE[1]) != SHAPE[1] // 2)[None]


def quiet(**settings: Any) -> dict[str, Any]:
    """Nothing but advection, beta, winds and what is given."""
    takers = ["relaxation", "drag", "hyperviscosity", "sponge_rate"]
    return dict.fromkeys(takers, 0.0) | settings


def smooth(seed, waves=4, shape=SHAPE):
    """Random potential vorticity of two layers, of a few long waves, of mean 0."""
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(2, *shape)))
    l, k = (np.abs(np.fft.fftfreq(n, 1 / n)) for n in shape)
    kept = (l[:, None] < waves) & (k[None] < waves) & (l[:, None] + k[None] > 0)
    field = np.fft.ifft2(noise * kept).real
    return jnp.asarray(field / field.std())


def apply(factor, field):
    return np.fft.ifft2(factor * np.fft.fft2(field)).real


def advect(psi, q):
    """The Jacobian on a grid twice as fine, in the form of its gradients."""
    fine = tuple(2 * n for n in SHAPE)

    def refine(spectrum):
        wide = np.zeros(fine, complex)
        wave = [np.round(np.fft.fftfreq(n, 1 / n)).astype(int) for n in SHAPE]
        wide[np.ix_(*wave)] = spectrum
        return 4 * np.fft.ifft2(wide).real

    within = (SLOPE_Y != 0) | (L == 0)
    within = within & ((SLOPE_X != 0) | (K == 0))
    psi, q = (np.fft.fft2(f) * within for f in (psi, q))
    slopes = [refine(s * f) for f in (psi, q) for s in (SLOPE_X, SLOPE_Y)]
    product = np.fft.fft2(slopes[0] * slopes[3] - slopes[1] * slopes[2]) / 4
    wave = [np.round(np.fft.fftfreq(n, 1 / n)).astype(int) for n in SHAPE]
    return np.fft.ifft2(product[np.ix_(*wave)] * within).real


def invert(q, upper, lower):
    """A system of two equations for each wave, by least squares for the mean."""
    squares = (L**2 + K**2)[..., None, None] * np.eye(2)
    matrix = np.array([[-upper, upper], [lower, -lower]]) - squares
    v = np.moveaxis(np.fft.fft2(q), 0, -1)[..., None]
    psi = (np.linalg.pinv(matrix, rcond=1e-10) @ v)[..., 0]
    return np.fft.ifft2(np.moveaxis(psi, -1, 0)).real


def equation(q, *, psi_r, push: Any = 0.0, **of):
    """The right side with all but the sponge, term by term."""
    (upper, lower), (first, second) = of["stretching"], of["winds"]
    psi = invert(q, upper, lower)
    shear = first - second
    slope = of["beta"] + np.array([upper * shear, -lower * shear])
    pull = of["relaxation"] * (psi[0] - psi[1] - psi_r)
    change = np.zeros_like(q) + push
    for i, (wind, weight) in enumerate(zip(of["winds"], (upper, -lower), strict=True)):
        change[i] -= of["jacobian"] * advect(psi[i], q[i])
        change[i] -= wind * apply(SLOPE_X, q[i]) + slope[i] * apply(SLOPE_X, psi[i])
        change[i] += weight * pull
        change[i] -= of["hyperviscosity"] * apply((L**2 + K**2) ** 4, q[i])
    change[1] += of["drag"] * apply(L**2 + K**2, psi[1])
    return change


def test_every_term_is_that_of_the_equation():
    of: dict[str, Any] = EVERY | {"sponge_rate": 0.0}
    world, q = TwoLayerQG(SHAPE, LENGTHS, **of), smooth(0, waves=10)
    expected = equation(np.asarray(q), psi_r=np.asarray(world.equilibrium()), **of)
    np.testing.assert_allclose(world.tendency(q), expected, atol=1e-11)
    for name in ("jacobian", "beta", "relaxation", "jet_speed", "drag"):
        without: dict[str, Any] = of | {name: 0.0}
        less = TwoLayerQG(SHAPE, LENGTHS, **without)
        psi_r = np.asarray(less.equilibrium())
        expected = equation(np.asarray(q), psi_r=psi_r, **without)
        np.testing.assert_allclose(less.tendency(q), expected, atol=1e-11)


def test_steps_are_the_solution_to_fourth_order():
    of: dict[str, Any] = EVERY | {"sponge_rate": 0.0}
    start, push = smooth(1), 0.2 * smooth(2)
    psi_r = np.asarray(TwoLayerQG(SHAPE, LENGTHS, **of).equilibrium())

    def right(_, q):
        full = q.reshape(2, *SHAPE)
        return equation(full, psi_r=psi_r, push=np.asarray(push), **of).ravel()

    settings = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-10}
    exact = solve_ivp(right, (0, 1.0), np.ravel(start), **settings).y[:, -1]
    error = []
    for steps in (10, 20):
        world = TwoLayerQG(SHAPE, LENGTHS, 1 / steps, **of)
        pushes = jnp.broadcast_to(push, (steps, *push.shape))
        later = rollout(world, start, steps, pushes)[-1]
        error.append(np.abs(np.ravel(later) - exact).max())
    assert error[1] < 1e-4
    assert 11 < error[0] / error[1] < 23  # 2**4, near enough


def test_the_jet_is_the_one_asked_for_and_its_return_flow_is_uniform():
    world = TwoLayerQG((128, 8), (60.0, 10.0), jet_speed=0.7, jet_width=2.0)
    psi_r = world.equilibrium()
    slope = 2j * np.pi * np.fft.fftfreq(128, 60 / 128)
    slope[64] = 0
    wind = -np.fft.ifft(slope * np.fft.fft(psi_r[:, 0])).real
    jet = 0.7 / np.cosh((world.y - 30) / 2.0) ** 2
    np.testing.assert_allclose(wind, jet - jet.mean(), atol=1e-8)
    np.testing.assert_allclose(np.mean(psi_r), 0, atol=1e-12)


def test_streamfunction_and_potential_vorticity_belong_together():
    world, q = TwoLayerQG(SHAPE, LENGTHS, stretching=(1.5, 0.6)), smooth(3, waves=9)
    psi = world.streamfunction(q)
    np.testing.assert_allclose(psi, invert(q, 1.5, 0.6), atol=1e-12)
    np.testing.assert_allclose(world.potential_vorticity(psi), q, atol=1e-12)


def energy(world, q):
    """By its definition: motion of each layer, by depth, and the tilt between them."""
    psi = np.asarray(world.streamfunction(q))
    upper, lower = np.asarray(world.stretching)
    motion = [sum(apply(s, p) ** 2 for s in (SLOPE_X, SLOPE_Y)) for p in psi]
    tilt = upper * lower * (psi[0] - psi[1]) ** 2
    total = lower * motion[0] + upper * motion[1] + tilt
    return total.mean() / 2 / (upper + lower)


def test_advection_keeps_energy_and_enstrophy_and_others_take_what_they_should():
    pair: dict[str, Any] = {"stretching": (1.5, 0.6)}
    world, q = TwoLayerQG(SHAPE, LENGTHS, **pair, **quiet()), smooth(4)
    np.testing.assert_allclose(world.energy(q), energy(world, q), rtol=1e-12)
    change = lambda world, of: jax.jvp(of, (q,), (world.tendency(q),))[1]
    scale = float(world.energy(q))
    assert abs(change(world, world.energy)) < 1e-14 * scale
    flat = TwoLayerQG(SHAPE, LENGTHS, beta=0.0, **pair, **quiet())
    assert np.abs(change(flat, flat.enstrophy)).max() < 1e-14

    psi = np.asarray(world.streamfunction(q))
    motion = np.stack([sum(apply(s, p) ** 2 for s in (SLOPE_X, SLOPE_Y)) for p in psi])
    depths = np.array([0.6, 1.5])[:, None, None] / 2.1
    drag = TwoLayerQG(SHAPE, LENGTHS, **pair, **quiet(drag=0.3))
    loss = -0.3 * (depths * motion)[1].mean()
    np.testing.assert_allclose(change(drag, world.energy), loss, rtol=1e-10)

    # Wide enough that the grid resolves the brake of both edges.
    width = {"sponge_rate": 0.3, "sponge_width": 4.0}
    braked = TwoLayerQG(SHAPE, LENGTHS, **pair, **quiet(**width))
    to_edge = np.minimum(world.y, LENGTHS[0] - world.y)
    brake = 0.3 / np.cosh(to_edge / 4.0)[:, None] ** 2
    loss = -(depths * brake * motion).sum(0).mean()
    np.testing.assert_allclose(change(braked, world.energy), loss, rtol=1e-2)
    assert np.abs(np.mean(braked.tendency(q), axis=(1, 2))).max() < 1e-15


def test_waves_are_those_of_rossby_and_decay_by_hyperviscosity():
    world = TwoLayerQG(SHAPE, LENGTHS, 0.1, **quiet(hyperviscosity=0.02), order=2)
    k, l = 2 * 2 * np.pi / LENGTHS[1], 3 * 2 * np.pi / LENGTHS[0]
    square, time = k**2 + l**2, 20 * 0.1
    # Alike in both layers: no stretching. One wave does not advect itself.
    wave = lambda shift: np.sin(k * world.x[None] + l * world.y[:, None] + shift)
    start = jnp.asarray(np.stack([wave(0.0)] * 2))
    later = eqx.filter_jit(rollout)(world, start, 20)[-1]
    exact = np.exp(-0.02 * square**2 * time) * wave(0.196 * k / square * time)
    np.testing.assert_allclose(later[0], exact, atol=1e-8)
    np.testing.assert_allclose(later[1], exact, atol=1e-8)


def test_tendencies_are_those_of_pyqg():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = pyqg_jax.qg_model.QGModel(
            nx=24, ny=24, L=20.0, rek=0.1, beta=0.3, rd=0.8, delta=0.4, U1=0.5, U2=0.1,
            precision=pyqg_jax.state.Precision.DOUBLE,
        )  # fmt: skip
        # Waves so long that their products need no care, of which pyqg takes another.
        q = 3 * smooth(5, waves=4, shape=(24, 24))
        state = theirs.create_initial_state(jax.random.key(0)).update(q=q)
        expected = np.asarray(theirs.get_updates(state).q)
    upper = 0.8**-2 / 1.4
    ours = TwoLayerQG(
        (24, 24), (20.0, 20.0), **quiet(drag=0.1), beta=0.3, winds=(0.5, 0.1),
        stretching=(upper, 0.4 * upper),
    )  # fmt: skip
    np.testing.assert_allclose(ours.tendency(q), expected, atol=1e-12)


def test_gradients_in_every_coefficient_match_finite_differences():
    start = smooth(6)

    @jax.jit
    def loss(coefficients):
        world = TwoLayerQG(SHAPE, LENGTHS, 0.2, **coefficients)
        return jnp.sum(rollout(world, start, 3)[-1] ** 3)

    pairs = {n: jnp.asarray(v) for n, v in EVERY.items() if isinstance(v, tuple)}
    slopes = jax.jit(jax.grad(loss))(EVERY | pairs)
    for name, value in (EVERY | pairs).items():
        shift = 1e-4 * float(np.max(value))
        ahead, behind = (
            loss(EVERY | pairs | {name: value + e}) for e in (shift, -shift)
        )
        expected = (ahead - behind) / (2 * shift)
        np.testing.assert_allclose(jnp.sum(slopes[name]), expected, rtol=1e-5)


def test_each_member_may_have_its_own_coefficient():
    members, drags = jnp.stack([smooth(7), smooth(8)]), jnp.asarray([0.5, 0.0])
    build = lambda drag: TwoLayerQG(SHAPE, LENGTHS, drag=drag)
    later = eqx.filter_jit(jax.vmap(lambda drag, q: build(drag)(q)))(drags, members)
    np.testing.assert_allclose(later[1], build(0.0)(members[1]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_states_keep_their_dtype(dtype):
    world, start = TwoLayerQG(SHAPE, LENGTHS), smooth(9).astype(dtype)
    step = eqx.filter_jit(lambda q: world(q))
    later = step(start)
    assert later.dtype == dtype
    assert world.streamfunction(start).dtype == dtype
    tolerance = 20 * float(jnp.finfo(dtype).eps) * float(abs(start).max())
    np.testing.assert_allclose(
        later.astype(float), step(start.astype(float)), atol=tolerance
    )


@pytest.mark.parametrize("shape", [(15, 11), (9, 12)])
def test_odd_numbers_of_points_have_every_wave(shape):
    world = TwoLayerQG(shape, LENGTHS, **quiet(), stretching=(1.5, 0.6), beta=0.0)
    q = jnp.asarray(np.random.default_rng(10).normal(size=(2, *shape)))
    q = q - jnp.mean(q, axis=(1, 2), keepdims=True)
    if not all(n % 2 for n in shape):
        q = world.potential_vorticity(smooth(11, 3, shape))
    slope = jax.jvp(world.energy, (q,), (world.tendency(q),))[1]
    assert abs(slope) < 1e-13 * float(jnp.mean(q**2))


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"two numbers of at least 8, got \(4, 64\)"):
        TwoLayerQG((4, 64))
    with pytest.raises(ValueError, match=r"two positive numbers, got \(1.0, -1.0\)"):
        TwoLayerQG(lengths=(1.0, -1.0))
    with pytest.raises(ValueError, match="`order` must be at least 1, got 0"):
        TwoLayerQG(order=0)
    with pytest.raises(ValueError, match="`dt` must be positive and finite, got 0"):
        TwoLayerQG(dt=0.0)
    with pytest.raises(ValueError, match="`winds` must be a pair"):
        TwoLayerQG(winds=jnp.ones(3))
    world = TwoLayerQG(SHAPE, LENGTHS)
    with pytest.raises(ValueError, match=r"`state` must have the shape \(2, 20, 16\)"):
        world(jnp.ones(SHAPE)[None])
    with pytest.raises(ValueError, match="`streamfunction` must have the shape"):
        world.potential_vorticity(jnp.ones((1, *SHAPE)))
