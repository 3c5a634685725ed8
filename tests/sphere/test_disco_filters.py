import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from skyens.sphere import HarmonicFilters, HatFilters


def disc(count=200, radius=1.0, seed=0):
    rng = np.random.default_rng(seed)
    r, turn = radius * np.sqrt(rng.uniform(size=count)), rng.uniform(-4, 4, size=count)
    return r * np.cos(turn), r * np.sin(turn)


def test_harmonic_filters_are_windowed_waves():
    x, y = disc()
    values = HarmonicFilters(3, 4)(x, y)
    assert values.shape == (12, 200)
    window = np.cos(np.pi * np.hypot(x, y) / 2) ** 2
    np.testing.assert_allclose(values[0], window)
    east = np.sin(np.pi * x), np.cos(np.pi * x)
    north = np.sin(np.pi * y), np.cos(np.pi * y), np.sin(2 * np.pi * y)
    np.testing.assert_allclose(values[1], window * north[0])
    np.testing.assert_allclose(values[3], window * north[2])
    np.testing.assert_allclose(values[4], window * east[0])
    np.testing.assert_allclose(values[10], window * east[1] * north[1])


def test_a_hat_is_one_at_its_own_node_and_zero_at_the_others():
    rings, sectors = 4, 3
    r = np.repeat(np.arange(1, rings) / rings, sectors)
    turn = np.tile(np.arange(sectors) * 2 * np.pi / sectors, rings - 1)
    x = np.concatenate([[0.0], r * np.cos(turn)])
    y = np.concatenate([[0.0], r * np.sin(turn)])
    values = HatFilters(rings, sectors)(x, y)
    np.testing.assert_allclose(values, np.eye(1 + (rings - 1) * sectors), atol=1e-12)


def test_hats_are_linear_between_their_nodes():
    hats = HatFilters(2, 4)
    # Half way out between centre and ring, an eighth of a turn around.
    values = hats(
        np.array(0.25 * np.cos(np.pi / 4)), np.array(0.25 * np.sin(np.pi / 4))
    )
    np.testing.assert_allclose(values, [0.5, 0.25, 0.25, 0, 0], atol=1e-15)


@settings(deadline=None, max_examples=25)
@given(rings=st.integers(1, 5), sectors=st.integers(1, 7), seed=st.integers(0, 99))
def test_hats_are_never_negative_and_sum_to_one_up_to_the_last_ring(
    rings, sectors, seed
):
    hats = HatFilters(rings, sectors)
    values = hats(*disc(seed=seed))
    assert values.shape == (1 + (rings - 1) * sectors, 200)
    assert np.all(values >= 0)
    inner = hats(*disc(radius=1 - 1 / rings, seed=seed))
    np.testing.assert_allclose(inner.sum(0), np.ones(200))


@pytest.mark.parametrize("filters", [HarmonicFilters(3, 3), HatFilters(3, 4)])
def test_filters_vanish_on_the_rim_and_beyond_and_take_any_shape(filters):
    turn = np.linspace(0, 6, 20).reshape(4, 5)
    for r in (1.0, 1.3):
        values = filters(r * np.cos(turn), r * np.sin(turn))
        assert values.shape == (9, 4, 5)
        np.testing.assert_allclose(values, 0, atol=1e-15)


def test_wrong_use_is_reported():
    with pytest.raises(ValueError, match=r"`n_east` and `n_north`.*got 0 and 3"):
        HarmonicFilters(0, 3)
    with pytest.raises(ValueError, match=r"`rings` and `sectors`.*got 2 and 0"):
        HatFilters(2, 0)
