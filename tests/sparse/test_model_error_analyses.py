import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import assimilation as da
from skyens.dynamics import KuramotoSivashinsky, rollout
from skyens.observations import Diagonal, Observation
from skyens.sparse import (
    Simpson,
    SpectralDerivative,
    backward_path,
    compress,
    elbow,
    model_error_pairs,
    polynomials,
)

SIZE, LENGTH, DT, NOISE = 128, 50.0, 0.5, 0.05
TIMES, BURN_IN, MEMBERS = 140, 20, 40
WORLD = {"uux": 1.0, "uxx": 1.0, "uxxxx": 1.0}
TERMS = {"uux": "u u_x", "uxx": "u_xx", "uxxxx": "u_xxxx"}
LIBRARY = polynomials(SpectralDerivative(LENGTH))


class Steps(eqx.Module):
    """Four short steps as one."""

    world: KuramotoSivashinsky

    def __call__(self, state, forcing=None, *, key=None):
        return rollout(self.world, state, 4)[-1]


def build(dt, terms):
    return Steps(KuramotoSivashinsky(SIZE, LENGTH, dt / 4, **terms))


def spectrum(fields):
    """Variance of each wave, as that of white noise of variance 1 is 1."""
    return np.mean(np.abs(np.fft.rfft(fields)) ** 2, axis=0) / SIZE


@eqx.filter_jit
def sparse_fit(pairs):
    return elbow(backward_path(compress(pairs.matrix, pairs.values))).mean


@eqx.filter_jit
def analyses(step, errors, ensemble, data, std, key):
    """The means of an ensemble transform Kalman filter that knows its model errs."""
    observe = lambda value: Observation(value, lambda state: state, Diagonal(std))
    method = da.Inflated(da.ETKF(1.05), before=da.Additive(errors))
    mean = lambda ensemble: jnp.mean(ensemble, axis=0)
    return da.cycle(
        step, method, ensemble, observe, data, key=key, reduce=mean
    ).analyses


def found_from_analyses(model, seed):
    """Coefficients from noisy data alone: smoothed, then analysed and observed."""
    rng = np.random.default_rng(seed)
    x = 2 * np.pi / SIZE * np.arange(SIZE)
    start = np.cos(x) * (1 + np.sin(2 * x)) + 0.1 * rng.normal(size=SIZE)
    nature = build(DT, WORLD)
    truth = eqx.filter_jit(rollout)(nature, jnp.asarray(start), 200 + TIMES)[199:]
    std = float(NOISE * np.std(truth))
    data = jnp.asarray(truth + std * rng.normal(size=truth.shape))

    # A Wiener filter, and a first equation.
    power = spectrum(data)
    last = np.flatnonzero(power > 2 * std**2).max()
    alive = np.arange(len(power)) <= last
    weight = np.maximum(1 - std**2 / power, 0) * alive
    smooth = jnp.asarray(np.fft.irfft(weight * np.fft.rfft(data), SIZE))
    step, rule = build(DT, model), Simpson(build(DT / 2, model))
    pairs = slice(BURN_IN, -1, 2), slice(BURN_IN + 1, None, 2)
    regression = lambda states, **given: model_error_pairs(
        step,
        states[pairs[0]],
        states[pairs[1]],
        LIBRARY,
        dt=DT,
        quadrature=rule,
        **given,
    )
    first = dict(zip(LIBRARY.names, sparse_fit(regression(smooth)), strict=True))

    # Analyses with the model that it makes, whose errors are what its steps from the
    # smoothed states are off by, less what these states and the data are.
    better = {n: model[n] - float(first[TERMS[n]]) for n in TERMS}
    step_better = build(DT, better)
    off = spectrum(data[1:] - jax.vmap(step_better)(smooth[:-1]))
    left = np.where(alive, np.maximum(off - std**2 * (1 + weight), 1e-4 * std**2), 0)
    profile = np.fft.irfft(np.sqrt(left), SIZE)
    errors = jnp.asarray(np.stack([np.roll(profile, i) for i in range(SIZE)]))
    ensemble = smooth[:1] + 0.5 * std * rng.normal(size=(MEMBERS, SIZE))
    means = analyses(step_better, errors, ensemble, data[1:], std, jr.key(seed))
    states = jnp.concatenate([smooth[:1], means])
    rms = lambda fields: float(np.sqrt(np.mean((fields - truth)[BURN_IN:] ** 2)))
    again = sparse_fit(regression(states, observed=data[pairs[1]]))
    named = dict(zip(LIBRARY.names, again.tolist(), strict=True))
    return named, rms(states) / rms(smooth)


@pytest.mark.published
@pytest.mark.parametrize("lacks", [{"uxx": 0.0}, {"uux": 0.0}, {"uxxxx": 0.5}], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_an_ensemble_kalman_analysis_of_noisy_data_tells_what_is_missing(lacks, seed):
    model = WORLD | lacks
    coefficients, better = found_from_analyses(model, seed)
    assert better < 0.8  # the analyses are nearer the truth than smoothed data
    true = {TERMS[n]: model[n] - WORLD[n] for n in lacks}
    assert {n for n, value in coefficients.items() if value} == set(true)
    for name, value in true.items():
        assert abs(coefficients[name] - value) < 0.05 * abs(value)
