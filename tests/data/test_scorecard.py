import functools
import subprocess
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
import xskillscore

from skyens import scores, sphere
from skyens.data import scorecard, scorecard_states

HOURS = np.timedelta64(1, "h").astype("m8[ns]")
GRID = sphere.equiangular(5, 8)
STARTS, LEADS, MEMBERS, LEVELS = 5, 2, 4, 2
RMSE = {"rmse": scores.RMSE()}
SCORES = {
    "rmse": scores.RMSE(),
    "spread_skill": scores.SpreadSkill(),
    "crps": scores.CRPS(),
    "ranks": scores.RankHistogram(MEMBERS),
}


def forecasts(dtype: Any = np.float32, seed=0, **names):
    """Forecasts as WeatherBench lays them out; `names` renames dimensions."""
    shape = (STARTS, LEADS, MEMBERS, LEVELS, *GRID.shape)
    values = 250 + 5 * np.random.default_rng(seed).normal(size=shape)
    start = np.datetime64("2020-01-30", "ns") + 12 * np.arange(STARTS) * HOURS
    dims = "time", "prediction_timedelta", "number", "level", "latitude", "longitude"
    array = xarray.DataArray(
        values.astype(dtype),
        {
            "time": start,
            "prediction_timedelta": 12 * np.arange(1, LEADS + 1) * HOURS,
            "number": np.arange(MEMBERS),
            "level": [850, 500],
            "latitude": GRID.latitude,
            "longitude": GRID.longitude,
        },
        dims,
        name="temperature",
        attrs={"units": "K"},
    )
    return array.rename(names)


def analyses(dtype: Any = np.float32, seed=1):
    """What is true at every time at which `forecasts` are valid, and at more."""
    times = np.datetime64("2020-01-29", "ns") + 12 * np.arange(STARTS + 6) * HOURS
    shape = (times.size, LEVELS, *GRID.shape)
    values = 250 + 5 * np.random.default_rng(seed).normal(size=shape)
    forecast = forecasts()
    return xarray.DataArray(
        values.astype(dtype),
        {"time": times}
        | {dim: forecast[dim] for dim in ("level", "latitude", "longitude")},
        ("time", "level", "latitude", "longitude"),
        name="temperature",
        attrs={"units": "K"},
    )


def paired(forecast, truth):
    """Return truth at the starts and lead times of forecast, by another way."""
    valid = forecast["time"] + forecast["prediction_timedelta"]
    return truth.sel(time=valid.values.ravel()).values.reshape(
        *valid.shape, LEVELS, *GRID.shape
    )


def quiet(*arguments, **settings):
    return scorecard(*arguments, progress=False, **settings)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_are_those_of_plain_numpy(dtype):
    forecast, truth = forecasts(dtype), analyses(dtype)
    result = quiet(forecast, truth, SCORES, ("level", "lead_time"))
    x = forecast.values.astype(np.float64)
    y = paired(forecast, truth).astype(np.float64)
    weights = np.broadcast_to(GRID.cell_areas[:, None], y.shape)
    mean = lambda values: np.average(values, axis=(0, 3, 4), weights=weights)
    error = x.mean(2) - y
    variance = x.var(2, ddof=1)
    pairs = np.abs(x[:, :, :, None] - x[:, :, None]).sum((2, 3))
    crps = np.abs(x - y[:, :, None]).mean(2) - pairs / (2 * MEMBERS * (MEMBERS - 1))
    ranks = (x < y[:, :, None]).sum(2)
    expected = {
        "rmse": np.sqrt(mean(error**2)),
        "spread_skill_spread": np.sqrt(mean(variance)),
        "spread_skill_skill": np.sqrt(mean(error**2)),
        "spread_skill_ratio": np.sqrt(
            (MEMBERS + 1) / MEMBERS * mean(variance) / mean(error**2)
        ),
        "crps": mean(crps),
        "ranks": np.stack([mean(ranks == r) for r in range(MEMBERS + 1)], -1),
    }
    assert result["crps"].dims == ("level", "lead_time")
    assert result["ranks"].dims == ("level", "lead_time", "rank")
    tolerance = 3e-6 if dtype == np.float32 else 1e-12
    for name, values in expected.items():
        assert result[name].dtype == dtype
        np.testing.assert_allclose(
            result[name], np.moveaxis(values, 0, 1), rtol=tolerance, err_msg=name
        )
    assert set(result) == {*expected, "count", "missing", "missing_members"}
    np.testing.assert_array_equal(result["count"], STARTS * GRID.latitude.size * 8)
    assert not result["missing"].any()
    assert result["rmse"].attrs["units"] == result["crps"].attrs["units"] == "K"
    assert result["spread_skill_ratio"].attrs["units"] == "1"
    assert result["spread_skill_spread"].attrs["long_name"] == "spread skill spread"
    np.testing.assert_array_equal(result["level"], [850, 500])


def test_peers_agree():
    forecast, truth = forecasts(np.float64), analyses(np.float64)
    result = quiet(forecast, truth, {"crps": scores.CRPS(alpha=0.0)})
    lead = forecast.isel(prediction_timedelta=1)
    observed = truth.sel(time=forecast["time"] + lead["prediction_timedelta"])
    observed = observed.assign_coords(time=forecast["time"])
    weights = observed.copy(
        data=np.broadcast_to(GRID.cell_areas[:, None], observed.shape)
    )
    peer: Any = xskillscore.crps_ensemble(
        observed, lead, member_dim="number", issorted=False, weights=weights
    )
    np.testing.assert_allclose(result["crps"][1], peer, rtol=1e-12)


@pytest.mark.parametrize(
    "names",
    [
        {},
        {
            "time": "forecast_reference_time",
            "prediction_timedelta": "lead_time",
            "number": "member",
        },
        {
            "time": "init_time",
            "prediction_timedelta": "step",
            "number": "realization",
            "level": "isobaricInhPa",
            "latitude": "lat",
            "longitude": "lon",
        },
    ],
)
def test_dimensions_are_found_whatever_their_names_and_order(names):
    forecast = forecasts()
    expected = quiet(forecast, analyses(), RMSE, ("lead_time", "level"))["rmse"]
    other = forecast.rename(names).transpose()
    by = [names.get(dim, dim) for dim in ("prediction_timedelta", "level")]
    found = quiet(other, analyses(), RMSE, by)["rmse"]
    xarray.testing.assert_identical(found, expected)


def test_chunks_regions_and_blocks_change_nothing():
    forecast, truth = forecasts(), analyses()
    forecast = forecast.where(forecast > 240)
    settings = {"regions": {"tropics": (-30, 60, -30, 30)}, "blocks": "month"}
    whole = quiet(forecast, truth, SCORES, **settings)
    for chunks in (
        {"time": 2, "prediction_timedelta": 1},
        {"time": 3, "level": 1, "latitude": 2},
    ):
        pieces = quiet(
            forecast.chunk(chunks), truth.chunk(time=3), SCORES, memory=1, **settings
        )
        xarray.testing.assert_identical(pieces, whole)


def test_blocks_of_time_are_kept_apart_and_merge():
    forecast, truth = forecasts(np.float64), analyses(np.float64)
    whole = quiet(forecast, truth, RMSE)
    start = forecast["time"].values
    for blocks, labels, sizes in (
        (2, start[::2], [2, 2, 1]),
        ("month", np.array(["2020-01", "2020-02"], "M8[ns]"), [4, 1]),
        ("day", np.array(["2020-01-30", "2020-01-31", "2020-02-01"], "M8[ns]"), None),
    ):
        result, states = scorecard_states(
            forecast, truth, RMSE, blocks=blocks, progress=False
        )
        assert result["rmse"].dims == ("block", "lead_time")
        np.testing.assert_array_equal(result["block"], labels)
        if sizes:
            counts = np.array(sizes)[:, None] * LEVELS * 40 * np.ones(LEADS)
            np.testing.assert_array_equal(result["count"], counts)
        state = states["temperature"]["rmse"]
        parts = [jax.tree.map(lambda x, i=i: x[i], state) for i in range(len(labels))]
        merged = parts[0]
        for part in parts[1:]:
            merged = scores.RMSE().merge(merged, part)
        np.testing.assert_allclose(
            scores.RMSE().finalize(merged), whole["rmse"], rtol=1e-12
        )
    named = quiet(forecast, truth, RMSE, blocks=forecast["time"].dt.hour)
    assert named["rmse"].dims == ("hour", "lead_time")
    assert named["hour"].values.tolist() == [0, 12]
    each = quiet(forecast, truth, RMSE, ("lead_time", "time"))
    assert each["rmse"].dims == ("lead_time", "forecast_reference_time")
    alone = quiet(forecast[3:4], truth, RMSE)
    np.testing.assert_allclose(each["rmse"][:, 3], alone["rmse"], rtol=1e-12)


def test_kept_axes_are_scored_one_by_one_where_they_do_not_fit(monkeypatch):
    forecast, truth = forecasts(), analyses()
    settings = {"by": ("lead_time", "level"), "regions": {"all": (0, 360, -90, 90)}}
    whole = quiet(forecast, truth, SCORES, **settings)
    monkeypatch.setattr("skyens.data._pieces._UNIT", MEMBERS * 40)
    for chunks in ({"level": 1}, {"level": 2}):
        single = quiet(forecast.chunk(chunks), truth, SCORES, **settings)
        xarray.testing.assert_allclose(single, whole, rtol=1e-6)


def test_a_dataset_has_its_variables_as_a_dimension():
    forecast = xarray.Dataset({"t": forecasts(), "u": forecasts(seed=5)})
    forecast["u"].attrs["units"] = "m s**-1"
    truth = xarray.Dataset({"u": analyses(seed=6), "t": analyses(), "v": analyses()})
    truth["u"].attrs["units"] = "m/s"
    result = quiet(forecast, truth, RMSE)
    assert result["rmse"].dims == ("variable", "lead_time")
    assert result["units"].values.tolist() == ["K", "m s**-1"]
    alone = quiet(forecast["u"], truth["u"], RMSE)
    np.testing.assert_array_equal(result["rmse"].sel(variable="u"), alone["rmse"])
    with pytest.raises(ValueError, match=r"`truth` has no variable 'u'"):
        quiet(forecast, truth[["t"]], RMSE)
    surface = forecast.assign(u=forecast["u"].isel(level=0, drop=True))
    truth["u"] = truth["u"].isel(level=0, drop=True)
    with pytest.raises(ValueError, match=r"`u` to keep, 'level' is none.*scored apart"):
        quiet(surface, truth, RMSE, ("lead_time", "level"))
    late = forecast.assign(u=forecast["u"].isel(prediction_timedelta=0, drop=True))
    late["u"] = late["u"].isel(level=0, drop=True)
    with pytest.raises(ValueError, match=r"`t` keeps .*and `u` \(\).*Score them apart"):
        quiet(late, truth, RMSE)


def test_missing_values_are_left_out_and_counted():
    forecast, truth = forecasts(np.float64), analyses(np.float64)
    forecast[1, 0, 2] = np.nan  # a member of 2 x 40 points
    forecast[2, 1, :, 0, 0] = np.inf  # all members of 8 points
    gap = forecast["time"].values[0] + forecast["prediction_timedelta"].values[0]
    truth.loc[{"time": gap, "level": 500, "latitude": 0}] = np.nan  # 8 points
    result = quiet(forecast, truth, SCORES)
    assert result["missing"].values.tolist() == [8, 8]
    assert result["count"].values.tolist() == [STARTS * 80 - 8] * 2
    assert result["missing_members"].values.tolist() == [80, 0]
    x = forecast.where(np.isfinite(forecast)).values
    y = paired(forecast, truth)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        error = np.nanmean(x, axis=2) - y
    weights = np.where(np.isnan(error), 0, GRID.cell_areas[:, None])
    square = np.nansum(weights * error**2, axis=(0, 2, 3, 4))
    expected = np.sqrt(square / weights.sum((0, 2, 3, 4)))
    np.testing.assert_allclose(result["rmse"], expected, rtol=1e-12)


def test_what_nothing_is_known_of_is_nan_and_reported_once():
    forecast, truth = forecasts(), analyses()
    forecast[:, 1] = np.nan
    with pytest.warns(UserWarning, match="1 of 2 values of 'rmse', 5 of 10 .*'ranks'"):
        result = quiet(forecast, truth, RMSE | {"ranks": SCORES["ranks"]})
    assert np.isfinite(result["rmse"][0])
    assert np.isnan(result["rmse"][1])
    assert np.isnan(result["ranks"][1]).all()
    assert result["count"].values.tolist() == [STARTS * 80, 0]
    assert result["missing"].values.tolist() == [0, STARTS * 80]
    assert result.attrs["not_a_number"] == 6


def test_valid_times_that_truth_lacks_raise_or_count():
    forecast, truth = forecasts(), analyses()
    early = truth.sel(time=slice(None, "2020-02-01T00"))
    with pytest.raises(ValueError, match=r"lacks 2 of the 6 .* first 2020-02-01T12:00"):
        quiet(forecast, early, RMSE)
    result = quiet(forecast, early, RMSE, allow_missing=True)
    assert result["missing"].values.tolist() == [80, 160]
    expected = quiet(forecast[:-2], truth, RMSE)["rmse"][1]
    np.testing.assert_array_equal(result["rmse"][1], expected)


def test_truth_may_be_at_starts_and_lead_times():
    forecast, truth = forecasts(), analyses()
    same = forecast.isel(number=0, drop=True).copy(data=paired(forecast, truth))
    expected = quiet(forecast, truth, RMSE)
    xarray.testing.assert_identical(quiet(forecast, same, RMSE), expected)
    with pytest.raises(ValueError, match=r"`lead_time` at index 0 is 12 h in `fo.* 24"):
        quiet(forecast, same.isel(prediction_timedelta=[1, 0]), RMSE)
    late = same.assign_coords(time=same["time"] + np.timedelta64(1, "h"))
    with pytest.raises(ValueError, match=r"`forecast_reference_time` at index 0 is"):
        quiet(forecast, late, RMSE)


def test_a_climatology_is_given_by_name():
    forecast, truth = forecasts(np.float64), analyses(np.float64)
    statistic = {"acc": scores.AnomalyCorrelation(), "rmse": scores.RMSE()}
    fixed = truth.mean("time", keep_attrs=True)
    calendar = fixed.expand_dims(dayofyear=np.arange(1, 367), hour=[0, 12])
    calendar = calendar * xarray.ones_like(calendar["dayofyear"], float)
    for climatology in (fixed, calendar.assign_attrs(units="K")):
        given = {"acc": {"climatology": climatology}}
        result = quiet(forecast, truth, statistic, arguments=given)
        f = forecast.values.mean(2) - fixed.values
        o = paired(forecast, truth) - fixed.values
        total = lambda x: (x * GRID.cell_areas[:, None]).sum((0, 2, 3, 4))
        expected = total(f * o) / np.sqrt(total(f**2) * total(o**2))
        np.testing.assert_allclose(result["acc"], expected, rtol=1e-10)
    hole = fixed.copy()
    hole[:, 2] = np.nan
    both = quiet(forecast, truth, statistic, arguments={"acc": {"climatology": hole}})
    np.testing.assert_array_equal(both["rmse"], result["rmse"])
    assert np.all(both["acc"] != result["acc"])
    with pytest.raises(ValueError, match=r"missing a required.*'climatology'"):
        quiet(forecast, truth, statistic)
    given = {"acc": {"climatology": fixed.assign_attrs(units="degC")}}
    with pytest.raises(ValueError, match="different units, 'K' and 'degC'"):
        quiet(forecast, truth, statistic, arguments=given)


def test_thresholds_of_each_point_lead():
    forecast, truth = forecasts(np.float64), analyses(np.float64)
    statistic = {"events": scores.Reliability(MEMBERS, thresholds=2)}
    cuts = truth.quantile([0.3, 0.7], "time").rename(quantile="threshold")
    given = {"events": {"thresholds": cuts.assign_attrs(units="K")}}
    result = quiet(forecast, truth, statistic, "lead_time", arguments=given)
    assert result["events_brier"].dims == ("lead_time", "threshold")
    assert result["events_count"].dims == ("lead_time", "threshold", "bin")
    y, cut = paired(forecast, truth), cuts.values[:, None, None]
    share = (forecast.values > cut[:, :, :, None]).mean(3)
    square = (share - (y > cut)) ** 2
    weights = np.broadcast_to(GRID.cell_areas[:, None], square.shape)
    expected = np.average(square, axis=(1, 3, 4, 5), weights=weights)
    np.testing.assert_allclose(result["events_brier"].T, expected, rtol=1e-10)
    fixed = scores.Reliability(MEMBERS, thresholds=(249.0, 251.0))
    labelled = quiet(forecast, truth, {"events": fixed})
    assert labelled["threshold"].values.tolist() == [249, 251]


def test_axes_of_scores_that_differ_have_names_of_their_own():
    forecast, truth = forecasts(), analyses()
    statistics = {
        "warm": scores.Reliability(MEMBERS, thresholds=(251.0, 252.0)),
        "cold": scores.Reliability(MEMBERS, thresholds=(248.0,), above=False),
        "quantiles": scores.QuantileQuantile((0.2, 0.5, 0.8), np.arange(230.0, 270)),
    }
    result = quiet(forecast, truth, statistics, "level")
    assert result["warm_brier"].dims == ("level", "threshold")
    assert result["cold_brier"].dims == ("level", "cold_threshold")
    assert result["cold_threshold"].values.tolist() == [248]
    assert result["quantiles_truth"].dims == ("level", "quantiles_level")
    assert result["quantiles_level"].values.tolist() == [0.2, 0.5, 0.8]
    assert result["quantiles_truth"].attrs["units"] == "K"


def test_states_go_into_the_bootstrap():
    forecast, truth = forecasts(np.float64), analyses(np.float64)
    result, states = scorecard_states(forecast, truth, RMSE, blocks=1, progress=False)
    samples = scores.bootstrap(
        scores.RMSE(),
        states["temperature"]["rmse"],
        key=jax.random.key(0),
        block_length=1.0,
        samples=50,
    )
    assert result["rmse"].shape == (STARTS, LEADS)
    whole = quiet(forecast, truth, RMSE)["rmse"]
    np.testing.assert_allclose(samples.value, whole, rtol=1e-12)
    assert samples.samples.shape == (50, LEADS)


def test_stations_count_equally_or_by_weights():
    forecast = forecasts(np.float64).isel(level=0, latitude=2, drop=True)
    truth = analyses(np.float64).isel(level=0, latitude=2, drop=True)
    names = np.array(list("abcdefgh"))
    station = lambda field: field.rename(longitude="station").assign_coords(
        station=names,
        latitude=("station", np.linspace(-70, 70, 8)),
        longitude=("station", np.linspace(0, 315, 8)),
    )
    forecast, truth = station(forecast), station(truth)
    valid = forecast["time"] + forecast["prediction_timedelta"]
    y = truth.sel(time=valid.values.ravel()).values.reshape(STARTS, LEADS, 8)
    square = (forecast.values.mean(2) - y) ** 2
    result = quiet(forecast, truth, RMSE, regions={"south": (0, 360, -90, 0)})
    expected = np.sqrt(square[..., :4].mean((0, 2)))
    np.testing.assert_allclose(result["rmse"][:, 0], expected, rtol=1e-12)
    weights = xarray.DataArray(np.arange(8.0), {"station": names}, "station")
    result = quiet(forecast, truth, RMSE, weights=weights)
    expected = np.sqrt(np.average(square.mean(0), axis=1, weights=np.arange(8)))
    np.testing.assert_allclose(result["rmse"], expected, rtol=1e-12)
    each = quiet(forecast, truth, RMSE, ("station", "lead_time"))
    np.testing.assert_allclose(each["rmse"].T, np.sqrt(square.mean(0)), rtol=1e-12)
    with pytest.raises(ValueError, match=r"`station` at index 0 is a .* and b in"):
        quiet(forecast, truth.isel(station=[1, 0, *range(2, 8)]), RMSE)


def test_analyses_have_no_lead_time_and_one_forecast_no_start():
    truth = analyses()
    guess = truth.copy(data=truth.values + 3)
    result = quiet(guess, truth, {"bias": scores.Bias()})
    assert result["bias"].dims == ()
    np.testing.assert_allclose(result["bias"], 3, rtol=1e-5)
    one = forecasts()[2, 1]  # its times are scalars
    result = quiet(one, truth, RMSE)
    expected = quiet(forecasts()[2:3], truth, RMSE)["rmse"][1:]
    np.testing.assert_array_equal(result["rmse"], expected)


def test_wrong_use_is_reported():
    forecast, truth = forecasts(), analyses()
    wrong = [
        ({"truth": truth.assign_attrs(units="degC")}, "units, 'K' and 'degC': convert"),
        ({"truth": truth[..., ::-1]}, "`longitude` at index 0 is 0 .* and 315 in `tr"),
        ({"truth": truth.isel(level=[0])}, "`level` has 2 values .* and 1 in `truth`"),
        ({"truth": truth.isel(level=0)}, r"must have the dimensions \['level', 'lat"),
        ({"truth": truth.isel(time=0, drop=True)}, "`truth` has no times"),
        ({"forecast": forecast[:0]}, "`temperature` is empty"),
        ({"forecast": forecast.astype(str)}, "must be numbers, got <U"),
        ({"by": ("lead_time", "height")}, "'height' is none of"),
        ({"by": "number"}, "'number' is none of"),
        ({"by": ("step", "lead_time")}, "names a dimension twice"),
        ({"by": "time", "blocks": 2}, "keeps each start .*leave out `blocks`"),
        ({"blocks": 0}, "`blocks` must be at least 1 start, got 0"),
        ({"blocks": "week"}, "'day', 'month', 'year', or labels .* got 'week'"),
        ({"scores": {}}, "at least one statistic"),
        ({"scores": {"rmse": scores.RMSE}}, "must be a statistic, .* got <class"),
        ({"scores": {"count": scores.RMSE()}}, "must not use the name 'count'"),
        ({"arguments": {"acc": {}}}, "'acc', which is not among `scores`"),
        ({"arguments": {"rmse": {"climate": truth}}}, "fit the update of RMSE"),
        ({"memory": 0}, "`memory` must be above 0"),
    ]
    usual = {"forecast": forecast, "truth": truth, "scores": RMSE}
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            scorecard(**(usual | {"progress": False} | change))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_forecasts():
    program = """
import resource, sys
import dask.array, numpy as np, xarray
from skyens import scores
from skyens.data import scorecard
n = int(sys.argv[1])
hours = np.timedelta64(1, "h").astype("m8[ns]")
time = np.datetime64("2020-01-01", "ns") + 6 * np.arange(n + 4) * hours
axes = {"latitude": np.linspace(-90, 90, 181), "longitude": np.arange(360.0)}
forecast = xarray.DataArray(
    dask.array.ones((n, 4, 10, 181, 360), "f4", chunks=(1, 1, 10, 181, 360)),
    {"time": time[:n], "lead_time": 6 * np.arange(4) * hours} | axes,
    ("time", "lead_time", "member", *axes))
truth = xarray.DataArray(
    dask.array.ones((n + 4, 181, 360), "f4", chunks=(1, 181, 360)),
    {"time": time} | axes, ("time", *axes))
scorecard(forecast, truth, {"crps": scores.CRPS()}, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    peak = [
        float(subprocess.check_output([sys.executable, "-c", program, str(n)]))
        for n in (12, 60)
    ]  # MB; all forecasts are 125 and 625
    assert peak[1] < peak[0] + 100


def test_fields_scored_as_a_whole_have_no_weights_within():
    forecast, truth = forecasts(np.float64), analyses(np.float64)
    spectra = scores.Spectra(sphere.SphericalHarmonics(GRID, lmax=2))
    energy = functools.partial(scores.energy_score, event_axes=(-2, -1))
    chosen = {
        "power": spectra,
        "energy": scores.MeanScore(energy, least=2, event_axes=2),
        "rmse": scores.RMSE(),
    }
    holed = forecast.copy()
    holed[1, 0, :, 1, 2, 3] = np.nan
    result = quiet(holed, truth, chosen, ("level", "lead_time"))
    x = jnp.asarray(np.moveaxis(forecast.values, 2, 0))
    y = jnp.asarray(paired(forecast, truth))
    state = spectra.update(spectra.init(), x[:, :, 1, 0], y[:, 1, 0])
    expected = spectra.finalize(state)
    np.testing.assert_allclose(result["power_error"][0, 1], expected.error, rtol=1e-10)
    here = jnp.array([0, 2, 3, 4])  # without the start that has a hole
    state = spectra.update(spectra.init(), x[:, here, 0, 1], y[here, 0, 1])
    np.testing.assert_allclose(
        result["power_spread"][1, 0], spectra.finalize(state).spread, rtol=1e-10
    )
    each = energy(x[:, :, 1, 0], y[:, 1, 0])
    np.testing.assert_allclose(result["energy"][0, 1], each.mean(), rtol=1e-12)
    plain = quiet(holed, truth, RMSE, ("level", "lead_time"))
    np.testing.assert_array_equal(result["rmse"], plain["rmse"])


def test_fields_scored_as_a_whole_must_be_whole_and_on_their_grid():
    forecast, truth = forecasts(), analyses()
    chosen = {"power": scores.Spectra(sphere.SphericalHarmonics(GRID, lmax=2))}
    with pytest.raises(ValueError, match="as a whole: leave out `regions`"):
        quiet(forecast, truth, chosen, regions={"east": (0, 180, -90, 90)})
    with pytest.raises(ValueError, match="not the grid of `forecast`"):
        quiet(forecast, truth, chosen, ("latitude",))
    turned = {"latitude": slice(None, None, -1)}
    with pytest.raises(ValueError, match="not the grid of `forecast`"):
        quiet(forecast.isel(turned), truth.isel(turned), chosen)
