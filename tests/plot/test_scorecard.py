import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PatchCollection, QuadMesh

from skyens.plot import scorecard

ROWS = [("temperature", "500 hPa"), ("temperature", "850 hPa"), ("wind", "850 hPa")]
HOURS = np.array([24, 48])
REFERENCE = np.array([[2.0, 4], [10, 10], [-5, 5]])
CHANGE = np.array([[-10.0, 5], [0, np.nan], [20, -1]])  # percent
SCORE = REFERENCE + np.abs(REFERENCE) * CHANGE / 100


def colours(ax):
    (mesh,) = (c for c in ax.collections if isinstance(c, QuadMesh))
    mesh.update_scalarmappable()
    return np.asarray(mesh.get_facecolor()).reshape(3, 2, 4)


def test_numbers_are_relative_changes_and_blue_is_better(drawn):
    ax = scorecard(
        SCORE, REFERENCE, rows=ROWS, lead_time=HOURS, names=("new", "old"), title="CRPS"
    )
    texts = drawn(ax)
    minus = "\N{MINUS SIGN}"
    assert {f"{minus}10.0", "+5.0", "+0.0", "?", "+20.0", f"{minus}1.0"} <= set(texts)
    assert {"24", "48", "lead time (h)", "CRPS", "wind", "500 hPa"} <= set(texts)
    assert texts.count("temperature") == 1  # written once for its two rows
    assert "new against old: change in %, blue is better" in texts
    red, _, blue, _ = np.moveaxis(colours(ax), -1, 0)
    better, worse = CHANGE < -4, CHANGE > 4
    assert (blue[better] > red[better]).all()
    assert (red[worse] > blue[worse]).all()
    higher = scorecard(
        SCORE, REFERENCE, rows=ROWS, lead_time=HOURS, higher_is_better=True
    )
    red, _, blue, _ = np.moveaxis(colours(higher), -1, 0)
    assert (blue[worse] > red[worse]).all()
    assert (red[better] > blue[better]).all()
    assert "+20.0" in drawn(higher)  # the sign stays that of the change


def test_what_is_significant_is_framed_and_bold(drawn):
    sure = np.array([[True, False], [False, True], [False, False]])
    ax = scorecard(
        SCORE, REFERENCE, rows=ROWS, lead_time=HOURS, significant=sure, largest=100
    )
    assert any("framed is significant" in text for text in drawn(ax))
    (frames,) = (c for c in ax.collections if isinstance(c, PatchCollection))
    assert len(frames.get_paths()) == 1  # not the one that is not known
    bold = [text.get_text() for text in ax.texts if text.get_fontweight() == "bold"]
    assert "\N{MINUS SIGN}10.0" in bold
    assert "+5.0" not in bold


def test_many_columns_have_colours_alone(drawn):
    rng = np.random.default_rng(0)
    ax = scorecard(
        1 + rng.uniform(size=(2, 40)),
        np.ones((2, 40)),
        rows=["a", "b"],
        lead_time=6 * np.arange(40),
    )
    texts = drawn(ax)
    assert {"a", "b", "0", "12"} <= set(texts)
    assert "6" not in texts
    assert not ax.texts


def test_equal_systems_and_named_columns_can_be_drawn(drawn):
    axes = plt.subplots(figsize=(6, 3))[1]
    one = np.ones((1, 2))
    ax = scorecard(one, one, rows=["a"], lead_time=["day 1", "day 2"], ax=axes)
    assert ax is axes
    assert {"day 1", "+0.0"} <= set(drawn(ax))


def test_wrong_use_is_reported():
    usual = {"rows": ROWS, "lead_time": HOURS}
    with pytest.raises(ValueError, match=r"`rows` must hold 3 labels .* got 2"):
        scorecard(SCORE, REFERENCE, rows=ROWS[:2], lead_time=HOURS)
    with pytest.raises(ValueError, match=r"with \[1, 2\] parts"):
        scorecard(SCORE, REFERENCE, rows=[*ROWS[:2], "a"], lead_time=HOURS)
    with pytest.raises(ValueError, match="label the 2 columns, got 3"):
        scorecard(SCORE, REFERENCE, rows=ROWS, lead_time=np.arange(3))
    with pytest.raises(ValueError, match="nowhere"):
        scorecard(SCORE, 0 * SCORE, **usual)
    with pytest.raises(ValueError, match="`largest` must be above 0 percent, got 0"):
        scorecard(SCORE, REFERENCE, largest=0, **usual)
    with pytest.raises(ValueError, match=r"of one shape, got \(3, 2\) and \(2, 2\)"):
        scorecard(SCORE, REFERENCE[1:], **usual)
    with pytest.raises(ValueError, match=r"`significant` .* \(3, 2\), got \(2, 2\)"):
        scorecard(SCORE, REFERENCE, significant=np.ones((2, 2), bool), **usual)
