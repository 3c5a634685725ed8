import jax.numpy as jnp
import numpy as np
import pytest

from skyens.scores import EconomicValue, Exceedance, QuantileQuantile, Reliability
from skyens.scores._thresholds import check_thresholds


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ((), "at least one"),
        ((1.0, 1.0), r"increase.*\(1.0, 1.0\)"),
        ((2.0, 1.0), "increase"),
        ((0.0, np.nan), "finite"),
        (0, "at least 1; got 0"),
    ],
)
def test_thresholds_increase_and_are_finite(thresholds, message):
    for make in (lambda t: Reliability(3, t), Exceedance):
        with pytest.raises(ValueError, match=message):
            make(thresholds)


@pytest.mark.parametrize(
    ("fixed", "given", "message"),
    [
        ((1.0,), jnp.zeros(1), "those of the statistic"),
        (2, None, "must be given with each update: 2"),
        (2, jnp.zeros(3), r"lead with 2 thresholds.*\(3,\)"),
        (2, jnp.zeros((2, 1, 1, 5)), "at most the 2 axes"),
        (2, jnp.zeros((2, 4)), r"do not broadcast to what is scored, \(2, 5\)"),
    ],
)
def test_thresholds_of_an_update_fit_the_statistic_and_the_truth(fixed, given, message):
    stat = Exceedance(fixed)
    ensemble, truth = jnp.zeros((3, 2, 5)), jnp.zeros((2, 5))
    with pytest.raises(ValueError, match=message):
        stat.update(stat.init(), ensemble, truth, thresholds=given)


def test_numbers_come_as_integers_and_arrays_too():
    expected = (1.0, 2.0)
    for numbers in (1, 2), [1.0, 2], np.array([1, 2]), np.array([1, 2], np.float32):
        assert check_thresholds(numbers) == expected
        assert Reliability(3, numbers).counts.thresholds == expected
        assert Exceedance(numbers).thresholds == expected
        assert QuantileQuantile(np.array([0.5]), numbers).edges == expected
    users = EconomicValue(3, (1, 2), np.array([0.25, 0.5])).cost_loss
    assert users == (0.25, 0.5)
