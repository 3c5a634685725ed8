import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import AdditiveNoise, Kernel, Weighted

COVARIANCE = np.asarray([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
Q_FULL = [3.0, np.asarray([1.0, 0.0, 2.0]), COVARIANCE]


@pytest.mark.parametrize("covariance", Q_FULL, ids=["number", "vector", "matrix"])
def test_additive_noise_has_its_covariance(covariance):
    noise = AdditiveNoise(covariance)
    root = noise.root(Weighted(jnp.zeros((2, 3))))
    full = np.asarray(covariance)
    full = full if full.ndim == 2 else full * np.eye(3)
    np.testing.assert_allclose(root.T @ root, full, atol=1e-14)
    keys = jr.split(jr.key(0), 20000)
    draws = jax.jit(jax.vmap(lambda key: noise(jnp.ones(3), key=key)))(keys)
    np.testing.assert_allclose(np.cov(draws.T), full, atol=0.1)
    np.testing.assert_allclose(draws.mean(0), 1, atol=0.06)


def test_additive_noise_of_a_pytree_keeps_dtypes_and_clocks():
    state = {
        "x": jnp.ones(2, jnp.float32),
        "wave": jnp.asarray(1j, jnp.complex64),
        "n": jnp.asarray(3),
    }
    variance = np.asarray([0.0, 0.0, 0.0, 1.0])  # wave: real, then imaginary; then x
    moved = AdditiveNoise(variance)(state, key=jr.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, state)
    assert int(moved["n"]) == 3
    assert complex(moved["wave"]) == 1j
    assert float(moved["x"][0]) == 1 != float(moved["x"][1])


@pytest.mark.parametrize("members", [4, 30])
def test_kernels_have_the_covariance_of_the_weighted_ensemble(members):
    # Fewer members than entries: the anomalies; more: a triangle.
    generator = np.random.default_rng(members)
    state = generator.normal(size=(members, 6)) @ generator.normal(size=(6, 6))
    state[:, 5] = state[:, 4]  # two equal entries
    weights = generator.uniform(size=members)
    ensemble = Weighted(state, jnp.log(jnp.asarray(weights)))
    root = eqx.filter_jit(Kernel(1.5).root)(ensemble)
    expected = 1.5**2 * members ** (-2 / 10) * np.cov(state.T, aweights=weights)
    np.testing.assert_allclose(root.T @ root, expected, rtol=1e-9, atol=1e-9)


def test_one_with_all_the_weight_has_the_kernel_of_all():
    state = np.random.default_rng(0).normal(size=(5, 2))
    alone = jnp.asarray([0.0, -800.0, -jnp.inf, -900.0, -jnp.inf])
    root = Kernel().root(Weighted(state, alone))
    expected = 5 ** (-2 / 6) * np.cov(state.T)
    np.testing.assert_allclose(root.T @ root, expected, rtol=1e-10)


def test_only_copies_move_and_shrinking_keeps_the_spread():
    members = jr.normal(jr.key(1), (4000, 2)) @ jnp.asarray([[1.0, 0.5], [0.0, 2.0]])
    before, index = Weighted(members), jnp.arange(4000)
    some = index.at[1].set(0)
    kernel = Kernel(2.0, only_copies=True)
    moved = kernel(members[some], some, before, key=jr.key(2))
    changed = np.any(np.asarray(moved != members[some]), axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed), [0, 1])
    wide = Kernel(2.0)(members, index, before, key=jr.key(2))
    kept = Kernel(2.0, shrink=True)(members, index, before, key=jr.key(2))
    width = 4 * 4000 ** (-2 / 6)
    covariance = np.cov(members.T)
    # 4000 draws: to a few percent.
    np.testing.assert_allclose(np.cov(wide.T), (1 + width) * covariance, rtol=0.08)
    np.testing.assert_allclose(np.cov(kept.T), covariance, rtol=0.08)


@pytest.mark.parametrize("members", [4, 9])
def test_gradients_are_finite_and_match_differences(members):
    state = jr.normal(jr.key(3), (members, 5))
    way = jr.normal(jr.key(4), (members, 5))

    @jax.jit
    def loss(epsilon, state):
        weighted = Weighted(state + epsilon * way, epsilon * way[:, 0])
        moved = Kernel(1 + epsilon)(
            weighted.members, jnp.arange(members), weighted, key=jr.key(5)
        )
        return jnp.sum(moved**3)

    step = 1e-5
    slope = jax.jit(jax.grad(loss))
    expected = (loss(step, state) - loss(-step, state)) / (2 * step)
    np.testing.assert_allclose(slope(0.0, state), expected, rtol=1e-6)
    # Equal entries and equal members have a derivative too.
    equal = jnp.broadcast_to(state[:, :1], state.shape)
    chex.assert_tree_all_finite(slope(0.0, equal))
    gradient = jax.jit(jax.grad(loss, argnums=1))
    chex.assert_tree_all_finite(gradient(0.0, jnp.ones((members, 5))))


def test_single_precision_stays():
    state = jr.normal(jr.key(6), (40, 3), jnp.float32)
    weighted = Weighted({"x": state, "twin": state[:, 0]})
    moved = Kernel()(weighted.members, jnp.arange(40), weighted, key=jr.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, weighted.members)
    chex.assert_tree_all_finite(moved)
    root = AdditiveNoise(COVARIANCE).root(Weighted(state))
    assert root.dtype == jnp.float32


def test_wrong_use_is_reported():
    with pytest.raises(
        eqx.EquinoxRuntimeError, match="must be finite and not negative"
    ):
        AdditiveNoise(-1.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="positive definite"):
        AdditiveNoise(np.asarray([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="symmetric"):
        AdditiveNoise(np.asarray([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"square matrix, got the shape \(2, 3\)"):
        AdditiveNoise(np.ones((2, 3)))
    with pytest.raises(ValueError, match="for 3 entries, the state has 2"):
        AdditiveNoise(np.ones(3))(jnp.zeros(2), key=jr.key(0))
    with pytest.raises(ValueError, match="`shrink` needs noise on all members"):
        Kernel(only_copies=True, shrink=True)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`bandwidth` must not be negat"):
        Kernel(-1.0)
    with pytest.raises(ValueError, match="`key` is needed to draw from kernels"):
        Kernel()(jnp.ones((3, 2)), jnp.arange(3), Weighted(jnp.ones((3, 2))))
