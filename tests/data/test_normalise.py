import numpy as np
import pytest
import xarray

from skyens import sphere
from skyens.data import fit_normaliser, open_sample, to_arrays, to_xarray
from skyens.nn import Channels

CHANNELS = Channels(("geopotential_500", "temperature_850"), ("m2 s-2", "K"))


def test_the_fitted_sample_has_area_mean_0_and_standard_deviation_1():
    sample = open_sample("era5_eda")
    normalised = fit_normaliser(sample, CHANNELS)(to_arrays(sample, CHANNELS))
    # Oracle: cell areas between the latitudes half way, not the grid's own weights.
    edges = np.deg2rad(np.clip(np.arange(-91.5, 92, 3), -90, 90))
    area = np.diff(np.sin(edges)) / 2
    weights = np.broadcast_to(area[:, None] / (40 * 120), normalised[:, :, 0].shape)
    for i in range(2):
        mean = np.sum(weights * normalised[:, :, i])
        variance = np.sum(weights * (normalised[:, :, i] - mean) ** 2)
        assert abs(mean) < 2e-3
        assert abs(variance - 1) < 2e-3


def test_closed_form_statistics():
    # sin(latitude) has mean 0 and variance 1/3 over the sphere, exactly in quadrature.
    grid = sphere.gauss_legendre(6, 8)
    sine = np.sin(np.deg2rad(grid.latitude))[:, None] * np.ones(8)
    field = to_xarray(5.0 + 2.0 * sine, grid, name="temperature")
    normaliser = fit_normaliser(field.to_dataset(), Channels(("temperature",), ("K",)))
    np.testing.assert_allclose(normaliser.mean, [5], rtol=1e-12)
    np.testing.assert_allclose(normaliser.std, [2 / np.sqrt(3)], rtol=1e-12)


def test_kept_dimensions_have_their_own_statistics():
    sample = open_sample("era5_eda")
    field = sample["geopotential"].sel(level=500).values
    by_row = fit_normaliser(sample, CHANNELS, keep=("latitude",))
    assert by_row.mean.shape == (2, 61)
    np.testing.assert_allclose(by_row.mean[0], field.mean((0, 1, 3)), rtol=1e-12)
    some = sample.isel(latitude=slice(None))
    by_point = fit_normaliser(some, CHANNELS, keep=("latitude", "longitude"))
    np.testing.assert_allclose(by_point.std[0], field.std((0, 1)), rtol=1e-9)


def test_float32_fields_lose_no_digits():
    grid = sphere.equiangular(9, 16)
    noise = np.random.default_rng(0).normal(size=(50, 9, 16))
    values = (5e5 + noise).astype(np.float32)
    coordinates = {"time": np.arange(50)}
    field = to_xarray(values, grid, coordinates, name="geopotential")
    channels = Channels(("geopotential",), ("m2 s-2",))
    std = fit_normaliser(field.to_dataset(), channels).std
    wide = fit_normaliser(field.astype(np.float64).to_dataset(), channels).std
    np.testing.assert_allclose(std, wide, rtol=1e-12)


def test_wrong_use_is_reported():
    sample = open_sample("era5_eda")
    with pytest.raises(ValueError, match=r"`keep` must be .* got \('time',\)"):
        fit_normaliser(sample, CHANNELS, keep=("time",))
    broken = sample.copy(deep=True)
    broken["temperature"][0, 0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"`temperature` has 1 of .* not finite"):
        fit_normaliser(broken, CHANNELS)
    same = xarray.full_like(sample, 7.0)
    with pytest.raises(ValueError, match="`geopotential_500` cannot be normalised: 1"):
        fit_normaliser(same, CHANNELS)
