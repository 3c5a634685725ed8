import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Rectangle
from scipy import stats

from skyens.plot import quantile_quantile, rank_histogram, spectra, spread_skill

DEGREES = np.arange(20)


def test_spectra_are_drawn_over_positive_degrees(drawn):
    power = jnp.asarray(1e4 / (1.0 + DEGREES) ** 3, jnp.float32).at[7].set(0)
    curves = {"members": power, "truth": 2 * power}
    ax = spectra(DEGREES, curves, truth="truth", units="m2", title="Power")
    texts = drawn(ax)
    assert {"members", "truth", "Power", "power per degree (m$^{2}$)"} <= set(texts)
    assert {"1", "2", "5", "10"} <= set(texts)
    line = ax.get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata(), np.delete(DEGREES, [0, 7]))
    np.testing.assert_allclose(line.get_ydata()[0], 1e4 / 8)
    assert ax.get_lines()[1].get_color() == "#000000"


def test_spread_and_skill_share_a_colour(drawn):
    hours = np.array([12, 24, 36])
    spread = {"physics": np.array([20.0, 40, 60])}
    rmse = {"physics": jnp.array([22.0, 41, 57]), "control": np.array([26.0, 46, 68])}
    ax = spread_skill(hours, spread, rmse, units="m", title="20N-80N")
    texts = drawn(ax)
    assert {"physics", "control", "spread", "error of the mean"} <= set(texts)
    assert {"lead time (h)", "error and spread (m)", "12", "36"} <= set(texts)
    error, width, control = ax.get_lines()
    assert error.get_color() == width.get_color() != control.get_color()
    assert width.get_linestyle() == "--"
    np.testing.assert_array_equal(width.get_ydata(), spread["physics"])
    np.testing.assert_array_equal(control.get_ydata(), rmse["control"])
    assert ax.get_ylim()[0] == 0


@pytest.mark.parametrize("ranks", [2, 11, 101])
def test_bars_are_relative_and_the_band_holds_95_percent(drawn, ranks):
    counts = np.random.default_rng(1).binomial(500, 0.5, size=ranks)
    ax = rank_histogram(counts, title="36 h")
    assert {"rank of the truth among the members", "36 h"} <= set(drawn(ax))
    bars = [patch.get_height() for patch in ax.containers[0]]
    np.testing.assert_allclose(bars, counts * ranks / counts.sum())
    np.testing.assert_allclose(np.mean(bars), 1)
    low, high = band(ax)
    # Oracle: the exact binomial interval of a count, whole numbers apart.
    cases = counts.sum()
    exact = np.array(stats.binom.interval(0.95, cases, 1 / ranks)) * ranks / cases
    np.testing.assert_allclose([low, high], exact, atol=1.5 * ranks / cases)


def test_fewer_independent_cases_widen_the_band():
    ax = rank_histogram(np.full(11, 100), cases=110)
    low, high = band(ax)
    np.testing.assert_allclose((high - low) / 2, 1.96 * np.sqrt(10 / 110))


def test_quantiles_lie_on_the_diagonal_where_climates_agree(drawn):
    truth = np.array([0.0, 1, 3, 9])
    pairs = {"same": (truth, truth), "wet": (jnp.asarray(2 * truth), truth)}
    ax = quantile_quantile(pairs, units="mm", title="Rain")
    texts = drawn(ax)
    assert {"same", "wet", "the same climate", "Rain"} <= set(texts)
    assert {"quantiles of the truth (mm)", "quantiles of the forecasts (mm)"} <= set(
        texts
    )
    np.testing.assert_array_equal(ax.get_lines()[1].get_ydata(), 2 * truth)
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlim()[1] > 18
    drawn(quantile_quantile({"dry": (np.zeros(2), np.zeros(2))}))


def test_diagrams_share_axes_of_the_user(drawn):
    figure, axes = plt.subplots(1, 3, figsize=(9, 3))
    curves = {"a": np.ones(20)}
    assert spectra(DEGREES, curves, ax=axes[0]) is axes[0]
    one = {"a": np.ones(1)}
    assert spread_skill(np.array([12]), one, one, ax=axes[1]) is axes[1]
    assert rank_histogram(np.ones(3), ax=axes[2]) is axes[2]
    drawn(figure)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"`spectrum\['a'\]` must have the 20 degrees"):
        spectra(DEGREES, {"a": np.ones(19)})
    with pytest.raises(ValueError, match=r"`truth` must be one of \['a'\], got 'b'"):
        spectra(DEGREES, {"a": np.ones(20)}, truth="b")
    hours, one, two = np.array([12, 24]), {"a": np.ones(1)}, {"a": np.ones(2)}
    with pytest.raises(ValueError, match=r"`rmse\['a'\]` must have the 2 lead times"):
        spread_skill(hours, two, one)
    with pytest.raises(ValueError, match=r"lacks \['a'\]"):
        spread_skill(hours, two, {})
    with pytest.raises(ValueError, match=r"at least 2 ranks, got \(1,\)"):
        rank_histogram(np.ones(1))
    for counts in (np.zeros(3), np.array([1, -1, 2]), np.array([1, np.nan, 2])):
        with pytest.raises(ValueError, match="finite, not negative and not all 0"):
            rank_histogram(counts)
    with pytest.raises(ValueError, match="`cases` must be above 0, got 0"):
        rank_histogram(np.ones(3), cases=0)
    with pytest.raises(ValueError, match="at least one pair"):
        quantile_quantile({})
    with pytest.raises(ValueError, match=r"two vectors, got \(1, 3\)"):
        quantile_quantile({"a": (np.ones(3), np.ones((1, 3)))})
    with pytest.raises(ValueError, match=r"`quantiles\['a'\]` must have the 3 quan"):
        quantile_quantile({"a": (np.ones(2), np.ones(3))})
    with pytest.raises(ValueError, match=r"`quantiles\['a'\]` must be finite"):
        quantile_quantile({"a": (np.full(2, np.nan), np.ones(2))})


def band(ax):
    """Return the lower and the upper edge of the shaded band."""
    bars = set(ax.containers[0])
    (patch,) = (p for p in ax.patches if isinstance(p, Rectangle) and p not in bars)
    return patch.get_y(), patch.get_y() + patch.get_height()
