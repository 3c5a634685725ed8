"""The errors of methods in twin experiments that others have published.

Ten seeds of each row of `benchmarks/assimilation_rows.py`: minutes in all, so they run
by `pytest -m published`.
"""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "assimilation_rows.py"
TABLE = runpy.run_path(str(FILE))
ROWS = TABLE["rows"]()
SEEDS = 10
name_of = lambda row: f"{row.setting.name}, {row.label}, {row.members}"


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Rows are scripts of users, who have JAX promote types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.published
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_the_median_error_is_the_published_one(row):
    errors = TABLE["errors"](row, SEEDS)
    assert np.median(errors) <= row.limit, np.round(errors, 3)


def test_limits_are_8_percent_above_the_larger_figure_or_the_range():
    for row in ROWS:
        if row.highest is None:
            larger = max(row.documented or 0, row.measured or 0)
            np.testing.assert_allclose(row.limit, 1.08 * larger)
        else:
            assert row.lowest < row.measured <= row.limit == row.highest
