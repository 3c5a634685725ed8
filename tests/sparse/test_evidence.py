import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.sparse import compress
from skyens.sparse._evidence import (
    System,
    log_evidence,
    newton_step,
    scaled,
    slope,
    statistics,
)

N, P = 30, 5
GROUPS = np.array([0, 0, 1, 2, 2])
SAME = jnp.asarray(GROUPS[:, None] == GROUPS[None], float)
RATIO = jnp.array([3.0, 3.0, 0.0, 40.0, 40.0])


def rows(seed=0):
    random = np.random.default_rng(seed)
    phi = random.normal(size=(N, P))
    phi[:, 4] = 2 * phi[:, 3]  # a duplicate does no harm
    y = phi @ np.array([1.0, -1, 0, 2, 0]) + random.normal(size=N)
    return phi / np.linalg.norm(phi, axis=0), y / np.linalg.norm(y)


def system(variance=None, same=None) -> System:
    problem = compress(*(jnp.asarray(part) for part in rows()))
    parts = problem.factor, problem.target, problem.rest, problem.rows
    return scaled(*parts, variance and variance**0.5, same)[0]


def test_statistics_are_those_of_dense_formulas():
    phi, y = rows()
    ratio = np.asarray(RATIO)
    now = jax.jit(statistics)(system(), RATIO)
    k = np.eye(N) + (phi * ratio) @ phi.T
    inside = np.linalg.solve(k, np.column_stack([phi, y]))
    prior = np.diag(ratio)
    expected = {
        "mean": ratio * (phi.T @ inside[:, P]),
        "shape": prior - prior @ phi.T @ inside[:, :P] @ prior,
        "pull": phi.T @ inside[:, P],
        "bend": phi.T @ inside[:, :P],
        "misfit": y @ inside[:, P],
        "log_determinant": np.linalg.slogdet(k)[1],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(
            getattr(now, name), value, rtol=1e-10, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("same", [None, SAME])
@pytest.mark.parametrize("variance", [None, 0.02])
def test_slope_and_curvature_are_derivatives_of_the_evidence(variance, same):
    at = system(variance, same)
    start = RATIO if same is not None else RATIO.at[1].set(7.0)
    groups = jnp.asarray(GROUPS) if same is not None else jnp.arange(P)

    def evidence(logs):
        ratio = jnp.where(start > 0, start * jnp.exp(logs[groups]), 0)
        return log_evidence(at, statistics(at, ratio))

    @jax.jit
    def of():
        now = statistics(at, start)
        derivatives = jax.grad(evidence), jax.hessian(evidence)
        zero = jnp.zeros(P)
        return (
            [f(zero) for f in derivatives],
            slope(at, now),
            newton_step(at, start, now),
        )

    (gradient, hessian), ours, step = of()
    np.testing.assert_allclose(
        (start * ours)[start > 0], gradient[groups][start > 0], atol=1e-9
    )
    free = np.unique(groups[start > 0])
    hessian = hessian[free][:, free]
    expected = np.clip(-np.linalg.solve(hessian, gradient[free]), -1, 1)
    found = np.asarray(step)[[int(np.argmax(groups == g)) for g in free]]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_columns_of_any_size_become_units():
    factor = jnp.diag(jnp.array([1e200, 1e-200, 0.0, 3.0]))
    zero = jnp.zeros(())
    at, size, height = scaled(factor, jnp.zeros(4), zero, zero + 9, None)
    np.testing.assert_allclose(size, [1e200, 1e-200, 1, 3], rtol=1e-12)
    np.testing.assert_allclose(jnp.diagonal(at.factor), [1, 1, 0, 1], rtol=1e-12)
    assert height == 1
    assert at.rest > 0  # the logarithm of what is left exists
    with pytest.raises(eqx.EquinoxRuntimeError, match="`noise` must be positive"):
        scaled(factor, jnp.zeros(4), zero, zero + 9, -1.0)


def test_float32_stays():
    at = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), system(0.02, SAME))
    now = statistics(at, RATIO.astype(jnp.float32))
    step = newton_step(at, RATIO.astype(jnp.float32), now)
    chex.assert_type([*now, step, slope(at, now), log_evidence(at, now)], jnp.float32)
