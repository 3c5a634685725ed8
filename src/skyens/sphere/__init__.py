"""Geometry of the sphere: grids, spherical harmonics, interpolation, random fields."""

from skyens.sphere._grid import Grid as Grid
from skyens.sphere._grid import cell_centred as cell_centred
from skyens.sphere._grid import equiangular as equiangular
from skyens.sphere._grid import gauss_legendre as gauss_legendre
from skyens.sphere._harmonics import SphericalHarmonics as SphericalHarmonics
from skyens.sphere._points import great_circle_distance as great_circle_distance
from skyens.sphere._points import interpolate as interpolate
from skyens.sphere._random import AutoregressiveField as AutoregressiveField
from skyens.sphere._random import GaussianRandomField as GaussianRandomField
from skyens.sphere._random import from_real as from_real
from skyens.sphere._random import matern_spectrum as matern_spectrum
from skyens.sphere._random import (
    squared_exponential_spectrum as squared_exponential_spectrum,
)
from skyens.sphere._random import to_real as to_real
