import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from skyens import dynamics
from skyens.assimilation import (
    AdditiveNoise,
    Kernel,
    OptimalProposal,
    Weighted,
    cycle,
)
from skyens.observations import Dense, Diagonal, Index, Linear, Observation

Q = np.asarray([[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.3]])
analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))


def problem():
    generator = np.random.default_rng(0)
    matrix, value = generator.normal(size=(2, 3)), generator.normal(size=2)
    covariance = np.asarray([[0.4, 0.1], [0.1, 0.3]])
    members = jnp.asarray(generator.normal(size=(6, 3)))
    return members, matrix, covariance, value


def test_weights_are_exact_for_a_linear_operator():
    members, matrix, covariance, value = problem()
    observation = Observation(value, Linear(matrix), Dense(covariance))
    method = OptimalProposal(AdditiveNoise(Q), 0.0)
    analysis, info = analyse(method, members, observation, key=jr.key(0))
    total = matrix @ Q @ matrix.T + covariance
    departure = value[None] - members @ matrix.T
    square = np.einsum("ni,ij,nj->n", departure, np.linalg.inv(total), departure)
    density = np.exp(-square / 2) / np.sqrt(np.linalg.det(2 * np.pi * total))
    np.testing.assert_allclose(analysis.weights, density / density.sum(), rtol=1e-10)
    np.testing.assert_allclose(info.log_evidence, np.log(density.mean()), rtol=1e-10)
    spread = np.cov(np.asarray(members).T) + Q
    expected = matrix @ spread @ matrix.T + covariance
    mean = value - matrix @ np.mean(members, axis=0)
    expected = mean @ np.linalg.solve(expected, mean) / 2
    np.testing.assert_allclose(info.chi_square, expected, rtol=1e-10)


def test_each_member_is_drawn_from_its_kalman_analysis():
    members, matrix, covariance, value = problem()
    observation = Observation(value, Linear(matrix), Dense(covariance))
    method = OptimalProposal(AdditiveNoise(Q), 0.0)
    run = lambda key: method(members, observation, key=key)[0].members
    draws = np.asarray(jax.jit(jax.vmap(run))(jr.split(jr.key(1), 5000)))
    gain = Q @ matrix.T @ np.linalg.inv(matrix @ Q @ matrix.T + covariance)
    kept = (np.eye(3) - gain @ matrix) @ Q
    for member in (0, 5):
        one = draws[:, member]
        mean = members[member] + gain @ (value - matrix @ members[member])
        # Five standard errors.
        allowed = 5 * np.sqrt(np.diagonal(kept) / 5000)
        assert np.all(abs(one.mean(0) - mean) < allowed)
        np.testing.assert_allclose(np.cov(one.T), kept, atol=0.03)


def test_masks_are_as_good_as_removal_and_gradients_finite():
    members, matrix, covariance, value = problem()
    run = lambda observation: analyse(
        OptimalProposal(AdditiveNoise(Q), 0.0), members, observation, key=jr.key(2)
    )
    holes = np.where(np.arange(2) == 0, value, np.nan)
    masked, _ = run(Observation(holes, Linear(matrix), Dense(covariance)))
    first = Observation(value[:1], Linear(matrix[:1]), Dense(covariance[:1, :1]))
    fewer, _ = run(first)
    np.testing.assert_allclose(masked.weights, fewer.weights, rtol=1e-10)

    @eqx.filter_jit
    def evidence(scale, holes):
        noise = eqx.tree_at(
            lambda n: n.factor, AdditiveNoise(Q), replace_fn=lambda f: scale * f
        )
        observation = Observation(holes, Linear(matrix), Dense(covariance))
        _, info = OptimalProposal(noise, 0.0)(members, observation, key=jr.key(2))
        return jnp.asarray(info.log_evidence)

    step, at = 1e-5, jnp.asarray(1.0)
    expected = (evidence(at + step, holes) - evidence(at - step, holes)) / (2 * step)
    slope = eqx.filter_jit(jax.grad(evidence))
    np.testing.assert_allclose(slope(at, holes), expected, rtol=1e-6)
    assert float(slope(at, np.full(2, np.nan))) == 0


def test_lorenz_96_is_followed_as_published():
    # DAPPER, mods/Lorenz96/bocquet2010: OptPF(N=800, NER=0.2, reg=0.6, Qs=0.1) has an
    # error of 0.28 to 0.30; climatology's is 3.6 and the observation error 1.5.
    step = dynamics.Lorenz96(10)
    truth = dynamics.rollout(step, jnp.zeros(10).at[0].set(1.0), 900)[200:]
    seen = np.arange(0, 10, 2)
    values = truth[1:, seen] + 1.5 * jr.normal(jr.key(0), (699, 5))
    ensemble = truth[:1] + 0.5 * jr.normal(jr.key(1), (800, 10))
    method = OptimalProposal(
        Kernel(0.1), 0.2, regularisation=Kernel(0.6, only_copies=True)
    )
    run = jax.jit(
        lambda: cycle(
            step,
            method,
            Weighted(ensemble),
            lambda value: Observation(value, Index(seen), Diagonal(1.5)),
            values,
            key=jr.key(2),
            reduce=lambda weighted: weighted.mean(),
        )
    )
    error = np.sqrt(np.mean((run().analyses - truth[1:])[200:] ** 2, axis=1)).mean()
    assert error < 0.5
