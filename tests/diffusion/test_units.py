import chex
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import nn
from skyens.diffusion import (
    EDM,
    ClassifierFree,
    Denoiser,
    DiagonalGaussianDenoiser,
    InUnits,
    Normalised,
    Preconditioned,
    ensemble_guidance,
    guide,
    sample,
    smc,
    split_gibbs,
)
from skyens.diffusion._checked import training_range
from skyens.observations import Diagonal, Observation

MEAN, STD = np.array([280.0, 250.0]), np.array([10.0, 5.0])
NORMALISER = nn.Normaliser(MEAN, STD)
SHAPE = (2, 1, 1)
STANDARD = DiagonalGaussianDenoiser(jnp.zeros(SHAPE), jnp.ones(SHAPE))
PRIOR = Normalised(STANDARD, NORMALISER.inverse, "K")
# The second channel alone is seen, 8 K above its mean, with an error of 5 K.
OBSERVATION = Observation(np.array([258.0]), lambda x: x[1, 0], Diagonal(5.0))


def test_a_prior_and_an_observation_in_kelvin_meet():
    assert isinstance(PRIOR, Denoiser)
    posterior = guide(PRIOR, InUnits(OBSERVATION, "K"))
    clean = NORMALISER.inverse(posterior(jnp.zeros(SHAPE), 1e6))
    # Both know as much: half of the departure. The noise leaves nothing to know from x.
    np.testing.assert_allclose(clean[:, 0, 0], [280.0, 254.0], rtol=1e-5)


def test_several_sources_and_a_second_guide_are_brought_along():
    stated = InUnits(OBSERVATION, "K")
    both = guide(PRIOR, [stated, stated])
    twice = guide(guide(PRIOR, stated), stated)
    at = lambda denoiser: denoiser(jnp.ones(SHAPE), 0.7)
    chex.assert_trees_all_close(at(both), at(twice), rtol=1e-6)
    clean = NORMALISER.inverse(both(jnp.zeros(SHAPE), 1e6))
    np.testing.assert_allclose(clean[1, 0, 0], 250 + 8 * 2 / 3, rtol=1e-5)


def test_it_is_the_denoiser_it_holds():
    ranged = lambda x, sigma, *, condition=None: x if condition is None else condition
    prior = Normalised(ranged, NORMALISER.inverse, ("K", "K"))
    chex.assert_trees_all_equal(prior(jnp.ones(2), 1.0), jnp.ones(2))
    told = prior(jnp.ones(2), 1.0, condition=jnp.zeros(2))
    chex.assert_trees_all_equal(told, jnp.zeros(2))
    trained = Preconditioned(ranged, sigma_min=0.1, sigma_max=9.0)
    ends = training_range(Normalised(trained, NORMALISER.inverse, "K"))
    assert ends == (0.1, 9.0)


def draws(prior, observation):
    """Yield what each sampler of a posterior draws, in few steps."""
    key, schedule = jr.key(0), EDM(0.02, 80.0)
    yield sample(guide(prior, observation), schedule, SHAPE, key=key, steps=2)
    yield split_gibbs(prior, schedule, observation, SHAPE, key=key, steps=2)
    yield ensemble_guidance(
        prior, schedule, observation, SHAPE, key=key, steps=2, members=3
    )
    yield smc(
        prior, schedule, observation, SHAPE, key=key, steps=2, particles=3
    ).samples


def test_every_sampler_sees_the_same_posterior_as_after_a_pullback():
    decoded = OBSERVATION.pullback(NORMALISER.inverse)
    ours, theirs = draws(PRIOR, InUnits(OBSERVATION, "K")), draws(STANDARD, decoded)
    for one, other in zip(ours, theirs, strict=True):
        chex.assert_trees_all_close(one, other, rtol=1e-12)


@pytest.mark.parametrize(
    ("prior", "observation", "message"),
    [
        (PRIOR, OBSERVATION, "normalised states, which decode to K, and `observation`"),
        (STANDARD, InUnits(OBSERVATION, "K"), "`denoiser` does not say"),
        (PRIOR, InUnits(OBSERVATION, "degC"), "in degC, and those of `denoiser` .* K"),
        (ClassifierFree(PRIOR), OBSERVATION, "give it as `InUnits"),
    ],
    ids=["unstated observation", "unstated prior", "other units", "wrapped prior"],
)
def test_units_that_do_not_meet_are_reported(prior, observation, message):
    with pytest.raises(ValueError, match=message):
        guide(prior, observation)
    with pytest.raises(ValueError, match=message):
        guide(prior, [observation])
    with pytest.raises(ValueError, match=message):
        split_gibbs(prior, EDM(), observation, SHAPE, key=jr.key(0))
    with pytest.raises(ValueError, match=message):
        ensemble_guidance(prior, EDM(), observation, SHAPE, key=jr.key(0))
    with pytest.raises(ValueError, match=message):
        smc(prior, EDM(), observation, SHAPE, key=jr.key(0), particles=3)


def test_units_must_be_named():
    with pytest.raises(ValueError, match="`units` must be named"):
        Normalised(STANDARD, NORMALISER.inverse, "")
    with pytest.raises(ValueError, match="`units` must be named"):
        InUnits(OBSERVATION, ())
