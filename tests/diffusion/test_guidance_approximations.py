import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.diffusion import (
    DPS,
    EDM,
    SDA,
    TMPD,
    GaussianDenoiser,
    PiGDM,
    guide,
    sample,
)
from skyens.observations import Dense, Diagonal, Linear, Observation, StudentT

SIZE, COUNT = 5, 3
LEVELS = np.array([1e-3, 0.02, 0.3, 1.0, 5.0, 80.0])
RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(SIZE, SIZE)) / SIZE**0.5
COVARIANCE = FACTOR @ FACTOR.T + 0.1 * np.eye(SIZE)
COVARIANCE = (COVARIANCE + COVARIANCE.T) / 2
MEAN, MATRIX = RNG.normal(size=SIZE), RNG.normal(size=(COUNT, SIZE))
STD = np.array([0.2, 0.5, 1.0])
NOISE = np.diag(STD**2) + 0.02
VALUE = MATRIX @ MEAN + RNG.normal(size=COUNT)
X = MEAN + LEVELS[:, None] * RNG.normal(size=(6, SIZE))
PRIOR = GaussianDenoiser(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))
INDEPENDENT = Observation(VALUE, Linear(MATRIX), Diagonal(STD))
CORRELATED = Observation(VALUE, Linear(MATRIX), Dense(NOISE))
METHODS = [DPS(0.3), DPS(0.3, normalised=False), SDA(0.1), PiGDM(0.8), TMPD()]
NAMES = ["DPS", "plain DPS", "SDA", "PiGDM", "TMPD"]

guided = eqx.filter_jit(
    lambda prior, observation, method, x, sigma: jax.vmap(
        guide(prior, observation, method)
    )(x, sigma)
)


def dense(x, sigma, solution, matrix=MATRIX, value=VALUE):
    """Return `D + sigma^2 J' A' z` in NumPy, for `z = solution(residual, J)`."""
    jacobian = np.linalg.solve(COVARIANCE + sigma**2 * np.eye(SIZE), COVARIANCE)
    clean = MEAN + jacobian @ (x - MEAN)
    z = solution(value - matrix @ clean, jacobian)
    return clean + sigma**2 * jacobian @ matrix.T @ z


def levels(solution):
    """Return `dense` at every level; `solution` also gets the level."""
    return np.stack(
        [
            dense(x, sigma, lambda r, j, s=sigma: solution(r, j, s))
            for x, sigma in zip(X, LEVELS, strict=True)
        ]
    )


def run(observation, method):
    return guided(PRIOR, observation, method, jnp.asarray(X), jnp.asarray(LEVELS))


@pytest.mark.parametrize(
    ("observation", "noise"),
    [(INDEPENDENT, np.diag(STD**2)), (CORRELATED, NOISE)],
    ids=["independent", "correlated"],
)
def test_each_adds_its_own_guess_to_the_errors(observation, noise):
    identity = np.eye(COUNT)
    root = np.linalg.cholesky(noise)
    white = np.linalg.solve(root, MATRIX)

    def row_sums(r, j, s):
        sums = (white @ (s**2 * j) @ white.T).sum(1)
        z = np.linalg.solve(root, r) / (1 + np.maximum(sums, 0))
        return np.linalg.solve(root.T, z)

    def norm(r):
        return np.sqrt(r @ np.linalg.solve(noise, r))

    solve = np.linalg.solve
    solutions = [
        lambda r, j, s: 0.3 * solve(noise, r) / norm(r),
        lambda r, j, s: 0.3 * solve(noise, r),
        lambda r, j, s: solve(noise + 0.1 * s**2 * identity, r),
        lambda r, j, s: solve(
            noise + 0.64 * s**2 / (0.64 + s**2) * MATRIX @ MATRIX.T, r
        ),
        row_sums,
    ]
    for method, solution in zip(METHODS, solutions, strict=True):
        expected = levels(solution)
        # Conjugate gradients stop at a residual of eps^(3/4), which R blows up.
        scale = np.abs(expected).max(1, keepdims=True)
        error = np.abs(np.asarray(run(observation, method)) - expected) / scale
        assert error.max() < 1e-7, (method, error)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    spread=st.floats(0.1, 10),
    seen=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_pigdm_is_exact_for_independent_gaussians_of_one_spread(seed, spread, seen):
    rng = np.random.default_rng(seed)
    matrix, value = rng.normal(size=(COUNT, SIZE)), rng.normal(size=COUNT)
    x = LEVELS[:, None] * rng.normal(size=(6, SIZE))
    prior = GaussianDenoiser(jnp.zeros(SIZE), spread**2 * jnp.eye(SIZE))
    hidden = np.where(seen, value, np.nan)
    observation = Observation(hidden, Linear(matrix), Diagonal(STD))
    clean = guided(
        prior, observation, PiGDM(spread), jnp.asarray(x), jnp.asarray(LEVELS)
    )
    # The posterior of prior, observation and x itself; the oracle has no masks.
    matrix, value, precision = matrix[seen], value[seen], STD[seen] ** -2
    information = matrix.T @ (precision[:, None] * matrix)
    for one, noisy, sigma in zip(np.asarray(clean), x, LEVELS, strict=True):
        total = information + (spread**-2 + sigma**-2) * np.eye(SIZE)
        right = matrix.T @ (precision * value) + noisy / sigma**2
        expected = np.linalg.solve(total, right)
        chex.assert_trees_all_close(one, expected, atol=1e-6 * np.abs(expected).max())


def test_tmpd_is_exact_for_one_observation():
    observation = Observation(VALUE[:1], Linear(MATRIX[:1]), Diagonal(STD[:1]))
    clean = run(observation, TMPD())
    for one, x, sigma in zip(np.asarray(clean), X, LEVELS, strict=True):
        total = np.linalg.inv(COVARIANCE) + np.eye(SIZE) / sigma**2
        right = np.linalg.solve(COVARIANCE, MEAN) + x / sigma**2
        total = total + MATRIX[:1].T @ MATRIX[:1] / STD[0] ** 2
        right = right + MATRIX[0] * VALUE[0] / STD[0] ** 2
        chex.assert_trees_all_close(one, np.linalg.solve(total, right), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_everything_masked_leaves_the_prior_and_its_gradient(method):
    observation = Observation(np.full(COUNT, np.nan), Linear(MATRIX), Diagonal(STD))
    posterior, x = guide(PRIOR, observation, method), jnp.asarray(X[3])
    both = lambda x: (posterior(x, 0.7), PRIOR(x, 0.7))
    chex.assert_trees_all_close(*jax.jit(both)(x), atol=1e-14)
    chex.assert_trees_all_close(*jax.jit(jax.jacobian(both))(x), atol=1e-14)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        *((method, jnp.float32) for method in METHODS),
        (DPS(0.3), jnp.bfloat16),
        (SDA(0.1), jnp.bfloat16),
    ],
)
def test_dtypes_stay_and_masked_entries_say_nothing(method, dtype):
    hidden = VALUE.copy()
    hidden[1] = np.nan
    observation = Observation(hidden, Linear(MATRIX), Diagonal(STD))
    x, sigma = jnp.asarray(X, dtype), jnp.asarray(LEVELS, dtype)
    clean = guided(PRIOR, observation, method, x, sigma)
    assert clean.dtype == dtype
    kept = np.array([0, 2])
    fewer = Observation(VALUE[kept], Linear(MATRIX[kept]), Diagonal(STD[kept]))
    wide = jnp.asarray(x, float), jnp.asarray(sigma, float)
    expected = guided(PRIOR, fewer, method, *wide)
    error = np.abs(np.asarray(clean, float) - np.asarray(expected))
    # Rounding of x and of D, times what guidance makes of it: s^2 / R, where J is 1.
    amplify = 1 + np.abs(MATRIX).sum() * np.square(LEVELS / STD[0])[:, None]
    amplify = np.minimum(amplify, 1 + np.abs(MATRIX).sum() * 4 / STD[0] ** 2)
    bound = 4 * float(jnp.finfo(dtype).eps) * amplify * np.abs(X).max(1, keepdims=True)
    assert (error < bound + bound.min()).all()


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_gradients_flow_through_a_guided_sample(method):
    @jax.jit
    def total(method, value, std):
        observation = Observation(value, Linear(MATRIX), Diagonal(std))
        denoiser = guide(PRIOR, observation, method)
        return sample(denoiser, EDM(0.05), (SIZE,), key=jr.key(0), steps=6).sum()

    at = method, jnp.asarray(VALUE), jnp.asarray(STD)
    slopes = jax.grad(total, argnums=(0, 1, 2))(*at)
    chex.assert_tree_all_finite(slopes)
    leaves, structure = jax.tree.flatten(at)
    for place, slope in enumerate(jax.tree.leaves(slopes)):
        shift = lambda e, place=place: structure.unflatten(
            [leaf + e * (i == place) for i, leaf in enumerate(leaves)]
        )
        difference = (total(*shift(1e-6)) - total(*shift(-1e-6))) / 2e-6
        chex.assert_trees_all_close(slope.sum(), difference, rtol=1e-4, atol=1e-6)


def test_dps_follows_any_law_of_the_errors():
    law = StudentT(0.5, 3.0)
    observation = Observation(VALUE, lambda x: jnp.tanh(jnp.asarray(MATRIX) @ x), law)
    x, sigma = jnp.asarray(X[2]), 0.3
    log_prob = lambda x: observation.log_prob(PRIOR(x, sigma))
    step = 1e-6 * np.eye(SIZE)
    slope = [(log_prob(x + e) - log_prob(x - e)) / 2e-6 for e in step]
    expected = np.asarray(PRIOR(x, sigma)) + 0.7 * sigma**2 * np.asarray(slope)
    clean = guide(PRIOR, observation, DPS(0.7, normalised=False))(x, sigma)
    chex.assert_trees_all_close(clean, expected, rtol=1e-7)


def test_several_sources_guide_as_their_stack():
    parts = [
        Observation(VALUE[rows], Linear(MATRIX[rows]), Diagonal(STD[rows]))
        for rows in (slice(0, 1), slice(1, 3))
    ]
    x = jnp.asarray(X[3])
    for method in (TMPD(), SDA(0.1)):
        together = guide(PRIOR, parts, method)(x, 1.0)
        whole = guide(PRIOR, INDEPENDENT, method)(x, 1.0)
        chex.assert_trees_all_close(together, whole, rtol=1e-9)


def test_other_solvers_agree():
    chosen = run(INDEPENDENT, PiGDM(0.8, lx.Cholesky()))
    chex.assert_trees_all_close(chosen, run(INDEPENDENT, PiGDM(0.8)), rtol=1e-6)


def test_wrong_use_is_reported():
    for make in (lambda: DPS(-1.0), lambda: SDA(jnp.nan), lambda: PiGDM(0.0)):
        with pytest.raises(eqx.EquinoxRuntimeError, match="must"):
            make()
    with pytest.raises(ValueError, match="is empty"):
        guide(PRIOR, [])
