import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings, strategies as st

from skyens import scores

CASES = 400


def cases(seed, members=8):
    """An ensemble around a signal, and a truth that follows it by a known law."""
    rng = np.random.default_rng(seed)
    signal = 3 * rng.standard_normal(CASES)
    spread = np.exp(0.5 * rng.standard_normal(CASES))
    ensemble = signal + spread * rng.standard_normal((members, CASES))
    scale = np.sqrt(0.5**2 + 1.5**2 * ensemble.var(0))
    truth = 2 + 0.5 * ensemble.mean(0) + scale * rng.standard_normal(CASES)
    return jnp.asarray(ensemble), jnp.asarray(truth)


fit = eqx.filter_jit(scores.fit_emos)


def test_the_score_is_as_low_as_a_simplex_search_finds():
    ensemble, truth = cases(0)
    emos, info = fit(scores.crps_normal, ensemble, truth)
    mean, variance = np.mean(ensemble, axis=0), np.var(ensemble, axis=0)

    @jax.jit
    def loss(p):
        scale = jnp.sqrt(p[2] ** 2 + p[3] ** 2 * variance)
        return scores.crps_normal(p[0] + p[1] * mean, scale, truth).mean()

    found = scipy.optimize.minimize(
        loss, [0, 1, 1, 1], method="Nelder-Mead", options={"fatol": 1e-12}
    )
    assert bool(info.converged)
    assert int(info.cases) == CASES
    np.testing.assert_allclose(info.score, found.fun, rtol=1e-8)
    ours = [emos.intercept, emos.slopes[0], emos.base, emos.factor]
    np.testing.assert_allclose(ours, np.abs(found.x), rtol=1e-3)
    np.testing.assert_allclose(emos.score(ensemble, truth).mean(), info.score)


def test_the_law_of_the_truth_is_found():
    ensemble, truth = (
        jnp.concatenate(x, -1) for x in zip(*map(cases, range(8)), strict=True)
    )
    emos, _ = fit(scores.crps_normal, ensemble, truth)
    ours = [emos.intercept, emos.slopes[0], emos.base, emos.factor]
    np.testing.assert_allclose(ours, [2, 0.5, 0.5, 1.5], rtol=0.15)


@settings(deadline=None, max_examples=5)
@given(offset=st.floats(-1e3, 1e3), unit=st.floats(0.01, 100))
def test_units_do_not_matter(offset, unit):
    ensemble, truth = cases(1)
    emos, info = fit(scores.crps_normal, ensemble, truth)
    other, same = fit(scores.crps_normal, unit * ensemble + offset, unit * truth)
    np.testing.assert_allclose(same.score, unit * info.score, rtol=1e-6)
    ours = np.asarray(other(unit * ensemble + offset))
    np.testing.assert_allclose(
        ours / unit, np.asarray(emos(ensemble)), rtol=1e-2, atol=1e-2
    )


def test_covariates_and_arrays_of_the_family_are_fitted():
    class Skewed(eqx.Module):
        shift: jax.Array

        def __call__(self, location, scale, truth):
            return scores.crps_normal(location + self.shift**2, scale, truth)

    ensemble, truth = cases(2)
    season = jnp.asarray(np.sin(np.arange(CASES) / 9))
    truth = truth + 4 * season
    emos, info = fit(
        Skewed(jnp.asarray(0.3)), ensemble, truth, covariates=season[:, None]
    )
    np.testing.assert_allclose(emos.slopes[1], 4, atol=0.5)
    assert emos.family.shift != 0.3
    _, worse = fit(scores.crps_normal, ensemble, truth)
    assert info.score < 0.9 * worse.score
    location, _ = emos(ensemble, season[:, None])
    assert location.shape == (CASES,)


def test_leads_are_fitted_side_by_side():
    ensembles, truths = (jnp.stack(x) for x in zip(cases(3), cases(4), strict=True))
    both, _ = eqx.filter_vmap(lambda e, t: fit(scores.crps_normal, e, t))(
        ensembles, truths
    )
    alone, _ = fit(scores.crps_normal, ensembles[1], truths[1])
    np.testing.assert_allclose(both.slopes[1], alone.slopes, rtol=1e-5)


def test_what_is_not_valid_counts_nowhere():
    ensemble, truth = cases(5)
    bad = jnp.arange(CASES) % 5
    spoilt = jnp.where(bad == 0, jnp.nan, truth)
    members = ensemble.at[3].set(jnp.where(bad == 1, jnp.nan, ensemble[3]))
    emos, info = fit(scores.crps_normal, members, spoilt, where=bad != 2)
    kept = np.asarray(bad > 2)
    alone, same = fit(scores.crps_normal, ensemble[:, kept], truth[kept])
    assert int(info.cases) == kept.sum()
    np.testing.assert_allclose(info.score, same.score, rtol=1e-8)
    np.testing.assert_allclose(emos.slopes, alone.slopes, rtol=1e-4)
    weighted, _ = fit(
        scores.crps_normal, ensemble, truth, weights=jnp.asarray(kept, float)
    )
    np.testing.assert_allclose(weighted.slopes, alone.slopes, rtol=1e-4)


def test_nothing_valid_is_counted_and_finite():
    ensemble, truth = cases(5)
    emos, info = fit(scores.crps_normal, ensemble, jnp.full_like(truth, jnp.nan))
    assert int(info.cases) == 0
    assert float(info.score) == 0
    assert np.isfinite(emos(ensemble).location).all()


def test_single_precision_stays_and_is_as_good():
    ensemble, truth = cases(6)
    _, info = fit(scores.crps_normal, ensemble, truth)
    single = ensemble.astype(jnp.float32), truth.astype(jnp.float32)
    emos, same = fit(scores.crps_normal, *single)
    assert emos.slopes.dtype == same.score.dtype == jnp.float32
    np.testing.assert_allclose(same.score, info.score, rtol=1e-4)


def test_bias_is_taken_off_by_lead():
    bias, correct = scores.Bias(), eqx.filter_jit(scores.BiasCorrection.__call__)
    ensemble = jr.normal(jr.key(0), (5, 3, 20)) + jnp.arange(3.0)[None, :, None]
    truth = jr.normal(jr.key(1), (3, 20))
    where = jnp.ones((3, 20), bool).at[2].set(False)
    state = bias.update(bias.init((3,)), ensemble, truth, where=where)
    correction = scores.BiasCorrection(bias.finalize(state))
    corrected = correct(correction, ensemble)
    left = (corrected.mean(0) - truth).mean(1)
    np.testing.assert_allclose(left[:2], 0, atol=1e-12)
    np.testing.assert_array_equal(corrected[:, 2], ensemble[:, 2])


def test_coupling_keeps_the_order_of_the_raw_members():
    ensemble = jr.normal(jr.key(0), (7, 4, 5))
    quantiles = jr.normal(jr.key(1), (7, 4, 5))
    coupled = jax.jit(scores.ensemble_copula_coupling)(ensemble, quantiles)
    np.testing.assert_array_equal(np.sort(coupled, 0), np.sort(quantiles, 0))
    np.testing.assert_array_equal(np.argsort(coupled, 0), np.argsort(ensemble, 0))
    last = scores.ensemble_copula_coupling(
        jnp.moveaxis(ensemble, 0, -1), jnp.moveaxis(quantiles, 0, -1), axis=-1
    )
    np.testing.assert_array_equal(jnp.moveaxis(last, -1, 0), coupled)


def test_wrong_use_is_reported():
    ensemble, truth = cases(0)
    with pytest.raises(ValueError, match=r"`ensemble` of shape \(8, 400\) must be"):
        scores.fit_emos(scores.crps_normal, ensemble, truth[:9])
    with pytest.raises(ValueError, match=r"`weights` must have the cases \(400,\)"):
        scores.fit_emos(scores.crps_normal, ensemble, truth, weights=truth[:9])
    with pytest.raises(ValueError, match=r"`covariates` must be \(case, covariate\)"):
        scores.fit_emos(
            scores.crps_normal, ensemble, truth, covariates=jnp.ones((9, 2))
        )
    with pytest.raises(ValueError, match="`max_steps` must be at least 1, got 0"):
        scores.fit_emos(scores.crps_normal, ensemble, truth, max_steps=0)
    with pytest.raises(ValueError, match="has no members"):
        scores.fit_emos(scores.crps_normal, ensemble[:0], truth)
    emos, _ = fit(scores.crps_normal, ensemble, truth)
    with pytest.raises(ValueError, match="must be 0 a case, as in the fit, got 2"):
        emos(ensemble, jnp.ones((CASES, 2)))
    with pytest.raises(ValueError, match="axes \\(3,\\) after the members"):
        scores.BiasCorrection(jnp.ones(3))(ensemble)
    with pytest.raises(ValueError, match="`quantiles` must have the shape"):
        scores.ensemble_copula_coupling(ensemble, ensemble[:3])
