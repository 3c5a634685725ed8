import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from skyens import dynamics, scores
from skyens.assimilation import (
    ETKF,
    LETKF,
    Additive,
    BootstrapFilter,
    Inflated,
    Info,
    Localisation,
    Multiplicative,
    Plane,
    RelaxToPriorPerturbations,
    RelaxToPriorSpread,
    Weighted,
    cycle,
    ensemble_spread,
)
from skyens.assimilation._ensemble import Recorded
from skyens.observations import Diagonal, Index, Observation

relax = jax.jit(RelaxToPriorSpread.__call__)  # the module is an argument
spread_of = jax.jit(ensemble_spread)
inflate = eqx.filter_jit(lambda piece, *args: piece(*args))


class RelaxToPriorSpreadTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    def test_alpha_one_restores_the_background_spread(self):
        analysis, background = jr.normal(jr.key(0), (2, 8, 3, 4), jnp.float32)
        inflate = self.variant(RelaxToPriorSpread.__call__)  # the module is an argument
        inflated = inflate(RelaxToPriorSpread(1.0), 0.1 * analysis, background)
        chex.assert_trees_all_equal_shapes_and_dtypes(inflated, analysis)
        spread = ensemble_spread(inflated)
        chex.assert_trees_all_close(spread, ensemble_spread(background), rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_mean_stays_and_spread_is_interpolated(alpha, seed, scale):
    generator = np.random.default_rng(seed)
    analysis, background = scale * generator.normal(size=(2, 5, 4))
    method = RelaxToPriorSpread(alpha)
    inflated = relax(method, jnp.asarray(analysis), jnp.asarray(background))
    before, after = (np.std(x, axis=0, ddof=1) for x in (background, analysis))
    spread = (1 - alpha) * after + alpha * before
    np.testing.assert_allclose(np.std(inflated, axis=0, ddof=1), spread, rtol=1e-10)
    mean = np.mean(inflated, axis=0)
    np.testing.assert_allclose(mean, analysis.mean(0), atol=1e-12 * scale)


def test_spread_is_the_unbiased_deviation_of_numpy():
    ensemble = np.random.default_rng(0).normal(size=(6, 3)) + 100
    for member in (ensemble, ensemble * (1 + 2j)):
        expected = member.std(0, ddof=1)
        np.testing.assert_allclose(spread_of(member), expected, rtol=1e-12)


def test_it_takes_any_pytree_and_leaves_integers():
    wave = np.random.default_rng(1).normal(size=(6, 3)) * (1 + 2j)
    analysis = {"wave": jnp.asarray(wave), "clock": jnp.arange(6)}
    background = {"wave": jnp.asarray(3 * wave), "clock": jnp.zeros(6, int)}
    inflated = relax(RelaxToPriorSpread(0.5), analysis, background)
    chex.assert_trees_all_equal(inflated["clock"], analysis["clock"])
    spread = spread_of(inflated["wave"])
    np.testing.assert_allclose(spread, 2 * wave.std(0, ddof=1), rtol=1e-12)


def test_gradient_in_alpha_is_the_spread_gap():
    analysis, background = np.random.default_rng(2).normal(size=(2, 6, 3))

    @jax.jit
    @jax.grad
    def slope(inflate):
        inflated = inflate(jnp.asarray(analysis), jnp.asarray(background))
        return ensemble_spread(inflated).sum()

    gap = background.std(0, ddof=1).sum() - analysis.std(0, ddof=1).sum()
    np.testing.assert_allclose(slope(RelaxToPriorSpread(0.3)).alpha, gap, rtol=1e-10)


def test_a_collapsed_member_set_has_finite_gradients_and_stays():
    background = jnp.asarray(np.random.default_rng(3).normal(size=(6, 3)))
    equal, method = jnp.ones((6, 3)), RelaxToPriorSpread(0.5)
    total = lambda analysis: method(analysis, background).sum()
    chex.assert_tree_all_finite(jax.jit(jax.grad(total))(equal))
    chex.assert_trees_all_equal(relax(method, equal, background), equal)


class Counting(eqx.Module):
    """A method with memory: it counts its calls, and moves the ensemble by its key."""

    calls: jax.Array

    def __call__(self, background, observation, *, key=None):
        count = jnp.asarray(1)
        successor = Counting(self.calls + 1)
        info = Info(count, count, count, jnp.zeros(()), jnp.ones(()), successor)
        noise = 0.0 if key is None else jr.normal(key, background.shape)
        return background + noise, info


def test_inflated_is_the_method_then_the_inflation():
    background = jr.normal(jr.key(3), (6, 3))
    observation = Observation(np.zeros(2), Index(np.arange(2)), Diagonal(0.5))
    method = RelaxToPriorSpread(0.7)
    run = eqx.filter_jit(lambda method: method(background, observation))
    actual, info = run(Inflated(ETKF(), method))
    plain, expected = run(ETKF())
    relaxed = relax(method, plain, background)
    chex.assert_trees_all_close(actual, relaxed, rtol=1e-12)
    chex.assert_trees_all_close(info.chi_square, expected.chi_square, rtol=1e-12)
    assert info.method is None


def test_inflated_has_the_memory_of_its_method_and_splits_the_key():
    background = jr.normal(jr.key(4), (6, 3))
    observation = Observation(np.zeros(2), Index(np.arange(2)), Diagonal(0.5))
    add = lambda analysis, background, *, key: analysis + jr.normal(key, (6, 3))
    method = Inflated(Counting(jnp.asarray(3)), add)
    analysis, info = method(background, observation, key=jr.key(5))
    assert isinstance(info.method, Inflated)
    assert int(info.method.method.calls) == 4
    first, second = jr.split(jr.key(5))
    expected = background + jr.normal(first, (6, 3)) + jr.normal(second, (6, 3))
    chex.assert_trees_all_close(analysis, expected, rtol=1e-12)


def test_perturbations_are_relaxed_member_by_member():
    analysis, background = np.random.default_rng(5).normal(size=(2, 6, 3))
    method, clock = RelaxToPriorPerturbations(0.3), jnp.arange(6)
    after = {"x": jnp.asarray(analysis), "clock": clock}
    inflated = inflate(method, after, {"x": jnp.asarray(background), "clock": clock})
    np.testing.assert_array_equal(inflated["clock"], clock)
    mean = analysis.mean(0)
    anomalies = 0.7 * (analysis - mean) + 0.3 * (background - background.mean(0))
    np.testing.assert_allclose(inflated["x"], mean + anomalies, rtol=1e-12)
    same = inflate(method, after, after)
    np.testing.assert_array_equal(same["x"], after["x"])


def test_multiplicative_scales_what_it_is_asked_to():
    x = jnp.asarray(np.random.default_rng(6).normal(size=(6, 3)), jnp.float32)
    state = {"x": x + 1e3, "wave": x.astype(jnp.complex64) * 1j, "clock": jnp.arange(6)}
    inflated = inflate(Multiplicative(1.5), state, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(inflated, state)
    expected = 1.5**2 * np.cov(np.asarray(state["x"], float).T)
    np.testing.assert_allclose(np.cov(inflated["x"].T), expected, atol=3e-4)
    np.testing.assert_allclose(
        spread_of(inflated["wave"]), 1.5 * np.std(x, axis=0, ddof=1), rtol=1e-5
    )
    np.testing.assert_array_equal(inflated["clock"], state["clock"])
    some = inflate(Multiplicative(1.5, where=lambda s: s["x"]), state, state)
    np.testing.assert_array_equal(some["wave"], state["wave"])
    np.testing.assert_array_equal(some["x"], inflated["x"])


@pytest.mark.parametrize("kind", ["root", "callable"])
def test_additive_adds_its_covariance_and_keeps_the_mean(kind):
    root = np.random.default_rng(7).normal(size=(2, 3))

    def draw(key):
        return {"x": jr.normal(key, (2,)) @ jnp.asarray(root), "clock": None}

    given = draw if kind == "callable" else {"x": root, "clock": None}
    method, members = Additive(given, 0.5), 4000
    x = jnp.asarray(np.random.default_rng(8).normal(size=(members, 3)))
    state = {"x": x, "clock": jnp.arange(members)}
    inflated = eqx.filter_jit(method)(state, state, key=jr.key(0))
    np.testing.assert_allclose(inflated["x"].mean(0), x.mean(0), atol=1e-13)
    np.testing.assert_array_equal(inflated["clock"], state["clock"])
    added = np.cov((inflated["x"] - x).T)
    expected = 0.25 * root.T @ root
    # A covariance of 4000 draws is known to some sqrt(2 / 4000), 2 percent.
    np.testing.assert_allclose(added, expected, atol=0.1 * expected.max())


def test_pieces_follow_one_another_and_may_come_before_the_method():
    background = jr.normal(jr.key(3), (6, 3))
    observation = Observation(np.zeros(2), Index(np.arange(2)), Diagonal(0.5))
    relaxed, twice = RelaxToPriorSpread(0.7), Multiplicative(2.0)
    run = eqx.filter_jit(lambda method, *args: method(*args, key=jr.key(1)))
    actual, _ = run(Inflated(ETKF(), [twice, relaxed]), background, observation)
    plain, _ = run(ETKF(), background, observation)
    expected = relax(relaxed, inflate(twice, plain, plain), background)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    nested = Inflated(Inflated(ETKF(), twice), relaxed)
    np.testing.assert_allclose(
        run(nested, background, observation)[0], expected, rtol=1e-12
    )
    ahead = Inflated(ETKF(), before=twice)
    actual, _ = run(ahead, background, observation)
    larger = inflate(twice, background, background)
    expected, _ = run(ETKF(), larger, observation)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    blind = eqx.tree_at(lambda o: o.mask, observation, jnp.zeros(2, bool))
    additive = Additive(jnp.eye(3))
    both = Inflated(ETKF(), [twice, additive], before=additive)
    untouched, _ = run(both, background, blind)
    np.testing.assert_array_equal(untouched, background)
    recorded = Observation(np.zeros(2), Recorded(jnp.ones((6, 2))), Diagonal(0.5))
    with pytest.raises(ValueError, match="inflate after the analysis"):
        ahead(background, recorded)


LINE = Plane(np.arange(20.0), period=20.0)
PLACE = {"x": jnp.arange(20.0)}


def etkf(logarithm):
    return ETKF(jnp.exp(logarithm["inflation"]))


def letkf(logarithm):
    length = jnp.exp(logarithm["length"])
    table = Localisation(LINE, PLACE, length=length, width=20)
    return LETKF(table, jnp.exp(logarithm["inflation"]))


def worlds(seeds, members, cycles):
    """Truths of a Lorenz (1996) model, what is seen of them, and first ensembles."""

    def one(seed):
        first, noise, perturb = jr.split(jr.key(seed), 3)
        start = jr.normal(first, (20,)) + 8
        truth = dynamics.rollout(dynamics.Lorenz96(20), start, 100 + cycles)[99:]
        ensemble = truth[:1] + 0.5 * jr.normal(perturb, (members, 20))
        return truth, truth + jr.normal(noise, truth.shape), ensemble

    return jax.jit(jax.vmap(one))(jnp.asarray(seeds))


@pytest.mark.parametrize(("make", "members"), [(etkf, 8), (letkf, 4)])
def test_inflation_and_localisation_are_learned_by_descent_on_a_score(make, members):
    # Mean CRPS of the forecasts from one analysis to the next, through the cycles.
    def score(logarithm, world):
        def one(truth, values, ensemble):
            observe = lambda value: Observation(
                value, Index(np.arange(20)), Diagonal(1.0), coordinates=PLACE
            )
            result = cycle(
                dynamics.Lorenz96(20),
                make(logarithm),
                ensemble,
                observe,
                values[1:],
                key=jr.key(0),
            )
            return scores.crps(result.backgrounds[5:], truth[6:], axis=1).mean()

        return jax.vmap(one)(*world).mean()

    world = worlds([0, 1], members, 25)
    optimiser = optax.adam(0.1)

    @jax.jit
    def learn(logarithm):
        def descend(carry, _):
            logarithm, state = carry
            gradient = jax.grad(score)(logarithm, world)
            change, state = optimiser.update(gradient, state)
            return (optax.apply_updates(logarithm, change), state), gradient

        first = logarithm, optimiser.init(logarithm)
        (logarithm, _), gradients = jax.lax.scan(descend, first, None, length=12)
        return logarithm, gradients

    first = {"inflation": jnp.asarray(0.4), "length": jnp.asarray(0.0)}
    with jax.numpy_dtype_promotion("standard"):  # the optimiser's own arithmetic
        learned, gradients = learn(first)
    chex.assert_tree_all_finite(gradients)
    # Far too much inflation and, of the local filter, too little reach.
    assert 0.9 < float(jnp.exp(learned["inflation"])) < 1.3
    if make is letkf:
        assert float(jnp.exp(learned["length"])) > 1.5
    unseen = worlds([2, 3], members, 25)
    judge = jax.jit(score)
    assert float(judge(learned, unseen)) < 0.85 * float(judge(first, unseen))
    step = 1e-5
    ahead, behind = (
        judge({**first, "inflation": first["inflation"] + h}, world)
        for h in (step, -step)
    )
    slope = gradients["inflation"][0]
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6)


def test_wrong_use_is_reported():
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"must lie in \[0, 1\]"):
        RelaxToPriorSpread(1.5)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"must lie in \[0, 1\]"):
        eqx.filter_jit(RelaxToPriorSpread)(jnp.asarray(1.5))
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        ensemble_spread(jnp.ones((1, 3)))
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"must lie in \[0, 1\]"):
        RelaxToPriorPerturbations(-0.1)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`factor` must be above 0"):
        Multiplicative(0.0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`scale` must not be negative"):
        Additive(jnp.eye(3), -1.0)
    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match="`key` is needed to draw"):
        Additive(jnp.eye(3))(x, x)
    with pytest.raises(
        ValueError, match=r"shape \(4, 2\) do not fit a leaf of float64"
    ):
        Additive(jnp.eye(2))(x, x, key=jr.key(0))
    observation = Observation(jnp.zeros(2), Index(np.arange(2)), Diagonal(1.0))
    particles = Inflated(BootstrapFilter(0.0), Multiplicative(2.0))
    for background in (x, Weighted(x)):
        with pytest.raises(ValueError, match="members that count the same, got Weig"):
            particles(background, observation, key=jr.key(0))
