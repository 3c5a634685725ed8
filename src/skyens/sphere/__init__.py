"""Geometry of the sphere: grids, spherical harmonics, interpolation, random fields."""

from skyens.sphere._coefficients import (
    from_real as from_real,
    pad as pad,
    scale_degrees as scale_degrees,
    to_real as to_real,
    truncate as truncate,
)
from skyens.sphere._disco import Disco as Disco
from skyens.sphere._disco_filters import (
    HarmonicFilters as HarmonicFilters,
    HatFilters as HatFilters,
)
from skyens.sphere._filters import (
    ExponentialFilter as ExponentialFilter,
    GaussianFilter as GaussianFilter,
    Hyperdiffusion as Hyperdiffusion,
    SpectralFilter as SpectralFilter,
    Truncation as Truncation,
    filter_field as filter_field,
)
from skyens.sphere._great_circle import (
    bearing as bearing,
    destination as destination,
    great_circle_distance as great_circle_distance,
    great_circle_path as great_circle_path,
)
from skyens.sphere._grid import (
    Grid as Grid,
    cell_centred as cell_centred,
    equiangular as equiangular,
    gauss_legendre as gauss_legendre,
)
from skyens.sphere._harmonics import SphericalHarmonics as SphericalHarmonics
from skyens.sphere._interpolation import Bicubic as Bicubic, Bilinear as Bilinear
from skyens.sphere._means import global_mean as global_mean, zonal_mean as zonal_mean
from skyens.sphere._neighbourhoods import cap_mean as cap_mean
from skyens.sphere._noise import (
    AutoregressiveField as AutoregressiveField,
    multiscale_noise as multiscale_noise,
)
from skyens.sphere._points import interpolate as interpolate
from skyens.sphere._radius import check_radius as check_radius
from skyens.sphere._random import (
    GaussianRandomField as GaussianRandomField,
    matern_spectrum as matern_spectrum,
    power_law_spectrum as power_law_spectrum,
    squared_exponential_spectrum as squared_exponential_spectrum,
)
from skyens.sphere._regrid import (
    Conservative as Conservative,
    Regridder as Regridder,
    Spectral as Spectral,
)
from skyens.sphere._sharded import ShardedHarmonics as ShardedHarmonics
from skyens.sphere._spectra import (
    coherence as coherence,
    cross_spectrum as cross_spectrum,
    degree_correlation as degree_correlation,
    degree_to_wavelength as degree_to_wavelength,
    kinetic_energy_spectrum as kinetic_energy_spectrum,
    power_spectrum as power_spectrum,
    wavelength_to_degree as wavelength_to_degree,
)
