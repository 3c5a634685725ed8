import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import demo, sphere
from skyens.demo import _verify


@pytest.fixture(scope="module")
def analyses():
    return demo.open_analyses()


def test_a_scorecard_of_made_up_ensembles_has_known_numbers(analyses):
    rng = np.random.default_rng(0)
    truth = analyses.truth
    shift = np.array([1.0, -2.0, 3.0], np.float32)[:, None, None]
    noise = rng.normal(size=(40, *truth.shape)).astype(np.float32)
    systems = {
        "single": (truth + shift)[None],
        "noise": truth + 10 * noise[:-1] + 10 * noise[-1:],
        "late": np.where(np.arange(3)[None, :, None, None] == 0, np.nan, truth[None]),
    }
    card = demo.scorecard(systems, analyses).set_index(
        ["system", "lead_time", "region"]
    )
    for lead, size in zip((12, 24, 36), (1, 2, 3), strict=True):
        row = card.loc[("single", lead, "tropics")]
        assert np.isclose(row["rmse"], size, rtol=1e-3)
        assert np.isclose(row["crps"], size, rtol=1e-3)  # the absolute error
        row = card.loc[("noise", lead, "20N-80N")]
        # Members and truth are exchangeable: standard deviation 10 about a centre.
        assert np.isclose(row["spread"], 10, rtol=0.05)
        assert np.isclose(row["spread_skill"], 1, rtol=0.05)
        assert np.isclose(row["crps"], 10 / np.sqrt(np.pi), rtol=0.05)
    assert 12 not in card.loc["late"].index.get_level_values("lead_time")
    assert card.loc[("late", 24, "20S-80S"), "rmse"] == 0


def test_ranks_of_an_exchangeable_ensemble_are_flat(analyses):
    rng = np.random.default_rng(1)
    fields = rng.normal(size=(10, *analyses.truth.shape)).astype(np.float32)
    ensemble = fields[1:] + analyses.truth - fields[:1]
    counts = demo.ranks(ensemble, analyses)
    share = counts / counts.sum()
    np.testing.assert_allclose(share, 0.1, atol=0.015)


def test_independent_cases_of_one_degree_are_its_orders(analyses):
    grid = analyses.grid
    sht = sphere.SphericalHarmonics(grid, 20)
    power = jnp.zeros(21).at[12].set(1.0)
    field = sphere.GaussianRandomField(sht, power).sample(jr.key(0))
    cases = _verify.independent_cases(np.asarray(field), grid, "tropics")
    share = _verify.region_weights(grid, "tropics").sum() / grid.weights.sum()
    assert np.isclose(cases, 25 * share, rtol=1e-6)


def test_region_weights_cover_their_latitudes_only(analyses):
    grid = analyses.grid
    for region, (south, north) in demo.REGIONS.items():
        weights = _verify.region_weights(grid, region)[:, 0]
        inside = (grid.latitude >= south - 1e-9) & (grid.latitude <= north + 1e-9)
        assert np.all((weights > 0) == inside)


def test_aims_say_what_was_met(analyses):
    truth = analyses.truth
    rng = np.random.default_rng(2)
    noise = 10 * rng.normal(size=(21, *truth.shape)).astype(np.float32)
    systems = {
        "control": (truth + noise[-1])[None],
        "good": truth + noise[:-1] + noise[-1:],
        "narrow": truth + noise[-1:] + 0.1 * noise[:-1],
    }
    card = demo.scorecard(systems, analyses)
    assert all(met for _, met in demo.aims(card, ("good",)))
    assert not any(met for _, met in demo.aims(card, ("narrow",)))
