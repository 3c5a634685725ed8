import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import sphere
from skyens.dynamics import member_keys, rollout
from skyens.nn import SFNO, NeuralStep, Normaliser
from skyens.sphere import AutoregressiveField, GaussianRandomField

GRID = sphere.gauss_legendre(6, 12)
LMAX = 4
KEY = jr.key(0)
MEAN, STD = np.array([5500.0, 280.0]), np.array([100.0, 10.0])
CHANGE = jnp.array([20.0, 3.0])
start = eqx.filter_jit(NeuralStep.start)
advance = eqx.filter_jit(NeuralStep.__call__)


class Echo(eqx.Module):
    """A network whose change is its input plus a number for the noise it hears."""

    noise_channels: int = eqx.field(static=True, default=3)
    lmax: int = eqx.field(static=True, default=LMAX)

    def __call__(self, x, noise):
        return x + noise[:, 1, 0].real.sum().astype(x.dtype)


def neural_step(network=None, correlations=(0.5, 0.5, 0.5), dtype=float):
    sht = sphere.SphericalHarmonics(GRID, LMAX)
    power = jnp.asarray(sphere.matern_spectrum(LMAX, 0.5), dtype)
    field = GaussianRandomField(sht, power)
    processes = [AutoregressiveField(field, memory) for memory in correlations]
    network = Echo() if network is None else network
    return NeuralStep(network, Normaliser(MEAN, STD), CHANGE, processes)


def value(seed=1):
    normal = np.random.default_rng(seed).normal(size=(2, *GRID.shape))
    return jnp.asarray(MEAN[:, None, None] + STD[:, None, None] * normal)


def test_changes_are_in_the_units_of_their_channel():
    step = neural_step()
    state = start(step, value(), key=KEY)
    later = advance(step, state, key=jr.key(1))
    heard = float(later["noise"][:, 1, 0].real.sum())
    normal = (np.asarray(value()) - MEAN[:, None, None]) / STD[:, None, None]
    change = np.asarray(CHANGE)[:, None, None] * (normal + heard)
    np.testing.assert_allclose(later["value"], value() + change, rtol=1e-12)


def test_start_keeps_the_value_and_draws_noise_of_order_one():
    step = neural_step()
    state = start(step, value(), key=KEY)
    np.testing.assert_array_equal(state["value"], value())
    assert state["noise"].shape == (3, LMAX + 1, LMAX + 1)
    draw = jax.jit(jax.vmap(lambda key: step.start(value(), key=key)["noise"]))
    sht = step.processes[0].field.sht
    noise = jax.jit(jax.vmap(sht.synthesis))(draw(member_keys(KEY, 2000)))
    # Variance 1 for each channel, and no two alike.
    flat = np.asarray(noise).transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(flat.var(axis=1), 1.0, rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(flat), np.eye(3), atol=0.05)


def test_each_channel_of_noise_has_a_memory_of_its_own():
    step = neural_step(correlations=(1.0, 0.5, 0.0))

    @jax.jit
    @jax.vmap
    def pair(key):
        before = step.start(value(), key=jr.fold_in(key, 0))
        return before["noise"], step(before, key=jr.fold_in(key, 1))["noise"]

    before, after = map(np.asarray, pair(member_keys(KEY, 1000)))
    inner = lambda a, b: (a.conj() * b).real.sum(axis=(0, 2, 3))
    correlation = inner(before, after) / inner(before, before)
    np.testing.assert_allclose(correlation, [1.0, 0.5, 0.0], atol=0.05)
    np.testing.assert_allclose(after[:, 0], before[:, 0], atol=1e-12)


def test_without_noise_channels_it_is_deterministic():
    step = neural_step(Echo(0), correlations=())
    state = start(step, value(), key=KEY)
    assert state["noise"].shape == (0, LMAX + 1, LMAX + 1)
    first, second = (advance(step, state, key=jr.key(k)) for k in (1, 2))
    np.testing.assert_array_equal(first["value"], second["value"])
    assert (first["value"] != value()).all()


def test_an_operator_rolls_out_for_many_members_in_float32():
    sizes = dict(width=4, blocks=1, lmax=LMAX, noise_channels=3)
    network = SFNO(GRID, 2, 2, **sizes, key=jr.key(3))
    step = neural_step(network, dtype=jnp.float32)
    narrow = value().astype(jnp.float32)

    @eqx.filter_jit
    def members(step, keys):
        def member(key):
            state = step.start(narrow, key=jr.fold_in(key, 0))
            return rollout(step, state, 3, key=key)

        return jax.vmap(member)(keys)

    path = members(step, member_keys(KEY, 2))
    assert path["value"].shape == (2, 3, 2, *GRID.shape)
    assert path["value"].dtype == jnp.float32
    assert path["noise"].dtype == jnp.complex64
    assert np.isfinite(path["value"]).all()
    # The noise is no part of an untrained network's value, but differs by member.
    moved = np.abs(np.asarray(path["value"][:, 0] - narrow[None])).max(axis=(2, 3))
    assert (moved > 0).all()
    assert (path["noise"][0, :, :, 1:, 0] != path["noise"][1, :, :, 1:, 0]).all()


class Growth(eqx.Module):
    """A network that lets departures from the mean grow."""

    rate: jax.Array
    noise_channels: int = eqx.field(static=True, default=0)
    lmax: int = eqx.field(static=True, default=LMAX)

    def __call__(self, x, noise):
        return self.rate * x


def test_gradients_go_through_a_rollout():
    @jax.jit
    @jax.grad
    def slope(rate):
        step = neural_step(Growth(rate), correlations=())
        path = rollout(step, step.start(value(), key=KEY), 3, key=KEY, checkpoint=True)
        return path["value"][-1].sum()

    # Each step multiplies the departure by 1 + rate * change / std.
    ratio = np.asarray(CHANGE) / STD
    departure = (np.asarray(value()) - MEAN[:, None, None]).sum(axis=(1, 2))
    expected = (departure * 3 * ratio * (1 + 0.7 * ratio) ** 2).sum()
    np.testing.assert_allclose(slope(jnp.asarray(0.7)), expected, rtol=1e-10)


def test_a_bad_member_spoils_no_other():
    step = neural_step()
    values = jnp.stack([value(1), value(2).at[0, 0, 0].set(jnp.nan)])
    keys = member_keys(KEY, 2)
    member = lambda v, k: step(step.start(v, key=k), key=k)["value"]
    later = jax.jit(jax.vmap(member))(values, keys)
    assert np.isfinite(later[0]).all()
    assert not np.isfinite(later[1]).all()


def test_processes_that_do_not_fit_are_reported():
    with pytest.raises(ValueError, match="3 channels of noise, got 2"):
        neural_step(correlations=(0.5, 0.5))


def bounded(limit=2.0):
    step = neural_step()
    rows = lambda table: np.broadcast_to(table[:, None], (2, GRID.n_latitude))
    bounds = Normaliser(rows(MEAN), rows(STD))
    return NeuralStep(
        step.network,
        step.normaliser,
        0 * CHANGE,
        step.processes,
        bounds=bounds,
        limit=limit,
    )


def test_a_guarded_state_is_left_alone_within_bounds_and_bends_beyond():
    step = bounded()
    scale = lambda x: MEAN[:, None, None] + STD[:, None, None] * x
    departure = jnp.linspace(-1.99, 1.99, 2 * 72).reshape(2, *GRID.shape)
    state = {"value": scale(departure), "noise": start(step, value(), key=KEY)["noise"]}
    later = advance(step, state, key=KEY)["value"]
    np.testing.assert_array_equal(later, state["value"])
    far = jnp.linspace(2.1, 50, 2 * 72).reshape(2, *GRID.shape)
    later = advance(step, state | {"value": scale(far)}, key=KEY)["value"]
    bent = (np.asarray(later) - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(bent, 2 + np.tanh(np.asarray(far) - 2), rtol=1e-9)
    slope = jax.grad(lambda x: step._bend(scale(x))[0, 0, 0])(jnp.zeros_like(far))
    assert slope[0, 0, 0] == STD[0]


def test_a_guarded_long_run_stays_within_the_bounds():
    step = eqx.tree_at(lambda s: s.change, bounded(), 10 * CHANGE)
    state = start(step, value(), key=KEY)
    last = rollout(step, state, 200, key=KEY)["value"][-1]
    departure = (np.asarray(last) - MEAN[:, None, None]) / STD[:, None, None]
    assert np.abs(departure).max() <= 3 + 1e-9
