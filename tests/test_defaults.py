"""What users have who set nothing: float32, no type checks, NumPy's float64 arrays."""

import subprocess
import sys

SCRIPT = """
import jax
import jax.numpy as jnp
import numpy as np

from skyens import dynamics, observations, scores, sphere

grid = sphere.gauss_legendre(8, 16)
sht = sphere.SphericalHarmonics(grid, 5)
field = np.sin(np.deg2rad(grid.latitude))[:, None] * np.ones(grid.shape)
coefficients = np.asarray(sht.analysis(field), complex)
some = np.array([[1.0, 0.0, 2.0]])


def calls():
    regrid = sphere.Regridder(grid, sphere.equiangular(7, 12), sphere.Conservative())
    see = observations.SpectralInterpolate(grid, np.array([5.0]), np.array([9.0]))
    yield sht.gradient(field), sht.laplacian(field), sht.power_spectrum(field)
    yield sht.wind(field, field), sht.helmholtz(field, field), regrid(field)
    yield sht.vorticity_divergence(field, field), sht.synthesis(coefficients)
    yield sht.wind_synthesis(coefficients, coefficients)
    yield sphere.power_spectrum(coefficients).real, see(field)
    yield sphere.filter_field(sht, sphere.Truncation(3), field)
    yield sphere.global_mean(grid, field), sphere.zonal_mean(grid, field)
    yield dynamics.Lorenz63()(some[0]), dynamics.Lorenz96(size=4)(np.ones(4))
    yield observations.Linear(some)(some[0]), observations.Index(0)(some[0])
    yield scores.brier_score_probability(some / 2, some > 0)
    yield scores.log_score_binary(some / 2, some > 0)
    yield scores.log_score_categorical(np.eye(3), np.arange(3))
    yield scores.optimal_block_length(field[:, 0])


for result in jax.eval_shape(lambda: list(calls())):
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {np.dtype("float32")}

# Integers count as the numbers that they are.
assert sphere.global_mean(grid, np.eye(8, 16, dtype=int)) > 0
half = observations.Linear(np.array([[0.5]]))
assert half(np.array([1])) == 0.5
seen = observations.Observation(np.array([3]), half, observations.Diagonal(1.0))
assert seen.value.dtype == np.float32
dense = observations.Dense(np.array([[4, 0], [0, 1]]))
assert dense.covariance.dtype == np.float32
whole = dynamics.Lorenz63()(np.array([1, 2, 3]))
np.testing.assert_array_equal(whole, dynamics.Lorenz63()(jnp.array([1.0, 2.0, 3.0])))
"""


def test_numpy_and_integers_pass_without_a_warning():
    command = [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
