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
    scale = lambda table: table[:, None, None]
    return scale(MEAN) + scale(STD) * jr.normal(jr.key(seed), (2, *GRID.shape))


def test_changes_are_in_the_units_of_their_channel():
    step = neural_step()
    state = step.start(value(), key=KEY)
    later = advance(step, state, key=jr.key(1))
    heard = float(later["noise"][:, 1, 0].real.sum())
    normal = (np.asarray(value()) - MEAN[:, None, None]) / STD[:, None, None]
    change = np.asarray(CHANGE)[:, None, None] * (normal + heard)
    np.testing.assert_allclose(later["value"], value() + change, rtol=1e-12)


def test_start_keeps_the_value_and_draws_noise_of_order_one():
    step = neural_step()
    state = step.start(value(), key=KEY)
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


@pytest.mark.parametrize("make", [lambda: Echo(0), lambda: network(0)])
def test_without_noise_channels_it_is_deterministic(make):
    step = neural_step(make(), correlations=())
    state = step.start(value(), key=KEY)
    assert state["noise"].shape == (0, LMAX + 1, LMAX + 1)
    first, second = (advance(step, state, key=jr.key(k)) for k in (1, 2))
    np.testing.assert_array_equal(first["value"], second["value"])
    assert (first["value"] != value()).all()


def network(noise_channels=3):
    sizes = dict(width=4, blocks=1, lmax=LMAX, noise_channels=noise_channels)
    return SFNO(GRID, 2, 2, **sizes, key=jr.key(3))


def test_an_operator_rolls_out_for_many_members_in_float32():
    step = neural_step(network(), dtype=jnp.float32)
    start = value().astype(jnp.float32)

    @eqx.filter_jit
    def members(step, keys):
        def member(key):
            state = step.start(start, key=jr.fold_in(key, 0))
            return rollout(step, state, 3, key=key)

        return jax.vmap(member)(keys)

    path = members(step, member_keys(KEY, 2))
    assert path["value"].shape == (2, 3, 2, *GRID.shape)
    assert path["value"].dtype == jnp.float32
    assert path["noise"].dtype == jnp.complex64
    assert np.isfinite(path["value"]).all()
    # The noise is no part of an untrained network's value, but differs by member.
    moved = np.abs(np.asarray(path["value"][:, 0] - start[None])).max(axis=(2, 3))
    assert (moved > 0).all()
    assert (path["noise"][0, :, :, 1:, 0] != path["noise"][1, :, :, 1:, 0]).all()


def test_gradients_reach_the_network_through_a_rollout():
    step = neural_step(network())

    @eqx.filter_jit
    @eqx.filter_grad
    def slope(step):
        state = step.start(value(), key=KEY)
        path = rollout(step, state, 2, key=KEY, checkpoint=True)
        return ((path["value"] - value()[None]) ** 2).sum()

    for leaf in jax.tree.leaves(slope(step).network.blocks):
        assert np.isfinite(leaf).all()
    assert np.abs(slope(step).network.project.weight).max() > 0


def test_a_bad_member_spoils_no_other():
    step = neural_step()
    start = jnp.stack([value(1), value(2).at[0, 0, 0].set(jnp.nan)])
    states = jax.vmap(lambda v, k: step.start(v, key=k))(start, member_keys(KEY, 2))
    later = jax.vmap(lambda s, k: step(s, key=k))(states, member_keys(KEY, 2))
    assert np.isfinite(later["value"][0]).all()
    assert not np.isfinite(later["value"][1]).all()


def test_processes_that_do_not_fit_are_reported():
    with pytest.raises(ValueError, match="3 channels of noise, got 2"):
        neural_step(correlations=(0.5, 0.5))
