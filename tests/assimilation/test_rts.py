import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st

from skyens.assimilation import Smoothed, kalman_filter, kalman_update, rts_smoother
from skyens.observations import Dense, Linear, Observation

STATES, TIMES, SEEN = 3, 5, 2
smooth, filtering = jax.jit(rts_smoother), jax.jit(kalman_filter)


def chain(seed=0):
    """Matrices of a chain that change with time, and values with gaps."""
    generator = np.random.default_rng(seed)
    normal = generator.normal
    square = lambda *shape: (
        lambda f: f @ np.swapaxes(f, -1, -2) + 0.1 * np.eye(f.shape[-1])
    )(normal(size=shape))
    values = normal(size=(TIMES, SEEN))
    values[generator.random(values.shape) < 0.3] = np.nan
    return {
        "mean": normal(size=STATES),
        "covariance": square(STATES, STATES),
        "transition": normal(size=(TIMES, STATES, STATES)) / 2,
        "noise": square(TIMES, STATES, STATES),
        "matrix": normal(size=(TIMES, SEEN, STATES)),
        "error": square(TIMES, SEEN, SEEN),
        "values": values,
    }


def arguments(parts, join=lambda state: state):
    observe = lambda x: Observation(
        x["values"], Linear(x["matrix"]), Dense(x["error"])
    ).pullback(join)
    parts = jax.tree.map(jnp.asarray, parts)
    window = {name: parts[name] for name in ("values", "matrix", "error")}
    first = [parts[n] for n in ("mean", "covariance", "transition", "noise")]
    return *first, jax.vmap(observe)(window)


def joint(parts, until=TIMES):
    """All states' mean and covariance given the values before `until`; log-evidence.

    The states are one long vector, `(TIMES + 1) * STATES`; nothing is recursive.
    """
    size = (TIMES + 1) * STATES
    noises = [parts["covariance"], *parts["noise"]]
    # states = sum of the propagated start and noises
    grow = np.zeros((TIMES + 1, STATES, size))
    grow[0, :, :STATES] = np.eye(STATES)
    for i in range(TIMES):
        grow[i + 1] = parts["transition"][i] @ grow[i]
        grow[i + 1, :, (i + 1) * STATES : (i + 2) * STATES] += np.eye(STATES)
    grow = grow.reshape(size, size)
    start = np.concatenate([parts["mean"], np.zeros(TIMES * STATES)])
    covariance = grow @ scipy.linalg.block_diag(*noises) @ grow.T
    mean = grow @ start
    values = parts["values"][:until].reshape(-1)
    seen = np.zeros((TIMES * SEEN, size))
    seen[:, STATES:] = scipy.linalg.block_diag(*parts["matrix"])
    error = scipy.linalg.block_diag(*parts["error"])
    keep = np.flatnonzero(np.isfinite(values))
    if not keep.size:
        return mean, covariance, 0.0
    seen, error, values = seen[keep], error[np.ix_(keep, keep)], values[keep]
    total = seen @ covariance @ seen.T + error
    gain = np.linalg.solve(total, seen @ covariance).T
    evidence = scipy.stats.multivariate_normal(seen @ mean, total).logpdf(values)
    return (
        mean + gain @ (values - seen @ mean),
        covariance - gain @ seen @ covariance,
        evidence,
    )


def block(matrix, i):
    return matrix[i * STATES : (i + 1) * STATES, i * STATES : (i + 1) * STATES]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_it_is_the_joint_gaussian_of_all_states_given_all_values(seed):
    parts = chain(seed)
    found = smooth(*arguments(parts))
    mean, covariance, evidence = joint(parts)
    scale = 1 + np.abs(covariance).max()
    np.testing.assert_allclose(
        found.law.mean, mean.reshape(TIMES + 1, STATES), atol=1e-10 * scale
    )
    for i in range(TIMES + 1):
        np.testing.assert_allclose(
            found.law.covariance[i], block(covariance, i), atol=1e-10 * scale
        )
    np.testing.assert_allclose(
        found.log_evidence.sum(), evidence, rtol=1e-10, atol=1e-10
    )


def test_the_filter_is_the_joint_gaussian_given_the_values_so_far():
    parts = chain(7)
    found = filtering(*arguments(parts))
    before = 0.0
    for i in range(TIMES):
        mean, covariance, _ = joint(parts, i)
        now = slice((i + 1) * STATES, (i + 2) * STATES)
        np.testing.assert_allclose(found.predicted.mean[i], mean[now], atol=1e-10)
        np.testing.assert_allclose(
            found.predicted.covariance[i], block(covariance, i + 1), atol=1e-9
        )
        mean, covariance, evidence = joint(parts, i + 1)
        np.testing.assert_allclose(found.analysis.mean[i], mean[now], atol=1e-10)
        np.testing.assert_allclose(
            found.analysis.covariance[i], block(covariance, i + 1), atol=1e-9
        )
        np.testing.assert_allclose(found.log_evidence[i], evidence - before, atol=1e-10)
        before = evidence


def test_singular_covariances_need_no_inverse():
    parts = chain(3)
    parts["noise"] = 0 * parts["noise"]
    parts["covariance"] = np.diag([1.0, 0.0, 2.0])  # the second is known
    parts["transition"] = parts["transition"] * np.array([1.0, 1.0, 0.0])  # and lossy
    found = smooth(*arguments(parts))
    mean, covariance, _ = joint(parts)
    np.testing.assert_allclose(
        found.law.mean, mean.reshape(TIMES + 1, STATES), atol=1e-11
    )
    np.testing.assert_allclose(
        found.law.covariance[0], block(covariance, 0), atol=1e-11
    )


def test_with_everything_masked_it_is_the_prediction():
    parts = chain(1)
    parts["values"] = np.full_like(parts["values"], np.nan)
    found = smooth(*arguments(parts))
    mean, covariance, _ = joint(parts)
    np.testing.assert_allclose(
        found.law.mean, mean.reshape(TIMES + 1, STATES), atol=1e-12
    )
    np.testing.assert_allclose(
        found.law.covariance[-1], block(covariance, TIMES), atol=1e-12
    )
    np.testing.assert_array_equal(found.log_evidence, np.zeros(TIMES))


def test_the_mean_is_any_pytree_and_constant_matrices_stand_for_all_times():
    parts = chain(2)
    for name in ("transition", "noise", "matrix", "error"):
        parts[name] = np.repeat(parts[name][:1], TIMES, axis=0)
    mean, covariance, transition, noise, observations = arguments(parts)
    tree = {"a": mean[:1], "b": mean[1:].reshape(1, 2)}
    join = lambda state: jnp.concatenate([state["a"], state["b"].reshape(-1)])
    *_, joined = arguments(parts, join)
    found = smooth(tree, covariance, transition[0], noise[0], joined)
    expected = smooth(mean, covariance, transition, noise, observations)
    chex.assert_trees_all_close(
        jax.vmap(join)(found.law.mean), expected.law.mean, rtol=1e-12
    )
    chex.assert_trees_all_close(
        found.law.covariance, expected.law.covariance, rtol=1e-12
    )


def test_the_evidence_has_the_gradient_of_finite_differences():
    mean, covariance, transition, noise, observations = arguments(chain(5))

    def loss(scale):
        found = rts_smoother(
            mean, covariance, scale * transition, scale * noise, observations
        )
        return found.log_evidence.sum() + found.law.mean.sum()

    loss = jax.jit(loss)
    slope = jax.jit(jax.grad(loss))(1.1)
    change = loss(1.1 + 1e-5) - loss(1.1 - 1e-5)
    np.testing.assert_allclose(slope, change / 2e-5, rtol=1e-6)


def test_single_precision_stays():
    narrow = jax.tree.map(lambda x: np.asarray(x, np.float32), chain(4))
    found = smooth(*arguments(narrow))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    exact = smooth(*arguments(chain(4)))
    assert isinstance(found, Smoothed)
    np.testing.assert_allclose(found.law.mean, exact.law.mean, atol=1e-4)


def test_one_observation_is_the_kalman_update():
    mean, covariance, transition, noise, observations = arguments(chain(6))
    found = filtering(mean, covariance, transition, noise, observations)
    one = jax.tree.map(lambda leaf: leaf[0], observations)
    spread = transition[0] @ covariance @ transition[0].T + noise[0]
    expected = kalman_update(transition[0] @ mean, spread, one)
    law = found.analysis
    chex.assert_trees_all_close((law.mean[0], law.covariance[0]), expected, rtol=1e-12)


def test_wrong_use_is_reported():
    mean, covariance, transition, noise, observations = arguments(chain())
    with pytest.raises(ValueError, match=r"`noise` must have the shape \(3, 3\) or"):
        rts_smoother(mean, covariance, transition, noise[:, :2, :2], observations)
    with pytest.raises(ValueError, match="does not fit a `mean` of 2 entries"):
        rts_smoother(mean[:2], covariance, transition, noise, observations)
