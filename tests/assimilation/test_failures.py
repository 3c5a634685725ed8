import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from skyens.assimilation import ETKF, Replace, cycle
from skyens.observations import Diagonal, Observation

KEY = jr.key(0)


def observe(value):
    return Observation(value, lambda state: state, Diagonal(1.0))


def bad_luck(state, forcing=None, *, key=None):
    """What is above 2 blows up, what is below -2 is lost."""
    return jnp.where(state > 2, 1e6, jnp.where(state < -2, jnp.nan, 0.9 * state))


def test_what_is_beyond_the_bound_or_not_finite_has_failed():
    members = jnp.zeros((5, 3)).at[1, 2].set(jnp.nan).at[2, 0].set(-11).at[3, 0].set(9)
    assert Replace(10.0).find(members).tolist() == [False, True, True, False, False]
    assert Replace().find(members).tolist() == [False, True, False, False, False]
    state = {"a": members, "clock": jnp.arange(5), "b": members[:, 0].astype(complex)}
    limit = {"a": jnp.asarray([20.0, 20.0, 20.0]), "clock": 0, "b": 8.0}
    expected = [False, True, True, True, False]
    assert Replace(limit).find(state).tolist() == expected


def test_the_healthy_stay_and_the_new_have_their_mean_and_covariance():
    generator = np.random.default_rng(1)
    members = generator.normal(size=(4000, 2)) @ [[2.0, 1.0], [0.0, 1.0]] + 5.0
    failed = np.arange(4000) >= 400
    members[failed] = np.nan
    for noise in (0.0, 0.5, 1.0):
        mended = Replace(noise=noise).replace(
            jnp.asarray(members), jnp.asarray(failed), key=KEY
        )
        np.testing.assert_array_equal(mended[:400], members[:400])
        healthy, new = members[:400], mended[400:]
        # 3600 draws: standard errors of the mean are 2/60, of variances 5 * 0.024.
        np.testing.assert_allclose(new.mean(0), healthy.mean(0), atol=0.15)
        np.testing.assert_allclose(np.cov(new.T), np.cov(healthy.T), atol=0.5)
        away = np.abs(new[:, None, 0] - healthy[None, :, 0]).min(1)
        assert np.all(away < 1e-12) == (noise == 0)


def test_linear_balances_and_integers_of_the_healthy_stay():
    x = jr.normal(jr.key(1), (6,), jnp.float32).at[2].set(jnp.inf)
    members = {"x": x, "y": 3 * x, "kind": jnp.asarray([7, 7, 9, 7, 7, 7])}
    failed = Replace().find(members)
    mended = Replace().replace(members, failed, key=KEY)
    np.testing.assert_allclose(mended["y"], 3 * mended["x"], rtol=1e-5)
    assert mended["x"].dtype == jnp.float32
    assert mended["kind"].tolist() == [7] * 6
    weights = jnp.asarray([0.0, 0.0, 0.5, 0.5, 0.0, 0.0])
    copy = Replace(noise=0.0).replace(members, failed, weights=weights, key=KEY)
    np.testing.assert_allclose(copy["x"][2], x[3], rtol=1e-6)


def test_with_nothing_failed_members_and_gradient_stay_bit_for_bit():
    members = jr.normal(KEY, (4, 3))
    none = jnp.zeros(4, bool)
    mend = lambda members, noise: Replace(noise=noise).replace(members, none, key=KEY)
    np.testing.assert_array_equal(mend(members, 1.0), members)
    total = lambda members, noise: jnp.sum(mend(members, noise))
    slope, other = jax.grad(total, (0, 1))(members, 1.0)
    np.testing.assert_array_equal(slope, jnp.ones((4, 3)))
    assert float(other) == 0


def test_a_cycle_replaces_counts_and_goes_on():
    ensemble = jnp.linspace(-1.0, 2.5, 8)[:, None]  # one is above 2
    data = jnp.zeros((3, 1))
    run = lambda failures: cycle(
        bad_luck, ETKF(), ensemble, observe, data, key=KEY, failures=failures
    )
    result = run(Replace(100.0))
    assert result.failed.tolist() == [1, 0, 0]
    assert np.isfinite(result.analyses).all()
    assert np.abs(result.backgrounds).max() < 10
    again = run(Replace(100.0))
    np.testing.assert_array_equal(result.analyses, again.analyses)
    assert run(None).failed is None


def test_members_that_failed_within_a_window_are_replaced_with_what_they_showed():
    # Two steps: what fails in the first was seen as 1e6 there.
    ensemble = jnp.linspace(-1.0, 2.5, 8)[:, None]
    seen = lambda method, **more: cycle(
        bad_luck,
        method,
        ensemble,
        observe,
        jnp.zeros((2, 2, 1)),
        key=KEY,
        steps_between=2,
        asynchronous=True,
        failures=Replace(100.0),
        **more,
    )
    shown = []

    def method(background, observation, *, key=None):
        predictions = observation.operator.predictions
        jax.debug.callback(lambda x: shown.append(np.asarray(x)), predictions)
        return background, None

    result = jax.block_until_ready(seen(method))
    jax.effects_barrier()
    assert result.failed.tolist() == [1, 0]
    assert np.abs(shown[0]).max() < 10
    # The step is linear where it is healthy, and so is the mixture.
    np.testing.assert_allclose(0.9 * shown[0][:, 0], shown[0][:, 1], rtol=1e-10)


def test_too_many_failures_say_how_many_and_when():
    ensemble = jnp.asarray([[0.1], [0.2], [-2.2], [2.2], [2.3], [2.4]])
    run = lambda failures: cycle(
        bad_luck,
        lambda background, observation, *, key=None: (background, None),
        ensemble,
        observe,
        jnp.zeros((3, 1)),
        key=KEY,
        failures=failures,
    )
    message = r"4 of 6 members failed in the forecast to analysis 0 .* 3 may"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        run(Replace(100.0))
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        eqx.filter_jit(run)(Replace(100.0))
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(jax.jit(lambda: run(Replace(100.0)))())
    assert run(Replace(100.0, most=1.0)).failed[0] == 4  # two are left


def test_the_error_names_the_first_time_and_passes_vmap_and_grad():
    grow = lambda state, forcing=None, *, key=None: 3 * state
    nothing = lambda background, observation, *, key=None: (background, None)

    def total(scale):
        ensemble = scale * jnp.asarray([[1.0], [1.1], [1.2]])
        result = cycle(
            grow,
            nothing,
            ensemble,
            observe,
            jnp.zeros((4, 1)),
            key=KEY,
            failures=Replace(50.0, most=0.0),
        )
        return jnp.sum(result.analyses)

    scales = jnp.asarray([0.1, 0.2])
    slope = jax.vmap(jax.grad(total))(scales)
    np.testing.assert_allclose(slope, 3.3 * (3 + 9 + 27 + 81), rtol=1e-12)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"3 of 3 .* to analysis 3"):
        total(1.0)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"`most` must lie in \[0, 1\], got 2"):
        Replace(most=2)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"`noise` must lie in \[0, 1\]"):
        Replace(noise=1.5)
    with pytest.raises(ValueError, match="one number or have the structure of the st"):
        Replace({"a": 1.0}).find(jnp.ones((2, 1)))
