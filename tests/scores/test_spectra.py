import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens import sphere
from skyens.scores import Spectra

GRID = sphere.gauss_legendre(6, 12)
SHT = sphere.SphericalHarmonics(GRID, lmax=5)
STAT = Spectra(SHT)
MEMBERS = 3


def draw(seed, times=4):
    """Return band-limited members and truth with a part in common."""
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(MEMBERS + 1, times, 6, 12)) + rng.normal(
        size=(times, 6, 12)
    )
    draws = SHT.synthesis(SHT.analysis(jnp.asarray(draws)))
    return draws[1:], draws[0]


@jax.jit
def spectra(ensemble, truth, weights=None, where=None):
    return STAT.finalize(STAT.update(STAT.init(), ensemble, truth, weights, where))


def test_they_are_means_of_the_spectra_of_fields():
    ensemble, truth = draw(0)
    weights = jnp.array([1.0, 0.5, 2.0, 0.0])
    found = spectra(ensemble, truth, weights[:, None, None])
    power = lambda fields: np.asarray(SHT.power_spectrum(fields))
    mean = lambda x: np.average(x, axis=0, weights=weights)
    forecast = ensemble.mean(0)
    anomalies = ensemble - forecast[None]
    for name, value in {
        "members": power(ensemble).mean(0),
        "mean": power(forecast),
        "truth": power(truth),
        "error": power(forecast - truth),
        "spread": power(anomalies).sum(0) / (MEMBERS - 1),
    }.items():
        np.testing.assert_allclose(getattr(found, name), mean(value), rtol=1e-11)
    # 2 f o = f^2 + o^2 - (f - o)^2
    shared = (found.mean + found.truth - found.error) / 2
    coherence = shared**2 / (found.mean * found.truth)
    np.testing.assert_allclose(found.coherence, coherence, rtol=1e-10)


def test_powers_add_up_to_mean_squares_over_the_sphere():
    ensemble, truth = draw(1)
    found = spectra(ensemble, truth)
    area = np.broadcast_to(GRID.weights[:, None], (6, 12))
    square = (np.asarray(truth) ** 2 * area).sum((-2, -1)).mean()
    np.testing.assert_allclose(found.truth.sum(), square, rtol=1e-12)
    variance = np.asarray(ensemble).var(0, ddof=1)
    np.testing.assert_allclose(
        found.spread.sum(), (variance * area).sum((-2, -1)).mean(), rtol=1e-12
    )


def test_a_perfect_forecast_is_coherent_and_has_no_error():
    _, truth = draw(2)
    found = spectra(jnp.stack([truth] * MEMBERS), truth)
    np.testing.assert_allclose(found.coherence, 1, rtol=1e-12)
    np.testing.assert_array_equal([found.error, found.spread], 0)
    np.testing.assert_allclose(found.members, found.truth, rtol=1e-12)


def test_small_errors_are_exact_at_a_large_offset_in_float32():
    ensemble, truth = draw(3)
    rounded = jnp.round(64 * jnp.concatenate([ensemble, truth[None]])) / 64
    wide = spectra(rounded[:-1], rounded[-1])
    offset = (rounded + 2.0**17).astype(jnp.float32)  # 64ths are still exact
    sht = sphere.SphericalHarmonics(GRID, lmax=5)
    stat = Spectra(sht)
    state = stat.init((), jnp.float32)
    found = stat.finalize(stat.update(state, offset[:-1], offset[-1]))
    for name in ("error", "spread"):
        np.testing.assert_allclose(getattr(found, name), getattr(wide, name), rtol=1e-5)


def test_masked_members_and_fields_do_not_count():
    ensemble, truth = draw(4)
    where = np.ones((MEMBERS, 4), bool)
    where[:, 1], where[2] = False, False
    fields = np.broadcast_to(where[..., None, None], ensemble.shape).copy()
    fields[2, 3] = True
    fields[2, 3, 5, 11] = False  # one point is enough
    spoilt = jnp.where(where[..., None, None], ensemble, jnp.nan)
    spoilt = spoilt.at[2, 3].set(7.0)
    found = spectra(spoilt, truth.at[1].set(jnp.nan), where=jnp.asarray(fields))
    here = jnp.array([0, 2, 3])
    expected = spectra(ensemble[:2, here], truth[here])
    chex.assert_trees_all_close(found, expected, rtol=1e-12)


def test_one_member_has_no_spread():
    ensemble, truth = draw(5)
    found = spectra(ensemble[:1], truth)
    np.testing.assert_array_equal(found.spread, 0)
    np.testing.assert_allclose(found.members, found.mean, rtol=1e-12)


def test_a_nan_spoils_its_sums_and_raises_nothing():
    ensemble, truth = draw(6)
    state = STAT.update(STAT.init((4,)), ensemble, truth.at[2, 0, 0].set(jnp.nan))
    found = STAT.finalize(state)
    lost = np.isnan(found.error).any(-1)
    np.testing.assert_array_equal(lost, [False, False, True, False])


def test_wrong_use_is_reported():
    ensemble, truth = draw(7)
    with pytest.raises(ValueError, match="`truth`"):
        STAT.update(STAT.init(), ensemble, truth[..., :-1])
    with pytest.raises(ValueError, match="but a field is scored as a whole"):
        STAT.update(STAT.init(), ensemble, truth, weights=jnp.ones((6, 1)))
