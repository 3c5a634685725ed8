from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import ETKF
from skyens.diffusion import (
    EDM,
    GaussianDenoiser,
    Heun,
    Preconditioned,
    ensemble_guidance,
)
from skyens.diffusion._ensemble_guidance import Share
from skyens.observations import (
    Diagonal,
    Heteroscedastic,
    Linear,
    Observation,
    StudentT,
)

RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(3, 3)) / 3**0.5
COVARIANCE = FACTOR @ FACTOR.T + 0.1 * np.eye(3)
COVARIANCE = (COVARIANCE + COVARIANCE.T) / 2
MEAN, MATRIX = RNG.normal(size=3), RNG.normal(size=(2, 3))
STD = np.array([0.2, 0.5])
VALUE = MATRIX @ MEAN + RNG.normal(size=2)
PRIOR = GaussianDenoiser(jnp.asarray(MEAN), jnp.asarray(COVARIANCE))


def test_many_members_have_the_posterior_of_a_black_box():
    # NumPy behind a callback: there is no derivative to be had.
    numpy = lambda x: MATRIX @ np.asarray(x)
    shape = jax.ShapeDtypeStruct((2,), jnp.float64)
    look = lambda x: jax.pure_callback(numpy, shape, x, vmap_method="sequential")
    observation = Observation(VALUE, look, Diagonal(STD))
    run = lambda key: ensemble_guidance(
        PRIOR,
        EDM(0.02, 80.0),
        observation,
        (3,),
        key=key,
        members=1000,
        steps=18,
        inner=10,
    )
    samples = np.asarray(jax.jit(run)(jr.key(0)))
    gain = COVARIANCE @ MATRIX.T
    gain = gain @ np.linalg.inv(MATRIX @ gain + np.diag(STD**2))
    mean = MEAN + gain @ (VALUE - MATRIX @ MEAN)
    deviation = np.sqrt(np.diag(COVARIANCE - gain @ MATRIX @ COVARIANCE))
    # Chance is 0.03 deviations; the flow is followed in few steps.
    assert (np.abs(samples.mean(0) - mean) < 0.3 * deviation).all()
    assert (np.abs(samples.std(0) / deviation - 1) < 0.2).all()


def test_another_method_and_everything_masked_leave_the_prior():
    observation = Observation(np.full(2, np.nan), Linear(MATRIX), Diagonal(STD))
    run = lambda key: ensemble_guidance(
        PRIOR,
        EDM(0.02, 80.0),
        observation,
        (3,),
        key=key,
        members=1000,
        analyse=ETKF(),
        steps=18,
        inner=2,
        dtype=jnp.float32,
    )
    samples = np.asarray(jax.jit(run)(jr.key(0)))
    assert samples.dtype == np.float32
    deviation = np.sqrt(np.diag(COVARIANCE))
    assert (np.abs(samples.mean(0) - MEAN) < 0.15 * deviation).all()
    assert (np.abs(samples.std(0) / deviation - 1) < 0.1).all()


def test_a_share_is_the_errors_law_to_a_power():
    mask, residual = jnp.asarray([True, False]), jnp.asarray([0.3, 7.0])
    share = Share(Diagonal(jnp.asarray(STD)), jnp.asarray(0.25))
    white = share.whiten(residual, mask)
    np.testing.assert_allclose(white, [0.5 * 0.3 / 0.2, 0], rtol=1e-14)
    whole = share.error.log_prob(residual, mask)
    np.testing.assert_allclose(share.log_prob(residual, mask), whole / 4, rtol=1e-14)
    assert share.independent
    draw = lambda key: share.sample(residual, key=key)
    errors = np.asarray(jax.vmap(draw)(jr.split(jr.key(0), 4000)))
    np.testing.assert_allclose(errors.std(0), 2 * STD, rtol=5 / 8000**0.5)


def test_laws_that_are_not_one_gaussian_are_asked_where_they_stand():
    mask, residual = jnp.ones(2, bool), jnp.asarray([0.3, 4.0])
    robust = Share(StudentT(0.5, 3.0), jnp.asarray(0.25)).gaussian(residual, mask)
    plain = robust.error.whiten(residual, mask)
    np.testing.assert_allclose(robust.whiten(residual, mask), plain / 2, rtol=1e-14)
    law = Heteroscedastic(lambda seen: Diagonal(0.1 + jnp.abs(seen)))
    there = Share(law, jnp.asarray(0.25)).at(jnp.asarray([1.0, 2.0]))
    white = there.whiten(residual, mask)
    np.testing.assert_allclose(white, [0.15 / 1.1, 2 / 2.1], rtol=1e-12)


def test_wrong_use_is_reported():
    observation = Observation(VALUE, Linear(MATRIX), Diagonal(STD))
    several: list[dict[str, Any]] = [{"members": 1}, {"inner": 1}, {"steps": 0}]
    for wrong in several:
        with pytest.raises(ValueError, match="`members` and `inner` must be at least"):
            ensemble_guidance(PRIOR, EDM(), observation, (3,), key=jr.key(0), **wrong)
    trained = Preconditioned(lambda x, level, *, condition=None: x, sigma_max=5.0)
    settings = {"sampler": Heun(churn=40.0), "members": 2, "steps": 2}
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"the first is 7\.07107"):
        ensemble_guidance(
            trained, EDM(0.1, 5.0), observation, (3,), key=jr.key(0), **settings
        )
