import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from skyens.diffusion import (
    EDM,
    MMPS,
    Denoiser,
    GaussianDenoiser,
    guide,
    sample,
)
from skyens.observations import Dense, Diagonal, Linear, Observation

SIZE, COUNT = 5, 3


def problem(seed, dtype: type = np.float64):
    """Return a random linear-Gaussian problem as NumPy arrays."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(SIZE, SIZE)) / SIZE**0.5
    covariance = factor @ factor.T + 0.1 * np.eye(SIZE)
    covariance = (covariance + covariance.T) / 2
    mean, matrix = rng.normal(size=SIZE), rng.normal(size=(COUNT, SIZE))
    std = rng.uniform(0.1, 1, COUNT)
    truth = rng.multivariate_normal(mean, covariance)
    value = matrix @ truth + std * rng.normal(size=COUNT)
    return tuple(a.astype(dtype) for a in (mean, covariance, matrix, std, value))


def posterior(mean, covariance, matrix, noise, value):
    """Return mean and covariance given `value = matrix @ x + noise`, in float64."""
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + noise)
    updated = covariance - gain @ matrix @ covariance
    return mean + gain @ (value - matrix @ mean), (updated + updated.T) / 2


def exact_denoiser(prior, x, sigma):
    mean, covariance = prior
    identity = np.eye(x.size)
    return posterior(mean, covariance, identity, sigma**2 * identity, x)[0]


# Every noise level in one compiled call: x and sigma lead with a level axis.
guided = eqx.filter_jit(
    lambda prior, observation, method, x, sigma: jax.vmap(
        guide(prior, observation, method)
    )(x, sigma)
)
LEVELS = np.array([1e-3, 0.02, 0.3, 1.0, 5.0, 80.0])


class MMPSTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_one_denoised_state_is_the_exact_one(self):
        mean, covariance, matrix, std, value = problem(0)
        observation = Observation(value, Linear(matrix), Diagonal(std))
        prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
        denoiser = guide(prior, observation, MMPS())
        assert isinstance(denoiser, Denoiser)
        x = np.random.default_rng(1).normal(size=SIZE)
        clean = self.variant(type(denoiser).__call__)(denoiser, jnp.asarray(x), 0.5)
        exact = posterior(mean, covariance, matrix, np.diag(std**2), value)
        chex.assert_trees_all_close(clean, exact_denoiser(exact, x, 0.5), rtol=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), seen=st.lists(st.booleans(), min_size=3, max_size=3))
def test_the_guided_denoiser_is_the_posteriors_own_at_every_level(seed, seen):
    mean, covariance, matrix, std, value = problem(seed)
    x = mean + LEVELS[:, None] * np.random.default_rng(seed + 1).normal(size=(6, SIZE))
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    hidden = np.where(seen, value, np.nan)
    observation = Observation(hidden, Linear(matrix), Diagonal(std))
    clean = guided(prior, observation, MMPS(), jnp.asarray(x), jnp.asarray(LEVELS))
    # The oracle has no masks: it takes the rows away.
    noise = np.diag(std[seen] ** 2)
    exact = posterior(mean, covariance, matrix[seen], noise, value[seen])
    expected = np.stack(
        [exact_denoiser(exact, *pair) for pair in zip(x, LEVELS, strict=True)]
    )
    scale = np.abs(expected).max()
    chex.assert_trees_all_close(clean, expected, rtol=1e-5, atol=1e-7 * scale)


def test_everything_masked_leaves_the_prior():
    mean, covariance, matrix, std, value = problem(3)
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    observation = Observation(
        value, Linear(matrix), Diagonal(std), mask=np.array(False)
    )
    posterior, x = guide(prior, observation), jnp.ones(SIZE)
    both = lambda x: (posterior(x, 0.7), prior(x, 0.7))
    chex.assert_trees_all_equal(*jax.jit(both)(x))
    chex.assert_trees_all_close(*jax.jit(jax.jacobian(both))(x), atol=1e-14)


def test_no_noise_leaves_the_state():
    mean, covariance, matrix, std, value = problem(4)
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    observation = Observation(value, Linear(matrix), Diagonal(std))
    chex.assert_trees_all_close(
        guide(prior, observation)(jnp.ones(SIZE), 0.0), jnp.ones(SIZE), atol=1e-12
    )


@pytest.mark.parametrize(
    "method",
    [
        MMPS(lx.Cholesky()),
        MMPS(lx.GMRES(rtol=1e-10, atol=1e-10), symmetric=False),
        MMPS(lx.LU(), symmetric=False),
    ],
    ids=["Cholesky", "GMRES", "LU"],
)
def test_other_solvers_and_correlated_errors_agree(method):
    mean, covariance, matrix, std, value = problem(5)
    noise = np.diag(std**2) + 0.05
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    observation = Observation(value, Linear(matrix), Dense(noise))
    x = mean + LEVELS[:, None] * np.random.default_rng(0).normal(size=(6, SIZE))
    clean = guided(prior, observation, method, jnp.asarray(x), jnp.asarray(LEVELS))
    exact = posterior(mean, covariance, matrix, noise, value)
    expected = [exact_denoiser(exact, *pair) for pair in zip(x, LEVELS, strict=True)]
    chex.assert_trees_all_close(clean, np.stack(expected), rtol=1e-7)


def test_two_sources_guide_one_after_the_other():
    mean, covariance, matrix, std, value = problem(6)
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    parts = [
        Observation(value[rows], Linear(matrix[rows]), Diagonal(std[rows]))
        for rows in (slice(0, 1), slice(1, 3))
    ]
    x = mean + LEVELS[:, None] * np.random.default_rng(0).normal(size=(6, SIZE))
    method = MMPS(lx.Cholesky())
    inner = guide(prior, parts[0], method)
    clean = guided(inner, parts[1], method, jnp.asarray(x), jnp.asarray(LEVELS))
    exact = posterior(mean, covariance, matrix, np.diag(std**2), value)
    expected = [exact_denoiser(exact, *pair) for pair in zip(x, LEVELS, strict=True)]
    chex.assert_trees_all_close(clean, np.stack(expected), rtol=1e-5)


def test_units_are_the_observations_after_a_pullback():
    mean, covariance, matrix, std, value = problem(7)
    scale = np.array([10.0, 0.1, 3.0, 1.0, 50.0])
    observation = Observation(value, Linear(matrix), Diagonal(std))
    physical = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    outer = np.outer(scale, scale)
    normal = GaussianDenoiser(
        jnp.asarray(mean / scale), jnp.asarray(covariance / outer)
    )
    decoded = observation.pullback(lambda x: jnp.asarray(scale) * x)
    # Without noise to speak of in x, both are the posterior mean.
    clean = guide(physical, observation)(jnp.zeros(SIZE), 1e7)
    other = guide(normal, decoded)(jnp.zeros(SIZE), 1e7)
    chex.assert_trees_all_close(scale * other, clean, rtol=1e-6)


def test_a_nonlinear_operator_is_linearised_where_the_state_is_denoised():
    mean, covariance, matrix, std, value = problem(8)
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    operator = lambda x: jnp.tanh(jnp.asarray(matrix) @ x)
    x, sigma = jnp.asarray(mean) + 0.3, 0.4
    clean = np.asarray(prior(x, sigma))
    slope = (1 - np.tanh(matrix @ clean) ** 2)[:, None] * matrix
    spread = covariance - covariance @ np.linalg.solve(
        covariance + sigma**2 * np.eye(SIZE), covariance
    )
    value = np.tanh(value)
    shifted = value - np.tanh(matrix @ clean) + slope @ clean
    expected, _ = posterior(clean, spread, slope, np.diag(std**2), shifted)
    observation = Observation(value, operator, Diagonal(std))
    chex.assert_trees_all_close(
        guide(prior, observation)(x, sigma), expected, rtol=1e-9
    )


@pytest.mark.parametrize("ratio", [1.0, 1e-3])
def test_float32_stays_float32_and_near_float64(ratio):
    mean, covariance, matrix, std, value = problem(9, np.float32)
    std = ratio * std  # very good observations make the system ill conditioned
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    observation = Observation(value, Linear(matrix), Diagonal(std))
    rng = np.random.default_rng(0)
    x = mean + LEVELS[:, None] * rng.normal(size=(6, SIZE))
    x, levels = jnp.asarray(x, jnp.float32), jnp.asarray(LEVELS, jnp.float32)
    clean = guided(prior, observation, MMPS(), x, levels)
    assert clean.dtype == jnp.float32
    mean, covariance, matrix, std, value = (
        a.astype(np.float64) for a in (mean, covariance, matrix, std, value)
    )
    exact = posterior(mean, covariance, matrix, np.diag(std**2), value)
    pairs = zip(np.asarray(x, np.float64), LEVELS, strict=True)
    expected = np.stack([exact_denoiser(exact, *pair) for pair in pairs])
    # x carries eps * |x| of rounding; the solve eps times its condition number.
    scale = np.abs(expected).max()
    chex.assert_trees_all_close(clean, expected.astype(np.float32), atol=2e-3 * scale)


def test_bfloat16_states_stay_bfloat16_and_near_float64():
    mean, covariance, matrix, std, value = problem(14)
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    observation = Observation(value, Linear(matrix), Diagonal(std))
    x = mean + LEVELS[:, None] * np.random.default_rng(0).normal(size=(6, SIZE))
    x, levels = jnp.asarray(x, jnp.bfloat16), jnp.asarray(LEVELS, jnp.bfloat16)
    clean = guided(prior, observation, MMPS(), x, levels)
    assert clean.dtype == jnp.bfloat16
    exact = posterior(mean, covariance, matrix, np.diag(std**2), value)
    pairs = zip(x.astype(np.float64), levels.astype(np.float64), strict=True)
    expected = np.stack([exact_denoiser(exact, np.asarray(x), s) for x, s in pairs])
    # bfloat16 has 8 bits; the prediction of the prior's mean is a sum of five of them.
    error = np.abs(np.asarray(clean, np.float64) - expected)
    assert error.max() < 0.1 * np.abs(expected).max()


def test_samples_have_the_posteriors_mean_and_covariance():
    mean, covariance, matrix, std, value = problem(10)
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    observation = Observation(value, Linear(matrix), Diagonal(std))
    denoiser, count = guide(prior, observation, MMPS()), 4000
    schedule = EDM(sigma_max=400.0)  # the start's bias, |mean| / 400, is below chance
    draw = lambda key: sample(denoiser, schedule, (SIZE,), key=key, steps=200)
    samples = np.asarray(jax.jit(jax.vmap(draw))(jr.split(jr.key(0), count)))
    exact, spread = posterior(mean, covariance, matrix, np.diag(std**2), value)
    gap = samples.mean(0) - exact
    statistic = count * gap @ np.linalg.solve(spread, gap)
    assert statistic < stats.chi2(SIZE).ppf(0.9999)
    variances = np.diag(spread)
    chance = np.sqrt((np.outer(variances, variances) + spread**2) / count)
    assert (np.abs(np.cov(samples.T) - spread) < 4.5 * chance).all()


def test_gradients_flow_through_a_guided_sample():
    mean, covariance, matrix, std, value = problem(11)

    @jax.jit
    def total(mean, covariance, value, std):
        prior = GaussianDenoiser(mean, (covariance + covariance.T) / 2)
        observation = Observation(value, Linear(matrix), Diagonal(std))
        denoiser = guide(prior, observation)
        return sample(denoiser, EDM(), (SIZE,), key=jr.key(0), steps=6).sum()

    at = tuple(map(jnp.asarray, (mean, covariance, value, std)))
    slopes = jax.grad(total, argnums=(0, 1, 2, 3))(*at)
    chex.assert_tree_all_finite(slopes)
    for place, slope in enumerate(slopes):
        shift = lambda e, place=place: [a + e * (i == place) for i, a in enumerate(at)]
        difference = (total(*shift(1e-5)) - total(*shift(-1e-5))) / 2e-5
        chex.assert_trees_all_close(slope.sum(), difference, rtol=1e-4)


def test_a_solver_that_stops_early_still_guides():
    mean, covariance, matrix, std, value = problem(12)
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    observation = Observation(value, Linear(matrix), Diagonal(std))
    method = MMPS(lx.CG(rtol=1e-12, atol=1e-12, max_steps=1))
    clean = guide(prior, observation, method)(jnp.asarray(mean), 1.0)
    plain = prior(jnp.asarray(mean), 1.0)
    before, after = observation.log_prob(plain), observation.log_prob(clean)
    assert after > before


@pytest.mark.parametrize("excess", [-0.99, -1.01])
def test_a_jacobian_that_is_no_covariance_leads_nobody_astray(excess):
    # I + sigma^2 A J A^T is nearly singular in the first direction, and 2 in the other.
    slope = jnp.array([excess, 1.0]) / 0.5**2
    denoise = lambda x, sigma, *, condition=None: slope * x
    seen = Observation(jnp.array([3.0, -4.0]), lambda x: x, Diagonal(1.0))
    x = jnp.array([0.1, 0.2])
    innovation = np.array([3.0, -4.0]) - np.asarray(slope * x)
    moved = guide(denoise, seen)(x, 0.5) - slope * x
    # The solution keeps its direction, and gets the length of the innovation.
    solution = np.asarray(moved) / np.array([excess, 1.0])
    np.testing.assert_allclose(np.linalg.norm(solution), np.linalg.norm(innovation))
    slopes = jax.jacobian(lambda x: guide(denoise, seen)(x, 0.5))(x)
    chex.assert_tree_all_finite(slopes)


def test_the_condition_reaches_the_prior():
    prior = lambda x, sigma, *, condition=0.0: x / (1 + sigma**2) + condition
    observation = Observation(np.zeros(2), lambda x: x, Diagonal(1e6))
    clean = guide(prior, observation)(jnp.zeros(2), 1.0, condition=3.0)
    chex.assert_trees_all_close(clean, jnp.full(2, 3.0), rtol=1e-9)


def test_wrong_use_is_reported():
    mean, covariance, matrix, std, value = problem(13)
    prior = GaussianDenoiser(jnp.asarray(mean), jnp.asarray(covariance))
    observation = Observation(value, Linear(matrix), Diagonal(std))
    wider = guide(GaussianDenoiser(jnp.zeros(6), jnp.eye(6)), observation)
    with pytest.raises(ValueError, match=r"`matrix` of shape \(3, 5\) does not apply"):
        wider(jnp.zeros(6), 1.0)
    general = guide(prior, observation, MMPS(lx.CG(1e-6, 1e-6), symmetric=False))
    with pytest.raises(ValueError, match="positive or negative definite"):
        general(jnp.zeros(SIZE), 1.0)
