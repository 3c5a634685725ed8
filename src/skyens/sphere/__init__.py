"""Geometry of the sphere: grids, spherical harmonics, interpolation, random fields."""

from skyens.sphere._grid import (
    Grid as Grid,
    cell_centred as cell_centred,
    equiangular as equiangular,
    gauss_legendre as gauss_legendre,
)
from skyens.sphere._harmonics import SphericalHarmonics as SphericalHarmonics
from skyens.sphere._points import (
    great_circle_distance as great_circle_distance,
    interpolate as interpolate,
)
from skyens.sphere._random import (
    AutoregressiveField as AutoregressiveField,
    GaussianRandomField as GaussianRandomField,
    from_real as from_real,
    matern_spectrum as matern_spectrum,
    squared_exponential_spectrum as squared_exponential_spectrum,
    to_real as to_real,
)
