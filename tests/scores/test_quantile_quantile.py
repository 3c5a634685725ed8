import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skyens.scores import QuantileQuantile

LEVELS = (0.05, 0.5, 0.95)


def quantiles(edges, ensemble, truth, *more):
    stat = QuantileQuantile(LEVELS, edges)
    return stat.finalize(jax.jit(stat.update)(stat.init(), ensemble, truth, *more))


def test_quantiles_are_those_of_numpy_to_the_distance_of_edges():
    rng = np.random.default_rng(0)
    ensemble, truth = 2 * rng.normal(size=(3, 500)) + 1, rng.normal(size=500)
    edges = np.linspace(-8, 8, 65)
    found = quantiles(edges, ensemble, truth)
    for got, draws in (found.forecast, ensemble), (found.truth, truth):
        below = np.quantile(draws, LEVELS, method="lower")
        above = np.quantile(draws, LEVELS, method="higher")
        assert ((below - 0.25 <= got) & (got <= above + 0.25)).all()


def test_uniform_values_have_exact_quantiles_between_edges():
    draws = (np.arange(100) + 0.5) / 100
    found = quantiles((0.0, 0.25, 1.0), draws[None], draws)
    np.testing.assert_allclose(found.forecast, LEVELS, rtol=1e-13)
    np.testing.assert_allclose(found.truth, LEVELS, rtol=1e-13)


def test_dry_days_are_exact_and_what_is_outside_is_at_the_ends():
    rain = jnp.array([0.0] * 8 + [3.0, 99.0])
    found = quantiles((0.0, 2.0, 4.0), rain[None], rain)
    np.testing.assert_array_equal(found.truth, [0, 0, 4])


def test_weights_and_masks_count():
    rng = np.random.default_rng(1)
    draws = rng.integers(1, 4, (3, 200)).astype(float)
    weights, where = rng.random(200), rng.random((2, 200)) < 0.5
    where[0, ~where.any(0)] = True
    edges = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # whole numbers stand at edges
    found = quantiles(edges, draws[1:], draws[0], weights, where)
    expected = np.quantile(draws[0], LEVELS, weights=weights, method="inverted_cdf")
    # Right to the distance of the edges below each whole number.
    assert ((expected - 0.5 <= found.truth) & (found.truth <= expected)).all()
    members = np.where(where, weights / where.sum(0), 0).ravel()
    expected = np.quantile(
        draws[1:].ravel(), LEVELS, weights=members, method="inverted_cdf"
    )
    assert ((expected - 0.5 <= found.forecast) & (found.forecast <= expected)).all()


@pytest.mark.parametrize(
    ("levels", "edges", "message"),
    [
        ((), (0.0, 1.0), "`levels`.*at least one"),
        ((0.5, 0.5), (0.0, 1.0), "`levels` must increase"),
        ((0.0, 0.5), (0.0, 1.0), "between 0 and 1"),
        ((0.5,), (0.0,), "`edges`.*at least two"),
        ((0.5,), (1.0, 0.0), "`edges`.*increase"),
        ((0.5,), (0.0, np.inf), "`edges` must be finite"),
    ],
)
def test_wrong_use_is_reported(levels, edges, message):
    with pytest.raises(ValueError, match=message):
        QuantileQuantile(levels, edges)
