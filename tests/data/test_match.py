import numpy as np
import pytest
import xarray

from skyens.data._match import same_units, units_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("m2 s-2", "m**2 s**-2"),
        ("m2 s-2", "s^-2 m^2"),
        ("m s-1", "m/s"),
        ("K", "Kelvin"),
        ("degC", "celsius"),
        ("kg m-2 s-1", "kg/m2/s"),
        ("1", ""),
        ("kg kg-1", "1"),
    ],
)
def test_spellings_of_the_same_units_are_equal(one, other):
    assert units_key(one) == units_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("K", "degC"), ("m", "m2"), ("Pa", "hPa"), ("10 m", "m"), ("m s-1", "m s-2")],
)
def test_other_units_are_not(one, other):
    forecast, truth = (
        xarray.DataArray(np.zeros(1), attrs={"units": units}) for units in (one, other)
    )
    with pytest.raises(ValueError, match=f"'{one}' and '{other}': convert"):
        same_units(forecast, truth, "truth")
    del truth.attrs["units"]
    same_units(forecast, truth, "truth")
