from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import ARDRegression

from skyens.sparse import EM, Constraints, MacKay, Sequential, compress, rvm

N, P = 120, 12
TRUE = [0, 1, 2, 3]
fit_jit = eqx.filter_jit(rvm)


def data(kind, seed=0):
    random = np.random.default_rng(seed)
    phi = random.normal(size=(N, P))
    w = np.zeros(P)
    w[TRUE] = 1, -2, 0.5, 3
    noise = 0.1
    if kind == "collinear":
        phi = phi + 20 * random.normal(size=(N, 1))
    if kind == "scaled":
        scale = 10.0 ** random.uniform(-8, 8, P)
        phi, w = phi * scale, w / scale
    if kind == "duplicate":
        phi[:, 7] = -2 * phi[:, 1]
    if kind == "noise-free":
        noise = 1e-8
    if kind == "pure noise":
        w[:] = 0
    return phi, phi @ w + noise * random.normal(size=N), w, noise


def dense(phi, y, variance, noise):
    """The posterior and evidence by their textbook formulas, in longer numbers."""
    kept = np.asarray(variance) > 0
    columns = phi[:, kept].astype(np.longdouble)
    scale = np.sqrt((columns**2).mean(0))
    columns = (columns / scale).astype(float)
    prior = np.asarray(variance)[kept] * (scale**2).astype(float)
    inverse = columns.T @ columns / noise**2 + np.diag(1 / prior)
    covariance = np.linalg.inv(inverse)
    mean = covariance @ columns.T @ y / noise**2
    scale = scale.astype(float)
    k = noise**2 * np.eye(len(y)) + (columns * prior) @ columns.T
    evidence = stats.multivariate_normal(np.zeros(len(y)), k).logpdf(y)
    return mean / scale, covariance / np.outer(scale, scale), evidence


def wide(seed):
    random = np.random.default_rng(seed)
    phi, w = random.normal(size=(40, 60)), np.zeros(60)
    w[TRUE] = 1, -2, 1.5, 3
    return phi, phi @ w + 0.1 * random.normal(size=40), w, 0.1


KINDS = "plain", "collinear", "scaled", "duplicate", "noise-free", "pure noise"


@pytest.mark.parametrize("kind", KINDS)
def test_the_support_by_z_is_the_true_one(kind):
    phi, y, w, noise = data(kind)
    fit = fit_jit(compress(jnp.asarray(phi), jnp.asarray(y)))
    assert fit.converged
    found = np.unique(fit.collinear[np.abs(fit.z) > 4])
    assert found.tolist() == np.flatnonzero(w).tolist()
    np.testing.assert_allclose(fit.noise, noise, rtol=0.25)  # 1 / sqrt(2 n) is 0.07


@pytest.mark.parametrize("kind", ["plain", "collinear", "scaled"])
def test_posterior_and_evidence_are_those_of_dense_formulas(kind):
    phi, y, _, _ = data(kind)
    fit = fit_jit(compress(jnp.asarray(phi), jnp.asarray(y)))
    mean, covariance, evidence = dense(phi, y, fit.prior_variance, float(fit.noise))
    kept = np.asarray(fit.support)
    np.testing.assert_allclose(fit.mean[kept], mean, rtol=1e-8, atol=0)
    size = np.sqrt(np.diag(covariance))
    ours = fit.covariance[kept][:, kept] / np.outer(size, size)
    np.testing.assert_allclose(ours, covariance / np.outer(size, size), atol=1e-8)
    np.testing.assert_allclose(fit.log_evidence, evidence, rtol=1e-8)
    assert not np.any(fit.mean[~kept])
    assert not np.any(fit.covariance[~kept])


def peer(phi, y, noise=None):
    """The evidence where scikit-learn's fixed point ends, by QR in float64."""
    scale = np.sqrt((phi**2).mean(0))  # it has no scaling of its own
    known: dict[str, Any] = {"alpha_1": 0, "alpha_2": 0}
    if noise is not None:  # a prior that leaves the noise no choice
        known = {"alpha_1": 1e12, "alpha_2": 1e12 * noise**2}
    ard = ARDRegression(
        fit_intercept=False, threshold_lambda=1e8, max_iter=2000, tol=1e-10,
        lambda_1=0, lambda_2=0, **known,
    ).fit(phi / scale, y)  # fmt: skip
    noise = ard.alpha_**-0.5 if noise is None else noise
    root = np.where(ard.lambda_ < 1e8, ard.lambda_**-0.5, 0)
    stacked = np.vstack([phi / scale * root / noise, np.eye(phi.shape[1])])
    target = np.append(y / noise, np.zeros(phi.shape[1]))
    residue = target - stacked @ np.linalg.lstsq(stacked, target, rcond=None)[0]
    diagonal = np.abs(np.diag(np.linalg.qr(stacked, mode="r")))
    log_determinant = 2 * np.log(diagonal).sum() + len(y) * np.log(noise**2)
    return -0.5 * (len(y) * np.log(2 * np.pi) + log_determinant + residue @ residue)


@pytest.mark.parametrize("kind", KINDS)
def test_the_evidence_is_at_least_that_of_scikit_learn(kind):
    phi, y, _, _ = data(kind)
    fit = fit_jit(compress(jnp.asarray(phi), jnp.asarray(y)))
    assert fit.log_evidence >= peer(phi, y) - 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_so_it_is_where_there_are_more_terms_than_rows(seed):
    phi, y, w, noise = wide(seed)
    fit = fit_jit(compress(jnp.asarray(phi), jnp.asarray(y)), noise=noise)
    assert fit.converged
    assert fit.log_evidence >= peer(phi, y, noise) - 1e-6
    assert np.flatnonzero(np.abs(fit.z) > 4).tolist() == np.flatnonzero(w).tolist()


@pytest.mark.parametrize("kind", ["plain", "scaled"])
def test_the_optimum_is_stationary(kind):
    phi, y, _, _ = data(kind)
    fit = fit_jit(compress(jnp.asarray(phi), jnp.asarray(y)))
    scale = np.sqrt((phi**2).mean(0))
    columns, variance = phi / scale, np.asarray(fit.prior_variance) * scale**2
    k = float(fit.noise) ** 2 * np.eye(N) + (columns * variance) @ columns.T
    inside = np.linalg.solve(k, np.column_stack([columns, y]))
    bend, pull = np.sum(columns * inside[:, :P], 0), columns.T @ inside[:, P]
    slope = 0.5 * (pull**2 - bend)
    kept = variance > 0
    np.testing.assert_allclose(variance[kept] * slope[kept], 0, atol=1e-7)
    assert np.all(slope[~kept] <= 0)
    # The noise: y' K^-1 K^-1 y = trace K^-1.
    inverse = np.linalg.inv(k)
    np.testing.assert_allclose(np.sum(inside[:, P] ** 2), np.trace(inverse), rtol=1e-8)


@pytest.mark.parametrize("update", [MacKay(), EM()])
def test_fixed_points_reach_the_same_optimum(update):
    phi, y, _, _ = data("plain")
    problem = compress(jnp.asarray(phi), jnp.asarray(y))
    fit, other = fit_jit(problem), fit_jit(problem, update=update)
    assert other.converged
    np.testing.assert_allclose(other.log_evidence, fit.log_evidence, rtol=1e-10)
    np.testing.assert_allclose(other.mean, fit.mean, atol=1e-8)


def test_known_noise_stays_and_free_noise_needs_rows():
    phi, y, _, noise = wide(0)
    problem = compress(jnp.asarray(phi), jnp.asarray(y))
    np.testing.assert_allclose(fit_jit(problem, noise=noise).noise, noise)
    with pytest.raises(eqx.EquinoxRuntimeError, match="evidence degenerates"):
        rvm(problem)


def test_float32_finds_the_same():
    phi, y, w, _ = data("plain")
    phi, y = jnp.asarray(phi, jnp.float32), jnp.asarray(y, jnp.float32)
    fit = fit_jit(compress(phi, y))
    assert fit.converged
    assert {leaf.dtype for leaf in (fit.mean, fit.noise, fit.z)} == {
        np.dtype("float32")
    }
    assert np.flatnonzero(np.abs(fit.z) > 4).tolist() == TRUE
    np.testing.assert_allclose(fit.mean, w, atol=0.04)  # 4 standard errors of 0.01


def test_gradients_go_through_the_optimum():
    phi, y, _, _ = (jnp.asarray(part) for part in data("plain"))
    along = jnp.asarray(np.random.default_rng(8).normal(size=N))

    def value(t):
        fit = rvm(compress(phi, y + t * along))
        return jnp.stack([fit.mean[2], fit.log_evidence, fit.covariance[2, 2] * 1e3])

    both = jax.jit(lambda t: (value(t), jax.jacrev(value)(t)))
    numbers = (both(1e-6)[0] - both(-1e-6)[0]) / 2e-6
    np.testing.assert_allclose(both(0.0)[1], numbers, rtol=2e-6)


def test_targets_are_mapped_over():
    phi, y, _, _ = (jnp.asarray(part) for part in data("plain"))
    both = jnp.stack([y, y[::-1]])
    fits = eqx.filter_jit(eqx.filter_vmap(lambda y: rvm(compress(phi, y))))(both)
    alone = fit_jit(compress(phi, both[1]))
    np.testing.assert_allclose(fits.mean[1], alone.mean, atol=1e-9)


@pytest.mark.parametrize("update", [Sequential(), MacKay()])
def test_groups_live_and_die_together(update):
    phi, y, _, _ = (jnp.asarray(part) for part in data("plain"))
    groups = np.repeat(range(4), 3)  # the truth is 0, 1, 2 and 3
    fit = fit_jit(compress(phi, y), groups=groups, update=update)
    assert fit.converged
    together = fit.support.reshape(4, 3)
    assert np.all(together == together[:, :1])
    assert np.all(together[:2])
    scaled = fit.prior_variance * jnp.mean(phi**2, axis=0)
    np.testing.assert_allclose(scaled[:3], scaled[0], rtol=1e-10)
    # Stationary, by differences of the dense evidence over the shared variances.
    rows, variance = (np.asarray(phi), np.asarray(y)), np.asarray(fit.prior_variance)
    evidence = lambda factor: dense(
        *rows, variance * np.repeat(factor, 3), float(fit.noise)
    )[2]
    for group in range(4):
        up, down = (np.where(np.arange(4) == group, f, 1) for f in (1.01, 1 / 1.01))
        slope = (evidence(up) - evidence(down)) / (2 * np.log(1.01))
        np.testing.assert_allclose(slope, 0, atol=1e-4)  # a third derivative is left
        assert evidence(np.ones(4)) >= max(evidence(up), evidence(down))


def test_groups_of_one_are_no_groups():
    phi, y, _, _ = (jnp.asarray(part) for part in data("collinear"))
    alone = fit_jit(compress(phi, y), groups=np.arange(P), update=Sequential())
    plain = fit_jit(compress(phi, y))
    np.testing.assert_allclose(alone.log_evidence, plain.log_evidence, rtol=1e-10)
    np.testing.assert_allclose(alone.mean, plain.mean, atol=1e-7)


def test_groups_of_overlapping_columns_have_the_higher_evidence_of_both_ways():
    random = np.random.default_rng(5)
    x = np.linspace(-1, 1, N)[:, None]
    phi = jnp.asarray(np.exp(-((x - np.linspace(-1, 1, P)) ** 2) / 0.3))
    y = phi[:, 3] - phi[:, 4] + jnp.asarray(0.1 * random.normal(size=N))
    problem, groups = compress(phi, y), np.repeat(range(4), 3)
    ours = fit_jit(problem, groups=groups, update=Sequential())
    fixed = fit_jit(problem, groups=groups, update=MacKay())
    assert ours.log_evidence >= fixed.log_evidence - 1e-6


def test_zero_and_constant_columns_are_harmless():
    phi, y, _, _ = data("plain")
    phi[:, 9], phi[:, 10] = 0, 1
    fit = fit_jit(compress(jnp.asarray(phi), jnp.asarray(y)))
    assert np.flatnonzero(np.abs(fit.z) > 4).tolist() == TRUE
    assert not fit.support[9]
    assert fit.problem.empty[9]
    assert np.all(np.isfinite(fit.mean))
    nothing = fit_jit(compress(jnp.asarray(phi), jnp.zeros(N)))
    assert not np.any(nothing.support)
    assert np.all(np.isfinite(nothing.mean))


def test_wrong_use_is_reported():
    phi, y, _, _ = (jnp.asarray(part) for part in data("plain"))
    problem = compress(phi, y)
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be positive"):
        rvm(problem, noise=0.0)
    for update in Sequential, MacKay, EM:
        with pytest.raises(ValueError, match="`max_steps` must be positive, got 0"):
            update(0)
    assert not fit_jit(problem, update=Sequential(1)).converged
    with pytest.raises(ValueError, match=r"must have the shape \(12,\)"):
        rvm(problem, groups=[0, 1])
    with pytest.raises(ValueError, match="for 3 terms"):
        rvm(problem, constraints=Constraints(jnp.ones((1, 3))))
