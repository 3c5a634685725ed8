import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

from skyens import scores
from skyens.plot import economic_value, reliability, roc

PROBABILITY = np.arange(6) / 5
COUNT = np.array([500.0, 200, 100, 0, 100, 200])
TABLE = PROBABILITY, np.array([0.1, 0.25, 0.35, 0.0, 0.7, 0.8]), COUNT


def line(ax, label):
    (found,) = (line for line in ax.get_lines() if line.get_label() == label)
    return np.stack(found.get_data())


def test_a_reliability_diagram_shows_bins_with_cases_and_their_share(drawn):
    ax = reliability({"raw": TABLE, "other": TABLE}, title="Rain")
    texts = set(drawn(ax))
    assert {"raw", "other", "reliable", "no skill", "climate", "Rain"} <= texts
    assert {"forecast probability", "observed frequency", "90 % of reliable"} <= texts
    seen = COUNT > 0
    np.testing.assert_array_equal(line(ax, "raw"), np.stack(TABLE[:2])[:, seen])
    (inset,) = ax.child_axes
    share = inset.get_lines()[0].get_ydata()
    np.testing.assert_allclose(share, COUNT[seen] / COUNT.sum())
    climate = np.average(TABLE[1], weights=COUNT)
    np.testing.assert_allclose(line(ax, "climate")[1], climate)
    np.testing.assert_allclose(
        line(ax, "no skill")[1], [climate / 2, climate / 2 + 0.5]
    )


@pytest.mark.parametrize("cases", [None, 220])
def test_bands_hold_90_percent_of_reliable_forecasts(cases):
    ax = reliability({"raw": TABLE}, cases=cases, climate=0.3)
    (bars,) = (c for c in ax.collections if c.get_label() == "90 % of reliable")
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    number = COUNT[COUNT > 0] * (1 if cases is None else cases / COUNT.sum())
    at = PROBABILITY[COUNT > 0]
    # Oracle: the exact binomial quantiles; one case more or less for the drawing.
    expected = stats.binom.ppf([[0.05], [0.95]], number, at) / number
    np.testing.assert_allclose(ends.T, expected, atol=1.01 / number.min())
    np.testing.assert_array_equal(ends[[0, -1]], [[0, 0], [1, 1]])


def test_statistics_go_straight_into_diagrams(drawn):
    rng = np.random.default_rng(0)
    members, truth = rng.normal(size=(8, 400)), rng.normal(size=400)
    members += 0.7 * truth
    cost_loss = np.geomspace(0.02, 0.9, 9)
    settings = {"members": 8, "thresholds": (0.5,)}
    values = []
    for statistic in (
        scores.Reliability(**settings),
        scores.ROC(**settings),
        scores.EconomicValue(**settings, cost_loss=tuple(cost_loss)),
    ):
        state = statistic.init((), jnp.float64)
        state = statistic.update(state, jnp.asarray(members), jnp.asarray(truth))
        value = statistic.finalize(state)
        values.append(type(value)(*(field[0] for field in value)))
    table, curve, worth = values
    drawn(reliability({"raw": table}))
    texts = drawn(roc({"raw": curve, "again": curve}))
    assert {f"raw ({float(curve.area):.2f})", "no skill (0.50)"} <= set(texts)
    ax = economic_value(cost_loss, {"raw": worth.envelope}, title="Value")
    assert {"cost / loss", "relative economic value", "0.1", "Value"} <= set(drawn(ax))
    np.testing.assert_array_equal(line(ax, "raw"), [cost_loss, worth.envelope])
    assert ax.get_ylim() == (0, 1)


def test_diagrams_share_axes_of_the_user(drawn):
    figure, axes = plt.subplots(1, 3, figsize=(9, 3))
    curve = np.array([0.0, 0.8, 1]), np.array([0.0, 0.3, 1]), 0.75
    assert reliability({"a": TABLE}, ax=axes[0]) is axes[0]
    assert roc({"a": curve}, ax=axes[1]) is axes[1]
    ratios = np.array([0.1, 0.5])
    assert economic_value(ratios, {"a": ratios}, ax=axes[2]) is axes[2]
    drawn(figure)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match="at least one table"):
        reliability({})
    with pytest.raises(ValueError, match=r"must be \(probability, frequency, count\)"):
        reliability({"a": TABLE[:2]})
    with pytest.raises(ValueError, match=r"\[0\]` must be a vector .* got \(1, 6\)"):
        reliability({"a": tuple(part[None] for part in TABLE)})
    with pytest.raises(ValueError, match=r"`tables\['a'\]\[2\]` must have the 6 bins"):
        reliability({"a": (*TABLE[:2], COUNT[1:])})
    with pytest.raises(ValueError, match="finite, not negative and not all 0"):
        reliability({"a": (*TABLE[:2], 0 * COUNT)})
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got values from 0.* to 2"):
        reliability({"a": (2 * PROBABILITY, *TABLE[1:])})
    with pytest.raises(ValueError, match="`cases` must be above 0, got 0"):
        reliability({"a": TABLE}, cases=0)
    with pytest.raises(ValueError, match="at least one curve"):
        roc({})
    with pytest.raises(ValueError, match=r"one threshold, got areas of shape \(2,\)"):
        roc({"a": (PROBABILITY, PROBABILITY, np.zeros(2))})
    with pytest.raises(ValueError, match="`cost_loss` must rise between 0 and 1"):
        economic_value(np.array([0.0, 0.5]), {})
    with pytest.raises(ValueError, match=r"`value\['a'\]` must have the 2 ratios"):
        economic_value(np.array([0.1, 0.5]), {"a": np.zeros(3)})
