import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens import scores
from skyens.assimilation import (
    ESMDA,
    ETKF,
    AgainstObservations,
    IEnKS,
    Inflated,
    Information,
    cycle,
    kalman_update,
)
from skyens.observations import Dense, Diagonal, Linear, Observation

KEY = jr.key(7)
COVARIANCE = np.array([[0.5, 0.2], [0.2, 0.4]])


def still(state, forcing=None, *, key=None):
    return state


def nothing(background, observation, *, key=None):
    return background, None


def linear_world(seed, times, steps):
    """A model, an ensemble, and values of each step with gaps, all small."""
    generator = np.random.default_rng(seed)
    model = jnp.asarray(np.linalg.qr(generator.normal(size=(3, 3)))[0] * 0.95)
    ensemble = jnp.asarray(generator.normal(size=(5, 3)))
    values = generator.normal(size=(times, steps, 2))
    values[1, 0, 1] = values[2, -1] = np.nan
    matrix = generator.normal(size=(2, 3))
    step = lambda state, forcing=None, *, key=None: model @ state
    return model, step, ensemble, jnp.asarray(values), matrix


@pytest.mark.parametrize("error", [Diagonal(0.7), Dense(COVARIANCE)])
def test_asynchronous_observations_are_those_of_the_whole_window(error):
    times, steps = 4, 3
    model, step, ensemble, values, matrix = linear_world(3, times, steps)
    observe = lambda value: Observation(value, Linear(matrix), error)
    result = jax.jit(
        lambda ensemble: cycle(
            step,
            ETKF(),
            ensemble,
            observe,
            values,
            key=KEY,
            steps_between=steps,
            asynchronous=True,
            diagnostics={"all": AgainstObservations(scores.Desroziers())},
        )
    )(ensemble)
    # The Kalman filter that analyses at each step ends in the same mean and covariance.
    mean, covariance = ensemble.mean(0), jnp.cov(ensemble.T)
    for analysis, window in zip(result.analyses, values, strict=True):
        for value in window:
            mean, covariance = model @ mean, model @ covariance @ model.T
            mean, covariance = kalman_update(mean, covariance, observe(value))
        np.testing.assert_allclose(analysis.mean(0), mean, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(np.cov(analysis.T), covariance, atol=1e-10)
    assert result.infos.used.tolist() == [6, 5, 4, 6]
    assert float(result.sums["all"]["weight"].value) == 21


def test_windows_of_one_after_another_are_the_filter_in_linear_chains():
    _, step, ensemble, values, matrix = linear_world(4, 6, 1)
    observe = lambda value: Observation(value, Linear(matrix), Diagonal(0.7))
    run = lambda method, **more: cycle(
        step,
        method,
        ensemble,
        observe,
        values[:, 0],
        key=KEY,
        steps_between=2,
        diagnostics={"info": Information(), "d": AgainstObservations(scores.CRPS())},
        **more,
    )
    filtered = run(ETKF())
    for window, shift in ((1, None), (4, 2), (3, 1)):
        method = IEnKS(step, steps_between=2)
        found = run(method, window=window, shift=shift)
        # The newest of a window knows all that a filter at its time does.
        newest = np.arange(window - 1, 6, window if shift is None else shift)
        for name in ("analyses", "backgrounds"):
            one, other = getattr(found, name), getattr(filtered, name)
            assert one.shape == other.shape
            if name == "analyses" or shift in (None, 1):
                place = newest if name == "analyses" else newest[1:]
                mean, exact = one[place].mean(1), other[place].mean(1)
                np.testing.assert_allclose(mean, exact, atol=1e-8)
                for a, b in zip(one[place], other[place], strict=True):
                    np.testing.assert_allclose(np.cov(a.T), np.cov(b.T), atol=1e-8)
        assert len(found.starts) == len(found.infos.used) == len(newest)
        # Each observation is used once.
        info = found.diagnostics["info"]
        assert int(info.used) == int(found.infos.used.sum()) == 12 - 3
        assert float(found.sums["d"]["weight"].value) == 12 - 3
    # Of the last, shifted by one, the next window starts one datum after its start.
    np.testing.assert_allclose(
        found.ensemble, jax.vmap(lambda x: step(step(x)))(found.starts[-1]), atol=1e-12
    )


def test_a_first_window_keeps_all_its_times():
    observe = lambda value: Observation(value, lambda state: state, Diagonal(1.0))
    count = lambda state, forcing=None, *, key=None: state + 1
    reset = lambda background, observations, *, key=None: (0 * background - 10, None)
    data = jnp.zeros((7, 1))
    run = lambda **more: cycle(
        count, reset, jnp.zeros((2, 1)), observe, data, key=KEY, **more
    )
    result = run(window=3, shift=2, reduce=lambda ensemble: ensemble[0, 0])
    # Starts at 0, 2 and 4; every analysis sets the start to -10.
    assert result.starts.tolist() == [-10, -10, -10]
    assert result.analyses.tolist() == [-9, -8, -7, -8, -7, -8, -7]
    assert result.backgrounds.tolist() == [1, 2, 3, -6, -5, -6, -5]
    assert float(result.ensemble[0, 0]) == -8


def test_windows_that_do_not_fit_are_reported():
    observe = lambda value: Observation(value, lambda state: state, Diagonal(1.0))
    run = lambda **more: cycle(
        still, nothing, jnp.ones((2, 3)), observe, jnp.ones((5, 3)), key=KEY, **more
    )
    with pytest.raises(ValueError, match="give its length as `window`"):
        run(shift=1)
    with pytest.raises(ValueError, match=r"`shift` must lie in \[1, 2\], the `window`"):
        run(window=2, shift=3)
    with pytest.raises(
        ValueError, match="5 data do not make windows of 2 with a shift"
    ):
        run(window=2)
    with pytest.raises(ValueError, match=r"must be 6 .* or observations lie outside"):
        run(window=6)
    with pytest.raises(ValueError, match="leave `asynchronous` and `forcings` out"):
        run(window=5, forcings=jnp.ones((5, 1)))
    run = lambda method, **more: cycle(
        still, method, jnp.ones((2, 3)), observe, jnp.ones((5, 3)), key=KEY, **more
    )
    method = IEnKS(still, steps_between=3)
    for each in (method, Inflated(method)):
        with pytest.raises(ValueError, match="has steps_between=3, the cycle 2"):
            run(each, window=5, steps_between=2)
        with pytest.raises(ValueError, match="IEnKS holds a step: give the length"):
            run(each, steps_between=3)
    for each in (ETKF(), Inflated(ETKF()), ESMDA(2)):
        with pytest.raises(ValueError, match="holds no step, so it knows no window"):
            run(each, window=5)
