import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.scores import Activity


@jax.jit
def activities(ensemble, truth, climatology, weights=None, where=None):
    stat = Activity()
    state = stat.update(
        stat.init(), ensemble, truth, weights, where, climatology=climatology
    )
    return stat.finalize(state)


def deviation(values, weights):
    weights = np.broadcast_to(weights, values.shape)
    mean = np.average(values, weights=weights)
    return np.sqrt(np.average((values - mean) ** 2, weights=weights))


def test_they_are_the_standard_deviations_of_numpy():
    rng = np.random.default_rng(0)
    ensemble, truth = rng.normal(size=(4, 3, 10)), rng.normal(size=(3, 10)) * 2 + 1
    climatology, weights = rng.normal(size=10) + 280, rng.random(10)
    found = activities(ensemble + 280, truth + 280, climatology, weights)
    anomalies = [x + 280 - climatology for x in (ensemble, ensemble.mean(0), truth)]
    expected = [deviation(x, weights) for x in anomalies]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-11)
    ratios = expected[0] / expected[2], expected[1] / expected[2]
    np.testing.assert_allclose(found[3:], ratios, rtol=1e-11)


def test_only_the_members_that_are_there_count():
    rng = np.random.default_rng(1)
    ensemble, truth = rng.normal(size=(4, 30)), rng.normal(size=30)
    where = rng.random((4, 30)) < 0.6
    found = activities(ensemble, truth, jnp.zeros(()), None, where)
    valid = where.sum(0)
    shares = where / np.maximum(valid, 1)
    mean = (ensemble * shares).sum(0)
    expected = (
        deviation(ensemble, shares),
        deviation(mean, valid > 0),
        deviation(truth, valid > 0),
    )
    np.testing.assert_allclose(found[:3], expected, rtol=1e-12)


def test_a_bias_is_no_activity():
    truth = jnp.array([1.0, 3.0, 5.0])
    found = activities(truth[None] + 7, truth, jnp.zeros(3))
    np.testing.assert_allclose(found, [*[np.sqrt(8 / 3)] * 3, 1, 1], rtol=1e-14)


def test_what_never_varies_has_no_activity_and_finite_gradients():
    total = lambda x: sum(activities(x, x[0], jnp.full(3, 0.1)))
    same = jnp.full((2, 3), 0.3)
    assert abs(total(same)) < 1e-7  # the root of what rounding leaves
    assert np.isfinite(jax.grad(total)(same)).all()


def test_a_climatology_of_another_grid_is_named():
    with pytest.raises(ValueError, match=r"`climatology` of shape \(7,\)"):
        activities(jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros(7))
