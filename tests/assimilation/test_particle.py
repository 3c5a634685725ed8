"""Every particle filter against the Kalman filter and quadrature on a grid."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import dynamics
from skyens.assimilation import (
    AdditiveNoise,
    AuxiliaryFilter,
    BootstrapFilter,
    Kernel,
    OptimalProposal,
    OptimalTransport,
    Systematic,
    TemperedFilter,
    Weighted,
    cycle,
)
from skyens.observations import Diagonal, Index, Linear, Observation

MEMBERS, SEEDS = 300, 50
Q = np.asarray([[0.3, 0.1], [0.1, 0.2]])
analyse = eqx.filter_jit(lambda method, *args, **kwargs: method(*args, **kwargs))


class World:
    """A Markov chain with additive Gaussian noise, and its observations."""

    def __init__(self, step, operator, error, covariance, values):
        self.step, self.operator, self.error = step, operator, error
        self.noise = AdditiveNoise(covariance)
        self.values = jnp.asarray(values)

    def run(self, name, start, key):
        """Filter once; a bootstrap filter has the noise in its step."""
        method, noisy = methods(self.noise)[name]
        first, key = jr.split(key)
        members = start(first, MEMBERS)

        def advance(weighted, x):
            value, time, key = x
            draw, choose = jr.split(key)
            moved = jax.vmap(lambda state: self.step(state, time))(weighted.members)
            if noisy:
                keys = jr.split(draw, MEMBERS)
                moved = jax.vmap(lambda s, k: self.noise(s, key=k))(moved, keys)
            background = eqx.tree_at(lambda w: w.members, weighted, moved)
            observation = Observation(value, self.operator, self.error)
            analysis, info = method(background, observation, key=choose)
            return analysis, (analysis.mean(), info.log_evidence, info.effective_size)

        keys = jr.split(key, len(self.values))
        times = jnp.arange(len(self.values), dtype=float)
        x = (self.values, times, keys)
        last, kept = jax.lax.scan(advance, Weighted(members), x)
        return *kept, last.covariance()

    def many(self, name, start):
        """Means, evidence, effective size and last covariance of many runs."""
        run = lambda key: self.run(name, start, key)
        return jax.jit(jax.vmap(run))(jr.split(jr.key(1), SEEDS))


def check(found, expected, slack=0.0):
    """Compare an average over runs with what it should be, by its standard error."""
    found = np.asarray(found)
    error = found.std(0, ddof=1) / np.sqrt(SEEDS)
    assert np.all(abs(found.mean(0) - expected) < 5 * error + slack)


def methods(noise):
    return {
        "bootstrap": (BootstrapFilter(), True),
        "always": (BootstrapFilter(1.0), True),
        "auxiliary": (AuxiliaryFilter(noise), False),
        "optimal": (OptimalProposal(noise), False),
        "tempered": (TemperedFilter(noise, 0.7), False),
    }


every = pytest.mark.parametrize("name", methods(AdditiveNoise(1.0)))


def linear_world():
    generator = np.random.default_rng(0)
    model, matrix = np.asarray([[0.9, 0.3], [-0.2, 0.8]]), np.asarray([[1.0, 0.5]])
    state, values = generator.normal(size=2), []
    for _ in range(5):
        state = model @ state + np.linalg.cholesky(Q) @ generator.normal(size=2)
        values.append(matrix @ state + 0.4 * generator.normal(size=1))
    values[2][:] = np.nan
    step = lambda state, time: jnp.asarray(model) @ state
    world = World(step, Linear(matrix), Diagonal(0.4), Q, np.asarray(values))
    mean, covariance, evidence, means = np.zeros(2), np.eye(2), 0.0, []
    for value in values:
        mean, covariance = model @ mean, model @ covariance @ model.T + Q
        if np.isfinite(value[0]):
            total = (matrix @ covariance @ matrix.T)[0, 0] + 0.4**2
            gain = covariance @ matrix[0] / total
            departure = (value - matrix @ mean)[0]
            evidence -= (departure**2 / total + np.log(2 * np.pi * total)) / 2
            mean = mean + gain * departure
            covariance = covariance - np.outer(gain, matrix[0]) @ covariance
        means.append(mean)
    return world, (np.asarray(means), covariance, evidence)


@every
def test_a_linear_gaussian_chain_is_the_kalman_filter(name):
    world, (means, covariance, evidence) = linear_world()
    start = lambda key, members: jr.normal(key, (members, 2))
    found = world.many(name, start)
    # The bias of a ratio of sums is of the order of one over the members.
    check(found[0], means, slack=2 / MEMBERS)
    check(found[3], covariance, slack=2 / MEMBERS)
    # The evidence itself has none.
    check(np.exp(np.sum(found[1], axis=1) - evidence), 1.0)
    # At the one time with nothing to see, nothing is weighed.
    np.testing.assert_array_equal(found[1][:, 2], 0)


def test_the_optimal_proposal_keeps_more_members():
    world, _ = linear_world()
    start = lambda key, members: jr.normal(key, (members, 2))
    size = {
        name: float(np.mean(world.many(name, start)[2]))
        for name in ("bootstrap", "optimal")
    }
    assert size["optimal"] > 1.1 * size["bootstrap"]


class LogChiSquare(eqx.Module):
    """Errors of the logarithm of a squared normal number: far from Gaussian."""

    independent = True

    def whiten(self, residual, mask):
        return jnp.where(mask, residual, 0) / 2.2

    def log_prob(self, residual, mask):
        terms = (residual - jnp.exp(residual) - np.log(2 * np.pi)) / 2
        return jnp.sum(jnp.where(mask, terms, 0))

    def sample(self, prediction, *, key):
        return jnp.log(jr.normal(key, prediction.shape, prediction.dtype) ** 2)


def volatility_world():
    """Log-volatility, and the logarithm of squared returns: Kim et al. (1998)."""
    generator = np.random.default_rng(3)
    phi, deviation, state, values = 0.95, 0.4, 0.5, []
    for _ in range(6):
        state = phi * state + deviation * generator.normal()
        values.append([state + np.log(generator.normal() ** 2)])
    step = lambda state, time: phi * state
    density = lambda value, x: np.exp(
        (value - x - np.exp(value - x) - np.log(2 * np.pi)) / 2
    )
    see = lambda state: state
    world = World(step, see, LogChiSquare(), deviation**2, values)
    return world, 1.0, density, np.linspace(-6, 6, 1201)


def growth_world():
    """The growth model, section 4 of Gordon, Salmond & Smith (1993)."""
    generator = np.random.default_rng(4)
    module = {True: jnp, False: np}

    def step(state, time):
        cosine = module[isinstance(time, jax.Array)].cos
        return state / 2 + 25 * state / (1 + state**2) + 8 * cosine(1.2 * time)

    state, values = 0.1, []
    for time in range(6):
        state = step(state, time) + 10**0.5 * generator.normal()
        values.append([state**2 / 20 + generator.normal()])
    density = lambda value, x: (
        np.exp(-((value - x**2 / 20) ** 2) / 2) / np.sqrt(2 * np.pi)
    )
    world = World(step, lambda state: state**2 / 20, Diagonal(1.0), 10.0, values)
    return world, 2.0, density, np.linspace(-45, 45, 1801)


def quadrature(world, deviation, density, grid):
    """Filtering means and log-evidence by sums over a grid."""
    width = grid[1] - grid[0]
    normal = lambda x, s: np.exp(-((x / s) ** 2) / 2) / (s * np.sqrt(2 * np.pi))
    noise = float(world.noise.factor)
    belief, means, evidence = normal(grid, deviation), [], 0.0
    for time, value in enumerate(np.asarray(world.values)[:, 0]):
        moved = world.step(grid, time)
        belief = normal(grid[:, None] - moved[None, :], noise) @ belief * width
        belief = belief * density(value, grid)
        total = belief.sum() * width
        belief, evidence = belief / total, evidence + np.log(total)
        means.append([np.sum(grid * belief) * width])
    return np.asarray(means), evidence


@every
@pytest.mark.parametrize("make", [volatility_world, growth_world])
def test_nonlinear_chains_are_those_of_quadrature(name, make):
    world, deviation, density, grid = make()
    means, evidence = quadrature(world, deviation, density, grid)
    start = lambda key, members: deviation * jr.normal(key, (members, 1))
    found = world.many(name, start)
    # The growth model has two far modes, of which few members know one.
    check(found[0], means, slack=20 / MEMBERS if make is growth_world else 2 / MEMBERS)
    check(np.exp(np.sum(found[1], axis=1) - evidence), 1.0)


def problem(dtype=jnp.float64):
    members = jr.normal(jr.key(2), (8, 3), dtype)
    value = np.asarray([0.5, np.nan, 1.0])
    return members, Observation(value, Index(np.arange(3)), Diagonal(0.7))


def test_weights_are_those_of_bayes_and_info_says_so():
    members, observation = problem()
    before = Weighted(members, jnp.arange(8.0))
    analysis, info = analyse(BootstrapFilter(0.0), before, observation, key=jr.key(0))
    gap = np.asarray(members)[:, [0, 2]] - np.asarray([0.5, 1.0])[None]
    likelihood = np.prod(
        np.exp(-((gap / 0.7) ** 2) / 2) / (0.7 * np.sqrt(2 * np.pi)), axis=1
    )
    joint = np.asarray(before.weights) * likelihood
    np.testing.assert_allclose(analysis.weights, joint / joint.sum(), rtol=1e-12)
    np.testing.assert_allclose(info.log_evidence, np.log(joint.sum()), rtol=1e-12)
    np.testing.assert_allclose(info.effective_size, analysis.effective_size, rtol=1e-14)
    chex.assert_trees_all_equal(analysis.members, members)
    assert (int(info.used), int(info.masked), int(info.rejected)) == (2, 1, 0)
    # What mean and covariance of the weighted background expect, densely.
    weights, seen = np.asarray(before.weights), np.asarray(members)[:, [0, 2]]
    departure = np.asarray([0.5, 1.0]) - weights @ seen
    total = np.cov(seen.T, aweights=weights) + 0.49 * np.eye(2)
    square = departure @ np.linalg.solve(total, departure) / 2
    np.testing.assert_allclose(info.chi_square, square, rtol=1e-10)
    remaining = np.cov(seen.T, aweights=np.asarray(analysis.weights)) / 0.49
    np.testing.assert_allclose(info.degrees_of_freedom, np.trace(remaining), rtol=1e-9)


def test_resampling_waits_for_the_threshold_and_moves_whole_members():
    members, observation = problem()
    state = {"x": members, "regime": jnp.arange(8)}
    seen = observation.pullback(lambda state: state["x"])
    weighed, info = analyse(BootstrapFilter(0.0), state, seen, key=jr.key(0))
    share = float(info.effective_size) / 8
    for threshold, copied in ((share - 1e-3, False), (share + 1e-3, True)):
        analysis, _ = analyse(BootstrapFilter(threshold), state, seen, key=jr.key(0))
        assert (analysis.members["regime"].tolist() != list(range(8))) == copied
        index = np.asarray(analysis.members["regime"])
        np.testing.assert_array_equal(analysis.members["x"], members[index])
    expected = Systematic()(weighed, key=jr.split(jr.key(0))[0])
    chex.assert_trees_all_equal(analysis.members, expected)
    np.testing.assert_allclose(analysis.weights, 1 / 8, rtol=1e-15)
    # With `where`, the rest stays.
    part = BootstrapFilter(1.0, where=lambda state: state["x"])
    analysis, _ = analyse(part, state, seen, key=jr.key(0))
    np.testing.assert_array_equal(analysis.members["regime"], np.arange(8))
    np.testing.assert_array_equal(analysis.members["x"], expected["x"])


def blind(observation):
    return eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(3, bool))


@pytest.mark.parametrize(
    "method",
    [
        BootstrapFilter(1.0, regularisation=Kernel()),
        OptimalProposal(Kernel()),
        TemperedFilter(Kernel()),
    ],
    ids=lambda method: type(method).__name__,
)
def test_nothing_used_is_the_identity(method):
    members, observation = problem(jnp.float32)
    before = Weighted(members, 5 * jnp.arange(8.0, dtype=jnp.float32))
    analysis, info = analyse(method, before, blind(observation), key=jr.key(0))
    chex.assert_trees_all_equal(analysis, before)
    chex.assert_trees_all_equal_dtypes(analysis, before)
    assert (int(info.used), float(info.chi_square), float(info.log_evidence)) == (
        0,
        0.0,
        0.0,
    )


@pytest.mark.parametrize("kind", [AuxiliaryFilter, OptimalProposal, TemperedFilter])
def test_the_noise_of_a_model_is_drawn_whatever_is_seen(kind):
    members, observation = problem()
    members = jnp.concatenate([members] * 50)
    noise = AdditiveNoise(np.asarray([0.5, 0.0, 2.0]))
    analysis, _ = analyse(kind(noise), members, blind(observation), key=jr.key(0))
    change = np.asarray(analysis.members - members)
    np.testing.assert_array_equal(change[:, 1], 0)
    # 400 draws: the variance is known to 7 percent.
    np.testing.assert_allclose(change[:, [0, 2]].var(0), [0.5, 2.0], rtol=0.3)
    np.testing.assert_allclose(analysis.weights, 1 / 400, rtol=1e-12)


@pytest.mark.parametrize("kind", methods(AdditiveNoise(1.0)))
def test_a_member_that_is_not_finite_never_counts(kind):
    members, observation = problem()
    broken = members.at[3, 1].set(jnp.nan)  # where nothing is seen
    method, _ = methods(AdditiveNoise(0.5))[kind]

    @eqx.filter_jit
    def run(members, std):
        seen = Observation(observation.value, observation.operator, Diagonal(std))
        analysis, info = method(Weighted(members), seen, key=jr.key(0))
        return jnp.sum(analysis.mean()) + info.log_evidence + info.chi_square

    value = run(broken, jnp.asarray(0.7))
    slope = eqx.filter_jit(jax.grad(run, argnums=(0, 1)))(broken, jnp.asarray(0.7))
    chex.assert_tree_all_finite((value, slope))
    np.testing.assert_array_equal(slope[0][3], 0)


def test_no_possible_member_keeps_the_weights_and_says_so():
    class Bounded(LogChiSquare):
        def log_prob(self, residual, mask):
            inside = jnp.all(jnp.where(mask, jnp.abs(residual) < 1, True))
            return jnp.where(inside, 0.0, -jnp.inf)

    members, observation = problem()
    far = Observation(np.full(3, 100.0), observation.operator, Bounded())
    before = Weighted(members, jnp.log(jnp.arange(1.0, 9.0)))
    analysis, info = analyse(BootstrapFilter(0.1), before, far, key=jr.key(0))
    chex.assert_trees_all_equal(analysis, before)
    assert float(info.log_evidence) == -np.inf


def test_the_evidence_through_transport_has_a_true_gradient():
    values = jnp.asarray([[0.3], [1.2], [-0.4]])
    members = jr.normal(jr.key(5), (12, 1))
    noise = 0.5 * jr.normal(jr.key(6), (3, 12, 1))
    method = BootstrapFilter(1.0, resampling=OptimalTransport(0.5, iterations=20))

    @jax.jit
    def log_evidence(decay):
        def advance(weighted, x):
            value, noise = x
            moved = decay * weighted.members + noise
            background = eqx.tree_at(lambda w: w.members, weighted, moved)
            observation = Observation(value, lambda x: x, Diagonal(0.6))
            analysis, info = method(background, observation)
            return analysis, jnp.asarray(info.log_evidence)

        _, evidence = jax.lax.scan(advance, Weighted(members), (values, noise))
        return jnp.sum(evidence)

    step = 1e-5
    expected = (log_evidence(0.8 + step) - log_evidence(0.8 - step)) / (2 * step)
    slope = jax.jit(jax.grad(log_evidence))(0.8)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)

    # It points to where the exact evidence, the Kalman filter's, is larger.
    def kalman(decay):
        mean, variance, total = 0.0, 1.0, 0.0
        for value in np.asarray(values)[:, 0]:
            mean, variance = decay * mean, decay**2 * variance + 0.25
            s = variance + 0.36
            total -= ((value - mean) ** 2 / s + np.log(2 * np.pi * s)) / 2
            mean, variance = mean + variance / s * (value - mean), variance * 0.36 / s
        return total

    exact = (kalman(0.8 + step) - kalman(0.8 - step)) / (2 * step)
    assert np.sign(slope) == np.sign(exact)


def test_experiments_batch_and_single_precision_stays():
    members, observation = problem(jnp.float32)
    batch = jnp.stack([members, 2 * members])
    method = BootstrapFilter(1.0, regularisation=Kernel(0.5))
    keys = jr.split(jr.key(0), 2)
    run = jax.vmap(lambda members, key: method(members, observation, key=key))
    analysis, info = jax.jit(run)(batch, keys)
    chex.assert_type([analysis.members, analysis.log_weights], jnp.float32)
    assert info.log_evidence.shape == (2,)
    one, _ = analyse(method, batch[1], observation, key=keys[1])
    np.testing.assert_allclose(analysis.members[1], one.members, atol=1e-6)


def test_half_precision_stays_and_is_computed_in_single():
    members, observation = problem(jnp.float32)
    wanted, told = analyse(BootstrapFilter(0.0), members, observation, key=jr.key(0))
    half = members.astype(jnp.bfloat16)
    found, info = analyse(BootstrapFilter(0.0), half, observation, key=jr.key(0))
    assert found.members.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.weights, wanted.weights, atol=0.05)
    np.testing.assert_allclose(info.chi_square, told.chi_square, rtol=0.1)


def test_lorenz_63_is_followed_as_published():
    # DAPPER, mods/Lorenz63/sakov2012: PartFilt(N=100, reg=2.4, NER=0.3) has an error of
    # 0.38 to 0.40; the observation error is 1.4, climatology's 7.6.
    step = dynamics.Lorenz63()
    start = jnp.asarray([1.509, -1.531, 25.46])
    truth = dynamics.rollout(step, start, 25 * 400)[24::25]
    values = truth + 2**0.5 * jr.normal(jr.key(0), truth.shape)
    ensemble = Weighted(start[None] + 2**0.5 * jr.normal(jr.key(1), (100, 3)))
    everything = Index(np.arange(3))
    kernel = Kernel(2.4, only_copies=True)
    method = BootstrapFilter(0.3, regularisation=kernel)
    run = jax.jit(
        lambda: cycle(
            step,
            method,
            ensemble,
            lambda value: Observation(value, everything, Diagonal(2**0.5)),
            values,
            key=jr.key(2),
            steps_between=25,
            reduce=lambda weighted: weighted.mean(),
        )
    )
    error = np.sqrt(np.mean((run().analyses - truth)[64:] ** 2, axis=1)).mean()
    assert error < 0.55


def test_wrong_use_is_reported():
    members, observation = problem()
    with pytest.raises(eqx.EquinoxRuntimeError, match="`threshold` must not be negat"):
        BootstrapFilter(-0.1)
    with pytest.raises(ValueError, match="`key` is needed to resample"):
        BootstrapFilter(1.0)(members, observation)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        BootstrapFilter(1.0)(members[:1], observation)
    for kind in (AuxiliaryFilter, OptimalProposal, TemperedFilter):
        with pytest.raises(ValueError, match="`key` is needed to draw the noise"):
            kind(AdditiveNoise(1.0))(members, observation)
