import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jaxtyping import Array

from skyens.training import TrainState, ema_model, make_step, scan_steps


class Linear(eqx.Module):
    weight: Array
    table: Array = eqx.field(metadata={"trainable": False})


def linear(dtype=jnp.float64):
    return Linear(jnp.asarray([1.0, -2.0], dtype), jnp.asarray([3.0, 4.0], dtype))


def squares(model, batch, *, key):
    """A loss whose gradient is `weight * table - batch`, times the table."""
    return 0.5 * jnp.sum((model.weight * model.table - batch) ** 2)


def noisy(model, batch, *, key):
    return squares(model, batch + jr.normal(key, batch.shape, batch.dtype), key=None)


def numpy_descent(batches, rate):
    weight, table, path = np.asarray([1.0, -2.0]), np.asarray([3.0, 4.0]), []
    for batch in np.asarray(batches):
        weight = weight - rate * table * (weight * table - batch)
        path.append(weight)
    return np.stack(path)


BATCHES = jr.normal(jr.key(7), (6, 2))


class MakeStepTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_it_descends_as_written_in_numpy(self):
        optimiser = optax.sgd(0.01)
        step = self.variant(make_step(squares, optimiser))
        state = TrainState.init(linear(), optimiser)
        for i, expected in enumerate(numpy_descent(BATCHES, 0.01)):
            state, metrics = step(state, BATCHES[i])
            np.testing.assert_allclose(state.model.weight, expected, rtol=1e-13)
            assert not metrics.failed
        assert (int(state.steps), int(state.failures)) == (6, 0)
        np.testing.assert_array_equal(state.model.table, [3.0, 4.0])


def test_metrics_are_those_before_the_update():
    optimiser = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    batch = jnp.asarray([1.0, 1.0])
    state = TrainState.init(linear(), optimiser)
    state, metrics = make_step(squares, optimiser)(state, batch)
    # residuals 3 - 1 = 2 and -8 - 1 = -9, gradients 3 * 2 and 4 * -9
    np.testing.assert_allclose(metrics.loss, 0.5 * (4 + 81), rtol=1e-14)
    np.testing.assert_allclose(metrics.gradient_norm, np.hypot(6, 36), rtol=1e-14)
    moved = np.linalg.norm(state.model.weight - jnp.asarray([1.0, -2.0]))
    np.testing.assert_allclose(moved, 1e-3, rtol=1e-10)


def test_the_average_is_the_bias_corrected_one_at_every_step():
    optimiser, decay = optax.sgd(0.01), 0.8
    step = make_step(squares, optimiser, ema_decay=decay)
    state = TrainState.init(linear(), optimiser)
    np.testing.assert_array_equal(ema_model(state).weight, [1.0, -2.0])
    path, biased = numpy_descent(BATCHES, 0.01), np.zeros(2)
    for i, weight in enumerate(path):
        state, _ = step(state, BATCHES[i])
        biased = decay * biased + (1 - decay) * weight
        expected = biased / (1 - decay ** (i + 1))
        np.testing.assert_allclose(ema_model(state).weight, expected, rtol=1e-13)
    np.testing.assert_array_equal(ema_model(state).table, [3.0, 4.0])


def test_the_average_follows_without_a_decay_and_may_be_left_out():
    optimiser = optax.sgd(0.01)
    step = make_step(squares, optimiser)
    state, _ = step(TrainState.init(linear(), optimiser), BATCHES[0])
    chex.assert_trees_all_equal(ema_model(state), state.model)
    state, _ = step(TrainState.init(linear(), optimiser, ema=False), BATCHES[0])
    assert state.ema is None
    with pytest.raises(ValueError, match="keeps no average"):
        ema_model(state)
    with pytest.raises(ValueError, match="needs a state made by"):
        make_step(squares, optimiser, ema_decay=0.9)(state, BATCHES[0])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e200])  # 1e200: the norm overflows
def test_a_failed_update_changes_nothing_and_is_counted(bad):
    optimiser = optax.chain(optax.add_noise(0.1, 0.5, jr.key(0)), optax.adam(0.1))
    step = make_step(squares, optimiser, ema_decay=0.9)
    state, _ = step(TrainState.init(linear(), optimiser), BATCHES[0])
    after, metrics = step(state, BATCHES[1].at[0].set(bad))
    assert metrics.failed
    assert (int(after.steps), int(after.failures)) == (2, 1)
    kept = lambda s: eqx.filter((s.model, s.opt_state, s.ema), eqx.is_array)
    chex.assert_trees_all_equal(kept(after), kept(state))
    healed, metrics = step(after, BATCHES[2])
    without, _ = step(state, BATCHES[2])
    assert not metrics.failed
    chex.assert_trees_all_equal(kept(healed), kept(without))


def test_a_failed_network_leaves_the_others_of_its_ensemble_alone():
    optimiser = optax.adam(0.1)
    step = make_step(squares, optimiser, ema_decay=0.9)
    init = lambda weight: TrainState.init(
        eqx.tree_at(lambda m: m.weight, linear(), weight), optimiser
    )
    states = eqx.filter_vmap(init)(jr.normal(jr.key(0), (3, 2)))
    after, metrics = eqx.filter_vmap(step)(states, BATCHES[:3].at[1].set(jnp.nan))
    np.testing.assert_array_equal(metrics.failed, [False, True, False])
    np.testing.assert_array_equal(after.failures, [0, 1, 0])
    moved = (after.model.weight != states.model.weight).all(1)
    np.testing.assert_array_equal(moved, [True, False, True])
    assert np.isfinite(eqx.filter_vmap(ema_model)(after).weight).all()


def test_complex_parameters_descend():
    target = jnp.asarray([1.0 - 2.0j, 0.5j])
    loss = lambda model, batch, *, key: jnp.sum(jnp.abs(model["z"] - batch) ** 2)
    optimiser = optax.adam(0.05)
    state = TrainState.init({"z": jnp.zeros(2, complex)}, optimiser)
    step = make_step(loss, optimiser, ema_decay=0.9)
    state, metrics = scan_steps(step, state, jnp.broadcast_to(target, (400, 2)))
    np.testing.assert_allclose(state.model["z"], target, atol=1e-3)
    np.testing.assert_allclose(ema_model(state)["z"], target, atol=1e-3)
    assert metrics.loss.dtype == jnp.float64
    # d|z|^2 / dx and dy are 2x and 2y: the norm is 2 |z - target|
    first = 2 * np.sqrt(1 + 4 + 0.25)
    np.testing.assert_allclose(metrics.gradient_norm[0], first, rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_stay_and_averages_are_float32_at_least(dtype):
    optimiser = optax.adamw(0.01)
    state = TrainState.init(linear(dtype), optimiser)
    step = make_step(noisy, optimiser, ema_decay=0.999)
    after, metrics = step(state, BATCHES[0].astype(dtype), key=jr.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    wide = jnp.float32 if dtype == jnp.bfloat16 else dtype
    assert metrics.gradient_norm.dtype == wide
    assert jax.tree.leaves(after.ema)[0].dtype == wide
    assert ema_model(after).weight.dtype == metrics.loss.dtype == dtype


def test_parameters_of_several_dtypes_train_together():
    model = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.float64)}
    loss = lambda m, _, *, key: jnp.sum(m["a"].astype(float) * m["b"])
    optimiser = optax.sgd(0.5)
    step = make_step(loss, optimiser, ema_decay=0.5)
    after, metrics = step(TrainState.init(model, optimiser), None)
    np.testing.assert_array_equal(after.model["b"], [0.5, 0.5])
    np.testing.assert_allclose(metrics.gradient_norm, 2.0, rtol=1e-7)


def test_scanned_steps_are_the_single_ones_and_draw_what_they_draw():
    optimiser = optax.adam(0.05)
    step = make_step(noisy, optimiser, ema_decay=0.9)
    start, key = TrainState.init(linear(), optimiser), jr.key(3)
    state, losses = start, []
    for batch in BATCHES:
        state, metrics = step(state, batch, key=key)
        losses.append(metrics.loss)
    scanned, metrics = scan_steps(step, start, BATCHES, key=key)
    chex.assert_trees_all_close(scanned, state, rtol=1e-12)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-12)
    assert len({float(loss) for loss in losses}) == len(losses)


def test_each_step_draws_anew_from_the_same_key():
    draw = lambda model, batch, *, key: (model["w"] * 0, jr.normal(key))
    optimiser = optax.sgd(0.1)
    step = make_step(draw, optimiser, has_aux=True)
    state = TrainState.init({"w": jnp.ones(())}, optimiser)
    for i in range(3):
        state, metrics = step(state, None, key=jr.key(5))
        np.testing.assert_array_equal(
            metrics.aux, jr.normal(jr.fold_in(jr.key(5), jnp.int32(i)))
        )


def test_a_weakly_typed_parameter_compiles_once():
    traces = []

    def loss(model, batch, *, key):
        traces.append(model)
        return (model["w"] - batch) ** 2

    optimiser = optax.adam(0.1)
    step = make_step(loss, optimiser, ema_decay=0.9)
    state = TrainState.init({"w": jnp.asarray(0.3)}, optimiser)
    for batch in jnp.arange(3.0):
        state, _ = step(state, batch)
    assert len(traces) == 1


def test_the_optimiser_is_told_the_loss():
    optimiser = optax.chain(
        optax.sgd(0.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
    )
    step = make_step(squares, optimiser)
    state = TrainState.init(linear(), optimiser)
    state, _ = scan_steps(step, state, jnp.ones((8, 2)))
    assert float(state.opt_state[1].scale) < 1.0


def test_a_donated_state_gives_the_same_and_is_gone():
    optimiser = optax.adam(0.1)
    kept, given = (TrainState.init(linear(), optimiser) for _ in range(2))
    expected, _ = make_step(squares, optimiser, ema_decay=0.9)(kept, BATCHES[0])
    donating = make_step(squares, optimiser, ema_decay=0.9, donate=True)
    state, _ = donating(given, BATCHES[0])
    assert given.model.weight.is_deleted()
    assert not kept.model.weight.is_deleted()
    chex.assert_trees_all_equal(state, expected)


def test_a_network_with_functions_among_its_leaves_learns():
    mlp = eqx.nn.MLP(2, 1, 8, 1, activation=jnp.tanh, key=jr.key(0))
    x = jr.normal(jr.key(1), (64, 2))
    y = x[:, :1] * x[:, 1:]

    def loss(model, batch, *, key):
        x, y = batch
        error = (jax.vmap(model)(x) - y) ** 2
        return error.mean(), {"worst": error.max()}

    optimiser = optax.adam(0.02)
    step = make_step(loss, optimiser, has_aux=True)
    state = TrainState.init(mlp, optimiser)
    batches = jax.tree.map(lambda a: jnp.broadcast_to(a, (300, *a.shape)), (x, y))
    state, metrics = scan_steps(step, state, batches)
    assert metrics.loss[-1] < 0.1 * metrics.loss[0]
    assert metrics.aux["worst"].shape == (300,)


def test_wrong_use_is_reported():
    optimiser = optax.sgd(0.1)
    for decay in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="`ema_decay` must lie in"):
            make_step(squares, optimiser, ema_decay=decay)
    with pytest.raises(ValueError, match="no trainable array"):
        TrainState.init({"table": jnp.arange(3)}, optimiser)
    state = TrainState.init(linear(), optimiser)
    with pytest.raises(ValueError, match=r"real scalar, got float64 of shape \(2,\)"):
        make_step(lambda m, b, *, key: m.weight, optimiser)(state, None)
    with pytest.raises(ValueError, match=r"real scalar, got complex128"):
        make_step(lambda m, b, *, key: jnp.ones((), complex), optimiser)(state, None)
